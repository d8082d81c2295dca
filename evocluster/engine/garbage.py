"""What the garbage collector does while a search goes on: little, since nearly everything goes by reference counts.

    settle()        for a process of our own, once it is ready
    settled()       for a process that is not ours alone: as it was when the block ends

Every evaluation makes some hundred objects that live until it is answered, so the collector, which looks at the young
ones every 700, and at all of them whenever they are a quarter more, took a tenth of the CPU of a search.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG = 10_000
"""Objects made, and not gone by themselves, between two looks at the young ones."""


def settle() -> None:
    """What this process has loaded stays: the garbage collector need not go through it again, and looks less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


@contextmanager
def settled() -> Iterator[None]:
    """`settle`, until the block ends; nothing where somebody else has told the collector what to leave alone."""
    if gc.get_freeze_count():
        yield
        return
    before = gc.get_threshold()
    settle()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
