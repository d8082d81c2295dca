"""The dispatcher's laws: nothing lost, nothing settled twice, the dead give back what they held, the guilty found."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evocluster.cluster.dispatch import Dispatch, Orders, Report
from evocluster.cluster.suspects import ALONE, CROWD, ENOUGH, Suspects, Verdict
from evocluster.errors import Refused
from evocluster.records import Genome, Item, Proposal, Trial

GENOME = Genome(genes={"rubric": "kills"})


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def proposal(number: int, items: int = 4) -> Proposal:
    """A proposal of so many items."""
    return Proposal(
        number=number,
        operator="seed",
        items=tuple(Item(split="train", example=f"e{index}") for index in range(items)),
    )


def on(genome: Genome, number: int) -> Proposal:
    """More examples for a known genome."""
    return proposal(number).model_copy(update={"operator": "evaluate", "parents": (genome,), "purpose": "extend"})


def numbers(work: list[Proposal] | Orders | None) -> list[int]:
    """Which proposals these are."""
    assert work is not None
    return [one.number for one in (work.work if isinstance(work, Orders) else work)]


async def nothing_more(dispatch: Dispatch) -> None:
    """No other trial has been finished."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(dispatch.next(), 0.01)


async def test_a_worker_pulls_what_it_has_room_for_and_gets_at_least_one() -> None:
    dispatch = Dispatch()
    for number in range(6):
        dispatch.submit(proposal(number))
    assert numbers(await dispatch.pull("a", 8)) == [0, 1]
    assert numbers(await dispatch.pull("a", 1)) == [2]


async def test_batches_shrink_near_the_end() -> None:
    dispatch = Dispatch()
    await dispatch.pull("a", 1, wait_s=0.001)
    await dispatch.pull("b", 1, wait_s=0.001)
    for number in range(4):
        dispatch.submit(proposal(number))
    await dispatch.pull("b", 1)
    taken = await dispatch.pull("a", 1000)
    assert taken is not None
    assert len(taken) < 3, "one worker hoards what others could do"


async def test_nothing_is_taken_ahead_that_another_could_begin_now() -> None:
    dispatch = Dispatch()
    for worker in ("a", "b"):
        await dispatch.pull(worker, 8, 8, wait_s=0.001)
    for number in range(4):
        dispatch.submit(proposal(number))
    assert len(numbers(await dispatch.pull("a", 8, 8))) == 2
    assert numbers(await dispatch.pull("a", 0, 8)) == []
    assert len(numbers(await dispatch.pull("b", 8, 8))) == 1
    for number in range(4, 14):
        dispatch.submit(proposal(number))
    assert len(numbers(await dispatch.pull("a", 0, 8))) == 2


async def test_an_empty_queue_gives_nothing_and_a_closed_one_says_so() -> None:
    dispatch = Dispatch()
    assert await dispatch.pull("a", 4, wait_s=0.001) == []
    waiting = asyncio.ensure_future(dispatch.pull("a", 4, wait_s=5))
    await asyncio.sleep(0)
    dispatch.close()
    assert await waiting is None


async def test_work_that_comes_late_reaches_who_waits_for_it() -> None:
    dispatch = Dispatch()
    waiting = asyncio.ensure_future(dispatch.pull("a", 4, wait_s=60))
    await asyncio.sleep(0)
    dispatch.submit(proposal(0))
    assert numbers(await asyncio.wait_for(waiting, 1)) == [0]


async def test_a_call_with_results_does_not_wait_and_ends_the_wait_of_the_one_before() -> None:
    dispatch = Dispatch()
    dispatch.submit(proposal(0))
    (held,) = await dispatch.pull("a", 8) or []
    waiting = asyncio.ensure_future(dispatch.exchange("a", Report(room=4), wait_s=60))
    await asyncio.sleep(0)
    brought = await asyncio.wait_for(dispatch.exchange("a", Report([Trial(proposal=held)], room=8), wait_s=60), 1)
    assert numbers(brought) == []
    assert numbers(await asyncio.wait_for(waiting, 1)) == []
    assert (await dispatch.next()).proposal.number == 0


async def test_an_idle_worker_gets_what_another_has_at_hand() -> None:
    dispatch = Dispatch()
    for number in range(4):
        dispatch.submit(proposal(number))
    assert numbers(await dispatch.exchange("rich", Report(room=8, ahead=8))) == [0, 1, 2, 3]
    idle = asyncio.ensure_future(dispatch.exchange("idle", Report(room=5), wait_s=60))
    await asyncio.sleep(0)
    orders = await dispatch.exchange("rich", Report(room=0, spare=8))
    assert orders == Orders(back=5)
    assert not idle.done()
    again = await dispatch.exchange("rich", Report(back=[3, 2], room=0))
    assert again == Orders()
    assert numbers(await asyncio.wait_for(idle, 1)) == [2]
    assert numbers(await dispatch.exchange("idle", Report(room=1))) == [3]
    assert dispatch.holds("rich") == 2


