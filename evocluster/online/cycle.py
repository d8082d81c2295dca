"""The cycle of a deployment: analyse, and carry each experiment one stage further as its evidence allows.

    await cycle.analyze(deployment, now)     findings into the ledger, and nothing else
    await cycle.evolve(deployment, now)      queues an experiment for every layer that may change
    await cycle.promote(deployment, now)     steps what serves, then the one that seeks evidence

Experiments of a deployment seek evidence one after the other, because each is compared with what serves. What a step
found and where it leads are one `Ledger.move`, so a turn that is killed anywhere and run again ends in the same state,
and a controller that lost its lease writes nothing over what another did. Deciding is `release.lifecycle`'s; here it
is carried out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from evocluster.errors import LedgerConflict
from evocluster.online.actuator import Contents, anew, changed_layers, labelled, open_breaker, over, rows_of
from evocluster.online.judging import frozen
from evocluster.online.ledger import Ledger, Pointer, Row, pointer
from evocluster.online.notify import Notice
from evocluster.online.work import Made, Work
from evocluster.records import Record, digest
from evocluster.release.lifecycle import DAY, SERVING, STAGES, Evidence, Routing, Step, step, withheld
from evocluster.release.settings import Online
from evocluster.release.snapshot import HASH, Layer
from evocluster.telemetry import log

MOST_STEPS = 20
"""Steps of one turn; the next turn goes on."""
MOST_TRIES = 5
"""How often the making or the gating of a candidate is begun, kills included."""
DRIFT = "drift"
"""Kind of the findings that start an evolution."""
SEEKING = tuple(stage for stage in STAGES if stage not in (*SERVING, "done"))
Tell = Callable[[Notice], Awaitable[object]]


class Trigger(Record):
    """Why experiments begin."""

    kind: Literal["schedule", "drift", "hand"] = "schedule"
    actor: str = "controller"
    finding: str = ""
    """Id of the alarm."""
    why: str = ""


class _Found(NamedTuple):
    """What a look at an experiment brought."""

    evidence: Evidence
    columns: Mapping[str, Any]
    """Of its row, to be written with the next step."""
    also: Sequence[tuple[str, Row]] = ()


async def _silent(notice: Notice) -> None:
    return


class Cycle:
    """Carries experiments of all deployments. Several at once cannot break anything: whoever is second looks again."""

    def __init__(
        self,
        ledger: Ledger,
        work: Work,
        tell: Tell = _silent,
        *,
        contents: Contents = changed_layers,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`contents`: what is barred of a candidate that is taken back (`release.content.contents`); `clock`: seconds,
        by which what takes long is taken into account: its end is later than the `now` of its turn.
        """
        self._clock = clock
        self._ledger = ledger
        self._work = work
        self._tell = tell
        self._contents = contents

    # ------------------------------------------------------------ analyse

    async def analyze(self, deployment: str, now: float) -> int:
        """Keep what the analysis finds, and say how much of it is new. Acts on nothing."""
        return await self._keep(deployment, await self._work.analyze(deployment, now), now)

    async def _keep(self, deployment: str, findings: Sequence[Row], now: float) -> int:
        """Write findings down; what became of those that are known stays with them. How many are new."""
        new = 0
        for row in findings:
            known = await self._do(self._ledger.first, "findings", {"id": row["id"]})
            if known is None:
                new += 1
                if row["severity"] == "critical":
                    text = f"{row['kind']}, layer {row['layer'] or 'unknown'}: see finding {row['id']}"
                    await self._tell(Notice(at=now, deployment=deployment, event="alarm", text=text))
                await self._do(self._ledger.put, "findings", row)
                continue
            if known["state"] != "open":  # what it was dealt with by stays what it says
                continue
            changed = {name: said for name, said in row.items() if name not in ("id", "state") and known[name] != said}
            if changed:
                await self._do(partial(self._ledger.patch, "findings", {"id": row["id"]}, **changed))
        return new

    async def probe(self, deployment: str, now: float) -> str:
        """Ask the judge what it makes of answers that say nothing; why evolution is frozen since, or ''."""
        await self._work.probe(deployment, now)
        why: str = await self._do(frozen, self._ledger, deployment)
        if why:
            await self._tell(Notice(at=now, deployment=deployment, event="frozen", text=why.partition(":")[0]))
        return why

    async def seal(self, deployment: str, now: float) -> None:
        """Let the recorded go where it is kept."""
        await self._work.seal(deployment, now)

    # ------------------------------------------------------------ evolve

    async def evolve(
        self, deployment: str, now: float, trigger: Trigger | None = None, layers: Sequence[Layer] = ()
    ) -> dict[str, str]:
        """Queue an experiment for each of the layers (none named: all that the settings name) that may change now.

        Layer -> id of its experiment, or why there is none, after 'withheld: '. Raises: LedgerConflict, ConfigError.
        """
        trigger = trigger or Trigger()
        settings = self._work.settings(deployment)
        said: dict[str, str] = await self._again(deployment, self._queue, settings, trigger, layers, now)
        return said

    def _queue(
        self, at: Pointer, settings: Online, trigger: Trigger, layers: Sequence[Layer], now: float
    ) -> dict[str, str]:
        ledger, deployment = self._ledger, at.deployment
        stands = frozen(ledger, deployment)
        said: dict[str, str] = {}
        rows: list[Row] = []
        for layer in self._oldest_first(deployment, layers or settings.evolution.layers):
            last = ledger.first("versions", {"deployment": deployment, "layer": layer}, order="-at")
            where = {"deployment": deployment, "layer": layer, "stage": ("in", list(SEEKING + SERVING))}
            busy = ledger.count("experiments", where) > 0
            changed = last["at"] if last else None
            why = withheld(trigger.kind, changed, settings, now, frozen=stands, under_way=busy)
            if why:
                said[layer] = f"withheld: {why}"
                continue
            rows.append(_queued(deployment, layer, trigger, len(rows), now))
            said[layer] = rows[-1]["id"]
        also: list[tuple[str, Row]] = []
        for row in rows:
            also.append(("experiments", {**row, "trigger": {**row["trigger"], "candidates": len(rows)}}))
        finding = ledger.first("findings", {"id": trigger.finding}) if trigger.finding else None
        if finding is not None:
            also.append(("findings", {**finding, "state": "taken" if rows else "withheld"}))
        if also:
            told = {"trigger": trigger.kind, "layers": said, "text": trigger.why}
            audit = {"at": now, "actor": trigger.actor, "action": "evolve", "why": told}
            ledger.move(deployment, at.epoch, audit=audit, also=also)
        return said

    def _oldest_first(self, deployment: str, layers: Sequence[Layer]) -> list[Layer]:
        """The layer that was tried last comes last."""

        def tried(layer: Layer) -> float:
            row = self._ledger.first("experiments", {"deployment": deployment, "layer": layer}, order="-started_at")
            return row["started_at"] if row else 0.0

        return sorted(layers, key=tried)

    async def _alarms(self, deployment: str, now: float) -> None:
        """An evolution for every alarm of the last day that nobody took."""
        if await self._do(frozen, self._ledger, deployment):
            return
        where = {"deployment": deployment, "kind": DRIFT, "state": "open", "at": (">=", now - DAY)}
        for finding in await self._do(self._ledger.find, "findings", where, order="at,id"):
            layer: Layer = finding["layer"] or "prompt"
            text = f"accuracy went down: see finding {finding['id']}"
            told = Notice(at=finding["at"], deployment=deployment, event="alarm", text=text, layer=layer)
            await self._tell(told)
            await self.evolve(deployment, now, Trigger(kind="drift", finding=finding["id"]), (layer,))

    # ------------------------------------------------------------ promote

    async def promote(self, deployment: str, now: float) -> int:
        """Look for drift, which begins an evolution, and carry everything as far as evidence and clock allow.

        How many steps that were.

        Raises: what the work raises, once what serves was seen to; LedgerConflict.
        """
        steps, began = 0, self._clock()
        try:
            await self._keep(deployment, await self._work.drift(deployment, now), now)
            await self._alarms(deployment, now)
        finally:  # what serves is seen to even where nobody can say whether it drifts
            while steps < MOST_STEPS and await self._turn(deployment, now + self._clock() - began):
                steps += 1
        try:
            await self._tell_of(deployment, now)
        except LedgerConflict:
            log.info("%s: something went on while it was told of: the next turn tells the rest", deployment)
        return steps

    async def _turn(self, deployment: str, now: float) -> bool:
        """One step of the first experiment that has one."""
        at: Pointer = await self._do(pointer, self._ledger, deployment)
        where = {"deployment": deployment, "stage": ("in", list(SEEKING + SERVING))}
        rows: list[Row] = await self._do(self._ledger.find, "experiments", where, order="started_at,id")
        serving = [row for row in rows if row["stage"] in SERVING]
        queue = sorted((row for row in rows if row["stage"] in SEEKING), key=lambda row: not row["baseline"])
        seeking = queue[:1]  # one that has begun is seen to its end, whenever the others were queued
        for row in serving + seeking:
            others = [other for other in rows if other["id"] != row["id"]]
            try:
                if await self._advance(at, row, others, now):
                    return True
            except LedgerConflict:
                log.info("%s: somebody else moved it meanwhile: looking again", deployment)
                return True
        return False

    async def _advance(self, at: Pointer, row: Row, others: Sequence[Row], now: float) -> bool:
        """Take the next step of one experiment; False: there is none."""
        if row["stage"] in SERVING and await self._trips(at, row, now):
            return True
        settings = self._work.settings(at.deployment)
        if not row["baseline"]:
            return await self._begin(at, row, others, now)
        began = self._clock()
        found = await _LOOKS[row["stage"]](self, at, row, others, settings, now)
        now += self._clock() - began
        taken = step(row["stage"], found.evidence, settings, now)
        if taken.stage != row["stage"] or _differs(at, taken.routing):
            await self._carry(at, row, found, taken, now)
            return True
        kept = {name: value for name, value in found.columns.items() if row[name] != value}
        if kept:
            await self._note(row, **kept)
        return "work" in kept

    async def _begin(self, at: Pointer, row: Row, others: Sequence[Row], now: float) -> bool:
        """Its turn has come: from here on it is compared with what serves.

        Not while another is live: that may be what serves tomorrow, and what was compared with today's was for nothing.
        """
        live = any(other["stage"] == "live" for other in others)
        if live or await self._do(frozen, self._ledger, at.deployment):
            return False
        begun = {**row, "baseline": at.snapshot, "stage_at": now}
        audit = {"at": now, "actor": "controller", "action": "begin", "why": {"experiment": row["id"]}}
        await self._move(at, row, audit, [("experiments", begun)])
        return True

    async def _trips(self, at: Pointer, row: Row, now: float) -> bool:
        tripped = await self._work.tripped(row, now)
        if tripped is None:
            return False
        opened = await asyncio.to_thread(
            open_breaker,
            self._ledger,
            at.deployment,
            tripped.why,
            tripped.evidence,
            now,
            candidate=row["candidate"],
            actor="controller",
            contents=self._contents,
        )
        return opened is not None

    async def _carry(self, at: Pointer, row: Row, found: _Found, taken: Step, now: float) -> None:
        """Write the step: the experiment, what was made on the way, and what serves, in one move."""
        changed = {**row, **found.columns}
        work = {name: value for name, value in changed["work"].items() if name not in ("tries", "failure", "ready")}
        if taken.stage != row["stage"]:
            work |= {"shadow": {"paired_at": now}, "live": {"live_at": now, "weighed_at": now}}.get(taken.stage, {})
            changed |= {"stage": taken.stage, "stage_at": now, "why": taken.reason}
        changed["work"] = work
        if taken.stage == "done":
            changed = over(changed, taken.outcome, taken.reason, now)
        also = [("experiments", changed), *found.also]
        if taken.stage == "watch" and row["stage"] == "live":
            why = f"experiment {row['id']}: {taken.reason}"
            also += await self._do(labelled, self._ledger, at.deployment, row["candidate"], row["layer"], why, now)
        action = f"{row['stage']} to {taken.stage}" if taken.stage != row["stage"] else f"weights in {taken.stage}"
        told = {"text": taken.reason, "experiment": row["id"], "outcome": taken.outcome}
        audit = {"at": now, "actor": "controller", "action": action, "why": told}
        await self._move(at, row, audit, also, taken.routing if _differs(at, taken.routing) else None)

    async def _move(
        self, at: Pointer, row: Row, audit: Row, also: Sequence[tuple[str, Row]], routing: Routing | None = None
    ) -> None:
        """One move; anew where the epoch went on and nothing that this was decided by did. Raises: LedgerConflict.

        What took hours to make is not thrown away because somebody queued an experiment meanwhile.
        """
        serves = {} if routing is None else {"snapshot": routing.incumbent, "state": routing.state}
        for attempt in range(MOST_STEPS):
            try:
                await self._do(self._ledger.move, at.deployment, at.epoch, audit=audit, also=also, **serves)
                return
            except LedgerConflict:
                latest: Pointer = await self._do(pointer, self._ledger, at.deployment)
                same = (latest.snapshot, latest.state) == (at.snapshot, at.state)
                known = await self._do(self._ledger.first, "experiments", {"id": row["id"]})
                if attempt == MOST_STEPS - 1 or not same or known != row:
                    raise
                at = latest

    async def _note(self, row: Row, **columns: Any) -> None:
        """Keep something with an experiment while it is in the stage that it was read in. Raises: LedgerConflict."""
        where = {"id": row["id"], "stage": row["stage"], "stage_at": row["stage_at"]}
        if not await self._do(self._ledger.change, "experiments", where, **columns):
            raise LedgerConflict(f"experiment {row['id']!r} is no longer in stage {row['stage']!r}; look at it again")
        row.update(columns)

    # ------------------------------------------------------------ evidence, by stage

    async def _evidence(self, at: Pointer, row: Row, others: Sequence[Row], **known: Any) -> Evidence:
        said = {
            "experiment": row["id"],
            "candidate": row["candidate"],
            "baseline": row["baseline"],
            "incumbent": at.snapshot,
            "stage_at": row["stage_at"],
            "paired_at": row["work"].get("paired_at", 0.0),
            "frozen": await self._do(frozen, self._ledger, at.deployment),
            "occupied": any(other["stage"] in SERVING for other in others),
            "waiting": any(other["work"].get("ready") for other in others),
        }
        return Evidence(**{**said, **known})

    async def _made(self, at: Pointer, row: Row, others: Sequence[Row], settings: Online, now: float) -> _Found:
        stale = await self._evidence(at, row, others)
        if stale.frozen or row["candidate"] or at.snapshot != row["baseline"]:
            return _Found(stale, {})
        spent = await self._tried(row)
        if spent:
            return _Found(stale.model_copy(update={"unmade": f"evolution {spent}"}), {})
        made: Made = await self._trying(row, self._work.evolve(row, now))
        if made.snapshot is None:
            return _Found(stale.model_copy(update={"unmade": made.why or "evolution made nothing"}), {})
        snapshot = anew(made.snapshot)
        id, origin = snapshot.id, {"experiment": row["id"], **made.origin}
        also = await self._do(rows_of, self._ledger, snapshot, row["baseline"], origin, now)
        also += [("variants", dict(variant)) for variant in made.variants]
        return _Found(stale.model_copy(update={"candidate": id}), {"candidate": id}, also)

    async def _gated(self, at: Pointer, row: Row, others: Sequence[Row], settings: Online, now: float) -> _Found:
        known = await self._evidence(at, row, others)
        if known.frozen or at.snapshot != row["baseline"]:
            return _Found(known, {})
        spent = await self._tried(row)
        if spent:
            return _Found(known.model_copy(update={"gates": False, "failed": f"asking them {spent}"}), {})
        gates = await self._trying(row, self._work.gate(row, now))
        failed = "; ".join(f"{gate.name}: {', '.join(gate.reasons)}" for gate in gates if not gate.passed)
        told = [[gate.name, gate.passed, list(gate.reasons)] for gate in gates]
        update = {"gates": bool(gates) and not failed, "failed": failed or "there are none"}
        return _Found(known.model_copy(update=update), {"work": {**row["work"], "gates": told}})

    async def _tried(self, row: Row) -> str:
        """Count one more try before it is made, so that a kill counts too; why there is none left."""
        work = row["work"]
        tries = work.get("tries", 0)
        if tries >= MOST_TRIES:
            return f"failed {tries} times: {work.get('failure', 'the process ended each time')}"
        await self._note(row, work={**work, "tries": tries + 1})
        return ""

    async def _trying(self, row: Row, work: Awaitable[Any]) -> Any:
        """Its result; what it raises is kept with the experiment, and raised."""
        try:
            return await work
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"[:300]
            await self._note(row, work={**row["work"], "failure": failure})
            raise

    async def _paired(self, at: Pointer, row: Row, others: Sequence[Row], settings: Online, now: float) -> _Found:
        where = {"experiment": row["id"], "state": ("in", ["open", "judged", "missing"])}
        pairs = await self._do(self._ledger.count, "pairs", where)
        return _Found(await self._evidence(at, row, others, pairs=pairs), {})

    async def _judged(self, at: Pointer, row: Row, others: Sequence[Row], settings: Online, now: float) -> _Found:
        said = await self._work.judge(row, now)
        known = {"move": said.move, "why": said.reason, "judged": said.judged, "score": said.score}
        found = await self._evidence(at, row, others, **known)
        ready = said.move == "promote" and found.occupied and not found.frozen
        work = {**row["work"], "ready": True} if ready else {k: v for k, v in row["work"].items() if k != "ready"}
        return _Found(found, {"shadow": dict(said.told), "judge_score": said.score, "work": work})

    async def _lived(self, at: Pointer, row: Row, others: Sequence[Row], settings: Online, now: float) -> _Found:
        said = await self._work.live(row, now)
        weights, work = dict(at.state.get("arms") or {}), row["work"]
        weighed = await self._work.weigh(row, now)
        if weighed is not None:
            if set(weighed.weights) != {row["baseline"], row["candidate"]}:
                raise ValueError(
                    f"weights {dict(weighed.weights)!r} are not of {row['baseline']!r} and {row['candidate']!r}; an "
                    "experiment has these two arms"
                )
            rules = settings.bandit
            aged = now - work.get("weighed_at", 0.0) >= rules.epoch_s
            if aged or weighed.rewards - work.get("rewards", 0) >= rules.epoch_rewards:
                weights = {arm: round(weight, 6) for arm, weight in weighed.weights.items()}
                if weights != at.state.get("arms"):
                    work = {**work, "weighed_at": now, "rewards": weighed.rewards}
        known = {"move": said.move, "why": said.reason, "judged": said.judged, "weights": weights}
        return _Found(await self._evidence(at, row, others, **known), {"work": work})

    async def _watched(self, at: Pointer, row: Row, others: Sequence[Row], settings: Online, now: float) -> _Found:
        return _Found(await self._evidence(at, row, others), {})

    # ------------------------------------------------------------ telling, and the ledger

    async def _tell_of(self, deployment: str, now: float) -> None:
        """Tell of what began to serve or ended within a day and was not told: once, or again after a kill."""
        where = {"deployment": deployment, "stage": ("in", [*SERVING, "done"]), "stage_at": (">=", now - DAY)}
        for row in await self._do(self._ledger.find, "experiments", where, order="stage_at,id"):
            mark = row["outcome"] or row["stage"]
            if row["work"].get("told") == mark:
                continue
            subject = f"layer {row['layer']}" if row["layer"] else "every layer"
            facts = {"judge_score": row["judge_score"], "active_s": row["active_s"]}
            notice = Notice(
                at=row["stage_at"],
                deployment=deployment,
                event=mark,
                text=f"the experiment on {subject} is {mark}",
                experiment=row["id"],
                layer=row["layer"],
                snapshot=row["candidate"],
                facts={name: value for name, value in facts.items() if value is not None},
            )
            await self._tell(notice)
            await self._note(row, work={**row["work"], "told": mark})

    async def _again(self, deployment: str, change: Callable[..., Any], *given: Any) -> Any:
        """Decide and write off the loop, anew where somebody else was first. Raises: LedgerConflict."""
        for attempt in range(MOST_STEPS):
            at = await self._do(pointer, self._ledger, deployment)
            try:
                return await self._do(change, at, *given)
            except LedgerConflict:
                if attempt == MOST_STEPS - 1:
                    raise
        return None

    @staticmethod
    async def _do(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        return await asyncio.to_thread(function, *given, **named)


_LOOKS = {
    "candidate": Cycle._made,
    "gates": Cycle._gated,
    "shadow": Cycle._paired,
    "judge": Cycle._judged,
    "live": Cycle._lived,
    "watch": Cycle._watched,
}


def _differs(at: Pointer, routing: Routing | None) -> bool:
    """What is to serve is not what serves."""
    if routing is None:
        return False
    return at.snapshot != routing.incumbent or any(at.state.get(name) != said for name, said in routing.state.items())


def _queued(deployment: str, layer: Layer, trigger: Trigger, place: int, now: float) -> Row:
    """An experiment that waits for its turn."""
    return {
        "id": digest([deployment, layer, trigger.kind, trigger.finding, now])[:HASH],
        "deployment": deployment,
        "candidate": "",
        "baseline": "",
        "layer": layer,
        "trigger": trigger.model_dump(mode="json"),
        "stage": "candidate",
        "stage_at": now,
        "started_at": now + place * 1e-3,  # in this order
        "ended_at": None,
        "outcome": "",
        "why": "",
        "shadow": {},
        "judge_score": None,
        "active_s": 0.0,
        "work": {},
    }
