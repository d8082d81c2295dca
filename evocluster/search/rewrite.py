"""Operators that ask a model for a new rubric: one rewrites a parent's, one merges two parents'.

They hold the rubric's `{placeholders}` fixed, bound its length, and fail with a reason instead of keeping a
broken text. Only rubrics are shown to the model, never an example.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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

First: {first}
Second: {second}
New instruction:"""


def placeholders(text: str) -> frozenset[str]:
    """The `{names}` in a rubric."""
    return frozenset(PLACEHOLDER.findall(text))


def _kept(names: frozenset[str]) -> str:
    return f" and keep {', '.join(sorted(names))} exactly as written, braces included" if names else ""


async def _ask(space: Space, llm: LLM, model: str, text: str, rng: np.random.Generator) -> str:
    seed = int(rng.integers(2**31))
    settings = {"model": model, "temperature": TEMPERATURE, "max_tokens": MAX_TOKENS, "seed": seed}
    if space.abilities(model).chat:
        request = Request(messages=(Message(role="user", content=text),), purpose="rewrite", **settings)
    else:
        request = Request(prompt=text, stop=("\n\n",), purpose="rewrite", **settings)
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


def accepted(answer: str, old: Sequence[str], needed: frozenset[str], name: str) -> str:
    """The new rubric. Raises: OperatorFailed with what is wrong with it."""
    text = cleaned(answer)
    longest = min(MAX_CHARS, 400 + 4 * max(len(rubric) for rubric in old))
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


def _model(given: str | None, parent: Genome, name: str) -> str:
    model = given or parent.genes.get("model")
    if not model:
        raise OperatorFailed(f"{name}: no model to ask; set search.rewriter")
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
        text = REWRITE.format(way=way, kept=_kept(needed), rubric=rubric)
        answer = await _ask(space, llm, _model(self.model, parent, self.name), text, rng)
        return Child(space.fix({**parent.genes, "rubric": accepted(answer, [rubric], needed, self.name)}))


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
        text = MERGE.format(kept=_kept(needed), first=old[0], second=old[1])
        answer = await _ask(space, llm, _model(self.model, first, self.name), text, rng)
        return Child(space.fix({**first.genes, "rubric": accepted(answer, old, needed, self.name)}))
