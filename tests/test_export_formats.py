"""Exported documents: filled in by the tools' own template language they ask what evocluster asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from export_world import JINJA, bodies, measured, rendered, scoring, shown, single
from hypothesis import given, settings
from hypothesis import strategies as st
from portable_world import Loopback, loaded
from test_export_requests import WORLDS, exported, world

from evocluster.cli import formats
from evocluster.cli.promptfoo_export import promptfoo
from evocluster.cli.standalone import laid_out, standalone
from evocluster.errors import ConfigError
from evocluster.llm.scripted import Scripted
from evocluster.records import Genome
from evocluster.tasks.evaluate import Evaluator
from evocluster.tasks.export import escaped, template
from evocluster.tasks.handover import handed_over

BRACES = ("{", "}", "%", "#", " raw ", "{% raw %}", "{% endraw %}", "endraw", "-", "\ue000", "a\n", "{{input}}", "MARK")


@pytest.mark.parametrize("style", ["chat", "inline"])
@pytest.mark.parametrize("rubric", WORLDS["classes"]["rubric"])
def test_messages_are_the_body_of_the_request(style: str, rubric: str) -> None:
    plan = world("classes")
    genome = single(plan, demo_style=style, rubric=rubric, demos=["train1", "train2"], label_names="mine")
    found = measured(exported(plan, genome))
    body = json.loads(formats.messages(found))
    told = [rendered(body, shown(test, found["winner"])) for test in found["tests"]]
    assert told == bodies(plan, genome)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(BRACES)))
def test_literal_text_survives_beside_any_place(parts: list[str]) -> None:
    text = "".join(parts)
    made = template(text, {"MARK": "{{input}}"})
    wanted = text.replace("MARK", "x{{y}}")
    assert JINJA.from_string(made).render(input="x{{y}}") == wanted
    winner = loaded(standalone(exported(world("classes"), single(world("classes")))))
    assert winner.fill(made, {"input": "x{{y}}"}) == wanted
    assert JINJA.from_string(escaped(text)).render() == text


@pytest.mark.parametrize(
    ("write", "genes", "why"),
    [
        (formats.messages, {"demo_style": "completion"}, "plain text that the model continues"),
        (formats.litellm, {"cot": True, "constrain": True}, "answers in a second one"),
        (promptfoo, {"use_consensus": 3}, "3 votes decide"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    write: Callable[[dict[str, Any]], str], genes: dict[str, Any], why: str
) -> None:
    plan = world("classes")
    with pytest.raises(ConfigError, match=rf"cannot hold this configuration: .*{why}.*Use --as openai"):
        write(measured(exported(plan, single(plan, **genes))))


def test_repairs_are_refused_where_they_counted_and_told_where_they_did_not() -> None:
    plan = world("classes")
    found = exported(plan, single(plan))
    counted = {**found, "used": {"evaluations": 9, "repaired": 2, "failed": 0}}
    for write in (formats.messages, formats.litellm, promptfoo):
        with pytest.raises(ConfigError, match="2 of its 9 answers in the run were repaired"):
            write(counted)
    assert "none of its 9 answers in the run needed it" in formats.litellm(measured(found))


@pytest.mark.parametrize("style", ["chat", "completion"])
def test_litellm_takes_its_arguments_and_sends_the_same(style: str) -> None:
    import litellm

    plan = world("text")
    genome = single(plan, demo_style=style, demos=["train0"], rubric="Shorten {{this}} {% raw %}", temperature=0.25)
    found = exported(plan, genome)
    written = yaml.safe_load(formats.litellm(found))
    (entry,) = written["model_list"]
    assert entry["model_name"] == "text"
    with Loopback(Scripted(default="short")) as server:
        for test in found["tests"]:
            variables = shown(test, found["winner"])
            arguments = {**entry["litellm_params"], "api_base": server.url, "max_retries": 0}
            if style == "chat":
                litellm.completion(messages=rendered(written["messages"], variables), **arguments)
            else:
                litellm.text_completion(prompt=rendered(written["prompt"], variables), **arguments)
        sent = [body for _, body in server.sent]
    assert sent == bodies(plan, genome)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(st.none() | st.text(max_size=9), lambda each: st.lists(each) | st.dictionaries(st.text(), each)),
    st.integers(10, 60),
)
def test_laid_out_json_is_the_same_json(value: Any, width: int) -> None:
    assert json.loads(laid_out(value, 0, width)) == value


def test_a_pipeline_leaves_as_genes(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("async def answer(example, genome, llm):\n    return 'red'\n")
    plan = scoring(tmp_path, "text", [], ["red", "green"], executor="pipeline.py:answer")
    assert isinstance(plan.evaluator, Evaluator)
    genome = Genome(genes={"rubric": "Say.", "mine": 3})
    made = asyncio.run(handed_over(plan.evaluator, genome, lambda name, request: {}))
    source = {"run": {"name": "p", "task": None, "versions": {}}, "genome": genome.id, "genes": dict(genome.genes)}
    found = {**source, "role": "", "why": "", "scores": {}, "endpoints": {}, "used": {}, **made}
    told = json.loads(formats.whole(found))
    assert told["winner"] is None
    assert told["genes"]["mine"] == 3
    assert told["task"]["executor"] == "pipeline.py:answer"
    for write in (standalone, formats.messages, formats.litellm, promptfoo):
        with pytest.raises(ConfigError, match=r"your own function 'pipeline.py:answer'.*Use --as json"):
            write(found)
