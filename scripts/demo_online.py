"""The closed loop, for real: traffic, drift, evolution, shadow, judgement, promotion; then a roll-back by itself.

    python scripts/demo_online.py [--data FOLDER] [--seed 1] [--keep FOLDER] [--json]

An embedded model, the gateway in its own process, the `openai` client, real messages in the layout of snips7 (else
those of configs/assistant). Ends with 1 where a stage was not reached, nothing was gained, or ten minutes were too few.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from demo_case import SHORTENED, WHY, Case, Message, assistant, snips7
from demo_story import Measured, difference, table, timeline
from demo_world import Sent, World

from evocluster import deploying

ROOT = Path(__file__).resolve().parents[1]
NAME = "assistant"
MOST_S = 600.0
"""All of it may take so long."""
SOME = 10
"""Messages between two turns."""
MOST = 120
"""Messages of a stage that waits for something."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """Messages of each label, by stage."""

    calm: int
    """Of the labels that are handled."""
    drifted: int
    shadowed: int
    fresh: int
    """After the promotion."""

    @classmethod
    def of(cls, least: int) -> Sizes:
        """For piles of at least so many: nobody asks the same twice in these stages."""
        each = min(9, (2 * least - 1) // 9)
        return cls(calm=least - 3 * each if least < 4 * each + 5 else each + 4, drifted=each, shadowed=each, fresh=each)


@dataclass
class Loop:
    """One demonstration; call order: the methods as they stand."""

    world: World
    case: Case
    rng: np.random.Generator
    say: Say
    piles: dict[str, list[Message]] = field(default_factory=dict)
    sizes: Sizes = field(init=False)
    facts: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.time)

    async def run(self) -> dict[str, Any]:
        """All of it; the facts."""
        await self.deploy()
        await self.calm()
        before = await self.drift()
        await self.evolve()
        await self.shadow()
        await self.live()
        await self.watch(before)
        await self.fail()
        self.facts["seconds"] = round(time.time() - self.began, 1)
        return self.facts

    def _stage(self, text: str) -> None:
        self.say(f"\n[{time.time() - self.began:5.0f} s] {text}")

    def _fresh(self, each: int, labels: Sequence[str]) -> list[Message]:
        """So many of each label that nobody asked yet, mixed."""
        drawn = [self.piles[label].pop() for label in labels for _ in range(min(each, len(self.piles[label])))]
        return [drawn[at] for at in self.rng.permutation(len(drawn))]

    def _again(self, count: int) -> list[Message]:
        """Of those that were asked before, as users do; all labels alike."""
        known = [one.message for one in self.world.asked]
        return [known[at] for at in self.rng.integers(len(known), size=count)]

    async def deploy(self) -> None:
        """A finished run with a weak start, its start deployed, the gateway up."""
        self._stage(f"1. a run from a weak configuration, which knows {', '.join(self.case.handled)} only; deployed")
        world = self.world
        self.piles = self.case.write(world.folder, self.rng)
        self.sizes = Sizes.of(min(map(len, self.piles.values())))
        world.evocluster("run", "weak.yaml", "--out", "runs/weak")
        with world.ledger() as home:
            told = deploying.deploy(world.folder / "runs" / "weak", NAME, home, genome="start")
        self.say(f"{NAME} {told['version']} serves: snapshot {told['snapshot']}")
        self.say(f"evocluster serve: {await world.serve()}")

    async def calm(self) -> None:
        """What it handles."""
        self._stage("2. users ask what it handles, and say of every answer whether it was right")
        sent = await self.world.ask(self._fresh(self.sizes.calm, self.case.handled))
        await self.world.turn()
        self.facts["calm"] = told = Measured.of(sent)
        alarms = self.alarms()
        self.say(f"accuracy {told}; drift alarms: {len(alarms)}")
        self.facts["false_alarms"] = len(alarms)

    def alarms(self) -> list[dict[str, Any]]:
        """Findings of drift that is sure."""
        return [row for row in self.world.rows("findings") if row["kind"] == "drift" and row["severity"] == "high"]

    async def drift(self) -> Measured:
        """All labels come."""
        self._stage(f"3. drift: from now on they ask all of {', '.join(self.case.labels)}")
        sent = await self.world.ask(self._fresh(self.sizes.drifted, self.case.labels))
        told = self.facts["before"] = Measured.of(sent)
        self.say(f"accuracy on fresh traffic {told}")
        return told

    async def evolve(self) -> None:
        """The daemon's jobs find it, and make a candidate that passes its gates."""
        self._stage("4. the daemon's jobs: analyze, then promote (drift alarm, evolution on traffic, gates)")
        cycle = await self.world.cycle()
        await cycle.analyze(NAME, time.time())
        for row in cycle.findings(NAME)[:6]:
            self.say(f"  {row['severity']:<6} {row['kind']}: {row['title']}")
        await self.world.turn()
        self.facts["alarms"] = len(self.alarms())
        row = self.world.experiment()
        for name, passed, reasons in row.get("work", {}).get("gates", ()):
            self.say(f"  gate {name}: {'passed' if passed else 'not passed: ' + '; '.join(reasons)}")
        self.facts["evolved"] = row["stage"]
        self.say(f"experiment {row['id']}: {row['stage']} {row.get('why', '')}")

    async def _until(self, stages: Sequence[str], count: int = SOME, least_s: float = 0.0) -> list[Sent]:
        """Traffic, and a turn of the daemon now and then, until the newest experiment is in one of these stages.

        It gives up after `MOST` messages, and not before `least_s` seconds.
        """
        sent: list[Sent] = []
        end = time.monotonic() + least_s
        while self.world.experiment()["stage"] not in stages and (len(sent) < MOST or time.monotonic() < end):
            sent += await self.world.ask(self._again(count))
            await self.world.turn()
        return sent

    async def shadow(self) -> None:
        """The candidate answers beside production, and is judged."""
        self._stage("5. shadow and judge: the candidate answers the same questions, unheard")
        if self.world.experiment()["stage"] == "done":
            return
        await self.world.ask(self._fresh(self.sizes.shadowed, self.case.labels))
        await self.world.turn()
        await self._until(("live", "watch", "done"))
        row = self.world.experiment()
        told = row["shadow"] or {}
        self.facts["shadow"] = {name: told.get(name) for name in ("pairs", "lift", "e", "score")}
        self.say(f"{told.get('pairs')} pairs, {row['why']}")

    async def live(self) -> None:
        """A share of the traffic."""
        if self.world.experiment()["stage"] not in ("live", "watch"):
            return
        self._stage("6. live on a share of the traffic")
        sent = await self._until(("watch", "done"), 2 * SOME)
        row = self.world.experiment()
        mine = [one for one in sent if one.snapshot == row["candidate"]]
        self.say(f"the candidate answered {len(mine)} of {len(sent)}; {row['why']}")

    async def watch(self, before: Measured) -> None:
        """It serves, the old one ready; then it is over."""
        row = self.world.experiment()
        if row["stage"] == "watch":
            self._stage("7. promoted, under watch: fresh traffic once more")
            sent = await self.world.ask(self._fresh(self.sizes.fresh, self.case.labels))
            after = Measured.of([one for one in sent if one.snapshot == row["candidate"]])
            await self._until(("done",), least_s=30.0)
            row = self.world.experiment()
            self.facts["after"], self.facts["gain"] = after, difference(after, before)
            self.say(f"accuracy on fresh traffic: before {before}")
            self.say(f"{'after':>33} {after}")
            self.say("gain: {:+.1%} (95 % interval {:+.1%} to {:+.1%})".format(*self.facts["gain"]))
        self.facts["outcome"] = row["outcome"] or row["stage"]
        self.say(f"experiment {row['id']}: {row['outcome']} ({row['why']})")

    async def fail(self) -> None:
        """A bad candidate is forced on callers; it is taken back, and may not come again."""
        self._stage("8. a configuration that fails is forced live: evocluster deploy runs/failing --live")
        world = self.world
        if world.experiment()["stage"] in ("live", "watch"):
            self.say("not while an experiment is under way")
            return
        world.evocluster("run", "failing.yaml", "--out", "runs/failing")
        forced = ("deploy", "runs/failing", "--as", NAME, "--genome", "start", "--live", "--home", world.home)
        self.say(world.evocluster(*forced))
        bad = world.experiment()
        sent: list[Sent] = []
        while not world.rows("incidents") and len(sent) < MOST:
            sent += await world.ask(self._again(SOME))
        mine = [one for one in sent if one.snapshot == bad["candidate"]]
        incidents = world.rows("incidents")
        self.facts["rolled_back"] = world.experiment()["outcome"] == "rolled_back" and bool(incidents)
        self.facts["requests_that_failed"] = len(mine)
        for row in incidents:
            self.say(f"incident {row['id']}: {row['evidence'].get('why')}; callers had {len(mine)} of its answers")
        self.facts["barred"] = len(world.rows("barred"))
        if self.facts["rolled_back"]:
            self.say(f"deployed once more: {world.evocluster(*forced, fails=True)}")
        self.say(world.evocluster("history", NAME, "--home", world.home))


