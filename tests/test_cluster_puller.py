"""A worker's side of the exchange: one call for results and work, no more begun than fits, the rest given back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from evocluster.cluster.dispatch import Dispatch, Orders, Report
from evocluster.cluster.puller import EARLY, Puller, SourceGone
from evocluster.errors import Refused
from evocluster.records import Item, Proposal, Trial


def proposal(number: int, items: int = 1) -> Proposal:
    """A proposal of so many items."""
    made = tuple(Item(split="train", example=f"e{index}") for index in range(items))
    return Proposal(number=number, operator="seed", items=made)


class Hands:
    """A worker whose proposals end when they are told to."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.aside = 0
        self.sizes: list[int] = []
        self.begun: list[int] = []
        self.ends: dict[int, asyncio.Event] = {}
        self.failure: Exception | None = None
        self.closed = False

    async def open(self, cache: object) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Note it."""
        self.closed = True

    def resize(self, slots: int) -> None:
        """Note it."""
        self.sizes.append(slots)

    async def run(self, one: Proposal, freed: Any) -> Trial:
        """Wait to be told."""
        self.begun.append(one.number)
        await self.ends.setdefault(one.number, asyncio.Event()).wait()
        if self.failure is not None:
            raise self.failure
        for _ in one.items:
            freed()
        return Trial(proposal=one)

    def end(self, *numbers: int) -> None:
        """Let these come to their end."""
        for number in numbers:
            self.ends.setdefault(number, asyncio.Event()).set()


class Line:
    """A dispatcher as a worker reaches it; what went over the line is kept."""

    def __init__(self) -> None:
        self.dispatch = Dispatch()
        self.reports: list[Report] = []
        self.gone = False

    async def exchange(self, worker: str, report: Report) -> Orders | None:
        """See cluster.puller.Source."""
        self.reports.append(report)
        await asyncio.sleep(0)
        if self.gone:
            raise SourceGone("no answer")
        return await self.dispatch.exchange(worker, report)

    async def fail(self, failure: Exception) -> None:
        """See cluster.puller.Source."""
        self.dispatch.fail(failure)


def begin(line: Line, hands: Hands, name: str = "w") -> asyncio.Task[None]:
    """A puller at work."""
    return asyncio.ensure_future(Puller(name, hands, line, None).run())  # type: ignore[arg-type]


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(60):
        await asyncio.sleep(0)


async def test_it_begins_what_fits_and_a_little_early_and_keeps_the_rest_at_hand() -> None:
    line, hands = Line(), Hands(16)
    for number in range(100):
        line.dispatch.submit(proposal(number))
    working = begin(line, hands)
    await settle()
    assert hands.begun == list(range(16 + 16 // EARLY))
    assert line.dispatch.at_work == 32
    hands.end(0, 1, 2)
    await settle()
    assert len(hands.begun) == 3 + 18
    line.dispatch.close()
    hands.end(3)
    await asyncio.wait_for(working, 3)
    assert hands.closed


async def test_what_waits_for_an_endpoint_takes_no_place_of_others_and_yet_there_is_an_end() -> None:
    line, hands = Line(), Hands(16)
    for number in range(100):
        line.dispatch.submit(proposal(number))
    working = begin(line, hands)
    await settle()
    assert len(hands.begun) == 18
    hands.aside = 10
    hands.end(0)
    await settle()
    assert len(hands.begun) == 1 + 18 + 10
    hands.aside = 1000
    hands.end(1)
    await settle()
    assert len(hands.begun) == 2 + 18 + 16
    hands.aside = 0
    hands.end(*range(2, 20))
    await settle()
    assert len(hands.begun) == 20 + 18, "let in again, they have their places as before"
    line.dispatch.close()
    hands.end(20)
    await asyncio.wait_for(working, 3)


async def test_results_that_come_together_travel_together_with_the_question_for_work() -> None:
    line, hands = Line(), Hands(8)
    for number in range(8):
        line.dispatch.submit(proposal(number))
    working = begin(line, hands)
    await settle()
    before = len(line.reports)
    hands.end(*range(8))
    await settle()
    brought = [report for report in line.reports[before:] if report.trials]
    assert [len(report.trials) for report in brought] == [8]
    assert brought[0].room == 8
    assert line.dispatch.finished == 8
    line.dispatch.close()
    await asyncio.wait_for(working, 3)


async def test_results_reach_the_dispatcher_while_a_call_waits_there_for_work() -> None:
    line, hands = Line(), Hands(8)
    line.dispatch.submit(proposal(0))
    working = begin(line, hands)
    await settle()
    hands.end(0)
    await settle()
    assert line.dispatch.finished == 1
    line.dispatch.submit(proposal(1))
    await settle()
    assert hands.begun == [0, 1], "the wait for work goes on"
    line.dispatch.close()
    await asyncio.wait_for(working, 3)


async def test_an_idle_worker_takes_over_what_a_busy_one_has_at_hand() -> None:
    line, busy, idle = Line(), Hands(4), Hands(4)
    for number in range(8):
        line.dispatch.submit(proposal(number))
    working = [begin(line, busy, "busy")]
    await settle()
    assert busy.begun == [0, 1, 2, 3]
    working.append(begin(line, idle, "idle"))
    await settle()
    assert idle.begun == []
    busy.end(0)
    await settle()
    assert sorted(idle.begun) == [5, 6, 7]
    assert busy.begun == [0, 1, 2, 3, 4]
    busy.end(1, 2, 3, 4)
    idle.end(5, 6, 7)
    await settle()
    assert line.dispatch.finished == 8
    line.dispatch.close()
    await asyncio.wait_for(asyncio.gather(*working), 3)


async def test_slots_change_under_way() -> None:
    line, hands = Line(), Hands(2)
    for number in range(8):
        line.dispatch.submit(proposal(number))
    line.dispatch.share({"w": 6})
    working = begin(line, hands)
    await settle()
    assert hands.sizes == [6]
    assert len(hands.begun) >= 4
    line.dispatch.close()
    hands.end(0)
    await asyncio.wait_for(working, 3)


async def test_a_source_that_is_gone_ends_it_quietly_and_a_fatal_failure_is_handed_over() -> None:
    line, hands = Line(), Hands(2)
    line.gone = True
    await asyncio.wait_for(begin(line, hands), 3)
    assert hands.closed
    line, hands = Line(), Hands(2)
    hands.failure = Refused("no such key")
    line.dispatch.submit(proposal(0))
    working = begin(line, hands)
    await settle()
    hands.end(0)
    await settle()
    with pytest.raises(Refused, match="no such key"):
        await asyncio.wait_for(line.dispatch.next(), 1)
    line.dispatch.close()
    await asyncio.wait_for(working, 3)


async def test_who_has_nothing_to_say_calls_all_the_same() -> None:
    line, hands = Line(), Hands(1)
    line.dispatch.submit(proposal(0))
    working = begin(line, hands)
    await settle()
    before = len(line.reports)
    await asyncio.sleep(1.3)
    assert len(line.reports) > before
    assert line.dispatch.silent(1.2) == []
    line.dispatch.close()
    await asyncio.wait_for(working, 3)


async def test_when_it_is_over_nothing_at_hand_is_begun_in_the_place_of_what_is_called_off() -> None:
    line, hands = Line(), Hands(8)
    for number in range(20):
        line.dispatch.submit(proposal(number))
    running = begin(line, hands)
    await settle()
    begun = list(hands.begun)
    assert len(begun) < 16, "some are at hand"
    line.gone = True
    hands.end(0)
    await asyncio.wait_for(running, 5)
    await settle()
    assert hands.begun[len(begun) :] in ([], [9]), "at most the one whose place was free before it was over"
