"""The embedded model asked by evocluster and by an exported file: the same llama.cpp server, the same answers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_export_requests import exported

from evocluster import build
from evocluster.cli.standalone import standalone
from evocluster.llm.local import Local
from evocluster.records import Evaluation, Genome, Item

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
COUNT = 20
DEMOS = ["train-001", "train-020", "train-040", "train-060"]
GENOMES: dict[str, dict[str, Any]] = {
    "constrained chat": {"constrain": True, "label_names": "plain", "demos": DEMOS},
    "completion": {"constrain": True, "label_names": "plain", "demos": DEMOS, "demo_style": "completion"},
    "free text": {"demos": DEMOS, "demo_style": "completion", "rubric": "Sort into one of: {labels}."},
}


@pytest.fixture(scope="module")
def served(smollm2: str) -> Iterator[tuple[build.Plan, str]]:
    """The quickstart and the address of one server of its model."""
    plan = build.plan(QUICKSTART, ["models.smollm2.processes=1"])
    model = plan.stack.models[smollm2.split("-", 1)[0]]
    assert isinstance(model, Local)
    (url,) = asyncio.run(model.start())
    yield plan, url
    asyncio.run(model.stop())


async def _measured(plan: build.Plan, url: str, genome: Genome) -> list[Evaluation]:
    stack = plan.stack.attached({"smollm2": (url,)})
    llm = await stack.open(None, 1)
    try:
        ids = [example.id for example in plan.splits.test[:COUNT]]
        return [await plan.evaluator.evaluate(Item(split="test", example=id), genome, llm) for id in ids]
    finally:
        await stack.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", GENOMES)
def test_the_exported_file_gets_the_same_answers(served: tuple[build.Plan, str], name: str, tmp_path: Path) -> None:
    plan, url = served
    genome = plan.space.complete(GENOMES[name])
    evaluations = asyncio.run(_measured(plan, url, genome))
    export = exported(plan, genome)
    file = tmp_path / "winner.py"
    file.write_text(standalone(export))
    lines = "".join(json.dumps(test) + "\n" for test in export["tests"][:COUNT])
    variables = {**os.environ, "SMOLLM2_BASE_URL": url}
    done = subprocess.run(
        [sys.executable, file], input=lines, capture_output=True, text=True, check=True, env=variables, timeout=280
    )
    outputs = [one.output for one in evaluations]
    assert len(set(outputs)) > 2
    # Bit for bit at temperature 0, though the second asker finds the first one's prompts in llama.cpp's cache.
    assert done.stdout.splitlines() == outputs