async def test_what_a_dead_worker_held_goes_to_another_in_order() -> None:
    dispatch = Dispatch()
    for number in range(3):
        dispatch.submit(proposal(number))
    await dispatch.pull("a", 8)
    assert dispatch.lost("a") == 2
    assert numbers(await dispatch.pull("b", 100)) == [0, 1, 2]


async def test_a_dead_worker_still_waiting_for_work_gets_none() -> None:
    dispatch = Dispatch()
    dispatch.submit(proposal(0))
    await dispatch.pull("dead", 4)
    parked = asyncio.ensure_future(dispatch.pull("dead", 4, wait_s=5))
    await asyncio.sleep(0)
    assert dispatch.lost("dead") == 1
    assert numbers(await dispatch.pull("live", 4)) == [0]
    assert await parked is None


async def test_a_worker_given_up_too_early_is_fenced_and_what_it_brings_counts_once() -> None:
    dispatch = Dispatch()
    for number in (0, 1):
        dispatch.submit(proposal(number))
    slow = await dispatch.pull("slow", 8) or []
    dispatch.lost("slow")
    (again,) = await dispatch.pull("b", 4) or []
    assert again.number == 0
    late = await dispatch.exchange("slow", Report([Trial(proposal=one, error="late") for one in slow], room=8))
    assert late is None, "it gets no work any more"
    assert [(await dispatch.next()).proposal.number for _ in range(2)] == [0, 1]
    dispatch.finish("b", [Trial(proposal=again)])
    await nothing_more(dispatch)
    assert numbers(await dispatch.pull("b", 8, wait_s=0)) == [], "what it brought is not carried out again"


async def test_who_does_not_call_is_silent_and_who_waits_for_work_is_not() -> None:
    clock = Clock()
    dispatch = Dispatch(clock)
    dispatch.submit(proposal(0))
    await dispatch.pull("busy", 4)
    waiting = asyncio.ensure_future(dispatch.pull("idle", 4, wait_s=5))
    await asyncio.sleep(0)
    clock.now = 4.0
    assert dispatch.silent(3) == ["busy"]
    await dispatch.exchange("busy", Report())
    assert dispatch.silent(3) == []
    dispatch.close()
    assert await waiting is None


async def test_a_worker_that_retires_hands_in_the_rest_and_is_over() -> None:
    dispatch = Dispatch()
    for number in range(3):
        dispatch.submit(proposal(number))
    one, two, *_ = await dispatch.pull("a", 8) or []
    dispatch.retire("a")
    assert await dispatch.exchange("a", Report(room=4, spare=4)) == Orders(back=4)
    assert await dispatch.exchange("a", Report(back=[two.number], room=4), wait_s=0) == Orders()
    assert await dispatch.exchange("a", Report([Trial(proposal=one)])) is None
    assert numbers(await dispatch.pull("b", 100)) == [1, 2]
    assert dispatch.lost("a") == 0


async def test_slots_are_told_with_the_orders() -> None:
    dispatch = Dispatch()
    dispatch.share({"a": 7})
    assert await dispatch.exchange("a", Report()) == Orders(slots=7)


async def die(dispatch: Dispatch, clock: Clock, worker: str, room: int = 100) -> list[int]:
    """A worker takes what it gets and dies a second later; what it held."""
    held = numbers(await dispatch.pull(worker, room, wait_s=0))
    clock.now += 1
    dispatch.lost(worker)
    return held


