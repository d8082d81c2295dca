"""Memory gaps: questions that failed while no note that fits was at hand, and corrections that say the same thing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from evocluster.online.finding import FEWEST, LEAST, Finding, concerned, named, of_intent, rate, streams, told
from evocluster.online.likeness import clusters, identical, similar
from evocluster.online.outcome import Row, verdict
from evocluster.release.settings import Metric
from evocluster.release.snapshot import Note
from evocluster.tasks.words import plain, shown

FITS = 0.1
"""Cosine of words from which a note has to do with a question."""
VOICES = 2
"""Different users, or episodes of unknown ones, that say a fact."""
SHARED = 3
"""Corrections that share it."""
HELD = 2000
"""Requests looked at, the latest."""
EXCERPT = 120


def gaps(rows: Sequence[Row], notes: Sequence[Note] = (), metrics: Mapping[str, Metric] | None = None) -> list[Finding]:
    """Intents whose failures no note covers, and facts that corrections agree on."""
    known = [row for row in rows if verdict(row, metrics).known and row.get("input") is not None]
    known = sorted(known, key=lambda row: (-float(row["at"]), row["request_id"]))[:HELD]
    return [*_uncovered(rows, known, {note.id: note.text for note in notes}, metrics), *_facts(rows, known, metrics)]


def _uncovered(
    everything: Sequence[Row], known: Sequence[Row], notes: Mapping[str, str], metrics: Mapping[str, Metric] | None
) -> list[Finding]:
    found = []
    for (intent,), members in streams(known, ("intent",)):
        fits = covered(members, notes)
        without = [row for row, fit in zip(members, fits, strict=True) if not fit]
        others = [row for row, fit in zip(members, fits, strict=True) if fit]
        seen = rate(without, [verdict(row, metrics).failed() for row in without])
        rest = rate(others, [verdict(row, metrics).failed() for row in others])
        hits = [row for row in without if verdict(row, metrics).failed()]
        taught = [row for row in hits if verdict(row, metrics).expected is not None]
        if len(without) < LEAST or len(hits) < FEWEST or not taught:
            continue
        if seen.low <= (rest.high if len(others) >= LEAST else 0.1):
            continue
        found.append(
            Finding(
                kind="memory",
                severity=concerned(hits, everything),
                layer="memory",
                intent=intent,
                title=f"{of_intent(intent)}: no note fits, and {seen.text()} are wrong",
                evidence=told(
                    rate=seen,
                    covered=rest,
                    corrected=len(taught),
                    empty=sum(not row.get("notes") for row in hits),
                    requests=named(hits),
                ),
                recommendation=f"take notes from the {len(taught)} corrections of these requests",
            )
        )
    return found


def covered(rows: Sequence[Row], notes: Mapping[str, str]) -> list[bool]:
    """Which requests were asked with a note that has to do with them."""
    texts = [" ".join(notes.get(id, "") for id in row.get("notes") or ()) for row in rows]
    asked = [number for number, text in enumerate(texts) if text.strip()]
    fits = [False] * len(rows)
    distinct = sorted({texts[number] for number in asked})
    if not distinct:
        return fits
    at = {text: number for number, text in enumerate(distinct)}
    near = similar([plain(rows[number]["input"]) for number in asked], distinct)
    for place, number in enumerate(asked):
        fits[number] = bool(near[place, at[texts[number]]] >= FITS)
    return fits


def _facts(everything: Sequence[Row], known: Sequence[Row], metrics: Mapping[str, Metric] | None) -> list[Finding]:
    corrected = [row for row in known if verdict(row, metrics).failed() and verdict(row, metrics).expected is not None]
    found = []
    for (intent,), members in streams(corrected, ("intent",)):
        said = [plain(verdict(row, metrics).expected) for row in members]
        groups: dict[int, list[int]] = defaultdict(list)
        for number, group in enumerate(identical(said)):
            groups[group].append(number)
        for numbers in groups.values():
            for cluster in clusters([plain(members[number]["input"]) for number in numbers], SHARED):
                hits = [members[numbers[each]] for each in cluster.members]
                if len(voices(hits)) >= VOICES:
                    found.append(_fact(everything, hits, said[numbers[0]], cluster.terms, intent))
    return found


def voices(rows: Sequence[Row]) -> set[str]:
    """Who spoke: users, or episodes where the user is unknown."""
    return {f"user {row['user']}" if row.get("user") else f"episode {row['episode_id']}" for row in rows}


def _fact(everything: Sequence[Row], hits: Sequence[Row], said: str, terms: Sequence[str], intent: str) -> Finding:
    about = ", ".join(terms)
    return Finding(
        kind="fact",
        severity=concerned(hits, everything),
        layer="memory",
        intent=intent,
        key=f"{about}: {said[:EXCERPT]}",
        title=f"{of_intent(intent)}: {len(hits)} corrections by {len(voices(hits))} say {shown(said, EXCERPT)} "
        f"of questions about {about}",
        evidence=told(corrections=len(hits), voices=len(voices(hits)), terms=tuple(terms), requests=named(hits)),
        recommendation="note it: the same correction came more than once",
    )
