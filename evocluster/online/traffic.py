"""Examples from recorded traffic, for the same engine that optimises offline.

    rows of the ledger -> draw -> Drawn -> deal -> Dealt -> write -> JSONL files that a config names

What is expected is the correction where feedback gave one, else the answer that was accepted or judged right. Requests
that say nearly the same stay together, as do those of one episode and one user: a split never divides them. What holds
words that no honest question has (release/injection.py) is not drawn, and what holds links or addresses is measured by
and never shown, so that it never becomes a demo. Failures are drawn beside successes: at most half and half.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evocluster.online.likeness import identical, join, root
from evocluster.online.outcome import Row, Verdict, served, verdict
from evocluster.records import Example, FrozenDict, Json, Split
from evocluster.release.injection import found, harmful, texts
from evocluster.release.settings import Metric
from evocluster.tasks.answers import encodable
from evocluster.tasks.dataset import SPLITS
from evocluster.tasks.grading import fenced
from evocluster.tasks.task import Task
from evocluster.tasks.words import as_json, equal_json, normalise, plain, thawed

SHARES: Mapping[Split, float] = {"train": 0.5, "validation": 0.25, "test": 0.25}
LOOKED_AT = 4
"""Times the limit: so many of the newest usable rows are compared with one another."""
CHARS = 8000
"""Characters of an input or an answer; longer ones are left out."""


class Drawn(NamedTuple):
    """Examples from traffic."""

    examples: tuple[Example, ...]
    """`meta`: `source` (the request it was made from), `intent`, `failed` (what was answered then was wrong), `seen`
    (how many requests said the same), `hidden` (it may be measured by and not shown), `in_flight` (how many others were
    under way when it came)."""
    ties: Mapping[str, tuple[str, ...]]
    """Id -> what it hangs together by: examples that share a tie belong into one split."""
    dropped: Mapping[str, int]
    """Why rows were left out -> how many."""


class Dealt(NamedTuple):
    """Drawn examples, dealt; a split stays empty where too few hang apart."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]

    def of(self, split: Split) -> tuple[Example, ...]:
        """The examples of one split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


class _Usable(NamedTuple):
    row: Row
    found: Verdict
    expected: Json


def draw(
    rows: Iterable[Row],
    *,
    task: Task | None = None,
    limit: int = 1000,
    quality: float = 0.8,
    tombstoned: Collection[str] = (),
    metrics: Mapping[str, Metric] | None = None,
) -> Drawn:
    """At most `limit` examples, the newest first in each intent, intents in their shares.

    `task`: settled; answers that it could never be held against (no label of it, no JSON) are left out.
    """
    dropped = Counter[str]()
    usable = []
    rows = list(rows)
    loads = in_flight(rows)
    for row in sorted(served(rows, frozenset(tombstoned)), key=lambda row: (-float(row["at"]), row["request_id"])):
        why, one = _usable(row, task, quality, metrics)
        if one is None:
            dropped[why] += 1
        else:
            usable.append(one)
    if len(usable) > LOOKED_AT * limit:
        dropped["older"] += len(usable) - LOOKED_AT * limit
        usable = usable[: LOOKED_AT * limit]
    groups = identical([plain(one.row["input"]) for one in usable])
    made, ties = _made(usable, groups, quality, loads)
    dropped["said before"] += sum(one.expected is not None for one in usable) - len(made)
    dropped["right answer unknown"] += sum(one.expected is None for one in usable)
    chosen = _stratified(made, limit)
    dropped["over the limit"] += len(made) - len(chosen)
    return Drawn(tuple(chosen), {each.id: ties[each.id] for each in chosen}, {**+dropped})


def _usable(
    row: Row, task: Task | None, quality: float, metrics: Mapping[str, Metric] | None
) -> tuple[str, _Usable | None]:
    """The row with its verdict, or why it cannot be used. Failures without a correction are kept: they mark those that
    say the same.
    """
    given, output = row.get("input"), row.get("output")
    if given is None or not plain(given).strip():
        return "body not kept", None
    known = verdict(row, metrics)
    if not known.known:
        return "no verdict", None
    expected = known.expected if known.expected is not None else output if known.succeeded(quality) else None
    if max(len(plain(given)), len(plain(expected))) > CHARS:
        return "too long", None
    if harmful(thawed(given), thawed(expected), row.get("intent") or ""):
        return "suspicious", None
    if expected is not None:
        expected = answer_of(expected, task)
        if expected is None:
            return "no answer of the task", None
    return "", _Usable(row, known, expected)


def answer_of(said: Json, task: Task | None) -> Json:
    """What was said as the task expects it; None where it is no answer of the task."""
    if task is None:
        return said
    if task.kind == "classification":
        by_text = {normalise(label): label for label in task.labels}
        return by_text.get(normalise(plain(said))) if said is not None else None
    if task.kind == "extraction":
        value = as_json(said)
        schema = task.answer_schema
        structured = isinstance(value, Mapping | list | tuple)
        return value if structured and (schema is None or schema.problem(thawed(value)) is None) else None
    return plain(said).strip() or None


def _made(
    usable: Sequence[_Usable], groups: Sequence[int], quality: float, loads: Mapping[str, int]
) -> tuple[list[Example], dict[str, tuple[str, ...]]]:
    """One example for each answer in each group: a correction before an accepted answer, then the newest."""
    members: dict[int, list[_Usable]] = defaultdict(list)
    for one, group in zip(usable, groups, strict=True):
        members[group].append(one)
    made, ties = [], {}
    for number in sorted(members):
        alike = members[number]
        kept: list[_Usable] = []
        ranked = sorted(alike, key=lambda one: (one.found.expected is None, -one.found.at, one.row["request_id"]))
        for one in ranked:
            if one.expected is not None and not any(_says(one, other) for other in kept):
                kept.append(one)
        hangs = [tie for one in alike for tie in _ties(one.row)]
        failed = any(one.found.failed(quality) for one in alike)
        for one in kept:
            example = _example(one, failed, len(alike), loads)
            made.append(example)
            ties[example.id] = tuple(dict.fromkeys([f"group {alike[0].row['request_id']}", *hangs]))
    return made, ties


def _says(one: _Usable, other: _Usable) -> bool:
    """Nothing new beside the other: the same question, whatever its answer, or a near copy with the same answer."""
    question = normalise(plain(one.row["input"])) == normalise(plain(other.row["input"]))
    return question or equal_json(one.expected, other.expected, text=True)


def _ties(row: Row) -> list[str]:
    return [f"episode {row['episode_id']}", *([f"user {row['user']}"] if row.get("user") else [])]


def _example(one: _Usable, failed: bool, seen: int, loads: Mapping[str, int]) -> Example:
    row = one.row
    marked = any(found(text) for text in texts([thawed(row["input"]), thawed(one.expected)]))
    return Example(
        id=str(row["request_id"]),
        input=row["input"],
        expected=one.expected,
        meta=FrozenDict(
            source=str(row["request_id"]),
            intent=row.get("intent") or "",
            failed=failed,
            seen=seen,
            hidden=marked,
            in_flight=loads[row["request_id"]],
        ),
    )


def in_flight(rows: Iterable[Row]) -> dict[str, int]:
    """Request -> how many other requests, shadows left out, were under way when it came."""
    counted = [row for row in rows if not row.get("is_shadow")]
    starts = np.sort([float(row["at"]) for row in counted])
    ends = np.sort([float(row["at"]) + float(row.get("latency_ms") or 0) / 1000 for row in counted])
    found = {}
    for row in counted:
        begun = int(np.searchsorted(starts, float(row["at"]), side="right"))
        over = int(np.searchsorted(ends, float(row["at"]), side="right"))
        found[str(row["request_id"])] = max(0, begun - over - (float(row.get("latency_ms") or 0) > 0))
    return found


def _stratified(made: Sequence[Example], limit: int) -> list[Example]:
    """Intents in their shares, in each as many failures as successes where there are; by largest remainder."""
    piles: dict[str, list[Example]] = defaultdict(list)
    for each in made:
        piles[each.meta["intent"]].append(each)
    total = min(limit, len(made))
    places = _places({intent: len(pile) for intent, pile in piles.items()}, total)
    chosen: list[Example] = []
    for intent in sorted(piles):
        failed = [each for each in piles[intent] if each.meta["failed"]]
        right = [each for each in piles[intent] if not each.meta["failed"]]
        count = places[intent]
        fails = min(len(failed), max((count + 1) // 2, count - len(right)))
        chosen += [*failed[:fails], *right[: count - fails]]
    return chosen


def _places(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    everything = sum(sizes.values()) or 1
    exact = {name: total * size / everything for name, size in sizes.items()}
    places = {name: int(share) for name, share in exact.items()}
    short = total - sum(places.values())
    for name in sorted(sizes, key=lambda name: (places[name] - exact[name], name))[:short]:
        places[name] += 1
    return places


def deal(drawn: Drawn, seed: int, shares: Mapping[Split, float] = SHARES) -> Dealt:
    """Train, validation and test; whatever hangs together by any tie is in one of them.

    The largest knots are dealt first, each to the split that is furthest behind its share of the intents in the knot;
    one with a hidden example is never dealt to train.
    """
    knots = _knots(drawn)
    rng = np.random.default_rng(seed)
    luck = rng.permutation(len(knots))
    totals = Counter(each.meta["intent"] for each in drawn.examples)
    have: dict[Split, Counter[str]] = {split: Counter() for split in SPLITS}
    dealt: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    for at in sorted(range(len(knots)), key=lambda at: (-len(knots[at]), luck[at])):
        counts = Counter(each.meta["intent"] for each in knots[at])
        hidden = any(each.meta.get("hidden") for each in knots[at])
        behind = {
            split: sum(count * (shares[split] * totals[name] - have[split][name]) for name, count in counts.items())
            for split in SPLITS
            if not (hidden and split == "train")
        }
        split = max(behind, key=lambda split: (behind[split], -SPLITS.index(split)))
        have[split] += counts
        dealt[split] += knots[at]
    return Dealt(*(tuple(sorted(dealt[split], key=lambda each: each.id)) for split in SPLITS))


def _knots(drawn: Drawn) -> list[list[Example]]:
    parent = list(range(len(drawn.examples)))
    first: dict[str, int] = {}
    for number, example in enumerate(drawn.examples):
        for tie in drawn.ties[example.id]:
            join(parent, first.setdefault(tie, number), number)
    knots: dict[int, list[Example]] = defaultdict(list)
    for number, example in enumerate(drawn.examples):
        knots[root(parent, number)].append(example)
    return list(knots.values())


def write(folder: Path, dealt: Dealt) -> dict[Split, Path]:
    """The splits that hold anything as `train.jsonl`, `validation.jsonl` and `test.jsonl`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[Split, Path] = {}
    for split in SPLITS:
        if not dealt.of(split):
            continue
        lines = [json.dumps(thawed(each.model_dump()), ensure_ascii=False) for each in dealt.of(split)]
        path = folder / f"{split}.jsonl"
        part = folder / f".{split}.part"
        part.write_text("".join(f"{encodable(line)}\n" for line in lines), encoding="utf-8")
        written[split] = part.replace(path)
    return written


def quoted(text: str, heading: str = "RECORDED") -> str:
    """A recorded text as data for a model that rewrites: between two lines with a code that does not occur in it."""
    return fenced([(heading, encodable(text))])[0]
