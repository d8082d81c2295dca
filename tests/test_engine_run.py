"""Whole runs in this process: the folder they leave, reproducibility, resume after a kill, systemic failures."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
from servers import FaultServer, Mode
from small import LABELS, edited, settings, small_config, write_config

from evocluster import build
from evocluster import config as configs
from evocluster.engine.engine import carry
from evocluster.engine.folder import Folder
from evocluster.engine.runner import LocalRunner, Runner
from evocluster.errors import ConfigError, EvoclusterError, ModelError, RunDamaged, RunExists, RunHeld, StoreError
from evocluster.llm.limits import Paced
from evocluster.records import Proposal, Trial
from evocluster.store.table import scan

OBJECTIVES = {"quality", "latency_ms", "cost_usd", "robustness"}


def table(folder: Path) -> Any:
    """All trials of a run."""
    return pandas.read_parquet(folder / "trials")


def front(folder: Path) -> Any:
    """front.json."""
    return json.loads((folder / "front.json").read_text())


def test_a_run_leaves_a_whole_folder(tmp_path: Path) -> None:
    result = build.run(build.plan(small_config(tmp_path)), tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["status"] == "finished"
    assert run["stop_reason"] == "generations"
    assert run["seed"] == 5
    assert run["versions"]["evocluster"]
    rows = table(tmp_path / "run")
    evaluations = rows[rows.kind == "evaluation"]
    assert len(evaluations) == run["evaluations"]
    assert int(rows.calls.sum()) == run["calls"]
    assert rows.paid_usd.sum() == pytest.approx(run["paid_usd"])
    assert len(run["hypervolume"]) >= 3
    found = front(tmp_path / "run")
    assert set(found["objectives"]) == OBJECTIVES
    assert sum(member["recommended"] for member in found["members"]) == 1
    for member in [found["start"], *found["members"]]:
        for split in ("train", "validation", "test"):
            for name in OBJECTIVES:
                interval = member[split][name]
                assert interval["low"] <= interval["value"] <= interval["high"]
        assert set(member["gap"]) >= OBJECTIVES
    genomes = [json.loads(line) for line in (tmp_path / "run" / "genomes.jsonl").read_text().splitlines()]
    assert set(evaluations.genome_id) <= {genome["id"] for genome in genomes}
    assert result.recommended is not None


def test_front_values_are_the_means_of_the_table(tmp_path: Path) -> None:
    build.run(build.plan(small_config(tmp_path)), tmp_path / "run")
    rows = table(tmp_path / "run")
    for member in front(tmp_path / "run")["members"]:
        mine = rows[(rows.genome_id == member["genome"]) & (rows.split == "test") & (rows.kind == "evaluation")]
        assert member["test"]["quality"]["value"] == pytest.approx(mine[mine.twin == 0].quality.mean())
        assert member["test"]["cost_usd"]["value"] == pytest.approx(mine.cost_usd.mean())
        passed = (mine.repairs == 0) & mine.schema_ok & (mine.validator >= 0.9) & mine.error.isna()
        assert member["test"]["robustness"]["value"] == pytest.approx(passed.mean())


def test_the_test_split_is_touched_once_and_at_the_end(tmp_path: Path) -> None:
    build.run(build.plan(small_config(tmp_path)), tmp_path / "run")
    rows = table(tmp_path / "run")
    evaluations = rows[rows.kind == "evaluation"]
    tested = evaluations[evaluations.split == "test"]
    assert tested.groupby(["genome_id", "example_id", "twin"]).size().max() == 1
    assert tested.proposal.min() > evaluations[evaluations.split != "test"].proposal.max()


def test_the_same_front_with_1_3_and_8_workers(tmp_path: Path) -> None:
    fronts = []
    for workers in (1, 3, 8):
        config = small_config(
            tmp_path,
            models={
                "fake": {
                    "kind": "scripted",
                    "rules": [{"pattern": f"looks {label}", "text": label} for label in LABELS],
                    "latency_s": 0.3,
                    "sigma": 1.0,
                    "time_scale": 0.02,
                }
            },
            engine={"runner": "local", "in_flight": 12, "workers": workers},
            cache={"path": None},
        )
        build.run(build.plan(config), tmp_path / f"run{workers}")
        fronts.append(front(tmp_path / f"run{workers}"))
    assert fronts[0] == fronts[1] == fronts[2]


def test_a_second_run_from_the_cache_pays_nothing_and_finds_the_same(tmp_path: Path) -> None:
    first = build.run(build.plan(small_config(tmp_path)), tmp_path / "one")
    second = build.run(build.plan(small_config(tmp_path)), tmp_path / "two")
    assert first.run["paid_usd"] > 0
    assert second.run["paid_usd"] == 0
    assert second.run["cached"] == second.run["calls"] == first.run["calls"]
    assert first.front == second.front


def test_a_budget_in_dollars_keeps_back_what_second_requests_may_cost(tmp_path: Path) -> None:
    spent = {}
    for hedge in (0.0, 0.2):
        models = {"fake": {**settings()["models"]["fake"], "hedge": hedge}}
        config = write_config(tmp_path / f"{hedge}", budget={"usd": 0.02}, models=models, cache={"path": None})
        run = build.run(build.plan(config), tmp_path / f"run{hedge}").run
        assert run["stop_reason"] == "usd"
        spent[hedge] = run["usd"]
    assert 0.02 * 0.6 < spent[0.2] <= 0.02 / 1.2 < spent[0.0] <= 0.02


def test_an_existing_folder_is_refused_and_a_finished_one_stays(tmp_path: Path) -> None:
    plan = build.plan(small_config(tmp_path))
    first = build.run(plan, tmp_path / "run")
    with pytest.raises(RunExists, match="evocluster resume"):
        build.run(plan, tmp_path / "run")
    again = build.resume(tmp_path / "run")
    assert again.run == first.run


def test_an_interrupted_run_tells_what_its_rows_tell(tmp_path: Path) -> None:
    """Also of trials that came back before those they wait for."""
    model = {**settings()["models"]["fake"], "latency_s": 0.05, "sigma": 1.5, "time_scale": 1.0}
    config = write_config(tmp_path, models={"fake": model}, engine={"runner": "local", "in_flight": 12})
    build.run(build.plan(config), tmp_path / "run", interrupted=lambda: True)
    run, rows = json.loads((tmp_path / "run" / "run.json").read_text()), table(tmp_path / "run")
    assert run["status"] == "interrupted"
    assert run["evaluations"] == int((rows.kind == "evaluation").sum())
    for name, columns in {
        "calls": ("calls", "judge_calls"),
        "cached": ("cached_calls", "judge_cached"),
        "usd": ("cost_usd", "judge_usd"),
        "paid_usd": ("paid_usd", "judge_paid_usd"),
    }.items():
        assert run[name] == pytest.approx(sum(rows[column].sum() for column in columns)), name
    assert run["calls"] > 0


def _interrupted_run(folder: Path, run: Path, **budget: int) -> None:
    """A run that was interrupted in its search, its models taking the time they say."""
    models = {"fake": {**settings()["models"]["fake"], "latency_s": 0.1, "sigma": 0.1, "time_scale": 1.0}}
    build.run(build.plan(write_config(folder, budget=budget, models=models)), run, interrupted=lambda: True)
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"


def test_a_budget_raised_on_resume_is_as_if_it_had_been_so_from_the_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _interrupted_run(tmp_path / "a", run, generations=2)
    models = {"fake": {**settings()["models"]["fake"], "latency_s": 0.1, "sigma": 0.1}}
    longer = write_config(tmp_path / "b", budget={"generations": 4}, models=models)
    whole = build.run(build.plan(longer), tmp_path / "whole")
    result = build.resume(run, sets=["budget.generations=4"])
    assert result.run["status"] == "finished"
    assert front(run) == whole.front
    assert "generations: 4" in (run / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"search is over, so 'budget.generations' can no longer"):
        build.resume(run, sets=["budget.generations=5"])


def test_the_limits_of_a_model_may_change_on_resume_and_change_nothing_that_is_found(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _interrupted_run(tmp_path / "a", run, generations=2)
    limits = {"requests_per_minute": 90_000, "max_concurrency": 3, "timeout_s": 7.0, "retries": 1, "adaptive": False}
    models = {"fake": {**settings()["models"]["fake"], "latency_s": 0.1, "sigma": 0.1}}
    whole = build.run(
        build.plan(write_config(tmp_path / "b", budget={"generations": 2}, models=models)), tmp_path / "w"
    )
    sets = [f"models.fake.{name}={str(value).lower()}" for name, value in limits.items()]
    assert build.resume(run, sets=sets).run["status"] == "finished"
    assert front(run) == whole.front
    kept = configs.load(run / "config.yaml").models["fake"]
    assert kept.model_dump(include=set(limits)) == limits, "the next sitting keeps to them"
    build.resume(run, sets=["models.fake.max_concurrency=5"])
    assert configs.load(run / "config.yaml").models["fake"] == kept, "what is finished stays as it is"


def test_every_setting_of_pace_may_change_on_resume_except_who_answers_and_what_it_costs() -> None:
    assert set(configs.PACING) == set(Paced.model_fields) - {"fallbacks", "hedge"}


REFUSED = {
    "seed=9": r"--set seed=9: resume can change only budget\., .*warm_start",
    "models.fake.default=blue": r"models.fake.default='blue': resume can change only .*of each model max",
    "models.fake.price.prompt_usd_per_mtok=1": "resume can change only",
    "models.fake.hedge=0.1": "resume can change only",
    "engine.in_flight=3": "engine.in_flight=3: resume can change only",
    "budget.generations=1": "budget.generations=1: .* only be raised; it was 2",
    "budget.calls=100": "budget.calls=100: .* only be raised; it was None",
    "budget.target_objective=robustness": "only be raised; it was 'quality'",
}


def test_what_would_make_it_another_run_is_refused_on_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _interrupted_run(tmp_path / "a", run, generations=2)
    kept = (run / "config.yaml").read_text()
    for text, complaint in REFUSED.items():
        with pytest.raises(ConfigError, match=complaint):
            build.resume(run, sets=[text])
    assert (run / "config.yaml").read_text() == kept
    found = json.loads((run / "run.json").read_text())
    edited(run, stops=[{"at": 99, "reason": "minutes"}])
    with pytest.raises(ConfigError, match=r"search is over, so 'budget\.generations' can no longer"):
        build.resume(run, sets=["budget.generations=4"])
    edited(run, stops=found["stops"])
    assert build.resume(run, sets=["engine.workers=3"]).run["status"] == "finished"


KILLED = """
import sys
from evocluster import build
build.run(build.plan(sys.argv[1]), __import__("pathlib").Path(sys.argv[2]))
"""


def _serve_slowly(folder: Path, url: str) -> Path:
    models = {
        "served": {
            "kind": "direct",
            "base_url": url,
            "model": "m",
            "completion": True,
            "price": {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 2},
        }
    }
    space = {
        "rubric": "Which colour?",
        "temperature": [0.0, 0.5, 1.0],
        "max_tokens": [4, 8, 16],
        "demos": {"max": 3},
        "demo_style": ["chat", "inline", "completion"],
        "model": ["served"],
        "label_names": ["as_is", "letters"],
    }
    start = [{"rubric": "Which colour?", "demos": []}]
    return write_config(folder, models=models, space=space, start=start)


async def test_sigkill_in_the_middle_pays_nothing_twice_and_finds_the_same_front(tmp_path: Path) -> None:
    async with FaultServer(latency=lambda: 0.05) as server:
        server.timings = {"prompt_ms": 10.0, "predicted_ms": 5.0}  # the same latency every time: fronts can be equal
        path = _serve_slowly(tmp_path / "a", server.url)
        command = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "killed")]
        child = subprocess.Popen(command, cwd=tmp_path)
        deadline = time.monotonic() + 60
        while server.requests < 120 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        await asyncio.sleep(0.3)
        child.wait()
        assert not (tmp_path / "killed" / "front.json").exists()
        result = await asyncio.to_thread(lambda: build.resume(tmp_path / "killed"))
        bodies = Counter(json.dumps(body, sort_keys=True) for body in server.bodies)
        twice = sum(count - 1 for count in bodies.values())
        assert twice <= 24, f"{twice} calls were made twice; only 12 in flight and 12 just answered at the kill may be"
        whole = _serve_slowly(tmp_path / "b", server.url)
        uninterrupted = await asyncio.to_thread(lambda: build.run(build.plan(whole), tmp_path / "whole"))
    assert result.front == uninterrupted.front
    kept = table(tmp_path / "killed")
    keys = ["proposal", "kind", "example_id", "twin", "replicate"]
    assert not kept.duplicated(keys).any()


def test_a_run_stopped_by_minutes_and_interrupted_in_its_check_is_resumed(tmp_path: Path) -> None:
    fake = {"kind": "scripted", "default": "red", "latency_s": 0.02, "sigma": 0.1, "time_scale": 1.0}
    config = small_config(tmp_path, models={"fake": fake}, budget={"minutes": 0.01, "generations": 500})
    seen: dict[str, Any] = {}
    stopped = build.run(
        build.plan(config), tmp_path / "run", show=seen.update, interrupted=lambda: seen.get("phase") == "validation"
    )
    assert stopped.run["stops"][0]["reason"] == "minutes"
    resumed = build.resume(tmp_path / "run")
    assert resumed.status == "finished"
    assert resumed.run["stop_reason"] == "minutes"
    assert resumed.run["stops"] == stopped.run["stops"]
    assert not table(tmp_path / "run").duplicated(["proposal", "kind", "example_id", "twin"]).any()


def test_resume_with_other_data_is_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    build.run(build.plan(config), tmp_path / "run")
    edited(tmp_path / "run", status="interrupted")
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[4:]) + "\n")
    with pytest.raises(RunDamaged, match="data 'train' changed since the run began"):
        build.resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("mode", "said"),
    [("html", "HTML"), ("empty_choices", "choices"), ("no_usage", "usage"), ("error_401", "key_env")],
)
async def test_an_endpoint_that_cannot_be_used_ends_the_run_with_its_reason(
    tmp_path: Path, mode: Mode, said: str
) -> None:
    async with FaultServer(mode=mode) as server:
        path = _serve_slowly(tmp_path, server.url)
        with pytest.raises(ModelError, match=said) as caught:
            await asyncio.to_thread(lambda: build.run(build.plan(path), tmp_path / "run"))
    assert caught.value.exit_code == 7
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["status"] == "failed"
    assert said in run["error"]


def test_an_unreachable_endpoint_names_its_address(tmp_path: Path) -> None:
    path = _serve_slowly(tmp_path, "http://127.0.0.1:9/v1")
    text = path.read_text().replace("completion: true", "completion: true\n    retries: 0")
    path.write_text(text)
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:9"):
        build.run(build.plan(path), tmp_path / "run")


async def test_what_was_paid_before_a_failure_is_kept_and_resumed(tmp_path: Path) -> None:
    async with FaultServer(latency=lambda: 0.005) as server:
        path = _serve_slowly(tmp_path, server.url)

        async def break_later() -> None:
            while server.requests < 60:
                await asyncio.sleep(0.002)
            server.mode = "html"

        breaking = asyncio.ensure_future(break_later())
        with pytest.raises(EvoclusterError):
            await asyncio.to_thread(lambda: build.run(build.plan(path), tmp_path / "run"))
        await breaking
        kept = len(table(tmp_path / "run"))
        assert kept > 0
        server.mode = "ok"
        result = await asyncio.to_thread(lambda: build.resume(tmp_path / "run"))
    assert result.status == "finished"
    failed = table(tmp_path / "run").error.notna().sum()
    assert failed <= 50, "only what had been handed out (10 proposals of 4 or 5 items) when it broke may have failed"


class Outage:
    """A Runner around another: nothing of the test split goes well the first `times` times it is asked for."""

    def __init__(self, inner: Runner, times: int) -> None:
        self._inner = inner
        self._times = times
        self.asked: Counter[int] = Counter()
        self.open, self.close = inner.open, inner.close

    def submit(self, proposal: Proposal) -> None:
        self.asked[proposal.number] += 1
        self._inner.submit(proposal)

    async def next(self) -> Trial:
        return self._meddled(await self._inner.next())

    def ready(self) -> list[Trial]:
        return [self._meddled(trial) for trial in self._inner.ready()]

    def _meddled(self, trial: Trial) -> Trial:
        if trial.proposal.purpose != "test" or self.asked[trial.proposal.number] > self._times:
            return trial
        failed = [one.model_copy(update={"error": "model: Unreachable: gone"}) for one in trial.evaluations]
        return trial.model_copy(update={"evaluations": tuple(failed)})


@pytest.mark.parametrize("times", [1, 2])
async def test_failures_with_nothing_after_them_are_asked_once_more(tmp_path: Path, times: int) -> None:
    few = {"population": 6, "block": 4, "finalists": 1}
    config = small_config(tmp_path, search=few)
    await asyncio.to_thread(lambda: build.run(build.plan(config), tmp_path / "calm"))
    plan = build.plan(config)
    runner = Outage(LocalRunner([plan.worker()], None), times)
    engine = build.engine(plan, tmp_path / "run", True, runner)
    if times == 1:
        assert await carry(engine) == "finished"
    else:
        with pytest.raises(ModelError, match="every evaluation failed"):
            await carry(engine)
        assert "test" not in set(table(tmp_path / "run").split)
        await asyncio.to_thread(lambda: build.resume(tmp_path / "run"))
    assert runner.asked.most_common(1)[0][1] == 2
    assert front(tmp_path / "run") == front(tmp_path / "calm")


def test_a_full_disk_ends_the_run_and_keeps_what_was_paid(tmp_path: Path) -> None:
    path = write_config(tmp_path, cache={"path": None})
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
    command = [sys.executable, "-c", limit + KILLED, str(path), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "StoreError" in done.stderr
    result = build.resume(tmp_path / "run")
    assert result.status == "finished"


def test_a_run_whose_front_could_not_be_written_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Folder.write

    def failing(self: Folder, name: str, value: Any) -> None:
        if name == "front.json":
            raise StoreError("Input/output error")
        write(self, name, value)

    with monkeypatch.context() as broken:
        broken.setattr(Folder, "write", failing)
        with pytest.raises(StoreError):
            build.run(build.plan(small_config(tmp_path)), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    result = build.resume(tmp_path / "run")
    assert result.status == "finished"
    assert result.recommended is not None


def test_a_budget_too_small_leaves_no_folder(tmp_path: Path) -> None:
    config = small_config(tmp_path, budget={"calls": 3})
    with pytest.raises(ConfigError, match=r"budget\.calls"):
        build.run(build.plan(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_runs_on_one_folder_are_kept_apart(tmp_path: Path) -> None:
    from evocluster.engine.folder import Folder

    build.run(build.plan(small_config(tmp_path)), tmp_path / "run")
    edited(tmp_path / "run", status="running")
    held = Folder.open(tmp_path / "run")
    with pytest.raises(RunHeld, match="in use"):
        build.resume(tmp_path / "run")
    held.close()


def test_spend_by_model_and_purpose_adds_up_to_what_the_run_took(tmp_path: Path) -> None:
    fake = settings()["models"]["fake"]
    (tmp_path / "good.md").write_text("---\nversion: 3\n---\n5: right. 1: wrong.\n")
    judge = {"kind": "judge", "model": "judge", "rubric": str(tmp_path / "good.md")}
    task = {**settings()["task"], "scorers": [{"kind": "label"}, judge], "weights": {"judge": 0.0}}
    models = {"fake": fake, "judge": {**fake, "rules": [], "default": '{"reason": "fine", "score": 4}'}}
    result = build.run(build.plan(small_config(tmp_path, task=task, models=models)), tmp_path / "run")
    rows = [row for chunk in scan(tmp_path / "run" / "trials") for row in chunk]
    lines = [line for row in rows if row["spend"] for line in json.loads(row["spend"])]
    always = {("fake", "evaluate"), ("judge", "judge")}
    operators = {("fake", "rewrite"), ("fake", "reflect")}
    named = {(line["model"], line["purpose"]) for line in lines}
    assert always < named <= always | operators
    assert sum(line["calls"] for line in lines) == result.run["calls"]
    assert sum(line["usd"] for line in lines) == pytest.approx(result.run["usd"])
    assert sum(line["paid_usd"] for line in lines) == pytest.approx(result.run["paid_usd"])
    judged = [row for row in rows if row["kind"] == "evaluation"]
    assert sum(row["judge_calls"] for row in judged) == sum(
        line["calls"] for line in lines if line["purpose"] == "judge"
    )
    assert {json.loads(row["scores"])["judge"]["value"] for row in judged} == {0.75}
    assert all(row["calls"] <= 2 for row in judged)  # the judge's calls are not the genome's
    assert result.run["rubrics"][str(tmp_path / "good.md")].startswith("3 ")


def test_a_judged_run_resumes_to_the_same_accounts(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text("---\nversion: 1\n---\n5: right. 1: wrong.\n")
    judge = {"kind": "judge", "model": "fake", "rubric": str(tmp_path / "good.md"), "choices": True}
    task = {**settings()["task"], "scorers": [{"kind": "label"}, judge]}
    config = small_config(tmp_path, task=task)
    whole = build.run(build.plan(config), tmp_path / "whole")
    build.run(build.plan(config), tmp_path / "cut")
    cut = tmp_path / "cut"
    edited(cut, status="interrupted")
    again = build.resume(cut)
    assert again.front == whole.front
    assert again.run["calls"] == whole.run["calls"]
    (tmp_path / "good.md").write_text("---\nversion: 2\n---\n5: quite right. 1: wrong.\n")
    edited(cut, status="interrupted")
    with pytest.raises(RunDamaged, match=r"rubrics '.*good\.md' changed since the run began"):
        build.resume(cut)


def test_examples_stand_in_the_folder(tmp_path: Path) -> None:
    plan = build.plan(small_config(tmp_path))
    build.run(plan, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "examples.jsonl").read_text().splitlines()]
    assert len(lines) == 16 + 8 + 12
    assert lines[0] == {"split": "train", **plan.splits.train[0].model_dump(mode="json")}
