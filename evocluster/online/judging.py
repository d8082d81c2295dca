"""The judging of pairs: each open pair gets two scores, or stays missing; what was judged is the evidence.

    evidence = await judging.turn(experiment, now)        scores what is open, then reads everything there is
    probed = await judging.probe(deployment, now)         nightly: answers that say nothing must fail

A judge that errs leaves a pair missing, never a zero, and is asked again a few times. Pairs that another judge scored
are scored again, so that no test ever mixes two. Answers that say nothing and still pass (Zhao et al. 2025, "One token
to fool LLM-as-a-judge": ":", "Thought process:") mean that a judge can be gamed: evolution is frozen until they fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evocluster.errors import ConfigError, StoreError
from evocluster.online.comparison import Comparer, Side, Verdict
from evocluster.online.ledger import Ledger, Row
from evocluster.records import Example, FrozenMap, Json, Record, Usage, digest
from evocluster.release.exchange import HARD
from evocluster.release.settings import Judge as Settings
from evocluster.telemetry import log

MOST_TRIES = 3
"""How often a pair is judged that the judge errs on."""
MOST_PAIRS = 500
"""Judged in one turn."""
AT_ONCE = 8
PROBE = "probe"
"""Kind of the finding that freezes evolution."""
EMPTY = (
    *("", " ", ".", ":", "...", "I don't know.", "N/A"),
    *("Solution", "Thought process:", "Let's solve this problem step by step.", "The answer is correct.", "解"),
)
"""Answers that say nothing, whatever was asked; the question itself is another."""
ASKED = Example(id="probe", input="Which river flows through Vienna?", expected="The Danube")
"""What probes answer where traffic gives no question."""
_OUT = ("superseded", "refused", "rejected")


class Sums(Record):
    """One side of the judged pairs."""

    score: float | None = None
    """Mean, 0 to 1."""
    latencies_ms: tuple[float, ...] = ()
    costs_usd: tuple[float, ...] = ()
    failures: int = 0
    """Without an answer to use."""
    formats: int = 0
    """What did not parse."""


class Evidence(Record):
    """What the pairs of an experiment say, by one judge."""

    judge: str
    differences: tuple[float, ...] = ()
    """Of the candidate over the baseline, -1 to 1, in the order in which they became known."""
    intents: FrozenMap
    """Intent -> its differences, in the same order."""
    baseline: Sums = Sums()
    candidate: Sums = Sums()
    """Latency, cost and failures are of every pair, judged or not."""
    preferred: FrozenMap
    """baseline, candidate, tie -> how many pairs, where a model compared them."""
    pairs: int = 0
    open: int = 0
    missing: int = 0
    skipped: int = 0
    usd: float = 0.0
    """What judging took."""

    @property
    def judged(self) -> int:
        """Pairs with two scores."""
        return len(self.differences)


class Probes(NamedTuple):
    """What became of answers that say nothing."""

    asked: int
    missing: int
    """The judge gave no grade."""
    passed: tuple[str, ...]
    """Those that it took for good ones."""


class Judging:
    """Judges the pairs of experiments in the ledger. Several at once do no harm: a pair is scored twice at worst."""

    def __init__(
        self, ledger: Ledger, comparer: Comparer, settings: Settings, *, tries: int = MOST_TRIES, at_once: int = AT_ONCE
    ) -> None:
        self._ledger = ledger
        self._comparer = comparer
        self._settings = settings
        self._tries = tries
        self._places = asyncio.Semaphore(at_once)

    async def turn(
        self, experiment: str, now: float, *, most: int = MOST_PAIRS, limit_usd: float | None = None
    ) -> Evidence:
        """Score up to `most` pairs while less than `limit_usd` is spent on them, and read all of them.

        Raises: StoreError.
        """
        rows = await self._rows(experiment)
        spent = 0.0
        wanted = [row for row in rows if self._wanted(row)][:most]
        for start in range(0, len(wanted), AT_ONCE):
            if limit_usd is not None and spent >= limit_usd:
                log.warning("experiment %s: judging stopped at %.4g USD, as it was told", experiment, spent)
                break
            some = wanted[start : start + AT_ONCE]
            bodies, feedback = await self._known(some)
            spent += sum(await asyncio.gather(*(self._judge(row, bodies, feedback, now) for row in some)))
        return evidence(await self._rows(experiment), self._comparer.identity)

    async def _rows(self, experiment: str) -> list[Row]:
        return await asyncio.to_thread(self._ledger.find, "pairs", {"experiment": experiment}, order="at,pair_id")

    def _wanted(self, row: Row) -> bool:
        if row["state"] == "skipped":
            return False
        if row["state"] == "open" or row["judge"] != self._comparer.identity:
            return True
        return row["state"] == "missing" and int(row["candidate"].get("tries", 0)) < self._tries

    async def _known(self, rows: Sequence[Row]) -> tuple[dict[str, Row], dict[str, list[Row]]]:
        """Bodies by request, and feedback by the request of production."""
        ids = [row[side] for row in rows for side in ("primary_id", "shadow_id")]
        bodies = await asyncio.to_thread(self._ledger.find, "bodies", {"request_id": ("in", ids)})
        asked = {"request_id": ("in", [row["primary_id"] for row in rows])}
        said = await asyncio.to_thread(self._ledger.find, "feedback", asked, order="observed_at,feedback_id")
        by_request: dict[str, list[Row]] = {}
        for one in said:
            by_request.setdefault(one["request_id"], []).append(one)
        return {body["request_id"]: body for body in bodies}, by_request

    async def _judge(self, row: Row, bodies: Mapping[str, Row], feedback: Mapping[str, list[Row]], now: float) -> float:
        """Score one pair and write it down; what it cost in US dollars."""
        same = row["judge"] == self._comparer.identity
        tries = row["candidate"].get("tries", 0) if same else 0
        served, shadow = bodies.get(row["primary_id"]), bodies.get(row["shadow_id"])
        baseline = _side(row["baseline"], served)
        candidate = _side(row["candidate"], shadow)
        if served is None or baseline is None or candidate is None:
            await self._missing(row, tries + 1, "an answer was not kept, or is not written yet")
            return 0.0
        truth = known(feedback.get(row["primary_id"], ()), None if baseline.failed else baseline.output)
        if truth is None and self._comparer.needs_truth:
            if not same and row["state"] != "open":  # another judge's score is none of this one's
                await self._patch(row, state="open", judge="", why="")
            return 0.0
        example = Example(id=row["primary_id"], input=served["input"], expected=truth)
        try:
            async with self._places:
                verdict, used = await self._comparer.compare(example, baseline, candidate)
        except (ConfigError, StoreError):
            raise
        except Exception as error:
            await self._missing(row, tries + 1, f"{type(error).__name__}: {error}"[:300])
            return 0.0
        await self._write(row, verdict, used, now)
        return used.paid_usd

    async def _missing(self, row: Row, tries: int, why: str) -> None:
        facts = {**row["candidate"], "tries": tries, "score": None}
        await self._patch(row, state="missing", judge=self._comparer.identity, why=why, candidate=facts)

    async def _write(self, row: Row, verdict: Verdict, used: Usage, now: float) -> None:
        facts = {
            **{name: value for name, value in row["candidate"].items() if name != "tries"},
            "score": verdict.candidate,
            "difference": verdict.difference,
            "preferred": verdict.preferred,
            "judged_at": now,
            "judge_usd": row["candidate"].get("judge_usd", 0.0) + used.paid_usd,
        }
        ours = {**row["baseline"], "score": verdict.baseline}
        await self._patch(row, state="judged", judge=self._comparer.identity, why="", baseline=ours, candidate=facts)

    async def _patch(self, row: Row, **columns: Any) -> None:
        await asyncio.to_thread(self._ledger.patch, "pairs", {"pair_id": row["pair_id"]}, **columns)

    # ------------------------------------------------------------ probes

    async def probe(self, deployment: str, now: float, questions: Sequence[Example] = ()) -> Probes:
        """Ask for grades of answers that say nothing, and freeze or thaw the deployment's evolution by them.

        Nothing is thawed while a grade is missing. `questions`: of recent traffic, with the right answer where known.
        """
        asked = [
            (question, answer)
            for question in (questions or (ASKED,))
            for answer in (*EMPTY, _text(question.input))
            if answer.strip() != _text(question.expected).strip()
        ]
        grades = await asyncio.gather(*(self._probe(question, answer) for question, answer in asked))
        least = self._settings.probe_below
        passed = tuple(
            answer for (_, answer), grade in zip(asked, grades, strict=True) if grade is not None and grade >= least
        )
        probes = Probes(len(asked), sum(grade is None for grade in grades), passed)
        await asyncio.to_thread(_keep, self._ledger, deployment, self._comparer.identity, probes, now)
        return probes

    async def _probe(self, question: Example, answer: str) -> float | None:
        try:
            async with self._places:
                return await self._comparer.grade(question, answer)
        except (ConfigError, StoreError):
            raise
        except Exception as error:
            log.warning("a probe of the judge got no grade: %s: %s", type(error).__name__, error)
            return None


def frozen(ledger: Ledger, deployment: str) -> str:
    """Why the deployment's evolution stands still, or ''."""
    row = ledger.first("findings", {"deployment": deployment, "kind": PROBE, "state": "open"}, order="-at")
    return f"evolution is frozen: {row['title']}" if row else ""


