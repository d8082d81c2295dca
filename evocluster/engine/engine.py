"""The loop: ask, carry out, keep, tell. Nothing waits for a generation.

A trial is on disk before the optimizer hears of it, and resume is replay: the kept trials are told again in the
order of the optimizer's own questions, so a run killed anywhere goes on as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from evocluster.engine.folder import Folder, Stored, recipe
from evocluster.engine.front import front_json
from evocluster.engine.runner import Runner
from evocluster.errors import EvoclusterError, ModelError, RunDamaged
from evocluster.records import Proposal, Trial
from evocluster.redaction import redacted
from evocluster.search.members import Member
from evocluster.telemetry import log

SUSPECTS = 3
"""Trials in a row in which every single evaluation failed, before any success: the endpoint or the scorer is broken."""
STREAK = 8
"""The same after successes were seen: something broke on the way."""
STATUS_EVERY_S = 2.0
POLL_S = 0.5


class AskTell(Protocol):
    """The part of the optimizer the loop needs."""

    @property
    def done(self) -> bool: ...

    @property
    def asked(self) -> int: ...

    @property
    def searching(self) -> bool:
        """True until the search phase was stopped."""
        ...

    def ask(self) -> Proposal | None: ...

    def tell(self, trial: Trial) -> None: ...

    def stop(self, reason: str) -> None: ...

    def halfway(self) -> None: ...

    def progress(self) -> dict[str, Any]: ...

    @property
    def start_member(self) -> Member | None: ...

    def front(self) -> list[Member]: ...


class Engine:
    """One run. Call order: construct, `replay`, then `run`; `interrupt` and `progress` at any time."""

    def __init__(
        self,
        optimizer: AskTell,
        runner: Runner,
        folder: Folder,
        *,
        minutes: float | None = None,
        facts: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: Callable[[Trial], None] | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._runner = runner
        self._folder = folder
        self._minutes = minutes
        self._facts = dict(facts or {})
        self._clock = clock
        self._watch = watch
        self._flying: dict[int, Proposal] = {}
        self._suspects: list[Trial] = []
        self._tried_again: dict[int, Trial] = {}
        self._healthy = False
        self._interrupted = False
        self._stops: list[dict[str, Any]] = []
        self._halfway: int | None = None
        self._started = clock()
        self._before_s = 0.0
        self._written = -STATUS_EVERY_S
        self._replayed = 0
        self._replaying = False

    def replay(self, heard: Callable[[Trial], None] = lambda trial: None) -> int:
        """Tell every kept trial again, also to `heard`; returns how many.

        Raises: errors.RunDamaged when they do not fit this config.
        """
        if (self._folder.path / "run.json").exists():
            earlier = self._folder.read("run.json")
            self._stops = list(earlier.get("stops", []))
            self._halfway = earlier.get("halfway")
            self._before_s = float(earlier.get("elapsed_s", 0.0))
        self._replaying = True
        try:
            self._tell_all(heard)
        finally:
            self._replaying = False
        return self._replayed

    def _tell_all(self, heard: Callable[[Trial], None]) -> None:
        early: dict[int, Stored] = {}
        self._ask()
        for stored in self._folder.replay():
            if stored.number in early or stored.number in self._seen_twice(stored):
                continue
            early[stored.number] = stored
            while self._tell_stored(early, heard):
                self._ask()
        if early:
            raise RunDamaged(
                f"{self._folder.address!r} holds trial {min(early)} that this configuration would never have asked "
                "for; resume it with the config.yaml and the data it was made with"
            )

    def _seen_twice(self, stored: Stored) -> set[int]:
        """A number that was told already (kept twice by a writer that died in between)."""
        told = stored.number < self._optimizer.asked and stored.number not in self._flying
        return {stored.number} if told else set()

    def _tell_stored(self, early: dict[int, Stored], heard: Callable[[Trial], None]) -> bool:
        """Tell those kept trials whose question has been asked; True when any was."""
        ready = [number for number in early if number in self._flying]
        for number in sorted(ready):
            stored, proposal = early.pop(number), self._flying.pop(number)
            if stored.recipe != recipe(proposal):
                raise RunDamaged(
                    f"{self._folder.address!r}: trial {number} was made by another recipe "
                    f"({stored.recipe!r}, this configuration asks {recipe(proposal)!r}): the config, the data or the "
                    "version changed since; put them back, or start a new run with --out FOLDER"
                )
            trial = Trial(
                proposal=proposal,
                genome=self._folder.genome(stored.genome_id) if stored.genome_id else None,
                evaluations=tuple(stored.evaluations),
                usage=stored.usage,
                error=stored.error,
                notes=stored.notes,
            )
            self._optimizer.tell(trial)
            heard(trial)
            self._healthy = True
            self._replayed += 1
        return bool(ready)

    async def run(self) -> str:
        """Carry the search out; returns 'finished' or 'interrupted'.

        Raises: errors.ModelError when nothing but failures comes back; errors.StoreError; whatever ends all of it.
        """
        status, failure = "failed", "stopped from outside"
        log.info("run %s", f"goes on after {self._replayed} kept trials" if self._replayed else "begins")
        try:
            self._ask()
            if self._flying or not self._optimizer.done:
                await self._runner.open()
                for proposal in list(self._flying.values()):
                    self._runner.submit(proposal)
                await self._loop()
            status, failure = ("finished" if self._optimizer.done else "interrupted"), ""
        except BaseException as error:
            failure = redacted(f"{type(error).__name__}: {error}")
            raise
        finally:
            await self._end(status, failure or None)
        return status

    async def _end(self, status: str, failure: str | None) -> None:
        """Close everything; each step happens whatever becomes of the one before."""
        log.log(logging.ERROR if failure else logging.INFO, "run %s%s", status, f": {failure}" if failure else "")
        try:
            await self._runner.close()
        finally:
            try:
                self._write_front()
                self._folder.seal()
            except BaseException as error:
                # Else a resume would take it for finished, without its front.
                status, failure = "failed", failure or f"{type(error).__name__}: {error}"
                raise
            finally:
                try:
                    self._write_status(status, failure)
                finally:
                    self._folder.close()

    async def _loop(self) -> None:
        while self._flying or self._suspects:
            if not self._flying:
                await self._try_again()
            else:
                trials = [await self._runner.next(), *self._runner.ready()]
                for trial in trials:
                    self._flying.pop(trial.proposal.number, None)
                await self._keep(trials)
            if not self._interrupted:
                for proposal in self._ask():
                    self._runner.submit(proposal)
            if self._clock() - self._written >= STATUS_EVERY_S:
                await self._folder.apart(partial(self._folder.write, "run.json", self._status("running")))

    def _ask(self) -> list[Proposal]:
        """Every proposal the optimizer has now."""
        asked = []
        while not self._optimizer.done:
            self._stop_if_due()
            proposal = self._optimizer.ask()
            if proposal is None:
                break
            self._flying[proposal.number] = proposal
            asked.append(proposal)
        return asked

    def _stop_if_due(self) -> None:
        for stop in self._stops:
            if stop["at"] == self._optimizer.asked and self._optimizer.searching:
                self._optimizer.stop(stop["reason"])
        passed = self.elapsed_s / (self._minutes * 60) if self._minutes else 0.0
        if passed >= 0.5 and self._halfway is None and not self._replaying:
            self._halfway = self._optimizer.asked
            self._write_status("running")
        if self._optimizer.asked == self._halfway:
            self._optimizer.halfway()
        if passed >= 1 and self._optimizer.searching and not self._replaying:
            self._stops.append({"at": self._optimizer.asked, "reason": "minutes"})
            self._write_status("running")
            self._optimizer.stop("minutes")

    async def _keep(self, trials: Sequence[Trial]) -> None:
        """Commit what came back together, in the order it came, up to a failure that ends the run."""
        counting: list[Trial] = []
        try:
            for trial in trials:
                counting += self._counting(trial)
        finally:
            await self._commit(counting)

    def _counting(self, trial: Trial) -> list[Trial]:
        """What counts now that this trial is back. Raises: errors.ModelError when nothing but failures comes back."""
        if trial.evaluations and all(evaluation.error for evaluation in trial.evaluations):
            self._suspects.append(trial)
            if len(self._suspects) >= (STREAK if self._healthy else SUSPECTS):
                self._raise_suspects()
            return []
        if not trial.evaluations:
            return [trial]
        self._healthy = True
        return [*self._settled_suspects(), trial]

    async def _try_again(self) -> None:
        """Nothing is left that could tell a broken endpoint from bad genomes: what failed wholly is asked once more."""
        again = all(trial.proposal.number in self._tried_again for trial in self._suspects)
        if not self._healthy or (again and len(self._suspects) >= SUSPECTS):
            self._raise_suspects()
        if again:
            await self._commit(self._settled_suspects())
            return
        suspects, self._suspects = self._suspects, []
        for trial in suspects:
            self._tried_again[trial.proposal.number] = trial
            self._flying[trial.proposal.number] = trial.proposal
            self._runner.submit(trial.proposal)

    def _settled_suspects(self) -> list[Trial]:
        """Trials that failed wholly while others went well count as what they are: bad genomes."""
        suspects, self._suspects = self._suspects, []
        # The first attempt is the one that was paid.
        return [self._tried_again.get(trial.proposal.number, trial) for trial in suspects]

    def _raise_suspects(self) -> None:
        last = self._suspects[-1]
        text = last.evaluations[0].error or ""
        kind = ModelError if text.startswith("model") else EvoclusterError
        raise kind(
            f"every evaluation failed in {len(self._suspects)} trial(s) in a row, {len(last.evaluations)} in the last; "
            f"its first failure: {text.rstrip('.')} | Nothing of these was recorded, everything before is kept: "
            f"mend it, then `evocluster resume {self._folder.address}`"
        )

    async def _commit(self, trials: Sequence[Trial]) -> None:
        """One durable step for all of them, then tell each in order; what comes back meanwhile is the next step."""
        if not trials:
            return
        await self._folder.apart(partial(self._folder.append_many, trials))
        for trial in trials:
            self._optimizer.tell(trial)
            if self._watch is not None:
                self._watch(trial)

    @property
    def run_id(self) -> str:
        """As run.json says."""
        return str(self._facts.get("run_id") or "")

    def interrupt(self) -> None:
        """Ask for nothing new; `run` returns once what is in flight has come back and is kept."""
        self._interrupted = True

    @property
    def elapsed_s(self) -> float:
        """Seconds of running, earlier sittings included."""
        return self._before_s + self._clock() - self._started

    def progress(self) -> dict[str, Any]:
        """The optimizer's progress, and the evaluations handed out: under way, queued, or waiting for their turn."""
        flying = sum(len(proposal.items) for proposal in self._flying.values())
        return {**self._optimizer.progress(), "handed_out": flying, "elapsed_s": self.elapsed_s}

    def _write_front(self) -> None:
        """The front as far as it is known."""
        said = self._optimizer.progress()
        found = self._optimizer.start_member, self._optimizer.front()
        self._folder.write(
            "front.json", front_json(said.get("objectives", []), *found, constraints=said.get("constraints", []))
        )

    def _status(self, status: str, failure: str | None = None) -> dict[str, Any]:
        """What run.json says now."""
        self._written = self._clock()
        now = {key: value for key, value in self.progress().items() if key not in ("front", "handed_out")}
        return {
            **self._facts,
            "status": status,
            "error": failure,
            **now,
            "stops": self._stops,
            "halfway": self._halfway,
        }

    def _write_status(self, status: str, failure: str | None = None) -> None:
        try:
            self._folder.write("run.json", self._status(status, failure))
        except EvoclusterError as error:
            if status == "running":
                raise
            log.error("the last status could not be written: %s", error)


async def carry(
    engine: Engine,
    *,
    show: Callable[[dict[str, Any]], None] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> str:
    """Run an engine to the end in this process; returns 'finished' or 'interrupted'.

    `show` gets the progress twice a second; `interrupted` is asked as often. Raises: whatever ends the run.
    """
    engine.replay()
    running = asyncio.ensure_future(engine.run())
    asked = False
    try:
        while not running.done():
            await asyncio.wait({running}, timeout=POLL_S)
            if interrupted() and not asked:
                asked = True
                engine.interrupt()
            if show is not None:
                show(engine.progress())
        return await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
