"""The way of one candidate: which stage is next, and what serves meanwhile. Pure: evidence and a clock in, a step out.

    candidate -> gates -> shadow -> judge -> live (a share) -> watch (all but a hold-out) -> done

`step` goes one stage at most, whatever happened meanwhile, so a controller that was away for a week skips nothing;
asked again with the same evidence it says the same. What serves changes by steps only, never by time alone: a
controller that died leaves it as it is. Progressive delivery with analysis between the steps: Argo Rollouts, Flagger.
"""

from __future__ import annotations

from typing import Literal

from evocluster.records import FrozenDict, FrozenMap, Record
from evocluster.release.settings import Online

Stage = Literal["candidate", "gates", "shadow", "judge", "live", "watch", "done"]
STAGES: tuple[Stage, ...] = ("candidate", "gates", "shadow", "judge", "live", "watch", "done")
SERVING: tuple[Stage, ...] = ("live", "watch")
"""Stages in which a candidate answers callers."""
PAIRING: tuple[Stage, ...] = ("shadow", "judge")
"""Stages in which it answers beside production."""
Outcome = Literal["", "promoted", "rejected", "rolled_back", "inconclusive"]
Move = Literal["", "promote", "reject", "wait", "inconclusive"]
"""What a test of the evidence says; empty: it was not asked, or there was nothing to ask it of."""
PATIENCE = 7.0
"""Times `promotion.live_hours` that a candidate stays live undecided, before the baseline is kept."""
HOUR = 3600.0
DAY = 86400.0


class Routing(Record):
    """What serves: the pointer of a deployment and everything beside it."""

    incumbent: str
    """Snapshot of every episode that no arm takes."""
    arms: FrozenMap = FrozenDict()
    """Snapshot -> weight; empty: all to the incumbent."""
    stage: Literal["", "live", "watch"] = ""
    holdout: str = ""
    stable: str = ""
    """What a replica falls back to that hears nothing any more."""
    experiment: str = ""

    @property
    def state(self) -> dict[str, object]:
        """As it stands beside the pointer."""
        return {
            "experiment": self.experiment,
            "arms": dict(self.arms),
            "eligible": sorted(self.arms) or [self.incumbent],
            "stage": self.stage,
            "holdout": self.holdout,
            "stable": self.stable,
        }


class Evidence(Record):
    """What is known of an experiment when it is asked for its next step."""

    experiment: str
    candidate: str = ""
    """Snapshot; empty: not made yet."""
    baseline: str
    incumbent: str
    """Snapshot that serves now."""
    stage_at: float
    """When its stage began; seconds since 1970, as all times here."""
    paired_at: float = 0.0
    """When its shadow began."""
    unmade: str = ""
    """Why there is no candidate, and will be none."""
    gates: bool | None = None
    """All were passed; None: they were not asked yet."""
    failed: str = ""
    """The gates that were not passed."""
    pairs: int = 0
    """Inputs that both sides answered."""
    judged: int = 0
    score: float | None = None
    """The candidate's mean, 0 to 1, by the judge."""
    move: Move = ""
    """Of the stage's own test: of the pairs in `judge`, of live traffic in `live`."""
    why: str = ""
    """Its reason."""
    weights: FrozenMap = FrozenDict()
    """Arms that the bandit published while live; empty: none yet."""
    tripped: str = ""
    """Why the breaker opened."""
    aborted: str = ""
    """Why somebody called it off."""
    frozen: str = ""
    """Why nothing may go on: the judge takes empty answers for good ones."""
    occupied: bool = False
    """Another experiment's arms serve."""
    waiting: bool = False
    """Another experiment is ready to go live."""


class Step(Record):
    """What is next. `stage` is the same where nothing is."""

    stage: Stage
    outcome: Outcome = ""
    reason: str = ""
    routing: Routing | None = None
    """What is to serve; None: what serves is none of this experiment's business."""


def step(stage: Stage, evidence: Evidence, settings: Online, now: float) -> Step:
    """The next stage, one at most; a stage that is over stays over."""
    if stage == "done":
        return Step(stage="done", reason="it is over")
    if (ended := _ended(stage, evidence)) is not None:
        return ended
    return _NEXT[stage](evidence, settings, now)


def _ended(stage: Stage, evidence: Evidence) -> Step | None:
    """What ends any stage at once."""
    serving = stage in SERVING
    if evidence.tripped and serving:
        return _back(evidence, "rolled_back", evidence.tripped)
    if evidence.aborted:
        if serving:
            return _back(evidence, "rolled_back", evidence.aborted)
        return Step(stage="done", outcome="rejected", reason=evidence.aborted)
    expected = evidence.candidate if stage == "watch" else evidence.baseline
    if evidence.incumbent != expected:
        why = f"snapshot {evidence.incumbent} serves since, and no longer {expected}, which this was compared with"
        return Step(stage="done", outcome="rolled_back" if serving else "inconclusive", reason=why)
    return None


def _candidate(evidence: Evidence, settings: Online, now: float) -> Step:
    if evidence.unmade:
        return Step(stage="done", outcome="rejected", reason=evidence.unmade)
    if evidence.candidate and evidence.candidate == evidence.baseline:
        return Step(stage="done", outcome="rejected", reason="the candidate is what serves already")
    if evidence.frozen or not evidence.candidate:
        return Step(stage="candidate", reason=evidence.frozen or "it is not made yet")
    return Step(stage="gates", reason="it was made")


def _gates(evidence: Evidence, settings: Online, now: float) -> Step:
    if evidence.gates is False:
        return Step(stage="done", outcome="rejected", reason=f"gates: {evidence.failed}")
    if evidence.gates is None or evidence.frozen:
        return Step(stage="gates", reason=evidence.frozen or "the gates are still to be asked")
    return Step(stage="shadow", reason="all gates were passed")


