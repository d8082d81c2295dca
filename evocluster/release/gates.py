"""Gates: what a candidate must pass before it sees a request; each returns a verdict with its reasons. Pure.

    syntax      it renders, and everything in it is well formed and within bounds
    scope       it differs from its parent in what its layer permits and in nothing else
    injection   its texts bring nothing that its parent's did not have and no instruction needs (injection.py)
    barred      it is not, nearly, what was rolled back (content.py)
    replay      it keeps right what was right

Scope is a list of what may change: whatever is not on it, judges, safety and the config among it, is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from evocluster.records import Example, Json, Record, canonical
from evocluster.release.snapshot import LAYERS, STRATEGIC, Layer, Note, Snapshot

PROMPT_GENES = ("rubric", "demos", "demo_style", "cot", "label_names", "constrain")
"""Genes of the prompt layer that a candidate may change, besides the user's own ones."""
STRATEGY_FIELDS = ("shares", "escalate", "timeout_s", "concurrency", "notes")
"""Fields of the strategy layer that may change as a whole; `genes` and `intents` may in their genes."""
LONGEST_TIMEOUT_S = 600.0
MOST_CONCURRENCY = 4096
MOST_VOTES = 16
NAMED = 10
"""Reasons told of one gate, at most."""
PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Gate(NamedTuple):
    """The verdict of one gate."""

    name: str
    passed: bool
    reasons: tuple[str, ...] = ()
    """Why not; empty when it passed."""


class Bounds(Record):
    """How much a candidate may hold, in characters and in numbers of things."""

    rubric: int = 20_000
    note: int = 1_000
    notes: int = 500
    demo: int = 8_000
    demos: int = 32
    total: int = 100_000
    """Rubric, demos and active notes together."""


def verdict(name: str, reasons: Iterable[str]) -> Gate:
    """A gate that passes where nothing is said against it; the first `NAMED` reasons are told, the rest counted."""
    told = list(dict.fromkeys(reasons))
    more = [f"and {len(told) - NAMED} more"] if len(told) > NAMED else []
    return Gate(name, not told, (*told[:NAMED], *more))


# ---------------------------------------------------------------- scope


def scope(
    candidate: Snapshot | Mapping[str, Json],
    parent: Snapshot | Mapping[str, Json],
    layer: Layer,
    own: Collection[str] = (),
) -> Gate:
    """Whether everything that differs is what this layer may change. `own`: the user's own genes of the prompt layer.

    A snapshot may be given as its plain content, also with what no snapshot holds: that is refused by name.
    """
    if layer not in LAYERS:
        return Gate("scope", False, (f"layer {layer!r}: allowed are {', '.join(LAYERS)}",))
    changed = list(_differing(_content(parent), _content(candidate)))
    if not changed:
        return Gate("scope", False, ("it changes nothing; a candidate differs from its parent",))
    allowed = _allowed(own)[layer]
    return verdict(
        "scope",
        (
            f"{'.'.join(path)} changed, which layer {layer!r} may not; it may: {allowed}"
            for path in changed
            if not permits(layer, path, own)
        ),
    )


def permits(layer: Layer, path: tuple[str, ...], own: Collection[str] = ()) -> bool:
    """A candidate of this layer may change what stands at this path of a snapshot's content."""
    if path[:1] != (layer,):
        return False
    if layer == "memory":
        return len(path) == 1
    if layer == "prompt":
        return path == ("prompt", "examples") or (
            len(path) >= 3 and path[1] == "genes" and path[2] in (*PROMPT_GENES, *own) and path[2] not in STRATEGIC
        )
    return _permits_strategy(path)


def _permits_strategy(path: tuple[str, ...]) -> bool:
    if len(path) < 2:
        return False
    if path[1] == "genes":
        return len(path) >= 3 and path[2] in STRATEGIC
    if path[1] == "intents":
        return len(path) == 3 or (len(path) >= 4 and path[3] in STRATEGIC)
    return path[1] in STRATEGY_FIELDS


def _allowed(own: Collection[str]) -> dict[Layer, str]:
    return {
        "prompt": f"prompt.examples, prompt.genes of {', '.join((*PROMPT_GENES, *own))}",
        "memory": "memory",
        "strategy": f"strategy.genes and strategy.intents of {', '.join(STRATEGIC)}, strategy.{{"
        f"{', '.join(STRATEGY_FIELDS)}}}",
    }


def _content(snapshot: Snapshot | Mapping[str, Json]) -> Mapping[str, Json]:
    # Written out anew: what a changed copy had worked out before it was changed is not what is judged.
    return snapshot.model_dump(mode="json") if isinstance(snapshot, Snapshot) else snapshot


_ABSENT = object()


