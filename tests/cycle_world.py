"""A deployment with a cycle, and work that does what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fake_ledger import FakeLedger, Killed

from evocluster.online.actuator import labelled, rows_of
from evocluster.online.cycle import Cycle, Trigger
from evocluster.online.ledger import Row, pointer
from evocluster.online.notify import Notice
from evocluster.online.work import Judged, Made, Tripped, Weighed
from evocluster.release.settings import Online
from evocluster.release.snapshot import Layer, Note, Prompt, Snapshot

NOW = 1_800_000_000.0
HOUR = 3600.0
DAY = 86400.0
FIRST = Snapshot(prompt=Prompt(genes={"rubric": "first"}))


class Gate(NamedTuple):
    name: str
    passed: bool
    reasons: tuple[str, ...] = ()


@dataclass
class Told:
    """Work that says what its fields say, and counts what it was asked for."""

    online: Online = field(default_factory=Online)
    gates: Sequence[Gate] = (Gate("syntax", True),)
    judged: Judged = field(default_factory=lambda: Judged("promote", "E = 40", 100, 0.8, {"pairs": 100}))
    lived: Judged = field(default_factory=lambda: Judged("promote", "no harm"))
    weighed: dict[str, float] | None = None
    """Share of the candidate as `candidate`, rewards as `rewards`."""
    trips: Tripped | None = None
    findings: Sequence[Row] = ()
    drifts: Sequence[Row] = ()
    evolves_s: float = 0.0
    spent_s: float = 0.0
    """By evolutions, so far."""
    blind: Exception | None = None
    """Looking for drift raises it."""
    unmade: str = ""
    raises: Exception | None = None
    killed: bool = False
    """The process ends once in every evolution."""
    asked: list[str] = field(default_factory=list)

    def settings(self, deployment: str) -> Online:
        return self.online

    async def analyze(self, deployment: str, now: float) -> Sequence[Row]:
        self.asked.append("analyze")
        return self.findings

    async def drift(self, deployment: str, now: float) -> Sequence[Row]:
        if self.blind is not None:
            raise self.blind
        return self.drifts

    async def evolve(self, experiment: Row, now: float) -> Made:
        self.asked.append(f"evolve {experiment['layer']}")
        self.spent_s += self.evolves_s
        if self.raises is not None:
            raise self.raises
        if self.killed and self.asked[-2:-1] != self.asked[-1:]:
            raise Killed
        if self.unmade:
            return Made(None, self.unmade)
        layer: Layer = experiment["layer"]
        rubric = f"better than {experiment['baseline']}"
        whole = Snapshot(prompt=Prompt(genes={"rubric": rubric}), memory=(Note(id="n", text=rubric),))
        variant = {"deployment": "d", "genome": "g", "generation": 1, "parent": "", "operator": "", "fitness": {}}
        made = FIRST.replaced(layer, whole)
        return Made(made, origin={"run": "r"}, variants=[{**variant, "run": "r", "at": now}])

    async def gate(self, experiment: Row, now: float) -> Sequence[Gate]:
        self.asked.append("gate")
        return self.gates

    async def judge(self, experiment: Row, now: float) -> Judged:
        self.asked.append("judge")
        return self.judged

    async def live(self, experiment: Row, now: float) -> Judged:
        return self.lived

    async def weigh(self, experiment: Row, now: float) -> Weighed | None:
        if self.weighed is None:
            return None
        share = self.weighed["candidate"]
        arms = {experiment["baseline"]: 1 - share, experiment["candidate"]: share}
        return Weighed(arms, int(self.weighed["rewards"]))

    async def tripped(self, experiment: Row, now: float) -> Tripped | None:
        return self.trips

    async def probe(self, deployment: str, now: float) -> None:
        self.asked.append("probe")

    async def seal(self, deployment: str, now: float) -> None:
        self.asked.append("seal")


class World:
    """Deployment `d`, its first version FIRST, made at NOW."""

    def __init__(self, work: Told | None = None, *names: str) -> None:
        self.ledger = FakeLedger()
        self.work = work or Told()
        self.notices: list[Notice] = []
        self.cycle = Cycle(self.ledger, self.work, self.tell, clock=lambda: self.work.spent_s)
        for name in names or ("d",):
            for table, row in rows_of(self.ledger, FIRST, "", {}, NOW) + labelled(
                self.ledger, name, FIRST.id, "", "deployed", NOW
            ):
                self.ledger.put(table, row)
            state = {"experiment": "", "arms": {}, "eligible": [FIRST.id], "stage": "", "holdout": ""}
            row = {"name": name, "snapshot": FIRST.id, "state": {**state, "stable": FIRST.id}, "config": ""}
            audit = {"at": NOW, "actor": "hand", "action": "deploy", "why": {}}
            self.ledger.deploy({**row, "facts": {}, "secret": "s", "at": NOW}, audit)
        self.ledger.writes = 0

    async def tell(self, notice: Notice) -> None:
        self.notices.append(notice)

    def pair(self, count: int = 100) -> None:
        """So many pairs for the experiment that is in the shadow."""
        for row in self.ledger.find("experiments", {"stage": "shadow"}):
            for number in range(count):
                pair = {"pair_id": f"{row['id']} {number}", "experiment": row["id"], "state": "open"}
                self.ledger.tables["pairs"][(pair["pair_id"],)] = pair

    def find(self, finding: Row) -> None:
        """A finding of the analysis or of a replica."""
        said = {"deployment": "d", "severity": "high", "layer": "", "intent": "", "model": "", "title": ""}
        self.ledger.put("findings", {**said, "evidence": {}, "recommendation": "", "state": "open", **finding})

    @property
    def rows(self) -> list[Row]:
        return self.ledger.find("experiments", order="started_at")

    @property
    def state(self) -> dict[str, Any]:
        return pointer(self.ledger, "d").state

    @property
    def serves(self) -> str:
        return pointer(self.ledger, "d").snapshot

    async def go(self, *days: float, layers: tuple[Layer, ...] = ("prompt",)) -> Row:
        """Evolve those layers by hand at NOW, then promote at each of these days, pairs coming in between."""
        if not self.rows:
            await self.cycle.evolve("d", NOW, Trigger(kind="hand"), layers)
        for day in days:
            await self.cycle.promote("d", NOW + day * DAY)
            self.pair()
        return self.rows[0]
