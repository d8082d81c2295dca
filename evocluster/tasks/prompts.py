"""Genes made into requests: what a program shows the model, the fixed part first and the input last.

A `Frame` is everything of a genome that does not depend on the example: `ask` adds the input, `conclude` the
second call after reasoning, `repair` what was wrong with a reply. The fixed part in front lets endpoints reuse their
prompt cache. Styles: `chat` (system, demos as turns, input), `inline` (all in one user message), `completion` (text, no
chat template). A rubric that says where the input stands (`{input}`, or fields of it) is the template of every
question instead, and nothing stands before it.
Few-shot prompting: Brown et al. 2020, section 2; step by step: Kojima et al. 2022.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import ascii_uppercase
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from evocluster.errors import ConfigError
from evocluster.llm.client import Message, Request
from evocluster.records import Example, Genome, Json, Record, digest
from evocluster.tasks.answers import Naming
from evocluster.tasks.documents import Passage
from evocluster.tasks.task import Task
from evocluster.tasks.words import nearest, plain

REASONING_TOKENS = 96
"""Tokens for thinking step by step, apart from `max_tokens`, which is for the answer."""
STEP_BY_STEP = 'Think step by step, then write the final answer after "Answer:".'
ONLY_ANSWER = "Give only the final answer."
PLACE = "{labels}"
"""What in a rubric is replaced by the label names."""
INPUT, CONTEXT = "input", "context"
"""Names that stand in a template for the whole input and for the retrieved passages."""
REPLY_SHOWN = 2000
"""Characters of a reply that is shown again to be corrected."""
_NAMED = re.compile(r"\{(\w+)\}")


class Genes(Record):
    """A genome as this program reads it. Every gene may be left out; unknown genes are for others."""

    model_config = ConfigDict(extra="ignore", strict=True)

    rubric: str = ""
    """The instruction. `{labels}` in it becomes the shown label names."""
    cot: bool = False
    """Think step by step first."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    max_tokens: int = Field(default=64, ge=1)
    """Of the answer."""
    model: str = "default"
    demos: tuple[str, ...] = ()
    """Ids of train examples, in the order shown."""
    demo_style: Literal["chat", "inline", "completion"] = "chat"
    constrain: bool = False
    """Only label names, or only JSON of the schema, may come out."""
    retriever_topk: int = Field(default=0, ge=0)
    """How many retrieved passages the question is asked with."""
    use_consensus: int | tuple[str, ...] = 1
    """How many samples vote on the answer, or the models that do; 1: the one answer counts."""
    label_names: str = "as_is"
    """as_is, spaced ('AddToPlaylist' -> 'add to playlist'), letters (A, B, ... with a legend), or one of the
    task's mappings."""


def read_genes(genome: Genome) -> Genes:
    """The genes with their types checked. Raises: ConfigError."""
    try:
        return Genes.model_validate(dict(genome.genes))
    except ValidationError as error:
        wrong = "; ".join(f"gene {e['loc'][0]!r} is {e['input']!r}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"genome {genome.id}: {wrong}") from error


def name_labels(labels: Sequence[str], style: str, mappings: Mapping[str, Mapping[str, str]]) -> Naming:
    """The naming of this style. Raises: ConfigError for an unknown style, or two labels with one name."""
    match style:
        case "as_is":
            shown = {label: label for label in labels}
        case "spaced":
            shown = {label: _spaced(label) for label in labels}
        case "letters":
            shown = {label: _letters(number) for number, label in enumerate(labels)}
        case _ if style in mappings:
            shown = dict(mappings[style])
        case _:
            allowed = ["as_is", "spaced", "letters", *mappings]
            raise ConfigError(f"label_names {style!r}: allowed are {', '.join(allowed)}{nearest(style, allowed)}")
    if len(set(shown.values())) < len(shown):
        raise ConfigError(f"label_names {style!r} gives two labels the same name: {shown!r}; use as_is or a mapping")
    return Naming(shown, whole_words_fold=style != "letters")


def show(value: Json) -> str:
    """An input as the model sees it: text as it is, an object as one 'name: value' line a field."""
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_shown(item)}" for name, item in value.items())
    return _shown(value)


