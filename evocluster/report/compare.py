"""Two configurations side by side: genes, objectives with a paired test each, and the examples that changed.

    compare(a, b) -> Comparison        a and b: sides (report.side.choose) of one run or of two

Everything is counted over the items both were evaluated on (same example, twin and replicate), so that the luck of the
draw cancels out. Differences are B minus A.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evocluster.errors import ConfigError
from evocluster.report.changes import GeneChange, gene_changes
from evocluster.report.figures import BEST_SPLIT
from evocluster.report.measure import Measure, measure
from evocluster.report.paired import LEVEL, Paired, paired
from evocluster.report.side import Rows, Side, examples, gather

ALPHA = 1 - LEVEL
KINDS = ("fixed", "broken", "changed")


class Line(NamedTuple):
    """One objective of both sides."""

    measure: Measure
    paired: Paired

    @property
    def better(self) -> str:
        """'A' or 'B' where both the test and the interval show it, else ''."""
        if self.paired.p >= ALPHA or self.paired.low <= 0 <= self.paired.high:
            return ""
        return "B" if (self.paired.difference > 0) == (self.measure.direction == "max") else "A"


class Change(NamedTuple):
    """An example that came out differently."""

    kind: str
    """'fixed': better under B, 'broken': worse, 'changed': another output, as good as before."""
    example: str
    content: Mapping[str, Any]
    """input, expected and meta; empty in folders that do not keep examples."""
    a: Mapping[str, Any]
    """Row of trials, as given (no twin); with replicates the first that shows the change."""
    b: Mapping[str, Any]
    quality_a: float
    """Mean over the replicates."""
    quality_b: float


class Comparison(NamedTuple):
    """All there is to say."""

    a: Side
    b: Side
    split: str
    examples: int
    """Evaluated on both sides."""
    evaluations: int
    """Pairs of them, twins and replicates included."""
    genes: list[GeneChange]
    lines: list[Line]
    changes: list[Change]
    """Fixed, broken, changed; the largest differences first."""
    notes: list[str]
    """What to know before believing it."""

    @property
    def title(self) -> str:
        """Who A and B are."""
        a, b = (f"{side.role or 'genome'} {side.genome[:8]}" for side in (self.a, self.b))
        first, second = (repr(side.result.address) for side in (self.a, self.b))
        return f"A = {a}, B = {b} of {first}" if first == second else f"A = {a} of {first}, B = {b} of {second}"

    def count(self, kind: str) -> int:
        """How many examples changed in this way."""
        return sum(change.kind == kind for change in self.changes)

    def __repr__(self) -> str:
        return "\n".join([f"{self.title}, on {self.split}", *map(verdict, self.lines), *self.notes])


def compare(
    a: Side,
    b: Side,
    split: str | None = None,
    measures: Mapping[str, Measure] | None = None,
    anyway: bool = False,
) -> Comparison:
    """Compare B with A. `split`: None for the most honest one both were evaluated on; `measures`: objectives by name,
    where their names alone do not say what they are; `anyway`: although the data differ.

    Raises: ConfigError when they cannot be compared; RunDamaged.
    """
    if (a.genome, a.result.address) == (b.genome, b.result.address):
        what = f"A and B are both {a}" + (f" ({a.role})" if a.role else "")
        raise ConfigError(f"{what}: there is nothing to compare; choose another with --a or --b")
    found = gather([a, b])
    split = split or _best(a, b, found)
    rows_a, rows_b = (_on(side, rows, split) for side, rows in zip((a, b), found, strict=True))
    common = [item for item in rows_a if item in rows_b]
    ids = list(dict.fromkeys(item[0] for item in common if not item[1]))
    if not ids:
        raise ConfigError(_nothing(a, b, rows_a, rows_b, split))
    contents = [examples(side.result, split) for side in (a, b)]
    notes = [*_same_data(a, b, split, ids, contents, anyway), *_cautions(a, b, rows_a, rows_b, split)]
    names = [name for name in _objectives(a) if name in _objectives(b)]
    lines, unknown = _lines(names, measures or {}, [(item[0], rows_a[item], rows_b[item]) for item in common])
    if unknown:
        notes.append(f"Left out, since it cannot be told from the trials table alone: {', '.join(unknown)}.")
    return Comparison(
        a=a,
        b=b,
        split=split,
        examples=len(ids),
        evaluations=len(common),
        genes=gene_changes(a.genes, b.genes),
        lines=lines,
        changes=_changes(common, rows_a, rows_b, {**contents[1], **contents[0]}),
        notes=notes,
    )


def _best(a: Side, b: Side, found: Sequence[Mapping[str, Rows]]) -> str:
    """The most honest split that has examples of both; else one that both have, so that the message can name it."""
    both = [split for split in BEST_SPLIT if split in found[0] and split in found[1]]
    for split in both:
        if found[0][split].keys() & found[1][split].keys():
            return split
    if both:
        return both[0]
    raise ConfigError(
        "A and B were evaluated on no split in common: "
        + "; ".join(f"{side} on {_splits(rows)}" for side, rows in zip((a, b), found, strict=True))
        + "; choose genomes of the front, which are evaluated on every split"
    )


def _splits(found: Mapping[str, Rows]) -> str:
    parts = [f"{split} ({_count(found[split])} examples)" for split in BEST_SPLIT if split in found]
    return ", ".join(parts) or "nothing"


def _count(rows: Rows) -> int:
    return len({example for example, _, _ in rows})


def _on(side: Side, found: Mapping[str, Rows], split: str) -> Rows:
    if split not in BEST_SPLIT:
        raise ConfigError(f"got split {split!r}; allowed: {', '.join(BEST_SPLIT)}")
    if split not in found:
        instead = next((name for name in BEST_SPLIT if name in found), None)
        raise ConfigError(
            f"{side} was not evaluated on {split!r}; it was on: {_splits(found)}; "
            + (f"compare there (--split {instead}), or choose" if instead else "choose")
            + " a genome of the front, which is evaluated on every split"
        )
    return found[split]


def _nothing(a: Side, b: Side, rows_a: Rows, rows_b: Rows, split: str) -> str:
    return (
        f"A and B have no example of {split} in common: {a} was evaluated on {_count(rows_a)} example ids "
        f"({_ids(rows_a)}), {b} on {_count(rows_b)} ({_ids(rows_b)}); compare configurations that ran on the same data"
    )


def _ids(rows: Rows) -> str:
    ids = list(dict.fromkeys(example for example, _, _ in rows))
    return ", ".join(map(repr, ids[:2])) + (", ..." if len(ids) > 2 else "")


def _same_data(
    a: Side, b: Side, split: str, ids: Sequence[str], contents: Sequence[Mapping[str, Any]], anyway: bool
) -> list[str]:
    """What to note of the data. Raises: ConfigError when equal ids may be other examples, unless `anyway`."""
    prints = [(side.result.run.get("data") or {}).get(split) for side in (a, b)]
    if a.result.address == b.result.address or (prints[0] == prints[1] and prints[0] is not None):
        return []
    known = [id for id in ids if id in contents[0] and id in contents[1]]
    other = [id for id in known if contents[0][id] != contents[1][id]]
    if len(known) == len(ids) and not other:
        return [f"The runs' {split} data differ, but the {len(ids)} examples compared are the same in both."]
    if other:
        why = f"{len(other)} of the {len(ids)} example ids in common stand for other examples, first {other[0]!r}"
    else:
        why = (
            f"the fingerprints in run.json differ ({prints[0]!r}, {prints[1]!r}), and whether equal ids are equal "
            "examples cannot be told without examples.jsonl in both folders"
        )
    if not anyway:
        raise ConfigError(
            f"{a.result.address!r} and {b.result.address!r} ran on other {split} data: {why}; "
            "compare runs of the same data, or go on all the same with --anyway"
        )
    return [f"The runs' {split} data differ: {why}. Compared all the same, as asked."]


def _cautions(a: Side, b: Side, rows_a: Rows, rows_b: Rows, split: str) -> list[str]:
    notes = []
    for result in {side.result.address: side.result for side in (a, b)}.values():
        if result.status != "finished":
            notes.append(f"{result.address!r} is not finished ({result.status}): compared is what is there.")
    for name, rows, others in (("A", rows_a, rows_b), ("B", rows_b, rows_a)):
        alone = {item[0] for item in rows} - {item[0] for item in others}
        if alone:
            notes.append(f"{name} was evaluated on {len(alone)} more examples, which are left out.")
    if split == "train":
        notes.append("The search chose by train, so what it found looks better there than it is.")
    elif split == "validation":
        notes.append(
            "Members were recommended by validation, so the recommended looks a little better there than it is."
        )
    if any("::" in item[0] for item in rows_a):
        notes.append("Examples of all tasks count the same here.")
    return notes


def _objectives(side: Side) -> list[str]:
    """Of its run; before there is a front, as its status has them."""
    return side.result.objectives or list(side.result.run.get("objectives") or ["quality"])


def _lines(
    names: Sequence[str],
    measures: Mapping[str, Measure],
    pairs: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]],
) -> tuple[list[Line], list[str]]:
    """A line for each objective that can be measured, and the names of the others."""
    lines, unknown = [], []
    for name in dict.fromkeys(("quality", *names)):
        one = measures.get(name) or measure(name)
        if one is None:
            unknown.append(name)
            continue
        values = [(example, one.value(left), one.value(right)) for example, left, right in pairs]
        kept = [(example, x, y) for example, x, y in values if x is not None and y is not None]
        if kept:
            ids, left, right = zip(*kept, strict=True)
            lines.append(Line(one, paired(ids, left, right, one.aggregate)))
    return lines, unknown


def _changes(common: Sequence[tuple[str, int, int]], a: Rows, b: Rows, contents: Mapping[str, Any]) -> list[Change]:
    replicates: dict[str, list[tuple[str, int, int]]] = {}
    for item in common:
        if not item[1]:
            replicates.setdefault(item[0], []).append(item)
    found = [_change(id, items, a, b, contents.get(id, {})) for id, items in replicates.items()]
    changes = [change for change in found if change is not None]

    def place(one: Change) -> tuple[int, float, int, str]:
        return KINDS.index(one.kind), -abs(one.quality_b - one.quality_a), len(one.example), one.example

    return sorted(changes, key=place)


def _change(
    id: str, items: Sequence[tuple[str, int, int]], a: Rows, b: Rows, content: Mapping[str, Any]
) -> Change | None:
    before, after = ([_right(rows[item]) for item in items] for rows in (a, b))
    gain = sum(after) - sum(before)
    if abs(gain) > 1e-9:
        kind = "fixed" if gain > 0 else "broken"
        shown = max(items, key=lambda item: (_right(b[item]) - _right(a[item])) * gain)
    else:
        kind = "changed"
        differ = [item for item in items if a[item]["output"] != b[item]["output"]]
        if not differ:
            return None
        shown = differ[0]
    count = len(items)
    return Change(kind, id, content, a[shown], b[shown], sum(before) / count, sum(after) / count)


def _right(row: Mapping[str, Any]) -> float:
    return 0.0 if row["error"] is not None else float(row["quality"])


def first(changes: Sequence[Change], most: int) -> list[Change]:
    """At most so many changes, the kinds taking turns, in the order of the kinds."""
    by_kind = {kind: [change for change in changes if change.kind == kind] for kind in KINDS}
    turns = [kinds for at in range(len(changes)) for kinds in (by_kind[kind][at : at + 1] for kind in KINDS)]
    kept = [change for turn in turns for change in turn][: max(0, most)]
    return [change for change in changes if any(change is one for one in kept)]


def p_value(p: float) -> str:
    """'p = 0.011' or 'p < 0.001'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def verdict(line: Line) -> str:
    """What a line means, in words."""
    one, found = line.measure, line.paired
    name = {"latency_ms": "latency", "cost_usd": "cost"}.get(one.name, one.name) + " p95" * (one.aggregate == "p95")
    where = f"on {found.examples} example{'s' * (found.examples != 1)}"
    if not found.up and not found.down:
        return f"{name}: the same on every one of {found.examples} examples ({one.amount(found.a)})"
    sign = 1 if found.difference > 0 else -1
    ends = sorted((sign * found.low, sign * found.high))
    if line.better:
        size, (low, high) = one.amount(abs(found.difference)), (one.bare(end) for end in ends)
        return f"{name}: {line.better} is better by {size} [{low}, {high}] {where}, {p_value(found.p)}"
    low, high = (one.bare(end, sign=True) for end in (found.low, found.high))
    text = f"{name}: no difference shown: B - A = {one.amount(found.difference, sign=True)} [{low}, {high}] {where}, "
    text += p_value(found.p)
    if found.examples < 6:
        return f"{text}; with fewer than 6 examples no difference could be shown at all"
    if found.visible is None:
        return text
    return f"{text}; with so many examples a difference below {one.amount(found.visible)} could not be seen"


