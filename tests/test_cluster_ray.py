"""The engine over Ray: the same front as in this process, survival of dead workers, the cache as an actor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import psutil
import pytest
from contract_cache import CacheContract
from contract_runner import IN_FLIGHT, RunnerContract, Scenario
from small import LABELS, settings, small_config, write_config

from evocluster import build
from evocluster.cluster.population import Population
from evocluster.cluster.runner import RayRunner
from evocluster.cluster.seats import Layout
from evocluster.cluster.session import unwrapped
from evocluster.engine.engine import Engine
from evocluster.engine.runner import Runner
from evocluster.errors import ModelError
from evocluster.llm.client import Cache
from evocluster.records import Proposal

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

RAY = {"runner": "ray", "in_flight": 12}


def front(folder: Path) -> Any:
    """front.json."""
    return json.loads((folder / "front.json").read_text())


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One local Ray for the tests of this file that need no fault."""
    from evocluster.cluster.session import session

    with pytest.MonkeyPatch.context() as patch:
        # Actors of this file find it.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        with session(num_cpus=2):
            yield


@pytest.mark.usefixtures("cluster")
def test_ray_finds_what_this_process_finds(tmp_path: Path) -> None:
    local = small_config(tmp_path, cache={"path": None})
    build.run(build.plan(local), tmp_path / "local")
    for workers in (1, 3):
        config = small_config(
            tmp_path, engine={**RAY, "workers": workers}, cache={"path": str(tmp_path / f"c{workers}")}
        )
        result = build.run(build.plan(config), tmp_path / f"ray{workers}")
        assert result.status == "finished"
        assert front(tmp_path / f"ray{workers}") == front(tmp_path / "local")
        assert result.run["cached"] < result.run["calls"]
    again = small_config(tmp_path, engine=RAY, cache={"path": str(tmp_path / "c3")})
    assert build.run(build.plan(again), tmp_path / "again").run["paid_usd"] == 0


@pytest.mark.usefixtures("cluster")
def test_ray_keeps_no_list_of_what_our_actors_are_called_for(tmp_path: Path) -> None:
    import ray

    class Witness:
        def seen(self) -> None:
            """Kept, as by default."""

    def called() -> set[str]:
        """'task::CLASS.METHOD'."""
        return {event["cat"] for event in ray.timeline()}

    assert build.run(build.plan(small_config(tmp_path, engine=RAY)), tmp_path / "run").status == "finished"
    witness: Any = ray.remote(Witness).options(num_cpus=0).remote()
    ray.get(witness.seen.remote())
    ends = time.monotonic() + 30
    while not any("Witness.seen" in name for name in called()) and time.monotonic() < ends:
        time.sleep(0.5)
    ours = ("exchange", "get_many", "put_many", "renew", "progress")
    assert [name for name in called() if "Witness.seen" in name]
    assert not [name for name in called() if name.rpartition(".")[2] in ours]
    ray.kill(witness)


@pytest.mark.usefixtures("cluster")
def test_a_fatal_error_in_a_worker_reaches_the_caller_as_itself(tmp_path: Path) -> None:
    models = {
        "fake": {
            "kind": "direct",
            "base_url": "http://127.0.0.1:9/v1",
            "model": "m",
            "completion": True,
            "choices": "grammar",
            "retries": 0,
            "price": {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 1},
        }
    }
    config = small_config(tmp_path, models=models, engine=RAY)
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:9"):
        build.run(build.plan(config), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


RUN = """
import sys
from pathlib import Path
from evocluster import build
build.run(build.plan(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    fake = {
        "kind": "scripted",
        "rules": [{"pattern": f"looks {label}", "text": label} for label in LABELS],
        "latency_s": 0.2,
        "sigma": 0.3,
        "time_scale": 1.0,
    }
    path = write_config(tmp_path, models={"fake": fake}, engine=RAY)
    child = subprocess.Popen([sys.executable, "-c", RUN, str(path), str(tmp_path / "run")])
    killed = _kill_a_puller(child.pid, tmp_path / "run")
    assert child.wait(timeout=240) == 0
    assert killed
    rows = pandas.read_parquet(tmp_path / "run" / "trials")
    assert not rows.duplicated(["proposal", "kind", "example_id", "twin"]).any()
    assert rows[rows.kind == "evaluation"].error.isna().all()
    calm = small_config(tmp_path / "calm", models={"fake": {**fake, "time_scale": 0.0}}, cache={"path": None})
    build.run(build.plan(calm), tmp_path / "local")
    assert front(tmp_path / "run") == front(tmp_path / "local")


def _kill_a_puller(driver: int, folder: Path) -> bool:
    """SIGKILL one worker process of this driver once some trials are kept."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list(folder.glob("trials/tail-*")) and any(
            path.stat().st_size > 5000 for path in folder.glob("trials/tail-*")
        ):
            for process in psutil.Process(driver).children(recursive=True):
                if "ray::Puller" in " ".join(process.cmdline()[:1]):
                    os.kill(process.pid, signal.SIGKILL)
                    return True
        time.sleep(0.1)
    return False


