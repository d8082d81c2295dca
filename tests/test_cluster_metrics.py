"""Ray's metrics of a run: what they tell, how often, and that they come out where Ray gives metrics out."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from small import LABELS, write_config

from evocluster.cluster import metrics
from evocluster.cluster.metrics import COUNTERS, GAUGES, Counters, Gauges, beating, state
from evocluster.telemetry import counts

TOLD: defaultdict[str, list[float]] = defaultdict(list)


class Told:
    """A Gauge or Counter that writes down what it is told."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self._name = name
        assert description
        assert tag_keys == ("run",)

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tags == {"run": "r1"}
        TOLD[self._name].append(value)

    inc = set


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    TOLD.clear()
    if "slow" not in request.keywords:
        import ray.util.metrics

        monkeypatch.setattr(ray.util.metrics, "Gauge", Told)
        monkeypatch.setattr(ray.util.metrics, "Counter", Told)


def test_a_worker_tells_what_was_added() -> None:
    counts["hits"] += 5  # of before
    counters = Counters("r1")
    counters.tell()
    assert not TOLD
    counts["hits"] += 2
    counts["usd"] += 0.5
    counters.tell()
    counters.tell()
    counts["hits"] += 1
    counters.tell()
    assert {"evocluster_hits": [2, 1], "evocluster_usd": [pytest.approx(0.5)]} == TOLD


def test_the_state_of_a_run_fits_the_gauges() -> None:
    found = state({"handed_out": 7, "paid_usd": 0.25, "evaluations": 40, "phase": "search"}, 3)
    assert found == {"in_flight": 7.0, "queue": 3.0, "spend_usd": 0.25, "evaluations": 40.0}
    assert found.keys() == state({}, 0).keys() == GAUGES.keys()
    Gauges("r1", lambda: found).tell()
    assert {f"evocluster_{name}": [value] for name, value in found.items()} == TOLD


async def test_however_much_goes_on_it_is_told_once_in_a_while_and_at_the_end() -> None:
    counters = Counters("r1")
    beat = beating(counters, every_s=3600)
    for _ in range(1000):
        counts["calls"] += 1
        await asyncio.sleep(0)
    assert TOLD["evocluster_calls"] in ([], [1.0])
    beat.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beat
    assert sum(TOLD["evocluster_calls"]) == 1000
    assert len(TOLD["evocluster_calls"]) <= 2


def test_every_count_is_one_that_is_counted() -> None:
    house = Path(metrics.__file__).parents[1]
    text = "".join(path.read_text() for path in (house / "llm").glob("*.py"))
    found = re.findall(r"counts\[(.+?)\] \+=", text)
    counted = {name for one in found for name in re.findall(r'"(\w+)"', one)}
    assert counted == COUNTERS.keys()


SCRAPING = """
import sys, threading, time, urllib.request
from pathlib import Path
from evocluster import build
from evocluster.cluster.session import session

seen, over = set(), threading.Event()
with session(num_cpus=2):
    import ray
    url = "http://%(NodeManagerAddress)s:%(MetricsExportPort)s/metrics" % ray.nodes()[0]

    def scrape():
        while not over.wait(0.3):
            try:
                page = urllib.request.urlopen(url, timeout=5).read().decode()
            except OSError:
                continue
            seen.update(line for line in page.splitlines() if line.startswith("ray_evocluster_"))

    thread = threading.Thread(target=scrape)
    thread.start()
    result = build.run(build.plan(sys.argv[1]), Path(sys.argv[2]))
    over.set()
    thread.join()
print("run", result.run["run_id"])
print("\\n".join(sorted(seen)))
"""


@pytest.mark.slow
def test_a_run_on_ray_is_seen_where_ray_gives_metrics_out(tmp_path: Path) -> None:
    rules = [{"pattern": f"looks {label}", "text": label} for label in LABELS]
    fake: dict[str, Any] = {"kind": "scripted", "rules": rules, "latency_s": 0.8, "sigma": 0.1, "time_scale": 1.0}
    engine = {"runner": "ray", "in_flight": 8}
    path = write_config(tmp_path, models={"fake": fake}, engine=engine, budget={"generations": 4})
    environment = {"RAY_metrics_report_interval_ms": "500"}
    done = subprocess.run(
        [sys.executable, "-c", SCRAPING, str(path), str(tmp_path / "run")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    run = done.stdout.split()[1]
    lines = [line for line in done.stdout.splitlines() if f'run="{run}"' in line]
    names = {line.split("{")[0].removeprefix("ray_evocluster_").removesuffix("_total") for line in lines}
    assert names >= {*GAUGES, "calls", "misses", "usd"}
    flying = {float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("ray_evocluster_in_flight{")}
    assert max(flying) > 0
