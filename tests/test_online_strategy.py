"""The strategy layer as genes: nothing is lost on the way, and what is measured is what would serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import LABELS, small_config

from evocluster import build
from evocluster.errors import ConfigError
from evocluster.llm.client import Request, Router
from evocluster.llm.scripted import Scripted, last_text
from evocluster.online.strategy import EXECUTOR, Work, genes_of, most_calls, start_of, strategy_of, wait_s, write_work
from evocluster.records import Example, Genome, canonical
from evocluster.release.gates import scope, syntax
from evocluster.release.snapshot import Escalation, Note, Snapshot, Strategy
from evocluster.search.space import Genes
from evocluster.tasks.dataset import Data
from evocluster.tasks.execution import Execution
from evocluster.tasks.executor import Pipeline
from evocluster.tasks.task import Executor, Task

MODELS = ("cheap", "strong", "other")
INTENTS = ("a", "b")
BASE = Strategy(genes={"model": "cheap", "temperature": 0.0, "max_tokens": 8})

STRATEGIES = st.builds(
    Strategy,
    genes=st.fixed_dictionaries(
        {"model": st.sampled_from(MODELS), "temperature": st.floats(0, 2), "max_tokens": st.integers(1, 500)},
        optional={"use_consensus": st.sampled_from([1, 3, 5]), "retriever_topk": st.integers(0, 9)},
    ),
    intents=st.dictionaries(
        st.sampled_from(["a", "b", "c"]), st.sampled_from([{"model": "strong"}, {"model": "cheap", "max_tokens": 4}])
    ),
    shares=st.sampled_from([{}, {"cheap": 1.0}, {"cheap": 0.3, "strong": 0.7}, {"cheap": 0.5, "other": 0.5}]),
    escalate=st.none() | st.builds(Escalation, model=st.sampled_from(MODELS), below=st.floats(0, 1)),
    timeout_s=st.floats(0.5, 600),
    concurrency=st.integers(1, 500),
    notes=st.integers(0, 20),
)


@given(STRATEGIES)
def test_a_strategy_survives_its_genes_and_today_is_in_the_space(strategy: Strategy) -> None:
    genes = start_of(strategy, MODELS, INTENTS)
    assert strategy_of(genes, strategy) == strategy
    others = {name: own for name, own in strategy.intents.items() if name not in INTENTS or "max_tokens" in own}
    assert strategy_of(genes, Strategy(intents=others)) == strategy
    space = genes_of(strategy, MODELS, INTENTS)
    assert set(space) == set(genes)
    parsed = Genes(space)
    assert parsed.check(genes) == []
    for gene, value in genes.items():
        assert gene == "temperature" or canonical(value) in map(canonical, space[gene])


@given(st.data())
def test_every_genome_of_the_space_is_a_strategy_that_passes_the_gates(data: st.DataObject) -> None:
    genes = {
        gene: data.draw(st.floats(0, 1)) if isinstance(values, dict) else data.draw(st.sampled_from(values))
        for gene, values in genes_of(BASE, MODELS, INTENTS).items()
    }
    parent = Snapshot.of(Genome(genes={"rubric": "Say it.", **BASE.genes}), {}, BASE)
    candidate = Snapshot(prompt=parent.prompt, memory=parent.memory, strategy=strategy_of(genes, BASE))
    assert syntax(candidate, lambda snapshot: snapshot.id, models=MODELS).passed
    gate = scope(candidate, parent, "strategy")
    assert gate.passed or candidate.id == parent.id
    assert strategy_of(start_of(candidate.strategy, MODELS, INTENTS), BASE) == candidate.strategy


def test_genes_speak_only_of_what_they_name() -> None:
    base = Strategy(genes={"model": "cheap"}, intents={"z": {"max_tokens": 3}}, shares={"cheap": 1.0}, notes=7)
    made = strategy_of({"intent.z.model": "strong", "rubric": "evil"}, base)
    assert made == base.model_copy(update={"intents": made.intents})
    assert made.intents == {"z": {"max_tokens": 3, "model": "strong"}}
    assert strategy_of({"share.cheap": 0.25, "share.strong": 0.25}, base).shares == {"cheap": 0.5, "strong": 0.5}
    assert strategy_of({"share.cheap": 0.0, "share.strong": 0.0}, base).shares == {}


# ---------------------------------------------------------------- answering


def colour(request: Request) -> str:
    """The last word of the question; the cheap model only knows red, and says so."""
    asked = last_text(request).split()[-1]
    return asked if request.model != "cheap" or asked == "red" else "no idea"


TASK = Task(kind="classification", data=Data(train="t.jsonl"), labels=LABELS)


class World:
    """A work file, models that answer by it, and the pipeline."""

    def __init__(
        self, folder: Path, *, notes: tuple[Note, ...] = (), replicas: int = 1, latency_s: float = 1.0
    ) -> None:
        snapshot = Snapshot.of(Genome(genes={"rubric": "Which colour?", **BASE.genes}), {}, BASE, notes)
        self.path = str(write_work(folder / "work.json", Work.of(TASK, snapshot, replicas=replicas)))
        self.asked: list[Request] = []

        def answer(request: Request) -> str:
            self.asked.append(request)
            return colour(request)

        model = Scripted.using(answer, kind="scripted", latency_s=latency_s, sigma=0.0)
        self.llm = Router(dict.fromkeys(MODELS, model))
        self.pipeline = Pipeline(TASK, Executor(function=EXECUTOR, calls=8), {})

    async def run(self, genes: dict[str, Any], colour: str, **meta: Any) -> Execution:
        """The answer to one question."""
        example = Example(id=f"{colour} {meta}", input=f"the thing looks {colour}", expected=colour, meta=meta)
        return await self.pipeline.run(example, Genome(genes={"work": self.path, **genes}), self.llm)


async def test_intents_go_to_their_models(tmp_path: Path) -> None:
    world = World(tmp_path)
    made = await world.run({"intent.a.model": "strong"}, "green", intent="a")
    assert (made.output, made.schema_ok, made.usage.calls) == ("green", True, 1)
    made = await world.run({"intent.a.model": "strong"}, "green", intent="b")
    assert not made.schema_ok
    assert [request.model for request in world.asked] == ["strong", "cheap"]


async def test_the_unsure_are_asked_again_and_both_calls_count_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    genes = {"escalate.model": "strong", "escalate.below": 0.5}
    sure, unsure = await world.run(genes, "red"), await world.run(genes, "blue")
    assert (sure.output, sure.usage.calls) == ("red", 1)
    assert (unsure.output, unsure.usage.calls) == ("blue", 2)
    assert unsure.usage.seconds == pytest.approx(2.0)
    assert unsure.usage.usd == pytest.approx(2 * sure.usage.usd, rel=0.2)
    assert len(unsure.trace) == 2


async def test_shares_divide_the_examples(tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in range(60):
        await world.run({"share.strong": 0.5, "share.other": 0.5, "share.cheap": 0.0}, "red", number=number)
    counts = {name: sum(request.model == name for request in world.asked) for name in MODELS}
    assert counts["cheap"] == 0
    assert min(counts["strong"], counts["other"]) >= 15


async def test_what_takes_longer_than_the_timeout_is_late(tmp_path: Path) -> None:
    world = World(tmp_path, latency_s=3.0)
    late = await world.run({"timeout_s": 2.5}, "red")
    assert late.error == "timeout: 3 s, more than the strategy's timeout_s=2.5"
    assert (late.output, late.schema_ok) == ("", False)
    assert late.usage.seconds == pytest.approx(3.0)
    assert (await world.run({"timeout_s": 3.5}, "red")).error is None


async def test_few_places_make_requests_wait(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=2)
    few = await world.run({"concurrency": 4}, "red", in_flight=30)
    many = await world.run({"concurrency": 16}, "red", in_flight=30)
    assert few.usage.seconds == pytest.approx(1 + (15 + 1 - 4) / 4)
    assert many.usage.seconds == pytest.approx(1.0)
    assert wait_s(0, 1, 5.0) == 0
    assert (await world.run({"concurrency": 4, "timeout_s": 3.0}, "red", in_flight=30)).error is not None


async def test_notes_are_shown_as_many_as_the_gene_says(tmp_path: Path) -> None:
    notes = (Note(id="n1", text="A thing that looks red is red."), Note(id="n2", text="A thing may look blue."))
    world = World(tmp_path, notes=notes)
    for count in (0, 1, 2):
        await world.run({"notes": count}, "red")
    shown = [sum(note.text in request.messages[0].content for note in notes) for request in world.asked]
    assert shown == [0, 1, 2]


async def test_a_missing_work_file_ends_the_run(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(ConfigError, match="which is no file that write_work wrote"):
        await world.run({"work": str(tmp_path / "none.json")}, "red")
    assert most_calls(TASK, {"use_consensus": [1, 3]}) == 12


def test_the_engine_evolves_a_routing(tmp_path: Path) -> None:
    """The cheap model knows red only: whatever is right everywhere asks the strong one for the rest."""
    snapshot = Snapshot.of(Genome(genes={"rubric": "Which colour?", **BASE.genes}), {}, BASE)
    work = str(write_work(tmp_path / "work.json", Work.of(TASK, snapshot)))
    rules = [{"pattern": f"looks {label}", "text": label} for label in LABELS]
    cheap = {"kind": "scripted", "rules": rules[:1], "default": "no idea", "latency_s": 0.1, "sigma": 0.1}
    strong = {**cheap, "rules": rules, "price": {"prompt_usd_per_mtok": 20.0, "completion_usd_per_mtok": 20.0}}
    space = {**genes_of(BASE, ("cheap", "strong"), LABELS[:2]), "work": work}
    config = small_config(
        tmp_path / "run",
        models={"cheap": cheap, "strong": strong},
        space=space,
        start=[start_of(BASE, ("cheap", "strong"), LABELS[:2]) | {"work": work}],
        task={
            "kind": "classification",
            "data": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"},
            "labels": list(LABELS),
            "executor": {"function": EXECUTOR, "calls": most_calls(TASK, space)},
        },
        objectives=["quality", "cost"],
        budget={"generations": 5},
    )
    for split in ("train", "validation", "test"):
        path = tmp_path / "run" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**one, "meta": {"intent": one["expected"]}}) + "\n" for one in rows))
    result = build.run(build.plan(config, allow_code=True), tmp_path / "out")
    best = max(result.members, key=lambda member: member["validation"]["quality"]["value"])
    assert best["validation"]["quality"]["value"] == 1.0
    made = strategy_of(best["genes"], BASE)
    assert made != BASE
    for intent in LABELS[1:]:
        asked = (made.intents.get(intent) or {}).get("model") or (made.genes["model"] if not made.shares else "")
        assert asked == "strong" or made.shares.get("strong") == 1.0 or made.escalate
