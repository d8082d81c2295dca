"""Operators that ask a model for a new rubric: one rewrites a parent's, one merges two parents'.

They hold the rubric's `{placeholders}` fixed, bound its length, and fail with a reason instead of keeping a
broken text. Only rubrics and, where there is one, the memory are shown to the model, never an example.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evocluster.errors import OperatorFailed
from evocluster.llm.client import LLM, Message, Request
from evocluster.records import Genome, Json
from evocluster.search.operators import Child
from evocluster.search.space import Space

PLACEHOLDER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")
MAX_CHARS = 2000
TEMPERATURE = 0.7
MAX_TOKENS = 320

REWRITE = """Rewrite the instruction below so that a language model follows it better. {way}
Keep its meaning{kept}. Answer with the new instruction only.
{memory}
Instruction: {rubric}
New instruction:"""

WAYS = (
    "Say it shorter and plainer.",
    "Say more exactly what the answer must look like.",
    "Say it in other words.",
    "Name the distinctions that are easy to get wrong.",
    "Begin with what to do, then how to answer.",
)
"""How to rewrite; one is drawn, so that children of one parent differ."""

MERGE = """Merge the two instructions below into one that keeps what is good in each{kept}.
Answer with the new instruction only.
{memory}
First: {first}
Second: {second}
New instruction:"""


def placeholders(text: str) -> frozenset[str]:
    """The `{names}` in a rubric."""
    return frozenset(PLACEHOLDER.findall(text))


def kept(names: frozenset[str]) -> str:
    """What a request says of the placeholders that a new text must have; nothing where there are none."""
    return f" and keep {', '.join(sorted(names))} exactly as written, braces included" if names else ""


def remembered(hints: Mapping[str, Json]) -> str:
    """The memory as a paragraph of a prompt; '' where there is none."""
    return f"\nWhat was tried before, and what came of it:\n{hints['memory']}\n" if hints.get("memory") else ""


async def ask(
    space: Space,
    llm: LLM,
    model: str,
    text: str,
    rng: np.random.Generator,
    purpose: Literal["rewrite", "reflect"] = "rewrite",
    max_tokens: int = MAX_TOKENS,
    stop: str = "\n\n",
) -> str:
    """A model's answer to a text. `stop` ends what a model without chat writes. Raises: errors.ModelError."""
    seed = int(rng.integers(2**31))
    settings = {"model": model, "temperature": TEMPERATURE, "max_tokens": max_tokens, "seed": seed}
    if space.abilities(model).chat:
        request = Request(messages=(Message(role="user", content=text),), purpose=purpose, **settings)
    else:
        request = Request(prompt=text, stop=(stop,), purpose=purpose, **settings)
    return (await llm(request)).text


def cleaned(answer: str) -> str:
    """The instruction in an answer, without fences, quotes or a repeated heading."""
    text = answer.strip()
    fenced = re.fullmatch(r"```[a-z]*\n(.*?)\n?```", text, flags=re.DOTALL)
    text = fenced.group(1).strip() if fenced else text
    text = re.sub(r"^(the )?(new |merged )?instruction:\s*", "", text, flags=re.IGNORECASE)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


def accepted(answer: str, old: Sequence[str], needed: frozenset[str], name: str, longest: int | None = None) -> str:
    """The new rubric. `longest`: in characters; default: by the old ones.

    Raises: OperatorFailed with what is wrong with it.
    """
    text = cleaned(answer)
    longest = longest or min(MAX_CHARS, 400 + 4 * max(len(rubric) for rubric in old))
    if not text:
        raise OperatorFailed(f"{name}: the model gave an empty text")
    if text in old:
        raise OperatorFailed(f"{name}: the model gave the text back unchanged")
    if len(text) > longest:
        raise OperatorFailed(f"{name}: the new text has {len(text)} characters; allowed: {longest}")
    if placeholders(text) != needed:
        got, allowed = sorted(placeholders(text)), sorted(needed)
        raise OperatorFailed(f"{name}: the new text has the placeholders {got!r}; it must have {allowed!r}")
    return text


def asked(given: str | None, parent: Genome, name: str) -> str:
    """The model to ask. Raises: OperatorFailed where neither the settings nor the genome name one."""
    model = given or parent.genes.get("model")
    if not model:
        raise OperatorFailed(f"{name}: no model to ask; set search.reflector or search.rewriter")
    return str(model)


@dataclass(frozen=True)
class Rewrite:
    """A parent with its rubric rewritten by a model (`model`, or the genome's own)."""

    model: str | None = None
    name: str = "rewrite"
    arity: int = 1
    calls: int = 1
    needs: tuple[str, ...] = ()

    async def vary(
        self,
        space: Space,
        parents: Sequence[Genome],
        hints: Mapping[str, Json],
        llm: LLM,
        rng: np.random.Generator,
    ) -> Child:
        parent = space.fix(parents[0].genes)
        rubric = str(parent["rubric"])
        way = WAYS[int(rng.integers(len(WAYS)))]
        needed = placeholders(rubric)
        text = REWRITE.format(way=way, kept=kept(needed), rubric=rubric, memory=remembered(hints))
        answer = await ask(space, llm, asked(self.model, parent, self.name), text, rng)
        new = accepted(answer, [rubric], needed, self.name)
        return Child(space.fix({**parent.genes, "rubric": new}), {"change": f"Reworded: {way}"})


@dataclass(frozen=True)
class Merge:
    """The first parent with a rubric merged by a model from both parents'; equal rubrics are an error of this
    trial.
    """

    model: str | None = None
    name: str = "merge"
    arity: int = 2
    calls: int = 1
    needs: tuple[str, ...] = ()

    async def vary(
        self,
        space: Space,
        parents: Sequence[Genome],
        hints: Mapping[str, Json],
        llm: LLM,
        rng: np.random.Generator,
    ) -> Child:
        first, second = (space.fix(parent.genes) for parent in (parents[0], parents[-1]))
        old = [str(first["rubric"]), str(second["rubric"])]
        if old[0] == old[1]:
            raise OperatorFailed(f"{self.name}: both parents have the same rubric")
        needed = placeholders(old[0]) | placeholders(old[1])
        text = MERGE.format(kept=kept(needed), first=old[0], second=old[1], memory=remembered(hints))
        answer = await ask(space, llm, asked(self.model, first, self.name), text, rng)
        new = accepted(answer, old, needed, self.name)
        return Child(space.fix({**first.genes, "rubric": new}), {"change": "Merged with another instruction."})
