"""Weaknesses of a prompt, by its version: answers that do not parse, are asked for again, are refused or unsure, and
labels taken for one another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from evocluster.online.finding import FEWEST, LEAST, Finding, concerned, named, of_intent, rate, streams, told
from evocluster.online.outcome import Row, verdict
from evocluster.release.settings import Metric
from evocluster.tasks.words import normalise, plain

UNSURE = 0.5
"""Confidence below which an answer is unsure."""
CONFUSED = 0.05
"""Share of a label's requests that surely get one and the same other label, from which the pair is a finding."""
LABEL_WORDS = 6
"""Words up to which an answer counts as a label."""
PAIR = 3
"""Times that a pair is confused, at least."""


class Sign(NamedTuple):
    """One weakness that a row can show."""

    kind: str
    what: str
    shows: Callable[[Row], bool | None]
    """None: the row says nothing of it."""
    floor: float
    """Share that surely shows it, from which it is a finding."""
    layer: Literal["prompt", "strategy"]
    remedy: str


SIGNS = (
    Sign(
        "format",
        "do not parse",
        lambda row: row.get("error_class") == "format" or row.get("schema_ok") is False,
        0.01,
        "prompt",
        "show the exact form of an answer, or constrain the answers",
    ),
    Sign(
        "repairs",
        "had to be asked for again",
        lambda row: int(row.get("repairs") or 0) > 0,
        0.05,
        "prompt",
        "show the exact form of an answer: every repair costs a call",
    ),
    Sign(
        "refusals",
        "were refused",
        lambda row: row.get("error_class") == "refusal",
        0.01,
        "prompt",
        "say what the answers are for; what the model will not answer goes to another model",
    ),
    Sign(
        "unsure",
        f"have a confidence below {UNSURE:g}",
        lambda row: None if row.get("confidence") is None else float(row["confidence"]) < UNSURE,
        0.10,
        "strategy",
        "ask a stronger model where the answer is unsure (strategy.escalate), or show demos of these",
    ),
)


def weaknesses(
    rows: Sequence[Row], versions: Mapping[str, str] | None = None, metrics: Mapping[str, Metric] | None = None
) -> list[Finding]:
    """`versions`: snapshot -> name of its prompt; without them every snapshot is a version."""
    named_rows = [{**row, "version": _version(row, versions)} for row in rows]
    found: list[Finding] = []
    for (intent, version), members in streams(named_rows, ("intent", "version")):
        for sign in SIGNS:
            found += _signs(named_rows, members, sign, intent, version)
        found += _confusions(named_rows, members, intent, version, metrics)
    return found


def _version(row: Row, versions: Mapping[str, str] | None) -> str:
    snapshot = str(row.get("snapshot_id") or "")
    return (versions or {}).get(snapshot, snapshot)


def _signs(everything: Sequence[Row], members: Sequence[Row], sign: Sign, intent: str, version: str) -> list[Finding]:
    able = [row for row in members if sign.shows(row) is not None]
    hits = [row for row in able if sign.shows(row)]
    seen = rate(able, [bool(sign.shows(row)) for row in able])
    if len(able) < LEAST or len(hits) < FEWEST or seen.low < sign.floor:
        return []
    return [
        Finding(
            kind=sign.kind,
            severity=concerned(hits, everything),
            layer=sign.layer,
            intent=intent,
            key=version,
            title=f"{of_intent(intent)}, prompt {version or 'unknown'}: {seen.text()} answers {sign.what}",
            evidence=told(
                rate=seen,
                prompt=version,
                models=dict(sorted(Counter(str(row.get("model") or "") for row in hits).items())),
                requests=named(hits),
            ),
            recommendation=sign.remedy,
        )
    ]


def _confusions(
    everything: Sequence[Row],
    members: Sequence[Row],
    intent: str,
    version: str,
    metrics: Mapping[str, Metric] | None,
) -> list[Finding]:
    """(right, given) labels: of the requests whose right answer is one label, those that got the same other one."""
    wanted: dict[str, list[tuple[Row, str]]] = {}
    for row in members:
        known, output = verdict(row, metrics), row.get("output")
        if output is None or not known.known:
            continue
        right = known.expected if known.expected is not None else output if known.succeeded() else None
        if right is not None and _label(plain(right)) and _label(plain(output)):
            wanted.setdefault(normalise(plain(right)), []).append((row, normalise(plain(output))))
    found = []
    for right, given in sorted(wanted.items()):
        for label, count in sorted(Counter(got for _, got in given if got != right).items()):
            hits = [row for row, got in given if got == label]
            seen = rate([row for row, _ in given], [got == label for _, got in given])
            if len(given) >= LEAST and count >= PAIR and seen.low >= CONFUSED:
                found.append(_confusion(everything, hits, seen.text(), told(rate=seen), right, label, intent, version))
    return found


def _confusion(
    everything: Sequence[Row],
    hits: Sequence[Row],
    text: str,
    evidence: Mapping[str, object],
    right: str,
    label: str,
    intent: str,
    version: str,
) -> Finding:
    return Finding(
        kind="confusion",
        severity=concerned(hits, everything),
        layer="prompt",
        intent=intent,
        key=f"{version} {right} > {label}",
        title=f"{of_intent(intent)}, prompt {version or 'unknown'}: {label!r} where {right!r} is right: {text}",
        evidence={**evidence, "prompt": version, "right": right, "given": label, "requests": named(hits)},
        recommendation=f"state what tells {right!r} from {label!r}, or show a demo of each",
    )


def _label(text: str) -> bool:
    return 0 < len(text.split()) <= LABEL_WORDS
