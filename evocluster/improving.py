"""What a deployment's cycle works with: its recorded traffic, its models, the offline engine. Part of the wiring.

    async with working(Place("deployments")) as daemon: await daemon.run(stop)

`Improving` is the `online.work.Work` of every deployment of a home; each is opened when it is first asked for.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from evocluster.deploying import Deployed, Home, deployed, pushed
from evocluster.errors import ConfigError
from evocluster.evolving import Candidate, evolved
from evocluster.llm.client import LLM
from evocluster.llm.stack import Stack
from evocluster.online import intents, memory, standing, traffic
from evocluster.online.analysis import analyse
from evocluster.online.answer import Answerer
from evocluster.online.archive import Archive
from evocluster.online.comparison import Comparer, Model, Reference
from evocluster.online.cycle import Cycle, Trigger
from evocluster.online.daemon import Daemon
from evocluster.online.drifting import drifting
from evocluster.online.finding import Finding
from evocluster.online.judging import Judging
from evocluster.online.ledger import Row
from evocluster.online.notify import Notice, Notifier
from evocluster.online.outcome import served, verdict
from evocluster.online.outcomes import outcomes
from evocluster.online.work import Gate, Judged, Made, Tripped, Weighed
from evocluster.records import Example, FrozenDict, digest
from evocluster.release import content, gates, injection, promotion
from evocluster.release.settings import Online
from evocluster.release.snapshot import Layer, Snapshot
from evocluster.serving import Place, answerer, classifier_file, documents, models
from evocluster.store import sealed
from evocluster.tasks.judge import Judge
from evocluster.tasks.words import plain
from evocluster.telemetry import log

DAY_S = 86_400.0
SEVERITIES = ("critical", "high", "medium", "low")
LOOKED_DAYS = 7.0
"""Days of traffic that an analysis reads."""
SLOTS = 8
"""Calls at once of what the daemon asks itself: judging, replays, probes."""


@dataclass
class Opened:
    """A deployment with its models, as the daemon has it."""

    deployment: Deployed
    llm: LLM
    comparer: Comparer
    answering: Callable[[Snapshot], Answerer]
    prices: Mapping[str, Any]

    async def qualities(self, snapshot: Snapshot, examples: Sequence[Example]) -> dict[str, float]:
        """Example -> how good this snapshot's answer is now; without those that nobody could judge."""
        made = self.answering(snapshot)
        await made.prepare()
        reference = reference_of(self.deployment, self.llm)
        places = asyncio.Semaphore(SLOTS)

        async def one(example: Example) -> tuple[str, float | None]:
            async with places:
                bare = example.model_copy(update={"expected": None})
                answered = await made.answer(bare, str(example.meta.get("intent") or ""), example.id)
            if answered.error_class in ("provider", "timeout"):
                return example.id, None
            if answered.error_class:
                return example.id, 0.0
            return example.id, await reference.grade(example, answered.execution.output)

        found = await asyncio.gather(*(one(example) for example in examples))
        return {id: quality for id, quality in found if quality is not None}


def reference_of(deployment: Deployed, llm: LLM) -> Reference:
    """The task's own scorers as a judge."""
    return Reference(deployment.task, llm, _identities(deployment))


def _identities(deployment: Deployed) -> dict[str, str]:
    return {name: model.identity for name, model in deployment.config.resolved_models().items()}


