"""The dispatcher's laws: nothing lost, nothing settled twice, the dead give back what they held."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evocluster.cluster.dispatch import ATTEMPTS, Dispatch
from evocluster.errors import Refused
from evocluster.records import Item, Proposal, Trial


def proposal(number: int, items: int = 4) -> Proposal:
    """A proposal of so many items."""
    return Proposal(
        number=number,
        operator="seed",
        items=tuple(Item(split="train", example=f"e{index}") for index in range(items)),
    )


async def test_a_worker_pulls_what_it_has_room_for_and_gets_at_least_one() -> None:
    dispatch = Dispatch()
    for number in range(6):
        dispatch.submit(proposal(number))
    assert [one.number for one in await dispatch.pull("a", 8) or []] == [0, 1]
    assert [one.number for one in await dispatch.pull("a", 1) or []] == [2]


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
    assert len(await dispatch.pull("a", 8, 8) or []) == 2
    assert await dispatch.pull("a", 0, 8) == []
    assert len(await dispatch.pull("b", 8, 8) or []) == 1
    for number in range(4, 14):
        dispatch.submit(proposal(number))
    assert len(await dispatch.pull("a", 0, 8) or []) == 2


async def test_an_empty_queue_gives_nothing_and_a_closed_one_says_so() -> None:
    dispatch = Dispatch()
    assert await dispatch.pull("a", 4, wait_s=0.001) == []
    waiting = asyncio.ensure_future(dispatch.pull("a", 4, wait_s=5))
    await asyncio.sleep(0)
    dispatch.close()
    assert await waiting is None


async def test_what_a_dead_worker_held_goes_to_another_in_order() -> None:
    dispatch = Dispatch()
    for number in range(3):
        dispatch.submit(proposal(number))
    await dispatch.pull("a", 8)
    assert dispatch.lost("a") == 2
    again = await dispatch.pull("b", 100) or []
    assert [one.number for one in again] == [0, 1, 2]


async def test_a_dead_worker_still_waiting_for_work_gets_none() -> None:
    dispatch = Dispatch()
    dispatch.submit(proposal(0))
    await dispatch.pull("dead", 4)
    parked = asyncio.ensure_future(dispatch.pull("dead", 4, wait_s=5))
    await asyncio.sleep(0)
    assert dispatch.lost("dead") == 1
    again = await dispatch.pull("live", 4)
    assert [one.number for one in again or []] == [0]
    assert await parked is None


async def test_a_proposal_that_kills_workers_is_given_back_as_a_failed_trial() -> None:
    dispatch = Dispatch()
    dispatch.submit(proposal(0))
    for attempt in range(ATTEMPTS):
        assert await dispatch.pull(f"w{attempt}", 4)
        dispatch.lost(f"w{attempt}")
    trial = await dispatch.next()
    assert trial.genome is None
    assert "died" in (trial.error or "")


async def test_a_late_result_of_a_lost_lease_counts_once() -> None:
    dispatch = Dispatch()
    dispatch.submit(proposal(0))
    (held,) = await dispatch.pull("a", 4) or []
    dispatch.lost("a")
    (again,) = await dispatch.pull("b", 4) or []
    dispatch.finish("b", [Trial(proposal=again)])
    dispatch.finish("a", [Trial(proposal=held)])
    assert (await dispatch.next()).proposal.number == 0
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(dispatch.next(), 0.01)


async def test_a_fatal_failure_is_raised_to_the_engine() -> None:
    dispatch = Dispatch()
    dispatch.fail(Refused("no such key"))
    with pytest.raises(Refused, match="no such key"):
        await dispatch.next()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["pull a", "pull b", "done a", "done b", "die a", "die b"]), max_size=60),
    st.integers(1, 12),
)
def test_every_proposal_is_settled_exactly_once_whatever_dies(script: list[str], count: int) -> None:
    async def play() -> list[int]:
        dispatch = Dispatch()
        held: dict[str, list[Proposal]] = {"a": [], "b": []}
        lives = {"a": 0, "b": 0}
        for number in range(count):
            dispatch.submit(proposal(number))
        for line in [*script, *["pull a", "done a", "done b"] * count]:
            verb, worker = line.split()
            if verb == "pull":
                held[worker] += await dispatch.pull(f"{worker}.{lives[worker]}", 6, wait_s=0) or []
            elif verb == "done":
                dispatch.finish(f"{worker}.{lives[worker]}", [Trial(proposal=one) for one in held[worker]])
                held[worker] = []
            else:
                dispatch.lost(f"{worker}.{lives[worker]}")
                lives[worker] += 1
                held[worker] = []
        return [(await asyncio.wait_for(dispatch.next(), 1)).proposal.number for _ in range(count)]

    assert sorted(asyncio.run(play())) == list(range(count))