def lacking(facts: Mapping[str, Any]) -> list[str]:
    """What was not shown; empty: all of it was."""
    gain = facts.get("gain")
    checks = {
        "an alarm before there was drift": not facts.get("false_alarms"),
        "no drift alarm": bool(facts.get("alarms")),
        "no promotion": facts.get("outcome") == "promoted",
        "no measured gain": gain is not None and gain[1] > 0,
        "no roll-back": bool(facts.get("rolled_back")),
        "nothing was barred": bool(facts.get("barred")),
        f"more than {MOST_S:g} s": facts.get("seconds", MOST_S + 1) <= MOST_S,
    }
    return [name for name, shown in checks.items() if not shown]


async def shown(loop: Loop) -> dict[str, Any]:
    """The loop in its world, with its timeline; the facts, `lacking` among them."""
    say = loop.say
    say(f"Messages: {loop.case.licence}. Model: {loop.case.model.get('name', loop.case.model['kind'])}.")
    say("A demonstration cannot wait for a day. Shortened by settings of the deployment, all else as by default:")
    for section, values in SHORTENED.items():
        told = ", ".join(f"{name} {value:g}" for name, value in values.items())
        say(f"  online.{section}: {told}\n    ({WHY[section]})")
    async with loop.world:
        facts = await loop.run()
        say("\nThe ledger's timeline:")
        say(table(timeline(loop.world), loop.began))
    facts["lacking"] = lacking(facts)
    say(f"\n{facts['seconds']:.0f} s; " + (", ".join(facts["lacking"]) or "every stage was shown"))
    return facts


def told(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as JSON."""
    return {name: one._asdict() if isinstance(one, Measured) else one for name, one in facts.items()}


def main() -> int:
    """The command."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data" / "snips7", help="folder of messages"
    )
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--keep", type=Path, help="a new folder for everything that is made; else it is thrown away")
    asked.add_argument("--json", action="store_true", help="end with the facts as one line of JSON")
    given = asked.parse_args()
    there = (given.data / "train.jsonl").exists()
    case = snips7(given.data) if there else assistant(ROOT / "configs" / "assistant")
    with tempfile.TemporaryDirectory(prefix="evocluster-demo-") as scratch:
        world = World(given.keep or Path(scratch), NAME)
        say = lambda text: print(text, flush=True)  # noqa: E731
        try:
            facts = asyncio.run(shown(Loop(world, case, np.random.default_rng(given.seed), say)))
        except KeyboardInterrupt:
            return 130
    if given.json:
        print(json.dumps(told(facts)))
    return int(bool(facts["lacking"]))


if __name__ == "__main__":
    sys.exit(main())
