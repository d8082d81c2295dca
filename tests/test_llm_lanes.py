"""Lanes: prompts that begin alike meet the lane that knows the beginning; nobody starves; no server stands idle."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evocluster.errors import ModelError
from evocluster.llm.lanes import PATIENCE, Lanes, shared

A, B, C = ("alpha " * 20, "beta " * 24, "gamma " * 20)


async def _serve(lanes: Lanes, texts: Sequence[str], seconds: float = 0.0) -> list[tuple[str, int]]:
    """Ask for all texts at once; (text, server) in the order they were served."""
    served: list[tuple[str, int]] = []

    async def one(text: str) -> None:
        lane = await lanes.take(text)
        served.append((text, lanes.server(lane)))
        await asyncio.sleep(seconds)
        lanes.give(lane)

    async with asyncio.timeout(20):
        await asyncio.gather(*map(one, texts))
    return served


@given(st.text(alphabet="ab", max_size=12), st.text(alphabet="ab", max_size=12))
def test_shared_is_the_length_of_the_common_beginning(one: str, other: str) -> None:
    length = shared(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


async def test_one_lane_serves_batch_after_batch() -> None:
    texts = [prefix + str(number) for number in range(4) for prefix in (A, B, C)]
    served = await _serve(Lanes(1, 1), texts)
    beginnings = [text[0] for text, _ in served]
    assert sorted(served) == sorted((text, 0) for text in texts)
    assert sum(one != other for one, other in pairwise(beginnings)) == 2


async def test_each_beginning_stays_on_its_server() -> None:
    lanes = Lanes(2, 1)
    texts = [prefix + str(number) for number in range(6) for prefix in (A, B)]
    served = await _serve(lanes, texts, 0.001)
    assert {(text[0], server) for text, server in served[:8]} in (
        {("a", 0), ("b", 1)},
        {("a", 1), ("b", 0)},
    )


async def test_a_batch_whose_next_question_comes_a_moment_later_keeps_its_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Longer than a busy machine makes a moment last.
    monkeypatch.setattr("evocluster.llm.lanes.LINGER", 1e6)
    monkeypatch.setattr("evocluster.llm.lanes.LINGER_S", 0.5)
    lanes, served = Lanes(1, 1), list[str]()

    async def batch(prefix: str) -> None:
        for number in range(5):
            lane = await lanes.take(prefix * 10 + str(number))
            served.append(prefix[0])
            lanes.give(lane)
            await asyncio.sleep(0.001)

    await asyncio.gather(batch(A), batch(B))
    assert "".join(served) in ("aaaaabbbbb", "bbbbbaaaaa")


async def test_one_batch_alone_uses_every_server() -> None:
    served = await _serve(Lanes(2, 1), [A + str(number) for number in range(16)], 0.02)
    counts = [sum(server == number for _, server in served) for number in (0, 1)]
    assert min(counts) >= 4


async def test_nobody_is_passed_over_for_ever() -> None:
    lanes = Lanes(1, 1)
    first = await lanes.take(A)
    texts = [B, *(A + str(number) for number in range(2 * PATIENCE))]
    serving = asyncio.ensure_future(_serve(lanes, texts))
    # All of them wait before the lane is free, however long a busy machine takes for it.
    for _ in range(10):
        await asyncio.sleep(0)
    lanes.give(first)
    served = [text for text, _ in await serving]
    assert served.index(B) == PATIENCE


async def test_a_server_that_gives_no_answer_rests_while_others_work() -> None:
    lanes = Lanes(2, 1)
    lane = await lanes.take(A)
    broken = lanes.server(lane)
    lanes.give(lane, answered=False)
    served = await _serve(lanes, [A + str(number) for number in range(6)])
    assert {server for _, server in served} == {1 - broken}


async def test_alone_a_server_is_tried_again_at_once() -> None:
    lanes = Lanes(1, 1)
    lanes.give(await lanes.take(A), answered=False)
    assert await _serve(lanes, [B]) == [(B, 0)]


async def test_a_cancelled_wait_frees_its_place_and_its_lane() -> None:
    lanes = Lanes(1, 1)
    lane = await lanes.take(A)
    waiting = asyncio.ensure_future(lanes.take(A))
    granted = asyncio.ensure_future(lanes.take(A))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    lanes.give(lane)
    granted.cancel()
    for task in (waiting, granted):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await _serve(lanes, [A, B]) == [(A, 0), (B, 0)]


async def test_stop_tells_whoever_waits() -> None:
    lanes = Lanes(1, 1)
    await lanes.take(A)
    waiting = asyncio.ensure_future(lanes.take(A))
    await asyncio.sleep(0)
    lanes.stop()
    with pytest.raises(ModelError, match="closed while calls waited"):
        await waiting


@settings(max_examples=30, deadline=None)
@given(
    servers=st.integers(1, 3),
    slots=st.integers(1, 2),
    texts=st.lists(st.text(alphabet="ab", max_size=6), max_size=12),
)
def test_everybody_is_served_once_and_no_lane_twice_at_a_time(servers: int, slots: int, texts: list[str]) -> None:
    async def run() -> list[tuple[str, int]]:
        lanes, busy = Lanes(servers, slots), set[int]()
        served: list[tuple[str, int]] = []

        async def one(text: str) -> None:
            lane = await lanes.take(text)
            assert lane not in busy
            busy.add(lane)
            served.append((text, lanes.server(lane)))
            await asyncio.sleep(0)
            busy.remove(lane)
            lanes.give(lane)

        async with asyncio.timeout(20):
            await asyncio.gather(*map(one, texts))
        return served

    served = asyncio.run(run())
    assert sorted(text for text, _ in served) == sorted(texts)
    assert all(0 <= server < servers for _, server in served)
