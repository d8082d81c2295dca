"""One holder: who comes second leaves, who was killed is followed, who was paused is fenced."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evocluster.errors import RunHeld, StoreError
from evocluster.store import lease as leases
from evocluster.store.lease import Lease
from evocluster.store.place import Directory


class Listed(Directory):
    """A folder that cannot tell who was first, like object storage."""

    exclusive = False


class World:
    """A place, a clock that only sleeping moves, and what happens when it has moved."""

    def __init__(self, place: Directory, patch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.now = 100.0
        self.then: list[Callable[[], None]] = []
        self._patch = patch
        # Beats come from the tests, not from threads.
        patch.setattr(Lease, "_keep", lambda lease: None)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for each in self.then:
            each()

    def lease(self, host: str = "here") -> Lease:
        self._patch.setattr(socket, "gethostname", lambda: host)
        return Lease(self.place, "lease", "a run", clock=lambda: self.now, sleep=self.sleep)


@pytest.fixture(params=[Directory, Listed])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(request.param(tmp_path), monkeypatch)


def test_a_lease_that_was_released_is_taken_at_once_with_the_next_epoch(world: World) -> None:
    for epoch in (1, 2, 3):
        lease = world.lease()
        before = world.now
        lease.take()
        assert (lease.epoch, lease.doubtful) == (epoch, False)
        assert world.now - before <= leases.SETTLE_S
        lease.check()
        lease.release()


def test_who_comes_second_leaves_and_says_who_holds_it(world: World) -> None:
    first = world.lease("there")
    first.take()
    world.then.append(first._beat)
    with pytest.raises(RunHeld, match=r"'a run' is in use by process \d+ on there: one process at a time") as caught:
        world.lease("here").take()
    assert caught.value.exit_code == 9
    first.check()


def test_a_holder_on_another_machine_is_followed_when_its_lease_is_over_and_then_fenced(world: World) -> None:
    first = world.lease("there")
    first.take()
    before = world.now
    second = world.lease("here")
    second.take()
    assert leases.LEASE_S <= world.now - before <= leases.LEASE_S + leases.SETTLE_S + 2
    assert (second.epoch, second.doubtful) == (2, True)
    second.check()
    for _ in range(2):
        with pytest.raises(RunHeld, match=r"in use by process .* on here, after this process gave no sign of life"):
            first.check()
    first.release()
    second.check()
    world.now += leases.LEASE_S
    second.check()


def test_a_dead_process_of_this_machine_is_followed_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.lease().take()
    monkeypatch.setattr(leases, "_lives", lambda pid: False)
    before, second = world.now, world.lease()
    second.take()
    assert (second.epoch, second.doubtful) == (2, False)
    assert world.now - before <= leases.SETTLE_S


def test_a_holder_that_wakes_while_it_is_replaced_is_fenced_before_the_other_goes_on(world: World) -> None:
    first = world.lease("there")
    first.take()
    second = world.lease("here")
    claim = second._claim

    claims: list[float] = []

    def wakes() -> bool:
        won = claim()
        claims.append(world.now)
        if len(claims) == 1:
            with pytest.raises(RunHeld):
                first._beat()
        return won

    second._claim = wakes  # type: ignore[method-assign]
    second.take()
    assert claims[1] - claims[0] >= leases.LEASE_S  # it withdrew, and waited for another lease
    second.check()
    with pytest.raises(RunHeld):
        first.check()


def test_a_holder_that_wakes_before_the_claim_keeps_the_other_out(world: World) -> None:
    first = world.lease("there")
    first.take()
    second = world.lease("here")
    claim = second._claim

    def wakes() -> bool:
        first._beat()
        won = claim()
        world.then.append(first._beat)  # it lives on
        return won

    second._claim = wakes  # type: ignore[method-assign]
    with pytest.raises(RunHeld, match="on there"):
        second.take()
    first.check()


class Stalled(Listed):
    """Keeps a file as of when it was asked to, and shows it much later: a busy machine, a slow network."""

    def __init__(self, path: Path, wait: Callable[[], None]) -> None:
        super().__init__(path)
        self._root = path
        self._wait = wait

    def put(self, name: str, content: bytes) -> None:
        asked = time.time()
        self._wait()
        super().put(name, content)
        os.utime(self._root / name, (asked, asked))


def test_a_claim_that_was_long_under_way_is_withdrawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Listed(tmp_path), monkeypatch)
    quick = world.lease()

    def meanwhile() -> None:
        world.sleep(leases.SETTLE_S + 1)
        if not quick.epoch:
            quick.take()  # asked for later, and settled before the other is seen
            world.then.append(quick._beat)

    slow = Lease(Stalled(tmp_path, meanwhile), "lease", "a run", clock=lambda: world.now, sleep=world.sleep)
    with pytest.raises(RunHeld):
        slow.take()
    quick.check()


def test_who_waited_for_one_that_withdrew_does_not_go_over_the_head_of_the_next(world: World) -> None:
    """The claim that was watched is gone; another process has that epoch by now, and lives."""
    gone, waiting, living = world.lease("gone"), world.lease("waiting"), world.lease("living")
    gone.epoch = 1
    gone._claim()

    def comes() -> None:
        if gone.epoch:
            gone._place.delete(gone._mine("claim"))
            gone.epoch = 0
            living.take()
            world.then.append(living._beat)

    world.then.append(comes)
    with pytest.raises(RunHeld, match="on living"):
        waiting.take()
    living.check()


def test_who_died_between_its_claim_and_its_first_beat_is_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.lease()

    def dies() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(first, "_beat", dies)
    with pytest.raises(KeyboardInterrupt):
        first.take()
    monkeypatch.setattr(leases, "_lives", lambda pid: False)
    before, second = world.now, world.lease()
    second.take()
    assert (second.epoch, world.now - before <= leases.SETTLE_S) == (2, True)


def test_what_vanishes_while_it_is_listed_hides_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "stays").touch()
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: [*listed(path), path / "went"])
    assert list(Directory(tmp_path).names("lease")) == ["lease/stays"]


def test_a_storage_too_slow_to_tell_who_was_first_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Listed(tmp_path), monkeypatch)
    late = Stalled(tmp_path, lambda: world.sleep(3))
    with pytest.raises(StoreError, match=r"took 3\.0 s to keep a file.*from 1 s on; try again"):
        Lease(late, "lease", "a run", clock=lambda: world.now, sleep=world.sleep).take()
    assert list((tmp_path / "lease").iterdir()) == []


@pytest.mark.parametrize("kind", [Directory, Listed])
def test_of_many_that_come_at_once_one_goes_on(kind: type[Directory], tmp_path: Path) -> None:
    for turn in range(5):
        folder = tmp_path / str(turn)
        folder.mkdir()
        start = threading.Barrier(6)
        ends: list[str] = []

        def come(folder: Path = folder, start: threading.Barrier = start, ends: list[str] = ends) -> None:
            lease = Lease(kind(folder), "lease", "a run", lease_s=3.0, settle_s=0.3)
            start.wait()
            try:
                lease.take()
                ends.append("holds")
            except RunHeld:
                ends.append("left")

        threads = [threading.Thread(target=come) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ends) == ["holds", *["left"] * 5]