class Improving:
    """See online.work.Work. Call order: construct, any work, `close`."""

    def __init__(self, home: Home, *, allow_code: bool = False) -> None:
        self._home = home
        self._allow_code = allow_code
        self._held = AsyncExitStack()
        self._loaded: dict[str, Deployed] = {}
        self._opened: dict[str, Opened] = {}
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Close the models."""
        await self._held.aclose()

    def settings(self, deployment: str) -> Online:
        """See Work."""
        return self._deployed(deployment).settings

    def _deployed(self, name: str) -> Deployed:
        if name not in self._loaded:
            self._loaded[name] = deployed(self._home, name, allow_code=self._allow_code)
        return self._loaded[name]

    async def _open(self, name: str) -> Opened:
        async with self._opening:
            if name not in self._opened:
                deployment = await asyncio.to_thread(self._deployed, name)
                llm = await self._held.enter_async_context(models(deployment, SLOTS))
                index = await documents(deployment)
                prices = Stack(deployment.config.resolved_models()).prices()
                answering = partial(answerer, deployment, llm, index)
                self._opened[name] = Opened(deployment, llm, _comparer(deployment, llm), answering, prices)
        return self._opened[name]

    def _traffic(self, name: str) -> Archive:
        return Archive(self._home.ledger, self._home.folder / "traffic", name)

    # ------------------------------------------------------------ analyse

    async def analyze(self, deployment: str, now: float) -> Sequence[Row]:
        """See Work."""
        opened = await self._open(deployment)
        settings, source = opened.deployment.settings, self._traffic(deployment)
        rows = await asyncio.to_thread(source.whole, now - LOOKED_DAYS * DAY_S)
        current = await asyncio.to_thread(self._current, deployment)
        gone = await asyncio.to_thread(source.tombstoned)
        drawn = traffic.draw(
            rows,
            task=opened.deployment.task,
            limit=settings.evolution.replay,
            tombstoned=gone,
            metrics=settings.metrics,
        )

        async def replay(examples: Sequence[Example], model: str) -> list[float | None]:
            found = await opened.qualities(_on(current, model), examples)
            return [found.get(example.id) for example in examples]

        findings = await analyse(
            rows,
            notes=current.memory,
            drift=drifting(rows, settings),
            versions=await asyncio.to_thread(self._prompts),
            metrics=settings.metrics,
            tombstoned=gone,
            examples=drawn.examples,
            replay=replay if len(opened.prices) > 1 else None,
            prices=opened.prices,
        )
        return [_row(finding, deployment, now) for finding in findings]

    async def drift(self, deployment: str, now: float) -> Sequence[Row]:
        """Findings of the last day's alarms: what `analyze` finds of them, without the rest."""
        settings, source = self.settings(deployment), self._traffic(deployment)
        rows = await asyncio.to_thread(source.judged, now - LOOKED_DAYS * DAY_S)
        alarms = [one for one in drifting(rows, settings) if one["state"] == "alarm" and one["at"] >= now - DAY_S]
        return [_row(finding, deployment, now) for finding in await analyse([], drift=alarms)]

    def _current(self, deployment: str) -> Snapshot:
        return self._home.snapshot(self._home.pointer(deployment)["snapshot"])

    def _prompts(self) -> dict[str, str]:
        return {row["id"]: row["prompt"] for row in self._home.ledger.find("snapshots")}

    # ------------------------------------------------------------ evolve

    async def evolve(self, experiment: Row, now: float) -> Made:
        """See Work."""
        name, layer = experiment["deployment"], cast(Layer, experiment["layer"])
        opened = await self._open(name)
        settings, source = opened.deployment.settings, self._traffic(name)
        baseline = await asyncio.to_thread(self._home.snapshot, experiment["baseline"])
        rows = await asyncio.to_thread(source.whole, now - settings.recording.body_days * DAY_S)
        gone = await asyncio.to_thread(source.tombstoned)
        if layer == "memory":
            return await self._remember(opened, baseline, rows, gone, now)
        rules = settings.evolution
        drawn = traffic.draw(
            rows,
            task=opened.deployment.task,
            limit=rules.limit,
            quality=rules.quality,
            tombstoned=gone,
            metrics=settings.metrics,
        )
        if len(drawn.examples) < rules.least:
            return Made(None, f"{len(drawn.examples)} examples could be drawn from traffic; {rules.least} are needed")
        dealt = traffic.deal(drawn, int(digest(experiment["id"])[:8], 16))
        folder = self._home.folder / "evolutions" / name / experiment["id"]
        work = partial(evolved, opened.deployment, baseline, dealt, layer, folder, allow_code=self._allow_code)
        found: Candidate = await asyncio.to_thread(work)
        origin = {"run": found.run, "gain": found.gain, "examples": len(drawn.examples)}
        front = [{**row, "deployment": name, "at": now} for row in found.front]
        return Made(found.snapshot, found.reason, origin, front)

    async def _remember(
        self, opened: Opened, baseline: Snapshot, rows: Sequence[Row], gone: frozenset[str], now: float
    ) -> Made:
        """The memory, grown by what corrections teach, without what speaks against it."""
        settings, task = opened.deployment.settings, opened.deployment.task
        answers = task.labels if task.kind == "classification" else None
        fresh = list(memory.corrected(rows, metrics=settings.metrics, answers=answers, tombstoned=gone))
        problems: tuple[str, ...] = ()
        if settings.evolution.notes_model is not None:
            told = await memory.extracted(
                rows, opened.llm, settings.evolution.notes_model, metrics=settings.metrics, tombstoned=gone
            )
            fresh, problems = [*fresh, *told.fresh], told.problems
        grown = memory.evolve(baseline.memory, fresh, served(rows, gone), now=now, metrics=settings.metrics)
        made = baseline.changed(memory=grown.notes)
        if made.id == baseline.id:
            return Made(None, "traffic teaches nothing that the memory does not hold")
        return Made(made, "", {"changes": memory.told(grown), "problems": list(problems)})

    # ------------------------------------------------------------ gates

    async def gate(self, experiment: Row, now: float) -> Sequence[Gate]:
        """See Work."""
        name = experiment["deployment"]
        opened = await self._open(name)
        settings, source = opened.deployment.settings, self._traffic(name)
        candidate, baseline = await asyncio.to_thread(self._both, experiment)
        barred = await asyncio.to_thread(self._home.ledger.find, "barred", {"deployment": name})
        names = tuple(opened.deployment.config.models)
        asked = [
            gates.syntax(candidate, opened.answering, parent=baseline, models=names),
            injection.injection(candidate, baseline, known=self._chosen(candidate, experiment)),
            content.barred(candidate, baseline, barred, settings.breaker.near),
        ]
        if experiment["layer"]:
            asked.insert(0, gates.scope(candidate, baseline, cast(Layer, experiment["layer"])))
        if not all(gate.passed for gate in asked):
            return asked
        rows = await asyncio.to_thread(source.whole, now - LOOKED_DAYS * DAY_S)
        gone = await asyncio.to_thread(source.tombstoned)
        rules = settings.evolution
        said = [(row, verdict(row, settings.metrics)) for row in served(rows, gone)]
        right = [row for row, found in said if found.succeeded(rules.quality)]
        drawn = traffic.draw(
            right[-4 * rules.replay :],
            task=opened.deployment.task,
            limit=rules.replay,
            tombstoned=gone,
            metrics=settings.metrics,
        )
        before = await opened.qualities(baseline, drawn.examples)
        after = await opened.qualities(candidate, drawn.examples)
        # What nearly always fails has few successes to lose, and is not to stay as it is for that.
        failing = sum(found.failed(rules.quality) for _, found in said) >= rules.least
        kept = sum(quality >= rules.quality for quality in before.values())
        least = min(gates.REPLAYED, kept) if failing and len(before) == len(drawn.examples) else gates.REPLAYED
        return [*asked, gates.replay(before, after, right=rules.quality, regress=rules.regress, least=least)]

    def _both(self, experiment: Row) -> tuple[Snapshot, Snapshot]:
        return self._home.snapshot(experiment["candidate"]), self._home.snapshot(experiment["baseline"])

    @staticmethod
    def _chosen(candidate: Snapshot, experiment: Row) -> tuple[Example, ...]:
        """Examples that people chose: all that a deployed run shows."""
        return candidate.prompt.examples if not experiment["layer"] else ()

    # ------------------------------------------------------------ judge, live

    async def judge(self, experiment: Row, now: float) -> Judged:
        """See Work."""
        name = experiment["deployment"]
        opened = await self._open(name)
        settings = opened.deployment.settings
        await Judging(self._home.ledger, opened.comparer, settings.judge).turn(experiment["id"], now)
        rows = await asyncio.to_thread(self._home.ledger.find, "pairs", {"experiment": experiment["id"]})
        hours = (now - experiment["work"].get("paired_at", now)) / standing.HOUR_S
        candidates = int(experiment["trigger"].get("candidates") or 1)
        known = standing.paired(rows, opened.comparer.identity, settings.promotion, hours=hours, candidates=candidates)
        said = promotion.decide(known, settings.promotion, settings.judge.passes, settings.shadow.most_hours)
        n = known.comparison.n
        score = known.comparison.scores / n if n else None
        return Judged(said.move, said.reason, n, score, dict(said.evidence))

    async def live(self, experiment: Row, now: float) -> Judged:
        """See Work."""
        rows = await asyncio.to_thread(self._live_rows, experiment)
        settings = self.settings(experiment["deployment"]).promotion
        return standing.harmless(rows, experiment["candidate"], experiment["baseline"], settings)

    def _live_rows(self, experiment: Row) -> list[Row]:
        since = self._live_at(experiment)
        rows = self._traffic(experiment["deployment"]).exchanges(since)
        return [row for row in rows if row["experiment"] == experiment["id"]]

    @staticmethod
    def _live_at(experiment: Row) -> float:
        return float(experiment["work"].get("live_at") or experiment["stage_at"])

    async def weigh(self, experiment: Row, now: float) -> Weighed | None:
        """See Work."""
        name, since = experiment["deployment"], self._live_at(experiment)
        settings = self.settings(name)
        source = cast(Any, self._traffic(name))
        found = await asyncio.to_thread(outcomes, source, name, since, now, settings)
        own = [one for one in found if one.experiment == experiment["id"]]
        pairs = int((experiment["shadow"] or {}).get("pairs") or 0)
        score, lift = experiment["judge_score"], (experiment["shadow"] or {}).get("lift") or 0.0
        priors: dict[str, tuple[float | None, int]] = {}
        if score is not None and pairs:
            base = min(1.0, max(0.0, score - lift))
            priors = {experiment["candidate"]: (score, pairs), experiment["baseline"]: (base, pairs)}
        weighed, arms = standing.weighed(
            own, experiment["candidate"], experiment["baseline"], settings.bandit, live_s=now - since, priors=priors
        )
        for arm, state in arms.items():
            row = {"deployment": name, "experiment": experiment["id"], "arm": arm, "at": now}
            await asyncio.to_thread(self._home.ledger.put, "bandit", {**row, "state": state.model_dump(mode="json")})
        return weighed

    async def tripped(self, experiment: Row, now: float) -> Tripped | None:
        """See Work."""
        name = experiment["deployment"]
        settings = self.settings(name).breaker
        since = int((now - settings.history_days * DAY_S) // 60)
        both = [experiment["candidate"], experiment["baseline"]]
        where = {"deployment": name, "snapshot": ("in", both), "minute": (">=", since)}
        rows = await asyncio.to_thread(self._home.ledger.find, "buckets", where)
        found = standing.tripped(rows, experiment["candidate"], experiment["baseline"], settings, now)
        return Tripped(found.reason, dict(found.evidence)) if found.open else None

    # ------------------------------------------------------------ upkeep

    async def probe(self, deployment: str, now: float) -> None:
        """See Work."""
        opened = await self._open(deployment)
        settings, source = opened.deployment.settings, self._traffic(deployment)
        rows = await asyncio.to_thread(source.whole, now - DAY_S)
        drawn = traffic.draw(rows, task=opened.deployment.task, limit=3, metrics=settings.metrics)
        await Judging(self._home.ledger, opened.comparer, settings.judge).probe(deployment, now, drawn.examples)

    async def seal(self, deployment: str, now: float) -> None:
        """See Work; and a new classifier of intents, where one is asked for."""
        settings = self.settings(deployment)
        kept, folder = settings.recording, self._home.folder / "traffic"
        ledger = self._home.ledger
        await asyncio.to_thread(sealed.seal, ledger, folder, deployment, now - DAY_S)
        days = {"bodies_days": kept.body_days, "exchanges_days": kept.metadata_days}
        await asyncio.to_thread(partial(sealed.expire, ledger, folder, deployment, now, **days))
        if settings.intent.classifier:
            await asyncio.to_thread(self._train, deployment, now)

    def _train(self, deployment: str, now: float) -> None:
        settings, source = self.settings(deployment), self._traffic(deployment)
        rows = source.whole(now - settings.recording.body_days * DAY_S)
        labelled = [(plain(row["input"]), row["intent"]) for row in rows if row["intent"] and row["input"]]
        path: Path = classifier_file(self._home, deployment)
        try:
            made = intents.train(labelled, settings.intent)
        except ConfigError as lacking:
            log.info("%s: no classifier of intents: %s", deployment, lacking)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(made.dump())
        part.replace(path)


def _row(finding: Finding, deployment: str, now: float) -> Row:
    """Its row. A drift is of the moment of the answer that gave it: looked at again tomorrow, it is the same one."""
    return finding.row(deployment, float(finding.evidence["at"]) if finding.kind == "drift" else now)


def _comparer(deployment: Deployed, llm: LLM) -> Comparer:
    """Who judges pairs, as the settings say."""
    judge = deployment.settings.judge
    if judge.kind == "reference":
        return reference_of(deployment, llm)
    scorer = next(one for one in deployment.task.scorers if one.name == judge.scorer)
    if not isinstance(scorer, Judge):
        raise ConfigError(f"online.judge.scorer {judge.scorer!r} is no judge of the task")
    scorer.check(Stack(deployment.config.resolved_models()).abilities()[scorer.model])
    return Model(scorer, llm, _identities(deployment))


def _on(snapshot: Snapshot, model: str) -> Snapshot:
    """The same snapshot on that model, whoever asks."""
    genes = {**snapshot.strategy.genes, "model": model}
    bare = {"genes": FrozenDict(genes), "intents": FrozenDict(), "shares": FrozenDict(), "escalate": None}
    return snapshot.changed(strategy=snapshot.strategy.model_copy(update=bare))


class Carrying(Cycle):
    """A cycle that tells the gateways at once when what serves has changed."""

    def __init__(self, home: Home, work: Improving, notify: Callable[[str], Notifier]) -> None:
        self._home = home
        self._notices = notify
        super().__init__(home.ledger, work, self._told, contents=content.contents, clock=time.monotonic)

    async def _told(self, notice: Notice) -> None:
        await self._notices(notice.deployment)(notice)

    def findings(self, deployment: str) -> list[Row]:
        """Those of the last day, the gravest first."""
        self._home.pointer(deployment)
        where = {"deployment": deployment, "at": (">=", time.time() - DAY_S)}
        rows = self._home.ledger.find("findings", where, order="-at")
        return sorted(rows, key=lambda row: SEVERITIES.index(row["severity"]) if row["severity"] in SEVERITIES else 9)

    async def by_hand(self, deployment: str, layers: Sequence[str]) -> dict[str, str]:
        """Queue these layers because somebody asked for it."""
        trigger = Trigger(kind="hand", actor="user", why="asked for by hand")
        return await self.evolve(deployment, time.time(), trigger, cast(Any, tuple(layers)))

    async def promote(self, deployment: str, now: float) -> int:
        """See Cycle.promote."""
        before = await asyncio.to_thread(self._home.pointer, deployment)
        try:
            return await super().promote(deployment, now)
        finally:
            after = await asyncio.to_thread(self._home.pointer, deployment)
            if after["epoch"] != before["epoch"]:
                await asyncio.to_thread(pushed, self._home, deployment)


@asynccontextmanager
async def working(place: Place, *, allow_code: bool = False) -> AsyncIterator[tuple[Daemon, Carrying]]:
    """The daemon of a home, and its cycle. Raises: errors.StoreError."""
    home = await asyncio.to_thread(place.open)
    work = Improving(home, allow_code=allow_code)
    try:
        notices: dict[str, Notifier] = {}

        def notify(deployment: str) -> Notifier:
            if deployment not in notices:
                notices[deployment] = Notifier(work.settings(deployment).notify)
            return notices[deployment]

        cycle = Carrying(home, work, notify)
        owner = f"{socket.gethostname()}:{secrets.token_hex(4)}"
        daemon = Daemon(home.ledger, cycle, lambda name: work.settings(name).schedule, owner)
        yield daemon, cycle
    finally:
        await work.close()
        home.close()