async def test_who_kills_is_found_alone_and_the_others_go_free() -> None:
    clock = Clock()
    dispatch = Dispatch(clock)
    clock.now = 600.0
    dispatch.submit(on(GENOME, 0))
    for number in range(1, 6):
        dispatch.submit(proposal(number))
    await dispatch.pull("calm", 0, wait_s=0)
    clock.now = 1200.0
    dispatch.lost("calm", preempted=True)
    for death in range(CROWD):
        assert await die(dispatch, clock, f"crowd{death}") == [0, 1, 2, 3, 4, 5]
    alone: list[tuple[int, str | None]] = []
    deaths = 0
    while 0 not in [number for number, error in alone if error]:
        held = await dispatch.pull(f"w{deaths}", 100, wait_s=0) or []
        assert len(held) == 1, "a suspect has no company"
        clock.now += 1
        if held[0].number == 0:
            deaths += 1
            dispatch.lost(f"w{deaths - 1}")
        else:
            dispatch.finish(f"w{deaths}", [Trial(proposal=held[0])])
        while True:
            try:
                trial = await asyncio.wait_for(dispatch.next(), 0.01)
            except TimeoutError:
                break
            alone.append((trial.proposal.number, trial.error))
    assert deaths == ALONE
    errors = dict(alone)
    assert f"genome {GENOME.id} is quarantined: {ALONE} worker" in (errors.pop(0) or "")
    assert not any(errors.values())
    dispatch.submit(on(GENOME, 6))
    later = await dispatch.next()
    assert later.error is not None
    assert later.genome is None
    anew = Dispatch(clock)
    anew.recall(later)
    anew.submit(on(GENOME, 7))
    assert (await anew.next()).error == later.error


def alone_until_guilty(made: Sequence[Proposal]) -> int:
    """Proposals that kill every worker they are given to, one after the other, round and round; how many died."""
    suspects = Suspects()
    verdicts: dict[int, Verdict] = dict.fromkeys((one.number for one in made), "free")
    deaths = 0
    while left := [one for one in made if verdicts[one.number] != "guilty"]:
        for one in left:
            if suspects.sentence(one):
                verdicts[one.number] = "guilty"
                continue
            deaths += 1
            suspects.served(2.0)
            suspects.death()
            verdicts[one.number] = suspects.died(one, 1.5, verdicts[one.number] == "alone")
    return deaths


COMPANY = 12
"""Deaths in company, at this rate, before they are no chance."""


def test_many_proposals_that_kill_do_not_excuse_each_other() -> None:
    made = [proposal(number) for number in range(8)]
    assert alone_until_guilty(made) <= len(made) * (COMPANY + ENOUGH)


def test_one_genome_is_found_by_all_the_proposals_that_carry_it_out() -> None:
    assert alone_until_guilty([on(GENOME, number) for number in range(8)]) <= 8 * COMPANY + ENOUGH


async def test_an_ordinary_worker_is_emptied_for_a_suspect() -> None:
    dispatch = Dispatch(Clock())
    dispatch.submit(proposal(0))
    for number in range(1, 7):
        dispatch.submit(proposal(number))
    busy = await dispatch.pull("busy", 28) or []
    assert len(busy) == 7
    for number in (50, 51):
        dispatch.submit(proposal(number))
    for life in range(CROWD):
        assert numbers(await dispatch.pull(f"crowd{life}", 8, wait_s=0)) == [50]
        assert numbers(await dispatch.pull(f"crowd{life}", 4, wait_s=0)) == [51]
        dispatch.lost(f"crowd{life}")
    for number in range(60, 64):
        dispatch.submit(proposal(number))
    assert await dispatch.exchange("busy", Report(room=8, spare=4), wait_s=0) == Orders(back=4)
    back = Report([Trial(proposal=one) for one in busy[:6]], [6], room=28)
    for alone in (50, 51):
        orders = await dispatch.exchange("busy", back, wait_s=0)
        assert numbers(orders) == [alone]
        assert await dispatch.pull("busy", 24, wait_s=0) == [], "no company for a suspect"
        back = Report([Trial(proposal=proposal(alone))], room=28)
    assert numbers(await dispatch.exchange("busy", back)) == [6, 60, 61, 62, 63]


async def hail(seed: int, kills: int, guilty: bool) -> tuple[int, int, int]:
    """Three workers, killed on average every 4 s whatever they do; a proposal takes 1 to 3 s, the guilty one kills.

    Returns how many proposals there were, how many came back well, and how many came back failed.
    """
    rng, clock = random.Random(seed), Clock()
    dispatch = Dispatch(clock)
    names = {seat: f"{seat}.0" for seat in "abc"}
    held: dict[str, list[tuple[float, Proposal]]] = {seat: [] for seat in "abc"}
    next_kill, killed, asked, well, failed = rng.expovariate(0.25), 0, 0, 0, 0
    while killed < kills or well + failed < asked:
        while killed < kills and asked - well - failed < 40:
            dispatch.submit(proposal(asked, 1))
            asked += 1
        for seat in "abc":
            ready = [one for until, one in held[seat] if until <= clock.now]
            dead = guilty and any(one.number == 5 for one in ready)
            if clock.now >= next_kill and killed < kills and seat == rng.choice("abc"):
                next_kill, killed, dead = clock.now + rng.expovariate(0.25), killed + 1, True
            if dead:
                dispatch.lost(names[seat])
                names[seat], held[seat] = f"{seat}.{clock.now}", []
                continue
            held[seat] = [(until, one) for until, one in held[seat] if until > clock.now]
            report = Report([Trial(proposal=one) for one in ready], room=12 - len(held[seat]))
            orders = await dispatch.exchange(names[seat], report, wait_s=0)
            assert orders is not None
            held[seat] += [(clock.now + rng.uniform(1, 3), one) for one in orders.work]
        while dispatch.finished > well + failed:
            error = (await dispatch.next()).error
            well, failed = well + (error is None), failed + (error is not None)
        clock.now += 0.25
    return asked, well, failed