class Stage(Population):
    """The population actor with a scenario in the engine's place."""

    async def play(self, scenario: Scenario, proposals: list[Proposal]) -> Any:
        await self._runner.open()
        try:
            return await scenario(self._runner, proposals)
        finally:
            await self._runner.close()


def no_engine(runner: Runner) -> Engine:
    raise AssertionError("a scenario needs no engine")


@pytest.mark.usefixtures("cluster")
class TestRayRunner(RunnerContract):
    """The contract over workers in processes of their own."""

    async def meet(self, of: build.Plan, scenario: Scenario, proposals: list[Proposal]) -> Any:
        import ray

        runner = RayRunner(of.worker(), of.stack, None, Layout(IN_FLIGHT, 1))
        stage: Any = ray.remote(Stage).options(num_cpus=0, max_concurrency=100).remote(no_engine, runner)
        try:
            return await unwrapped(stage.play.remote(scenario, proposals))
        finally:
            ray.kill(stage)


@pytest.mark.usefixtures("cluster")
class TestRemoteCache(CacheContract):
    """The contract over the actor."""

    def make(self, folder: Path, lease_s: float = 600.0) -> Cache:
        """An actor of its own for each test."""
        import ray

        from evocluster.cluster import cache

        return cache.start(folder, ray.get_runtime_context().get_node_id(), lease_s)

    async def finish(self, cache: Cache) -> None:
        """End the actor."""
        await asyncio.sleep(0)
        cache.stop()  # type: ignore[attr-defined]


PIPELINE = """
from words import clean          # a sibling of this file


async def answer(example, genome, llm):
    said = await llm.ask(f"{genome['rubric']} {example.input}")
    return clean(said)


def same(output, example):
    return output == example.expected


def vectors(texts):
    return [[float(letter in text) for letter in "abcdefgh"] for text in texts]
"""


@pytest.mark.usefixtures("cluster")
def test_code_documents_and_rubrics_of_the_user_reach_the_workers(tmp_path: Path) -> None:
    """A pipeline with a sibling module, a scorer, a judge; and a program that retrieves by the user's vectors."""
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    (tmp_path / "words.py").write_text("def clean(text):\n    return text.strip().lower()\n")
    (tmp_path / "good.md").write_text("---\nversion: 1\n---\n5: right. 1: wrong.\n")
    (tmp_path / "docs").mkdir()
    for name in LABELS:
        (tmp_path / "docs" / f"{name}.md").write_text(f"# {name}\nThings that look {name} are {name}.\n")
    base = settings()
    scorers = [
        {"kind": "label"},
        {"kind": "function", "function": "pipeline.py:same", "name": "same"},
        {"kind": "judge", "model": "fake", "rubric": "good.md", "choices": True},
    ]
    fronts = {}
    for name, task, space in (
        ("own", {"executor": "pipeline.py:answer"}, {"rubric": base["space"]["rubric"], "temperature": [0, 1]}),
        (
            "found",
            {"retrieval": {"documents": "docs", "embed": "pipeline.py:vectors", "usd_per_query": 0.25}},
            {"rubric": base["space"]["rubric"], "retriever_topk": [0, 2]},
        ),
    ):
        changes = {
            "task": {**base["task"], "scorers": scorers, **task},
            "space": {**space, "model": ["fake"]},
            "start": [{"rubric": "Which colour?"}],
            "cache": {"path": None},
            "search": {**base["search"], "lookahead": 20},
        }
        for runner in ("local", "ray"):
            config = small_config(tmp_path, **changes, engine={"runner": runner, "in_flight": 8})
            result = build.run(build.plan(config), tmp_path / name / runner)
            assert result.recommended is not None
            fronts[name, runner] = front(tmp_path / name / runner)
    assert fronts["own", "local"] == fronts["own", "ray"]
    table = pandas.read_parquet(tmp_path / "found" / "ray" / "trials").query("kind == 'evaluation'")
    assert table.error.isna().all(), table.error.dropna().unique()
    retrieved = table[table.cost_usd > 0.25]
    assert 0 < len(retrieved) < len(table)
    assert (table.judge_calls == 1).all()
