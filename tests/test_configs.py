"""Every config that ships runs, small and with the scripted model in place of its own; two of them as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evocluster import build
from evocluster import config as configs

CONFIGS = Path(__file__).parents[1] / "configs"
OTHERS = ("clusters", "kuberay")
"""Folders of what Ray and Kubernetes read."""
SHIPPED = sorted(
    path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml") if path.parent.name not in OTHERS
)
REAL = CONFIGS.parents[1] / "shared" / "data"


def tiny(name: str) -> list[str]:
    """What makes the config small, with scripted models in place of its own; its data and code stay what they are."""
    config = configs.load(CONFIGS / name)
    for task in config.every.values():
        if not Path(task.data.train).exists():
            pytest.skip(f"the data set of {name} is not here: {task.data.train}")
    data = [f"tasks.{task}.data.limit=24" if task else "task.data.limit=24" for task in config.every]
    fakes = [
        f"models.{model}={{kind: scripted, default: no idea}}"
        for model, settings in config.models.items()
        if settings.kind != "scripted"
    ]
    return [
        *data,
        *fakes,
        "search={population: 4, block: 8, finalists: 2}",
        "budget={generations: 2}",
        "engine={runner: local, in_flight: 16}",
        "cache={path: null}",
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_runs(name: str, tmp_path: Path) -> None:
    result = build.run(build.plan(CONFIGS / name, tiny(name)), tmp_path / "run")
    assert result.status == "finished"
    assert result.recommended is not None
    assert result.recommended["test"]["quality"]["low"] <= result.recommended["test"]["quality"]["high"]


def test_the_quickstart_data_are_what_the_readme_says() -> None:
    plan = build.plan(CONFIGS / "quickstart.yaml")
    counts = plan.facts()["examples"]
    assert counts == {"train": 80, "validation": 80, "test": 100}
    languages = {example.meta["language"] for split in ("train", "test") for example in plan.splits.of(split)}
    assert len(languages) >= 4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not REAL.exists(), reason="the real data sets are not beside the project")
def test_snips7_on_the_embedded_model_through_ray(tmp_path: Path, smollm2: str) -> None:
    """A real optimisation of a real task on a real model: the found configuration beats the plain question clearly."""
    sets = ["task.data.limit=48", "budget.minutes=1", f"cache.path={tmp_path / 'cache'}", "search.block=12"]
    result = build.run(build.plan(CONFIGS / "real" / "snips7.yaml", sets), tmp_path / "run")
    assert result.status == "finished"
    assert result.start is not None
    assert result.recommended is not None
    before = result.start["test"]["quality"]["value"]
    after = result.recommended["test"]["quality"]["value"]
    assert after >= before + 0.2, f"test accuracy {before} -> {after}"
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["models"]["smollm2"].startswith("local:smollm2")
    assert run["paid_usd"] > 0