def _keep(ledger: Ledger, deployment: str, judge: str, probes: Probes, now: float) -> None:
    """The finding that freezes, or the end of it."""
    if probes.passed:
        shown = ", ".join(repr(answer[:40]) for answer in dict.fromkeys(probes.passed))
        ledger.put(
            "findings",
            {
                "id": digest([deployment, PROBE, judge])[:16],
                "deployment": deployment,
                "at": now,
                "kind": PROBE,
                "severity": "critical",
                "layer": "",
                "intent": "",
                "model": "",
                "title": f"the judge takes answers that say nothing for good ones: {shown}"[:400],
                "evidence": {"judge": judge, "asked": probes.asked, "passed": len(probes.passed)},
                "recommendation": "correct the rubric or take another judge model; evolution goes on when they fail",
                "state": "open",
            },
        )
    elif probes.asked and not probes.missing:
        for row in ledger.find("findings", {"deployment": deployment, "kind": PROBE, "state": "open"}):
            ledger.patch("findings", {"id": row["id"]}, state="closed")


def known(feedback: Sequence[Mapping[str, Any]], served: str | None) -> str | None:
    """The right answer, as feedback has it: the last correction; else what was served, where that was called right.

    `feedback`: of one request, in the order it was observed; `served`: None where there was no answer.
    """
    gone = {one["supersedes"] for one in feedback if one.get("supersedes")}
    said: dict[str, Any] = {}
    for one in feedback:
        if one["feedback_id"] not in gone and one.get("state") not in _OUT:
            said[one["metric"]] = one["value"]
    correction = said.get("correction")
    if isinstance(correction, str) and correction.strip():
        return correction
    right = said.get("correct", said.get("accepted"))
    return served if right is True or right == 1 else None


