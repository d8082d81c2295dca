"""The garbage collector is told what to leave alone, and told again when the search is over."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from evocluster.engine.garbage import YOUNG, settle, settled


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_is_loaded_is_left_alone_until_the_block_ends() -> None:
    before = gc.get_threshold()
    with settled():
        assert gc.get_freeze_count() > 1000
        assert gc.get_threshold() == (YOUNG, *before[1:])
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, before)


def test_it_is_as_before_after_a_failure_too() -> None:
    before = gc.get_threshold()
    with pytest.raises(RuntimeError), settled():
        raise RuntimeError("ended")
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, before)


def test_what_somebody_else_froze_stays_frozen() -> None:
    settle()
    with settled():
        pass
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold()[0] == YOUNG


def test_circles_are_found_all_the_same() -> None:
    class Knot:
        alive = 0

        def __init__(self) -> None:
            self.own = self
            Knot.alive += 1

        def __del__(self) -> None:
            Knot.alive -= 1

    with settled():
        for _ in range(3 * YOUNG):
            Knot()
        assert Knot.alive < 2 * YOUNG
