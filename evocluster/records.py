"""Frozen facts, named by content, in the order they are born.

Genome -> Example -> Score, Usage -> Evaluation -> Proposal -> Trial. Nothing here does I/O; every room passes
these on and none of them changes one. Units are in the names or in the line under a field.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

Split = Literal["train", "validation", "test"]


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8. Raises: TypeError, ValueError (NaN)."""
    return _CANONICAL.encode(value)


def digest(value: object) -> str:
    """sha256 (64 hex digits) of the canonical JSON text: the name by content of any JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


class FrozenDict(dict[str, Any]):
    """A dict that refuses to change; it serialises and pickles like the dict it is."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a record is immutable; make a changed copy, e.g. genome.replace(temperature=0.2)")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (dict(self),))


_PLAIN = {str, int, float, bool, type(None)}


def _freeze(value: Any) -> Any:
    if type(value) in _PLAIN:  # most of what there is, and no Mapping: asking the ABC takes ten times as long
        return value
    if isinstance(value, Mapping):
        return FrozenDict({str(key): _freeze(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    return value


Json = Any
"""Any JSON value; lists become tuples and dicts FrozenDict once inside a record."""
FrozenJson = Annotated[Any, AfterValidator(_freeze)]
FrozenMap = Annotated[dict[str, Any], AfterValidator(_freeze)]


class Record(BaseModel):
    """A frozen fact: unknown fields are refused, equality is by value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


R = TypeVar("R", bound=Record)


_set = object.__setattr__


@cache
def _fields(kind: type[Record]) -> set[str]:
    return set(kind.model_fields)


def born(kind: type[R], said: dict[str, Any]) -> R:
    """A record of all its fields, in their order, of values that were checked before: nothing is checked or frozen.

    For what is made by the thousand of our own records; a third of the time that checking takes.
    """
    new = kind.__new__(kind)
    _set(new, "__dict__", said)
    _set(new, "__pydantic_fields_set__", _fields(kind))
    _set(new, "__pydantic_extra__", None)
    _set(new, "__pydantic_private__", None)
    return new


class Genome(Record):
    """One complete configuration of an LLM program. Equal genes are the same genome, whoever made it."""

    genes: FrozenMap
    """Gene name -> JSON value, e.g. rubric, cot, temperature, max_tokens, model, demos, demo_style, constrain."""

    @cached_property
    def id(self) -> str:
        """The first 16 hex digits of the sha256 of the genes' canonical JSON."""
        return digest(self.genes)[:16]

    def __getitem__(self, gene: str) -> Any:
        return self.genes[gene]

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Genome) and self.id == other.id

    def replace(self, **genes: Json) -> Genome:
        """A genome with these genes in place of its own."""
        return Genome(genes={**self.genes, **genes})


class Example(Record):
    """One input with what is expected of it."""

    id: str
    input: FrozenJson
    """Text, or a JSON object with named fields."""
    expected: FrozenJson = None
    meta: FrozenMap = FrozenDict()


class Score(Record):
    """How good one output is by one scorer: 0 (worst) to 1 (best) unless the scorer says otherwise."""

    value: float
    reason: str = ""


class Usage(Record):
    """What LLM calls consumed. A cached call replays its tokens, usd and seconds, and adds nothing to what was paid."""

    calls: int = 0
    cached: int = 0
    """How many of the calls were answered by the cache."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    """US dollars at list price, as if nothing had been cached: the objective."""
    paid_usd: float = 0.0
    """US dollars that this run really paid: nothing for what came from the cache."""
    seconds: float = 0.0
    """Latency, summed over sequential calls, queueing at our side left out."""

    def __add__(self, other: Usage) -> Usage:
        mine, theirs = self.__dict__, other.__dict__
        return born(Usage, {name: mine[name] + theirs[name] for name in mine})

    @property
    def paid_calls(self) -> int:
        """Calls that reached a model."""
        return self.calls - self.cached


class Item(Record):
    """One evaluation to make: which example, which robustness twin of it, which replicate."""

    split: Split
    example: str
    """Id of the example."""
    twin: int = 0
    """0 is the example as given; k >= 1 is its k-th seeded perturbation."""
    replicate: int = 0


class Evaluation(Record):
    """One genome on one item. A failed one is a record with `error`, never an exception."""

    item: Item
    output: str = ""
    scores: FrozenMap = FrozenDict()
    """Scorer name -> Score."""
    quality: float = 0.0
    """The scorers combined, 0 to 1; 0 when it failed."""
    validator: float = 0.0
    """The score that robustness and the composite hold against their thresholds."""
    schema_ok: bool = True
    """The output parsed as the task demands (a known label, valid JSON for the schema)."""
    usage: Usage = Usage()
    repairs: int = 0
    flags: tuple[str, ...] = ()
    """Safety flags raised on the output."""
    error: str | None = None
    judging: Usage = Usage()
    """What scoring it took (judges, safety checks by a model): paid and budgeted, but no objective of the genome."""
    trace: FrozenJson = ()
    """The steps as {purpose, prompt, reply}, where they are recorded."""


class Spend(Record):
    """What one model was asked for, and for what purpose, within one trial."""

    model: str
    purpose: str
    """evaluate, rewrite, reflect or judge."""
    usage: Usage


class Proposal(Record):
    """A recipe with its own seed: for a child to be made and evaluated, or for more evaluations of a known genome."""

    number: int
    """Position in the order of commits, from 0."""
    operator: str
    """Name of the operator that makes the genome; 'evaluate' takes parents[0] as it is."""
    parents: tuple[Genome, ...] = ()
    generation: int = 0
    hints: FrozenMap = FrozenDict()
    """JSON for the operator: genes to mutate, genome ids to avoid, failures to reflect on."""
    items: tuple[Item, ...] = ()
    seed: int = 0
    purpose: Literal["seed", "search", "extend", "validation", "test"] = "search"


_QUARANTINED = re.compile(r"^worker: genome ([0-9a-f]{16}) is quarantined: ")


LOST = "lost"
"""In the notes of a trial: see Trial.lost."""


class Lost(NamedTuple):
    """What was charged, or may have been, for nothing."""

    calls: int = 0
    usd: float = 0.0


class Trial(Record):
    """A proposal carried out. `error` tells why no genome could be made; single failures are in the evaluations."""

    proposal: Proposal
    genome: Genome | None = None
    evaluations: tuple[Evaluation, ...] = ()
    usage: Usage = Usage()
    """Of the operator's own calls (rewrite, merge); each evaluation carries its own."""
    error: str | None = None
    spend: tuple[Spend, ...] = ()
    """The same and all of the evaluations' calls again, by model and purpose: for accounts only."""
    notes: FrozenMap = FrozenDict()
    """What the operator tells besides the genome, as JSON: the change it made, the mutation prompt it used; and
    `lost`, where there is anything."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Its evaluations as plain dicts: written and read in half the time."""
        told = {name: getattr(self, name) for name in Trial.model_fields if name != "evaluations"}
        return _trial, (tuple(map(_bare, self.evaluations)), told)

    @property
    def quarantined(self) -> str | None:
        """The id of the genome that is carried out no more because it ends the processes that do, if that is why."""
        found = _QUARANTINED.match(self.error or "")
        return found[1] if found else None

    @property
    def lost(self) -> Lost:
        """What requests that failed, and were repeated or given up, may have been charged besides `total`."""
        found = self.notes.get(LOST)
        return Lost(found["calls"], found["usd"]) if found else Lost()

    @property
    def total(self) -> Usage:
        """Everything this trial consumed."""
        own = self.usage
        calls, cached, usd, paid_usd, seconds = own.calls, own.cached, own.usd, own.paid_usd, own.seconds
        prompt_tokens, completion_tokens = own.prompt_tokens, own.completion_tokens
        for evaluation in self.evaluations:
            for used in (evaluation.usage, evaluation.judging):
                calls += used.calls
                cached += used.cached
                prompt_tokens += used.prompt_tokens
                completion_tokens += used.completion_tokens
                usd += used.usd
                paid_usd += used.paid_usd
                seconds += used.seconds
        return born(
            Usage,
            {
                "calls": calls,
                "cached": cached,
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "usd": usd,
                "paid_usd": paid_usd,
                "seconds": seconds,
            },
        )

    @property
    def calls(self) -> int:
        """Calls of everything, as in `total`."""
        judged = sum(one.usage.calls + one.judging.calls for one in self.evaluations)
        return self.usage.calls + judged


def _bare(one: Evaluation) -> dict[str, Any]:
    """What an evaluation says, and its parts, as plain dicts."""
    return {
        **one.__dict__,
        "item": one.item.__dict__,
        "usage": one.usage.__dict__,
        "judging": one.judging.__dict__,
        "scores": {name: score.__dict__ if type(score) is Score else score for name, score in one.scores.items()},
    }


def _whole(said: dict[str, Any]) -> Evaluation:
    """The evaluation that `_bare` was given."""
    said["item"] = born(Item, said["item"])
    said["usage"] = born(Usage, said["usage"])
    said["judging"] = born(Usage, said["judging"])
    said["scores"] = FrozenDict(
        {name: born(Score, score) if type(score) is dict else score for name, score in said["scores"].items()}
    )
    return born(Evaluation, said)


def _trial(evaluations: Iterable[dict[str, Any]], told: Mapping[str, Any]) -> Trial:
    """A trial from its evaluations as `_bare` gives them, and its other fields."""
    return Trial.model_construct(**told, evaluations=tuple(map(_whole, evaluations)))
