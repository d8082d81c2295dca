"""The content of a candidate in canonical form, and when two of them are nearly the same.

What was rolled back is barred by content: as its whole layer (that very content, whatever it is made from) and as its
change (what it added to and took from its parent), which near copies are held against. The change, not the whole,
since one bad note among hundreds would else bar every other change of the memory, and the parent itself.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from evocluster.records import Json, canonical, digest
from evocluster.release.gates import Gate, verdict
from evocluster.release.injection import fold
from evocluster.release.snapshot import HASH, LAYERS, Snapshot

NEAR = 0.98
"""From which similarity on content counts as the same."""
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")


class Content(NamedTuple):
    """What is barred, or held against it."""

    hash: str
    text: str = ""
    """Of a change, as JSON: near copies are the same. Empty: only equal content is."""


def canonical_text(text: str) -> str:
    """A text with its Unicode in one form, hidden characters gone and spaces single. Upper case is kept."""
    seen = "".join(char for char in text if unicodedata.category(char) not in ("Cf", "Co") or char.isspace())
    return " ".join(unicodedata.normalize("NFKC", seen).split())


def canonical_content(snapshot: Snapshot) -> dict[str, Json]:
    """Layer -> what of it decides answers, in one order and form: no ids, sources, or notes that are not used."""
    return {
        "prompt": {"genes": _genes(snapshot), "demos": _demos(snapshot)},
        "memory": _notes(snapshot),
        "strategy": _plain(snapshot.strategy.model_dump(mode="json")),
    }


def contents(candidate: Snapshot, parent: Snapshot) -> tuple[Content, ...]:
    """What is written down when a candidate is barred: the layers that it changed, and its change."""
    mine, theirs = canonical_content(candidate), canonical_content(parent)
    layers = [layer for layer in LAYERS if canonical(mine[layer]) != canonical(theirs[layer])]
    if not layers:
        return ()
    made = change(candidate, parent)
    return (
        *(Content(digest([layer, mine[layer]])[:HASH]) for layer in layers),
        Content(digest(made)[:HASH], canonical(made)),
    )


def change(candidate: Snapshot, parent: Snapshot) -> dict[str, Json]:
    """What a candidate does to its parent: texts `added` and `taken`, sorted, and new `values` by path."""
    mine, theirs = canonical_content(candidate), canonical_content(parent)
    after, before = _parts(candidate), _parts(parent)
    new, old = _values(mine), _values(theirs)
    values = {
        path: new.get(path) for path in sorted({*new, *old}) if canonical(new.get(path)) != canonical(old.get(path))
    }
    return {
        "added": sorted((after - before).elements()),
        "taken": sorted((before - after).elements()),
        "values": values,
    }


def barred(candidate: Snapshot, parent: Snapshot, rows: Iterable[Mapping[str, Any]], near_at: float = NEAR) -> Gate:
    """Whether the candidate is none of what was rolled back. `rows`: those of the table `barred` (`hash`, `text`)."""
    mine = contents(candidate, parent)
    hashes = {each.hash for each in mine}
    texts = [each.text for each in mine if each.text]
    reasons = []
    for row in rows:
        named = f"barred content {row['hash']}" + (f" (of snapshot {row['snapshot']})" if row.get("snapshot") else "")
        if row["hash"] in hashes:
            reasons.append(f"is {named}; change it")
        elif row.get("text") and any(alike(text, row["text"], near_at) for text in texts):
            reasons.append(f"is a near copy, {near_at:g} or more, of {named}; change it further")
    return verdict("barred", reasons)


def alike(one: str, other: str, at: float = NEAR) -> bool:
    """Two changes, as `Content.text` has them, are nearly the same: in every value, in what they add, in what they
    take.
    """
    mine, theirs = json.loads(one), json.loads(other)
    if set(mine["values"]) != set(theirs["values"]):
        return False
    if not all(_close(mine["values"][path], theirs["values"][path], at) for path in mine["values"]):
        return False
    sides = [["\n".join(each[side]) for each in (mine, theirs)] for side in ("added", "taken")]
    return all(near(fold(first), fold(second), at) >= at for first, second in sides)


def near(one: str, other: str, floor: float = NEAR) -> float:
    """How similar two texts are, from 0 to 1; 0 where that is below `floor`. Symmetric, the same every time.

    The larger of two shares of both texts: of characters in their longest common subsequence (Myers 1986, by its
    greedy walk up to as many edits as `floor` allows: quick where texts are near, and soon over where they are not),
    and of whole sentences in common, in whatever order they stand.
    """
    if one == other:
        return 1.0
    size = len(one) + len(other)
    most = int((1 - floor) * size + 1e-9)
    edits = _edits(one, other, most)
    by_edits = 1 - edits / size if edits is not None else 0.0
    found = max(by_edits, _shared(one, other))
    return found if found >= floor else 0.0


def _shared(one: str, other: str) -> float:
    mine, theirs = (Counter(_sentences(text)) for text in (one, other))
    size = sum(len(text) * count for counted in (mine, theirs) for text, count in counted.items())
    both = sum(len(text) * count for text, count in (mine & theirs).items())
    return 2 * both / size if size else 0.0


def _sentences(text: str) -> list[str]:
    return [each.strip() for each in _SENTENCE.split(text) if each.strip()]


def _edits(one: str, other: str, most: int) -> int | None:
    """Characters to put in and take out to make one text the other; None where it takes more than `most`."""
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    a, b = one[start:], other[start:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    counts, others = Counter(a), Counter(b)
    if sum(((counts - others) + (others - counts)).values()) > most:
        return None
    return _walk(a, b, most)


def _walk(a: Sequence[str], b: Sequence[str], most: int) -> int | None:
    reach = {1: 0}
    for edits in range(most + 1):
        for k in range(-edits, edits + 1, 2):
            down = k == -edits or (k != edits and reach[k - 1] < reach[k + 1])
            x = reach[k + 1] if down else reach[k - 1] + 1
            y = x - k
            while x < len(a) and y < len(b) and a[x] == b[y]:
                x, y = x + 1, y + 1
            reach[k] = x
            if x >= len(a) and y >= len(b):
                return edits
    return None


def _close(one: Json, other: Json, at: float) -> bool:
    """Equal, or two numbers whose difference is within the share that is left to be different."""
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other)):
        return bool(abs(one - other) <= (1 - at) * max(abs(one), abs(other)) + 1e-12)
    return canonical(one) == canonical(other)


def _genes(snapshot: Snapshot) -> dict[str, Json]:
    return {name: _plain(value) for name, value in snapshot.prompt.genes.items() if name != "demos"}


def _demos(snapshot: Snapshot) -> list[Json]:
    shown = [[_plain(example.input), _plain(example.expected)] for example in snapshot.prompt.examples]
    return sorted(shown, key=canonical)


def _notes(snapshot: Snapshot) -> list[Json]:
    return sorted([note.intent, canonical_text(note.text)] for note in snapshot.memory if note.state == "active")


def _plain(value: Json) -> Json:
    """The same with its texts in canonical form, lists for tuples, and whole numbers without a fraction."""
    if isinstance(value, str):
        return canonical_text(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parts(snapshot: Snapshot) -> Counter[str]:
    """Every text of its own: sentences of the rubric, demos, notes."""
    rubric = snapshot.prompt.genes.get("rubric", "")
    sentences = [canonical_text(each) for each in _sentences(unicodedata.normalize("NFKC", str(rubric)))]
    demos = [f"demo {canonical(demo)}" for demo in _demos(snapshot)]
    notes = [f"note {canonical(note)}" for note in _notes(snapshot)]
    return Counter([*(each for each in sentences if each), *demos, *notes])


def _values(content: Mapping[str, Json]) -> dict[str, Json]:
    """Path -> value of everything that is no text."""
    genes = {f"prompt.{name}": value for name, value in content["prompt"]["genes"].items() if name != "rubric"}
    return {**genes, **dict(_leaves(content["strategy"], "strategy"))}


def _leaves(value: Json, path: str) -> list[tuple[str, Json]]:
    if isinstance(value, Mapping) and value:
        return [leaf for name, item in value.items() for leaf in _leaves(item, f"{path}.{name}")]
    return [(path, value)]