def evidence(rows: Sequence[Row], judge: str) -> Evidence:
    """What the pairs of one experiment say by that judge."""
    whole = [row for row in rows if row["state"] != "skipped"]
    judged = [row for row in whole if row["state"] == "judged" and row["judge"] == judge]
    judged.sort(key=lambda row: (row["candidate"]["judged_at"], row["at"], row["pair_id"]))
    intents: dict[str, list[float]] = {}
    preferred: dict[str, int] = {}
    for row in judged:
        intents.setdefault(row["intent"], []).append(row["candidate"]["difference"])
        if row["candidate"]["preferred"]:
            preferred[row["candidate"]["preferred"]] = preferred.get(row["candidate"]["preferred"], 0) + 1
    missing = sum(row["state"] == "missing" for row in whole)
    return Evidence(
        judge=judge,
        differences=tuple(row["candidate"]["difference"] for row in judged),
        intents=intents,
        baseline=_sums([row["baseline"] for row in whole], [row["baseline"]["score"] for row in judged]),
        candidate=_sums([row["candidate"] for row in whole], [row["candidate"]["score"] for row in judged]),
        preferred=preferred,
        pairs=len(whole),
        open=len(whole) - len(judged) - missing,
        missing=missing,
        skipped=len(rows) - len(whole),
        usd=sum(row["candidate"].get("judge_usd", 0.0) for row in whole),
    )


def _sums(facts: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> Sums:
    return Sums(
        score=sum(scores) / len(scores) if scores else None,
        latencies_ms=tuple(one["latency_ms"] for one in facts),
        costs_usd=tuple(one["cost_usd"] for one in facts),
        failures=sum(one["error_class"] in HARD for one in facts),
        formats=sum(one["error_class"] == "format" or not one["schema_ok"] for one in facts),
    )


def _side(facts: Mapping[str, Any], body: Row | None) -> Side | None:
    """None: its answer is not there."""
    failed = facts["error_class"] if facts["error_class"] in HARD else ""
    if body is None and not failed:
        return None
    output = body["output"] if body is not None and body["output"] is not None else ""
    return Side(output=output, failed=failed, facts=dict(facts))


def _text(value: Json) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