def _differing(one: Any, other: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the leaves at which two values differ; what is missing on one side is told leaf by leaf too."""
    inside_one, inside_other = isinstance(one, Mapping), isinstance(other, Mapping)
    absent = one is _ABSENT or other is _ABSENT
    if (inside_one and inside_other) or (absent and (inside_one or inside_other) and (one or other)):
        mine, theirs = one if inside_one else {}, other if inside_other else {}
        whole = mine or theirs
        if absent and not (theirs if one is _ABSENT else mine):
            yield path
        for name in sorted({*map(str, mine), *map(str, theirs)}) if whole else ():
            yield from _differing(mine.get(name, _ABSENT), theirs.get(name, _ABSENT), (*path, name))
    elif absent or canonical(one) != canonical(other):
        yield path


# ---------------------------------------------------------------- syntax


def syntax(
    candidate: Snapshot,
    render: Callable[[Snapshot], object],
    *,
    parent: Snapshot | None = None,
    placeholders: Collection[str] = ("labels", "input", "context"),
    models: Collection[str] | None = None,
    bounds: Bounds = Bounds(),  # noqa: B008 - frozen
) -> Gate:
    """Whether it is well formed. `render` makes its requests and raises where it cannot; `placeholders`: names that
    a rubric may speak of, besides those that its parent's does; `models`: those that are configured, where known.
    """
    try:
        read = Snapshot.read(_content(candidate))
    except (ValidationError, TypeError, ValueError) as error:
        return Gate("syntax", False, (f"it cannot be read: {_first(error)}",))
    reasons = [
        *_placeholders(read, parent, placeholders),
        *_lengths(read, bounds),
        *_notes(read.memory, bounds),
        *_demos(read, bounds),
        *_strategy(read, models),
    ]
    if not reasons:  # what is malformed is told in our words, not in those of whatever it breaks
        reasons = _rendered(read, render)
    return verdict("syntax", reasons)


def _rendered(candidate: Snapshot, render: Callable[[Snapshot], object]) -> list[str]:
    try:
        render(candidate)
    except Exception as error:  # the caller's own code: whatever it raises is the verdict
        return [f"it does not render: {type(error).__name__}: {error}"]
    return []


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _placeholders(snapshot: Snapshot, parent: Snapshot | None, known: Collection[str]) -> Iterator[str]:
    before = set(PLACEHOLDER.findall(_rubric(parent))) if parent is not None else set[str]()
    for name in sorted(set(PLACEHOLDER.findall(_rubric(snapshot))) - before - set(known)):
        yield f"rubric speaks of {{{name}}}; allowed: {', '.join(f'{{{each}}}' for each in sorted(known)) or 'none'}"


def _rubric(snapshot: Snapshot) -> str:
    text = snapshot.prompt.genes.get("rubric", "")
    return text if isinstance(text, str) else ""


def _text(value: Json) -> str:
    return value if isinstance(value, str) else canonical(value)


def _lengths(snapshot: Snapshot, bounds: Bounds) -> Iterator[str]:
    rubric = len(_rubric(snapshot))
    if rubric > bounds.rubric:
        yield f"rubric has {rubric} characters; allowed: {bounds.rubric}"
    demos = sum(len(_text(example.input)) + len(_text(example.expected)) for example in snapshot.prompt.examples)
    total = rubric + demos + sum(len(note.text) for note in snapshot.memory if note.state == "active")
    if total > bounds.total:
        yield f"rubric, demos and notes have {total} characters; allowed: {bounds.total}"


def _notes(notes: tuple[Note, ...], bounds: Bounds) -> Iterator[str]:
    if len(notes) > bounds.notes:
        yield f"{len(notes)} notes; allowed: {bounds.notes}"
    seen = set[str]()
    for note in notes:
        if not note.id.strip() or note.id in seen:
            yield f"note {note.id!r}: ids are texts, each once"
        seen.add(note.id)
        if not note.text.strip() or len(note.text) > bounds.note:
            yield f"note {note.id!r} has {len(note.text.strip())} characters; allowed: 1 to {bounds.note}"
        if note.state == "deprecated" and not note.why.strip():
            yield f"note {note.id!r} is deprecated and does not say why"
        if any(not source.strip() for source in note.sources):
            yield f"note {note.id!r} names an empty source"


def _demos(snapshot: Snapshot, bounds: Bounds) -> Iterator[str]:
    named = snapshot.prompt.genes.get("demos", ())
    if not isinstance(named, tuple) or not all(isinstance(id, str) for id in named) or len(set(named)) < len(named):
        yield f"gene demos is {named!r}; allowed: a list of ids of examples, each once"
        return
    if len(named) > bounds.demos:
        yield f"{len(named)} demos; allowed: {bounds.demos}"
    held = {example.id: example for example in snapshot.prompt.examples}
    for id in named:
        if id not in held:
            yield f"demo {id!r} has no content; prompt.examples must hold it"
    for id, example in held.items():
        if id not in named:
            yield f"example {id!r} is shown nowhere; gene demos must name it"
        yield from _shown(example, bounds)


def _shown(example: Example, bounds: Bounds) -> Iterator[str]:
    if not _text(example.input).strip() or example.input == {}:
        yield f"demo {example.id!r} has an empty input"
    if example.expected is None or not _text(example.expected).strip():
        yield f"demo {example.id!r} has no expected answer"
    size = len(_text(example.input)) + len(_text(example.expected))
    if size > bounds.demo:
        yield f"demo {example.id!r} has {size} characters; allowed: {bounds.demo}"


def _strategy(snapshot: Snapshot, models: Collection[str] | None) -> Iterator[str]:
    strategy = snapshot.strategy
    yield from _genes("strategy.genes", strategy.genes, models)
    for intent, genes in strategy.intents.items():
        if not isinstance(genes, Mapping):
            yield f"strategy.intents.{intent} is {genes!r}; allowed: genes of {', '.join(STRATEGIC)}"
        else:
            yield from _genes(f"strategy.intents.{intent}", genes, models)
    shares = strategy.shares
    if any(not _number(share, 0, 1) for share in shares.values()):
        yield f"strategy.shares are {dict(shares)!r}; allowed: a number from 0 to 1 for each model"
    elif shares and abs(sum(shares.values()) - 1) > 1e-6:
        yield f"strategy.shares add up to {sum(shares.values()):.6g}; allowed: 1"
    for model in (*shares, *([strategy.escalate.model] if strategy.escalate else [])):
        yield from _configured("strategy", model, models)
    if strategy.timeout_s > LONGEST_TIMEOUT_S:
        yield f"strategy.timeout_s is {strategy.timeout_s!r}; allowed: up to {LONGEST_TIMEOUT_S:g}"
    if strategy.concurrency > MOST_CONCURRENCY:
        yield f"strategy.concurrency is {strategy.concurrency!r}; allowed: up to {MOST_CONCURRENCY}"


def _genes(place: str, genes: Mapping[str, Json], models: Collection[str] | None) -> Iterator[str]:
    checks: dict[str, Callable[[Json], bool]] = {
        "model": lambda value: isinstance(value, str) and bool(value),
        "temperature": lambda value: _number(value, 0, 2),
        "max_tokens": lambda value: _whole(value, 1, 10**6),
        "retriever_topk": lambda value: _whole(value, 0, 1000),
        "use_consensus": lambda value: _whole(value, 1, MOST_VOTES) or _ballot(value),
    }
    for name, value in genes.items():
        if name not in checks:
            yield f"{place}.{name} is no gene of the strategy; allowed: {', '.join(STRATEGIC)}"
        elif not checks[name](value):
            yield f"{place}.{name} is {value!r}, which no program can use"
    voters = genes.get("use_consensus", ())
    for model in (genes.get("model"), *(voters if isinstance(voters, tuple) else ())):
        if isinstance(model, str):
            yield from _configured(place, model, models)


def _configured(place: str, model: str, models: Collection[str] | None) -> Iterator[str]:
    if models is not None and model not in models:
        yield f"{place} names model {model!r}; configured are {', '.join(sorted(models))}"


def _number(value: Json, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _whole(value: Json, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _ballot(value: Json) -> bool:
    return (
        isinstance(value, tuple)
        and 1 <= len(value) <= MOST_VOTES
        and all(isinstance(each, str) and each for each in value)
    )


# ---------------------------------------------------------------- replay


REPLAYED = 10
"""Successes that must be replayed, at least, to show that a candidate keeps them."""


def replay(
    baseline: Mapping[str, float],
    candidate: Mapping[str, float],
    *,
    right: float = 0.8,
    regress: float = 0.05,
    least: int = REPLAYED,
) -> Gate:
    """Whether the candidate keeps recent successes: example -> quality, of both, asked again now.

    What the baseline itself gets wrong now is nothing the candidate could break; of the others it may break the share
    `regress`, of fewer than ten as many as of ten. A missing answer is no answer: it is named, and where fewer than
    `least` are left, or more answers are missing than may be broken, nothing was shown and the gate stays shut.
    """
    kept = sorted(example for example, quality in baseline.items() if quality >= right)
    missing = [example for example in kept if example not in candidate]
    broken = [example for example in kept if example in candidate and candidate[example] < right]
    most = int(regress * max(len(kept), REPLAYED) + 1e-9)
    if len(kept) - len(missing) < least:
        told = f"{len(kept) - len(missing)} successes were replayed; at least {least} are needed"
        return Gate("replay", False, (told, *(f"no answer to {example!r}" for example in missing[:NAMED])))
    reasons = []
    if len(broken) > most:
        reasons.append(f"breaks {len(broken)} of {len(kept)} recent successes; allowed: {most}")
        reasons += [f"breaks {id!r}: quality {baseline[id]:.2f} -> {candidate[id]:.2f}" for id in broken]
    if len(missing) > most:
        reasons += [f"{len(missing)} of {len(kept)} answers are missing; allowed: {most}"]
        reasons += [f"no answer to {example!r}" for example in missing]
    return Gate("replay", not reasons, tuple(reasons))