@pytest.mark.parametrize("seed", range(8))
async def test_a_hail_of_kills_convicts_nobody_but_the_guilty(seed: int) -> None:
    asked, well, failed = await hail(seed, 100, guilty=False)
    assert (well, failed) == (asked, 0)
    asked, well, failed = await hail(seed, 100, guilty=True)
    assert (well, failed) == (asked - 1, 1)


async def test_a_node_that_goes_accuses_nobody() -> None:
    dispatch = Dispatch(Clock())
    dispatch.submit(proposal(0))
    for turn in range(20):
        assert numbers(await dispatch.pull(f"w{turn}", 4)) == [0]
        dispatch.lost(f"w{turn}", preempted=True)
    await nothing_more(dispatch)


async def test_a_fatal_failure_is_raised_to_the_engine() -> None:
    dispatch = Dispatch()
    dispatch.fail(Refused("no such key"))
    with pytest.raises(Refused, match="no such key"):
        await dispatch.next()


VERBS = ["work", "work", "finish", "back", "die", "preempt", "late", "retire", "resubmit"]


class Play:
    """Three workers that follow a script; each has an honest idea of what it holds."""

    def __init__(self, count: int) -> None:
        self.clock = Clock()
        self.dispatch = Dispatch(self.clock)
        self.held: dict[str, list[Proposal]] = {}
        self.late: list[tuple[str, list[Proposal]]] = []
        self.lives = dict.fromkeys("abc", 0)
        self.came: list[int] = []
        self.expected = list(range(count))
        for number in range(count):
            self.dispatch.submit(proposal(number, 1 + number % 5))

    def name(self, worker: str) -> str:
        """The worker in its present life."""
        return f"{worker}.{self.lives[worker]}"

    async def step(self, verb: str, worker: str) -> None:
        """One thing that may happen."""
        name = self.name(worker)
        held = self.held.setdefault(name, [])
        self.clock.now += 0.5
        if verb in ("work", "finish", "back"):
            done = held[:2] if verb == "finish" else []
            back = held[-1:] if verb == "back" else []
            self.held[name] = [one for one in held if one not in (*done, *back)]
            report = Report([Trial(proposal=one) for one in done], [one.number for one in back], 6, 6, len(held) // 2)
            orders = await self.dispatch.exchange(name, report, wait_s=0)
            if orders is None:
                self.lives[worker] += 1
            else:
                self.held[name] += orders.work
        elif verb in ("die", "preempt"):
            self.dispatch.lost(name, preempted=verb == "preempt")
            self.late.append((name, held))
            self.lives[worker] += 1
        elif verb == "late" and self.late:
            gone, brought = self.late.pop()
            assert await self.dispatch.exchange(gone, Report([Trial(proposal=one) for one in brought])) is None
        elif verb == "retire" and held:
            self.dispatch.retire(name)
        await self.collect()
        last = self.came[-1] if self.came else None
        if verb == "resubmit" and last is not None and self.came.count(last) == self.expected.count(last):
            self.dispatch.submit(proposal(last, 1 + last % 5))
            self.expected.append(last)

    async def collect(self) -> None:
        """Take what is finished."""
        while self.dispatch.finished > len(self.came):
            self.came.append((await self.dispatch.next()).proposal.number)

    def open(self) -> int:
        """Proposals of which no trial came yet."""
        return len(self.expected) - len(self.came)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(VERBS), st.sampled_from("abc")), max_size=80),
    st.integers(1, 12),
)
def test_every_proposal_is_settled_exactly_once_whatever_happens(script: list[tuple[str, str]], count: int) -> None:
    async def play() -> Play:
        scene = Play(count)
        for verb, worker in script:
            await scene.step(verb, worker)
        for _ in range(20 * count + 40):
            for worker in "abc":
                await scene.step("work", worker)
                await scene.step("finish", worker)
            if not scene.open():
                break
        return scene

    scene = asyncio.run(play())
    assert sorted(scene.came) == sorted(scene.expected)
    assert scene.dispatch.queued == 0