def _shadow(evidence: Evidence, settings: Online, now: float) -> Step:
    asked, hours = settings.shadow, (now - evidence.paired_at) / HOUR
    if evidence.pairs >= asked.pairs and hours >= asked.hours and not evidence.frozen:
        return Step(stage="judge", reason=f"{evidence.pairs} pairs in {hours:.1f} h")
    said = f"{evidence.pairs} of {asked.pairs} pairs in {hours:.1f} of at least {asked.hours:g} h"
    return _or_late("shadow", evidence, settings, now, evidence.frozen or said)


def _judge(evidence: Evidence, settings: Online, now: float) -> Step:
    score, passes = evidence.score, settings.judge.passes
    if evidence.judged >= settings.promotion.pairs and score is not None and score < passes:
        return Step(stage="done", outcome="rejected", reason=f"the judge gives {score:.3f}, less than {passes:g}")
    if evidence.move == "reject":
        return Step(stage="done", outcome="rejected", reason=evidence.why)
    if evidence.move == "inconclusive":
        return Step(stage="done", outcome="inconclusive", reason=evidence.why)
    if evidence.move == "promote" and score is not None and score >= passes and not evidence.frozen:
        if evidence.occupied:  # ready: it waits for the other's watch, and no longer for evidence
            return Step(stage="judge", reason=f"{evidence.why}; it waits for traffic that another experiment has")
        return Step(stage="live", reason=evidence.why, routing=_live(evidence, settings))
    return _or_late("judge", evidence, settings, now, evidence.frozen or evidence.why or "no verdict yet")


def _or_late(stage: Stage, evidence: Evidence, settings: Online, now: float, said: str) -> Step:
    """Stay, unless it took too long."""
    most = settings.shadow.most_hours
    if now - evidence.paired_at >= most * HOUR:
        return Step(stage="done", outcome="inconclusive", reason=f"undecided after {most:g} h: {said}")
    return Step(stage=stage, reason=said)


def _on_live(evidence: Evidence, settings: Online, now: float) -> Step:
    hours, least = (now - evidence.stage_at) / HOUR, settings.promotion.live_hours
    if evidence.move == "reject":
        return _back(evidence, "rolled_back", evidence.why)
    if evidence.move == "inconclusive":
        return _back(evidence, "inconclusive", evidence.why)
    if evidence.move == "promote" and hours >= least and not evidence.frozen:
        return Step(stage="watch", reason=evidence.why, routing=_watch(evidence, settings, evidence.baseline))
    said = evidence.frozen or evidence.why or f"live for {hours:.1f} h"
    if hours >= max(PATIENCE * least, settings.shadow.most_hours):
        return _back(evidence, "inconclusive", f"undecided after {hours:.0f} h live: {said}")
    return Step(stage="live", reason=said, routing=_live(evidence, settings))


def _on_watch(evidence: Evidence, settings: Online, now: float) -> Step:
    passed, rules = now - evidence.stage_at, settings.promotion
    watched = passed >= rules.watch_hours * HOUR
    if watched and (evidence.waiting or passed >= rules.holdout_days * DAY):
        said = "another experiment waits for traffic" if evidence.waiting else f"{rules.holdout_days:g} days held out"
        serves = Routing(incumbent=evidence.candidate, stable=evidence.candidate)
        return Step(stage="done", outcome="promoted", reason=said, routing=serves)
    stable = evidence.candidate if watched else evidence.baseline
    return Step(stage="watch", reason="under watch", routing=_watch(evidence, settings, stable))


_NEXT = {
    "candidate": _candidate,
    "gates": _gates,
    "shadow": _shadow,
    "judge": _judge,
    "live": _on_live,
    "watch": _on_watch,
}


def _live(evidence: Evidence, settings: Online) -> Routing:
    share = settings.promotion.live
    arms = evidence.weights or FrozenDict({evidence.baseline: 1 - share, evidence.candidate: share})
    return Routing(
        incumbent=evidence.baseline,
        arms=arms,
        stage="live",
        stable=evidence.baseline,
        experiment=evidence.experiment,
    )


def _watch(evidence: Evidence, settings: Online, stable: str) -> Routing:
    held = settings.promotion.holdout
    arms = FrozenDict({evidence.candidate: 1 - held, evidence.baseline: held}) if held else FrozenDict()
    return Routing(
        incumbent=evidence.candidate,
        arms=arms,
        stage="watch",
        holdout=evidence.baseline if held else "",
        stable=stable,
        experiment=evidence.experiment,
    )


def _back(evidence: Evidence, outcome: Outcome, reason: str) -> Step:
    """The baseline serves everything again."""
    return Step(stage="done", outcome=outcome, reason=reason, routing=restored(evidence.baseline))


def restored(snapshot: str) -> Routing:
    """That snapshot and nothing beside it."""
    return Routing(incumbent=snapshot, stable=snapshot)


def withheld(
    kind: Literal["schedule", "drift", "hand"],
    changed_at: float | None,
    settings: Online,
    now: float,
    *,
    frozen: str = "",
    under_way: bool = False,
) -> str:
    """Why no evolution of a layer begins now, or ''. `changed_at`: when it last changed; by hand it may again."""
    if frozen:
        return frozen
    if under_way:
        return "an experiment on this layer is under way"
    days = settings.drift.cooldown_days
    if kind != "hand" and changed_at is not None and now - changed_at < days * DAY:
        return f"the layer changed {(now - changed_at) / DAY:.1f} days ago; it rests for {days:g}"
    return ""
