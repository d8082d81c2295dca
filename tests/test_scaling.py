"""The scaling benchmark: what is measured, what is made of the figures, and a tiny one carried out for real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from evocluster import build, scaling
from evocluster.cli.main import app
from evocluster.cluster import bench
from evocluster.cluster.cases import LEAST_CALLS, PARTS, SHORT, SLOTS, Options, by_nodes, checked
from evocluster.cluster.ideal import greedy
from evocluster.cluster.scaling import Case, Shape, phases, timing
from evocluster.cluster.sentry import Used
from evocluster.cluster.simulated import simulated
from evocluster.cluster.world import World, write
from evocluster.engine.ageing import aged, made
from evocluster.engine.folder import Folder
from evocluster.errors import ConfigError
from evocluster.report.scaling import bottleneck, findings, growth, relation, sides, tables
from evocluster.report.scaling_page import page

PROCESSES = ("driver", "ray::Population", "ray::Puller", "ray::CacheKeeper", "raylet", "gcs_server", "endpoint")
CASE = Case("in-flight", 1, 2, "fixed:1", 4, Shape())
CALLS = [(10.0, 11.0, 1.0), (10.0, 11.02, 1.0), (11.1, 12.1, 1.0), (12.5, 14.5, 2.0)]


def row(part: str = "in-flight", **changed: Any) -> dict[str, Any]:
    """A row as bench.rows makes it."""
    used = Used(
        [("driver", 0.1), ("ray::Population", 0.6), ("ray::Puller", 0.4), ("ray::Puller", 0.8)], {"7": 300.0}, 0.5
    )
    one = timing(replace(CASE, part=part), CALLS, [2, 1, 1], 4, [used], 0.2, (3.0, 1.0))
    (made,) = bench.rows([one])
    return {**made, **changed}


def spread(value: float) -> dict[str, float]:
    return {"median": value, "low": value, "high": value}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"parts": ("strong", "up")}, "--parts 'up'.*strong, weak, in-flight, history, steady"),
        ({"client": "openai"}, "--client 'openai'.*direct, litellm"),
        ({"latencies": ("normal:1",)}, "--latency.*'normal:1'.*fixed:SECONDS"),
        ({"nodes": (0, 2)}, "--nodes '0,2'.*from 1"),
        ({"in_flight": ()}, "--in-flight ''"),
        ({"history": (-5,)}, "--history '-5'"),
        ({"calls": 10}, f"--calls 10.*{LEAST_CALLS} or more"),
        ({"repeat": 0}, "--repeat 0"),
        ({"parts": ()}, "nothing to measure"),
    ],
)
def test_a_wrong_option_is_answered_with_what_is_allowed(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checked(replace(Options(), **wrong))


@pytest.mark.parametrize("arguments", [["--nodes", "1,two"], ["--parts", "strong,up"], ["--latency", "soon"]])
def test_the_verb_refuses_it_before_anything_starts(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "scaling", *arguments, "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, ConfigError)
    assert arguments[0] in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_options_come_out_in_order_and_once() -> None:
    found = checked(replace(Options(), nodes=(4, 1, 4), parts=("weak", "strong", "weak")))
    assert (found.nodes, found.parts) == ((1, 4), ("strong", "weak"))


def test_strong_scaling_keeps_the_work_and_weak_scaling_lets_it_grow() -> None:
    options = checked(Options(parts=("strong", "weak"), nodes=(1, 4), repeat=1))
    cases = [case for each in by_nodes(options).values() for case in each]
    work = {part: {case.nodes: case.calls for case in cases if case.part == part} for part in ("strong", "weak")}
    assert work == {"strong": {1: 2560, 4: 2560}, "weak": {1: 640, 4: 2560}}
    assert all((case.in_flight, case.workers) == (SLOTS * case.nodes, case.nodes) for case in cases)
    assert len({case.shape for case in cases if case.part == "weak"}) == 1


def test_what_is_compared_comes_by_turns() -> None:
    cases = by_nodes(replace(SHORT, parts=("steady",), repeat=2))[1]
    assert [case.label for case in cases[:4]] == [case.label for case in cases[4:]]
    assert len({case.label for case in cases}) == 4
    assert len({(case.in_flight, case.latency, case.calls, case.shape) for case in cases}) == 1


def test_every_case_is_a_run_that_its_config_allows(tmp_path: Path) -> None:
    for number, options in enumerate((SHORT, replace(SHORT, calls=LEAST_CALLS), Options())):
        cases = [case for each in by_nodes(replace(options, repeat=1)).values() for case in each]
        for place, case in enumerate({(case.shape, case.calls, case.label): case for case in cases}.values()):
            shape = vars(case.shape)
            world = World({"kind": "scripted"}, case.calls, case.in_flight, search=case.search, **shape)
            build.plan(write(tmp_path / f"{number}-{place}", world)).optimizer()


@given(
    st.lists(st.floats(min_value=0.01, max_value=10), min_size=3, max_size=40),
    st.integers(min_value=1, max_value=8),
    st.data(),
)
def test_phases_are_the_whole(latencies: list[float], slots: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(min_value=0, max_value=len(latencies)))
    second = data.draw(st.integers(min_value=0, max_value=len(latencies) - first))
    ended, calls = 0.0, []
    for latency in latencies:  # one after the other: the worst schedule there is
        calls.append((ended, ended + latency, latency))
        ended += latency
    found = phases(calls, [first, second, len(latencies) - first - second], slots)
    assert [phase.name for phase in found] == ["search", "validation", "test"]
    assert sum(phase.calls for phase in found) == len(latencies)
    assert sum(phase.wall_s for phase in found) == pytest.approx(ended)
    assert sum(phase.ideal_s for phase in found) >= greedy(latencies, slots) - 1e-9
    assert all(phase.ideal_s <= phase.wall_s + 1e-9 for phase in found)


def test_a_timing_is_read_off_calls_and_processes() -> None:
    one = row()
    assert one["wall_s"]["median"] == 4.5
    assert one["ideal_s"]["median"] == 3.0
    assert one["efficiency"]["median"] == pytest.approx(3 / 4.5)
    assert one["efficiency_phases"]["median"] == pytest.approx((1 + 1 + 2) / 4.5)
    assert one["occupancy"]["median"] == pytest.approx(5 / 9)
    assert one["engine_ms"]["median"] == pytest.approx(1900 / 4)
    assert one["cpu_ms"]["ray::Puller"] == pytest.approx(1200 / 4)
    assert one["busiest"]["ray::Puller"] == pytest.approx(0.8 / 4.5)
    assert one["node_mb"]["median"] == 300
    assert sides(one) == pytest.approx(
        {"population": 150, "workers": 300, "cache": 0, "driver": 25, "Ray": 0, "endpoint": 50, "other": 0}
    )


def test_the_bottleneck_is_the_first_process_that_fills_a_core() -> None:
    slow = row(in_flight=50)
    full = row(in_flight=200, busiest={"ray::Population": 0.97, "ray::Puller": 0.5})
    fuller = row(in_flight=500, busiest={"ray::Population": 1.0, "ray::Puller": 0.99})
    (said,) = bottleneck([fuller, slow, full], 2)
    assert "at 200 in flight" in said
    assert "the population process fills 97% of a core" in said
    busy = row(in_flight=200, machine=spread(0.95), evaluations_per_s=spread(4))
    (said,) = bottleneck([slow, busy], 2)
    assert "at 200 in flight" in said
    assert "the machine itself is full" in said
    assert "other work" not in said
    (said,) = bottleneck([slow, busy], 16)
    assert "other work: repeat it on a quiet machine" in said
    (said,) = bottleneck([slow], 2)
    assert "No bottleneck up to 50 in flight" in said
    assert "workers, uses 18% of a core" in said
    assert "at about 5 evaluations/s" in said


def test_an_endpoint_that_is_late_is_told() -> None:
    (said,) = bottleneck([row(busiest={"endpoint": 0.95}, late_ms=spread(400))], 2)
    assert "the endpoint process fills 95%" in said
    assert "answered 400 ms late" in said


def test_relations_are_to_the_fewest_nodes() -> None:
    one, four = (row("weak", nodes=nodes, evaluations_per_s=spread(rate)) for nodes, rate in ((1, 100), (4, 380)))
    assert relation("strong", four, [four, one]) == pytest.approx(3.8)
    assert relation("weak", four, [four, one]) == pytest.approx(0.95)
    assert relation("weak", one, [four, one]) == 1


def test_growth_is_said_as_it_is() -> None:
    flat = {"tell_ms": 0.0, "append_ms": 0.1, "resident_mb": 200.0, "slowest_ms": 9.0, "trials": 9}
    rows = [{**flat, "evaluations": 10**n, "ask_ms": ms} for n, ms in ((3, 0.1), (4, 0.4), (5, 0.4), (6, 0.4))]
    (said,) = growth(rows)
    assert "does not grow with history: 0.500 ms CPU an evaluation at 10,000, 0.500 at 1,000,000" in said
    (said,) = growth([*rows[:3], {**rows[3], "ask_ms": 0.9}])
    assert "grows with history" in said
    assert growth(rows[:1]) == []


def whole() -> dict[str, Any]:
    """A benchmark of every part, as scaling.measured gives it."""
    searches = [
        row(part, nodes=nodes, label=label) for part in ("strong", "weak") for nodes, label in ((1, ""), (2, ""))
    ]
    searches += [row("in-flight", in_flight=places) for places in (50, 200)]
    searches += [row("steady", label=label) for label in ("race", "generational", "<b>")]
    aged = {"trials": 60, "ask_ms": 0.3, "tell_ms": 0.0, "append_ms": 0.1, "slowest_ms": 12.0, "resident_mb": 190.0}
    return {
        "machine": {"system": "Linux x86_64", "python": "3.11", "cores": 2, "load": 0.3},
        "searches": searches,
        "history": [{**aged, "evaluations": 1000}, {**aged, "evaluations": 10_000}],
    }


def test_every_part_has_its_table_and_its_sentence() -> None:
    found = whole()
    shown = tables(found)
    assert len(shown) == 9
    assert all(len(line) == len(table.heads) for table in shown for line in table.rows)
    said = " ".join(findings(found))
    for part in ("2 core(s)", "Strong scaling", "Weak scaling", "bottleneck", "history", "race / generational 1.00"):
        assert part in said
    nothing = {"machine": found["machine"], "searches": [], "history": []}
    assert tables(nothing) == []
    assert len(findings(nothing)) == 1


def test_the_page_stands_alone_and_keeps_text_text() -> None:
    text = page(whole())
    assert text.count("<svg") == 6
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    assert not re.search(r"src=|href=|url\(|<script", text)
    assert "nan" not in text.lower()
    alone = page({**whole(), "searches": [row("strong")], "history": []})
    assert "<svg" not in alone


@pytest.fixture
def plan(tmp_path: Path) -> build.Plan:
    return build.plan(write(tmp_path / "world", World({"kind": "scripted"}, calls=4000, in_flight=32, checked=20)))


def test_history_is_played_with_the_real_optimizer_and_folder(tmp_path: Path, plan: build.Plan) -> None:
    folder = Folder.create(tmp_path / "run", "name: x\n")
    sizes = (100, 400)
    found = list(aged(plan.optimizer(), plan.space.sample, folder, sizes, lambda: 5.0))
    folder.close()
    assert [one.evaluations >= size for one, size in zip(found, sizes, strict=True)] == [True, True]
    assert all(one.ask_ms > 0 and one.append_ms > 0 and one.slowest_ms > 0 for one in found)
    kept = Folder.open(tmp_path / "run")
    assert sum(len(stored.evaluations) for stored in kept.replay()) == found[-1].evaluations
    kept.close()


def test_made_up_trials_are_the_same_for_the_same_seed(plan: build.Plan) -> None:
    def play() -> list[Any]:
        optimizer, rng = plan.optimizer(), np.random.default_rng(2)
        proposals = [optimizer.ask() for _ in range(3)]
        return [made(one, plan.space.sample, rng) for one in proposals if one is not None]

    assert play() == play()
    assert all(trial.evaluations for trial in play())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tiny_benchmark_on_simulated_nodes(tmp_path: Path) -> None:
    words = [
        "bench",
        "scaling",
        "--nodes",
        "1,2",
        "--in-flight",
        "16",
        "--calls",
        "120",
        "--repeat",
        "1",
        "--history",
        "200,400",
    ]
    latency = ["--latency", "lognormal:0.1:0.4"]
    result = CliRunner().invoke(app, [*words, *latency, "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["format"] == scaling.FORMAT
    assert found == json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert (tmp_path / "out" / "scaling.html").read_text().count("<svg") >= 4
    rows = found["searches"]
    assert {one["part"] for one in rows} == set(PARTS) - {"history"}
    assert {(one["part"], one["nodes"]) for one in rows if one["part"] == "weak"} == {("weak", 1), ("weak", 2)}
    for one in rows:
        assert 0 < one["efficiency"]["median"] <= one["efficiency_phases"]["median"] <= 1.05
        assert one["evaluations_per_s"]["median"] > 0
        assert [phase["name"] for phase in one["phases"]] == ["search", "validation", "test"]
        assert sum(phase["calls"] for phase in one["phases"]) == one["calls"] >= 50
        for name in (
            "driver",
            "ray::Population",
            "ray::Puller",
            "ray::CacheKeeper",
            "raylet",
            "gcs_server",
            "endpoint",
        ):
            assert one["cpu_ms"][name] > 0, name
        assert 10 < one["node_mb"]["median"] <= one["head_mb"]["median"]
    assert [one["evaluations"] >= size for one, size in zip(found["history"], (200, 400), strict=True)] == [True, True]
    assert len(found["findings"]) == 6


ELSEWHERE = """
import sys, time, ray
from evocluster.cluster.sentry import RemoteSentry, Sentry, posted, serving
with posted(sys.argv[1]) as (posts, nodes):
    assert (len(posts), nodes) == (1, 1), (posts, nodes)
    there = RemoteSentry(ray.remote(Sentry).options(num_cpus=0).remote(sys.argv[1]))
    port = there.serve("fixed:0", 1, ("ok",), 0)
    there.watch(None)
    start = time.time()
    time.sleep(2)
    used = there.used(start, time.time())
    names = {name for name, _ in used.cpu}
    assert "raylet" in names and not {"ray::Sentry", "loopback.py"} & names, used
    assert 0 <= used.machine <= 1 and sum(used.node_mb.values()) > 10, used
    assert there.seen()["count"] == 0
    there.leave()
    try:
        serving([*posts, there], "fixed:0", 1, ("ok",))  # one machine has every port once
    except RuntimeError as failure:
        print(failure)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_that_is_there_has_a_sentry_on_every_machine() -> None:
    with simulated(1) as site:
        ours = {**os.environ, **site.environment}
        command = [sys.executable, "-c", ELSEWHERE, site.address]
        said = subprocess.run(command, env=ours, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "where its port was expected" in said.stdout


def test_listing_processes_finds_nothing_of_a_cluster_that_is_not_there() -> None:
    from evocluster.cluster.meter import of_session

    listed: Callable[[], Any] = of_session("127.0.0.1:1")
    assert listed() == []
