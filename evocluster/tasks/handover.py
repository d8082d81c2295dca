"""What leaves with a genome: the genome as templates, how the task scores, and the test examples; all as JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocluster.records import Example, Genome, canonical, digest
from evocluster.tasks.evaluate import Evaluator
from evocluster.tasks.export import Wire, winner
from evocluster.tasks.program import Program
from evocluster.tasks.prompts import read_genes, show_passages
from evocluster.tasks.words import thawed

_CODE = ("function", "rubric", "labelled")
"""Settings of scorers that are paths of this machine."""


async def handed_over(evaluator: Evaluator, genome: Genome, wire: Wire, contexts: bool = False) -> dict[str, Any]:
    """`winner` (null for a pipeline of the user's own), its `digest`, `task` and `tests`.

    `contexts`: retrieve for every test example what its prompt would show. Raises: ConfigError, errors.Refused.
    """
    task = evaluator.task
    made = None
    if isinstance(evaluator.program, Program):
        made = winner(evaluator.program, genome, evaluator.splits, wire).model_dump(mode="json")
    tests = [await _test(evaluator, genome, example, contexts) for example in evaluator.splits.test]
    return {
        "winner": made,
        "digest": digest(made if made is not None else {"genes": genome.genes})[:16],
        "task": {
            "kind": task.kind,
            "executor": _bare(task.executor.function) if task.executor else None,
            "documents": _bare(task.retrieval.documents) if task.retrieval else None,
            "scorers": [_settings(scorer.model_dump(mode="json")) for scorer in task.scorers],
            "weights": {scorer.name: task.weight(scorer.name) for scorer in task.scorers},
            "must_pass": dict(task.must_pass),
            "safety": [check.flag for check in task.safety],
        },
        "tests": tests,
    }


async def _test(evaluator: Evaluator, genome: Genome, example: Example, contexts: bool) -> dict[str, Any]:
    """One test example, as far as anyone outside needs it."""
    told = {"id": example.id, "input": thawed(example.input), "expected": thawed(example.expected), "context": ""}
    if contexts and evaluator.index is not None:
        count = read_genes(genome).retriever_topk
        if count:
            asked = evaluator.index.settings.question(example.input)
            told["context"] = show_passages((await evaluator.index.search(asked, count)).passages)
    canonical(told)
    return told


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _bare(value) if name in _CODE else value for name, value in settings.items()}


def _bare(path: Any) -> Any:
    """A path without the folders of this machine."""
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if isinstance(path, str) else path
