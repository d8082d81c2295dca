"""Repeated failures: questions of one kind that one model keeps getting wrong.

Requests of every intent and model are clustered by their words, whatever became of them; a cluster is found where it
surely fails more often than the rest of its stream. Clusters of the failures alone would not do: they are where
failures happened to fall, and so hold too many of them even where nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evocluster.online.finding import FEWEST, LEAST, Finding, concerned, named, of_intent, rate, streams, told
from evocluster.online.likeness import CLUSTERED, clusters
from evocluster.online.outcome import RIGHT, Row, verdict
from evocluster.release.settings import Metric
from evocluster.tasks.words import plain, shown

CONFIDENCE = 0.99
"""Of the intervals of a cluster and of the rest, which must not touch: many clusters are looked at."""
EPISODES = 3
"""Different ones that a cluster is seen in, at least."""
FAILING = 1 - RIGHT
"""Share of a stream that surely fails, from which the stream itself is a finding."""
EXAMPLES = 3
EXCERPT = 120
"""Characters of an example."""


def repeated(rows: Sequence[Row], metrics: Mapping[str, Metric] | None = None) -> list[Finding]:
    """Streams that fail, and clusters in them."""
    found: list[Finding] = []
    for (intent, model), members in streams(rows):
        known = sorted(
            (row for row in members if verdict(row, metrics).known),
            key=lambda row: (-float(row["at"]), row["request_id"]),
        )
        failed = [verdict(row, metrics).failed() for row in known]
        if len(known) < LEAST or sum(failed) < FEWEST:
            continue
        found += _stream(rows, known, failed, intent, model)
        found += _clusters(rows, known, failed, intent, model)
    return found


def _stream(
    everything: Sequence[Row], known: Sequence[Row], failed: Sequence[bool], intent: str, model: str
) -> list[Finding]:
    seen = rate(known, failed)
    if seen.low < FAILING:
        return []
    wrong = [row for row, bad in zip(known, failed, strict=True) if bad]
    return [
        Finding(
            kind="failures",
            severity=concerned(wrong, everything),
            layer="prompt",
            intent=intent,
            model=model,
            key="stream",
            title=f"{of_intent(intent, model)}: {seen.text()} of the judged answers are wrong",
            evidence=told(rate=seen, requests=named(wrong)),
            recommendation="evolve the prompt on these requests; if none helps, send the intent to a stronger model",
        )
    ]


def _clusters(
    everything: Sequence[Row], known: Sequence[Row], failed: Sequence[bool], intent: str, model: str
) -> list[Finding]:
    able = [(row, bad) for row, bad in zip(known, failed, strict=True) if row.get("input") is not None][:CLUSTERED]
    found = []
    for cluster in clusters([plain(row["input"]) for row, _ in able], FEWEST):
        members = [able[number] for number in cluster.members]
        held = frozenset(cluster.members)
        rest = [each for number, each in enumerate(able) if number not in held]
        finding = _cluster(everything, members, rest, cluster.terms, intent, model)
        if finding is not None:
            found.append(finding)
    return found


def _cluster(
    everything: Sequence[Row],
    inside: Sequence[tuple[Row, bool]],
    outside: Sequence[tuple[Row, bool]],
    terms: Sequence[str],
    intent: str,
    model: str,
) -> Finding | None:
    seen = rate([row for row, _ in inside], [bad for _, bad in inside], CONFIDENCE)
    rest = rate([row for row, _ in outside], [bad for _, bad in outside], CONFIDENCE)
    members = [row for row, bad in inside if bad]
    if len({row["episode_id"] for row in members}) < EPISODES or seen.hits < FEWEST:
        return None
    if seen.low <= (rest.high if outside else FAILING):
        return None
    about = ", ".join(terms) or "(no words)"
    return Finding(
        kind="failures",
        severity=concerned(members, everything),
        layer="prompt",
        intent=intent,
        model=model,
        key=about,
        title=f"{of_intent(intent, model)}: about {about}: {seen.text()} are wrong, {rest.share:.0%} of the rest",
        evidence=told(
            rate=seen,
            rest=rest,
            terms=tuple(terms),
            requests=named(members),
            examples=[
                {
                    "request": row["request_id"],
                    "input": shown(plain(row["input"]), EXCERPT),
                    "output": shown(plain(row.get("output")), EXCERPT),
                }
                for row in members[:EXAMPLES]
            ],
        ),
        recommendation=f"state in the prompt how requests about {about} are answered, or show one as a demo",
    )