def as_json(found: Comparison) -> dict[str, Any]:
    """The whole comparison as JSON values."""
    return {
        "a": _side_json(found.a),
        "b": _side_json(found.b),
        "split": found.split,
        "examples": found.examples,
        "evaluations": found.evaluations,
        "genes": {change.name: {"a": change.a, "b": change.b} for change in found.genes},
        "objectives": {
            line.measure.name: {
                "direction": line.measure.direction,
                "aggregate": line.measure.aggregate,
                **line.paired._asdict(),
                "better": line.better or None,
                "says": verdict(line),
            }
            for line in found.lines
        },
        "counts": {kind: found.count(kind) for kind in KINDS},
        "changes": [_change_json(change) for change in found.changes],
        "notes": found.notes,
    }


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "folder": side.result.address,
        "status": side.result.status,
        "genome": side.genome,
        "role": side.role,
        "genes": side.genes,
    }


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "kind": change.kind,
        "example": change.example,
        "input": change.content.get("input"),
        "expected": change.content.get("expected"),
        "a": _answer_json(change.a, change.quality_a),
        "b": _answer_json(change.b, change.quality_b),
    }


def _answer_json(row: Mapping[str, Any], quality: float) -> dict[str, Any]:
    kept = {name: row[name] for name in ("replicate", "output", "error", "schema_ok", "repairs", "flags")}
    return {**kept, "quality": quality, "scores": json.loads(row["scores"] or "{}")}