def show_passages(passages: Sequence[Passage]) -> str:
    """Retrieved passages as the model sees them, numbered; '' for none."""
    if not passages:
        return ""
    shown = [
        f"[{number}] {passage.title}\n{passage.text}" if passage.title else f"[{number}] {passage.text}"
        for number, passage in enumerate(passages, 1)
    ]
    return "\n".join(["Context:", *shown])


class Frame:
    """Everything of one genome's requests that does not depend on the example."""

    def __init__(
        self,
        genes: Genes,
        task: Task,
        naming: Naming | None,
        demos: Sequence[Example],
        fields: frozenset[str] = frozenset(),
    ) -> None:
        """`naming` is for classification, None otherwise; `demos` are train examples, in the order shown; `fields`:
        names of the inputs' fields, which a rubric may speak of.
        """
        self.genes = genes
        self.naming = naming
        self._task = task
        self._in, self._out = task.words
        if genes.cot:
            self._out = "Answer"
        self._head = self._instruction()
        named = set(_NAMED.findall(genes.rubric))
        self.template = bool({INPUT, CONTEXT, *fields} & named)
        """The rubric says where the input stands."""
        if self.template and not {INPUT, *fields} & named:
            self._head = f"{self._head}\n\n{self._in}: {{{INPUT}}}"
        head = "" if self.template else self._head
        if genes.demo_style == "chat":
            self._turns = [Message(role="system", content=head)] if head else []
            for demo in demos:
                self._turns.append(Message(role="user", content=self._asked(demo, ())))
                answer = self._answer(demo)
                shown = f"{self._out}: {answer}" if genes.cot else answer
                self._turns.append(Message(role="assistant", content=shown))
        else:
            blocks = [f"{self._asked(demo, ())}\n{self._out}: {self._answer(demo)}" for demo in demos]
            self._text = "".join(f"{part}\n\n" for part in [head, *blocks] if part)

    @property
    def concludes(self) -> bool:
        """A second, constrained call follows the reasoning."""
        return self.genes.cot and self.genes.constrain and self._task.kind != "text"

    def ask(
        self,
        example: Example,
        seed: int,
        replicate: int,
        passages: Sequence[Passage] = (),
        model: str | None = None,
    ) -> Request:
        """The first (mostly the only) request for this example; `model` in place of the genome's."""
        genes = self.genes
        budget = genes.max_tokens
        if self.concludes:
            budget = REASONING_TOKENS
        elif genes.cot:
            budget += REASONING_TOKENS
        messages, prompt = self._question(example, passages)
        return Request(
            model=model or genes.model,
            messages=messages,
            prompt=prompt,
            temperature=genes.temperature,
            max_tokens=budget,
            stop=self._stop(),
            seed=seed,
            replicate=replicate,
            **({} if self.concludes or not genes.constrain else self._limits()),
        )

    def conclude(self, first: Request, reasoning: str) -> Request:
        """The second request: the reasoning stands, only the answer is missing."""
        thought = reasoning.strip() or "..."
        if first.prompt is not None:
            shown: dict[str, Json] = {"prompt": f"{first.prompt} {thought}\n{self._out}:"}
        else:
            more = (Message(role="assistant", content=thought), Message(role="user", content=ONLY_ANSWER))
            shown = {"messages": first.messages + more}
        return Request(
            model=first.model,
            temperature=first.temperature,
            max_tokens=self.genes.max_tokens,
            stop=self._answer_stop() if first.prompt is not None else (),
            seed=first.seed,
            replicate=first.replicate,
            **shown,
            **self._limits(),
        )

    def repair(self, first: Request, reply: str, problem: str) -> Request:
        """The request after a reply that does not do: what was said, what is wrong with it."""
        said = reply.strip()[:REPLY_SHOWN] or "..."
        what = "label" if self.naming is not None else "JSON"
        told = f"That is not valid: {problem}. Reply with the corrected {what} only."
        if first.prompt is not None:
            shown: dict[str, Json] = {"prompt": f"{first.prompt} {said}\n\n{told}\n{self._out}:"}
        else:
            more = (Message(role="assistant", content=said), Message(role="user", content=told))
            shown = {"messages": first.messages + more}
        limits = self._limits() if self.genes.constrain else {}
        stop = self._answer_stop() if first.prompt is not None else ()
        return first.model_copy(update={"max_tokens": self.genes.max_tokens, "stop": stop, **shown, **limits})

    def _instruction(self) -> str:
        """The instruction. Labels are listed only where the rubric says so; letters always with a legend."""
        head = self.genes.rubric
        if self.naming is not None:
            shown = self.naming.shown
            legend = ", ".join(f"{name} = {label}" for label, name in shown.items())
            letters = self.genes.label_names == "letters"
            listed = legend if letters else ", ".join(shown.values())
            if letters and PLACE not in head:
                head = f"{head}\n{legend}".strip()
            head = head.replace(PLACE, listed)
        return f"{head}\n{STEP_BY_STEP}".strip() if self.genes.cot else head.strip()

    def _answer(self, demo: Example) -> str:
        if self.naming is not None:
            return self.naming.shown[plain(demo.expected)]
        return _shown(demo.expected)

    def _asked(self, example: Example, passages: Sequence[Passage]) -> str:
        """The question about one input: the rubric filled in where it is a template, else the input by itself."""
        context = show_passages(passages)
        if self.template:
            filled = self._filled(example.input, context)
            unplaced = context and f"{{{CONTEXT}}}" not in self._head
            return f"{context}\n\n{filled}" if unplaced else filled
        named = show(example.input)
        if self.genes.demo_style != "chat":
            named = f"{self._in}: {named}"
        return f"{context}\n\n{named}" if context else named

    def _filled(self, given: Json, context: str) -> str:
        known = {INPUT: show(given), CONTEXT: context}
        if isinstance(given, Mapping):
            known |= {name: _shown(value) for name, value in given.items()}
        # In one pass, so that braces inside an input are never taken for names.
        return _NAMED.sub(lambda found: known.get(found[1], found[0]), self._head)

    def _question(self, example: Example, passages: Sequence[Passage]) -> tuple[tuple[Message, ...], str | None]:
        asked = self._asked(example, passages)
        if self.genes.demo_style == "chat":
            return (*self._turns, Message(role="user", content=asked)), None
        last = "Reasoning" if self.genes.cot else self._out
        text = f"{self._text}{asked}\n{last}:"
        if self.genes.demo_style == "inline":
            return (Message(role="user", content=text),), None
        return (), text

    def _stop(self) -> tuple[str, ...]:
        if self.concludes:
            return (f"{self._out}:",)
        if self.genes.demo_style != "completion":
            return ()
        return (f"\n\n{self._in}:",) if self.genes.cot else self._answer_stop()

    def _answer_stop(self) -> tuple[str, ...]:
        """Where a plain completion is complete: lines end labels, blank lines JSON, a new block text."""
        if self._task.kind == "classification":
            return ("\n",)
        return ("\n\n",) if self._task.kind == "extraction" else (f"\n\n{self._in}:",)

    def _limits(self) -> dict[str, Json]:
        if self.naming is not None:
            # A completion goes on after "Label:", where the next token begins with the space.
            lead = " " if self.genes.demo_style == "completion" else ""
            return {"choices": tuple(lead + name for name in self.naming.shown.values())}
        return {"json_schema": self._task.json_schema or {"type": "object"}} if self._task.kind == "extraction" else {}


@lru_cache(maxsize=100_000)
def request_seed(example: str, twin: int, replicate: int) -> int:
    """A sampling seed (31 bits) of its own for every item, so that examples do not share sampling noise."""
    return int(digest([example, twin, replicate])[:8], 16) & 0x7FFFFFFF


def _shown(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _spaced(label: str) -> str:
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", label)
    return " ".join(re.split(r"[\s_\-]+", apart)).strip().lower() or label


def _letters(number: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    name = ascii_uppercase[number % 26]
    return name if number < 26 else _letters(number // 26 - 1) + name
