"""Where workers sit, how long their deaths are borne, what the autoscaler is asked for."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from evocluster.cluster.demand import PATIENCE_S, PER_CPU, Demand, wanted
from evocluster.cluster.seats import CRASHES, PREEMPTIONS, Layout, Patience, arrange, places, shares

CORES = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 8), min_size=1)


def test_a_core_a_worker_two_a_node_at_most_and_no_more_than_there_is_in_flight() -> None:
    assert places({"a": 1, "b": 8}, Layout(100)) == ["a", "b", "b"]
    assert places({"a": 1, "b": 8}, Layout(2)) == ["a", "b"]
    assert places({"a": 1, "b": 8}, Layout(100, workers=5)) == ["a", "b", "a", "b", "a"]
    assert places({}, Layout(100, workers=5)) == []


def test_a_node_that_joins_gets_workers_and_one_that_goes_loses_them() -> None:
    alone = arrange({"a": 2}, Layout(100), {})
    assert (alone.leave, alone.join) == ((), ("a", "a"))
    joined = arrange({"a": 2, "b": 1}, Layout(100), {"1": "a", "2": "a"})
    assert (joined.leave, joined.join) == ((), ("b",))
    gone = arrange({"a": 2}, Layout(100), {"1": "a", "2": "a", "3": "b"})
    assert (gone.leave, gone.join) == (("3",), ())
    moved = arrange({"a": 2}, Layout(100, workers=3), {"1": "a", "2": "a", "3": "b"})
    assert (moved.leave, moved.join) == (("3",), ("a",))


@given(CORES, CORES, st.integers(1, 20), st.none() | st.integers(1, 9))
def test_seats_fit_after_one_change_and_then_stay(
    before: dict[str, int], after: dict[str, int], in_flight: int, workers: int | None
) -> None:
    layout = Layout(in_flight, workers)
    seats: dict[str, str] = {}
    for cores in (before, after):
        change = arrange(cores, layout, seats)
        seats = {name: node for name, node in seats.items() if name not in change.leave}
        seats.update({f"{len(seats)}-{turn}-{id(cores)}": node for turn, node in enumerate(change.join)})
        assert sum(Counter(seats.values()).values()) == len(places(cores, layout))
        assert set(seats.values()) <= set(cores)
        again = arrange(cores, layout, seats)
        assert (again.leave, again.join) == ((), ())


@given(st.integers(1, 50), st.integers(1, 500))
def test_shares_add_up(count: int, in_flight: int) -> None:
    dealt = shares([str(name) for name in range(count)], in_flight)
    assert sum(dealt.values()) == max(in_flight, count)
    assert max(dealt.values()) - min(dealt.values()) <= 1


def test_only_deaths_without_a_finished_trial_between_them_end_a_run() -> None:
    patience = Patience()
    assert not any(patience.died(finished, 2, False) for finished in range(500))
    assert patience.pause_s == 0
    ends = [patience.died(499, 2, False) for _ in range(CRASHES)]
    assert ends.index(True) == CRASHES - 2, "the last one counted already"
    assert patience.pause_s == 5


def test_a_node_that_takes_its_workers_along_is_borne_for_longer() -> None:
    patience = Patience()
    assert not any(patience.died(0, 2, True) for _ in range(PREEMPTIONS - 1))
    assert patience.pause_s == 0
    assert patience.died(0, 2, True)
    assert not Patience().died(0, 2, True)


def test_a_big_cluster_may_lose_all_its_workers_at_once() -> None:
    patience = Patience()
    assert not any(patience.died(0, 100, False) for _ in range(100))


def test_cpus_are_wanted_for_the_work_there_is() -> None:
    assert wanted(0, 500) == 0
    assert wanted(1, 500) == 1
    assert wanted(10 * PER_CPU, 5 * PER_CPU) == 5, "more than may be in flight is of no use"
    assert wanted(10 * PER_CPU, 5 * PER_CPU, workers=2) == 2


def test_more_is_asked_for_at_once_less_after_a_while_and_nothing_at_the_end() -> None:
    asked: list[int] = []
    demand = Demand(asked.append)
    demand.tell(0, 0.0)
    demand.tell(3, 1.0)
    demand.tell(3, 2.0)
    demand.tell(1, 3.0)
    demand.tell(4, 4.0)
    assert asked == [3, 4]
    demand.tell(2, 5.0)
    demand.tell(1, 4.9 + PATIENCE_S)
    assert asked == [3, 4]
    demand.tell(2, 5.0 + PATIENCE_S)
    assert asked == [3, 4, 2]
    demand.withdraw()
    demand.withdraw()
    assert asked == [3, 4, 2, 0]
