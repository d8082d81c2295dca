"""Import of promptfoo configs: what is taken, what it becomes, and that nothing is run, fetched, leaked or lost."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import call

from evocluster.cli.imported import NotTaken
from evocluster.cli.nunjucks import Expression, filled, parse
from evocluster.cli.promptfoo import Project, convert
from evocluster.cli.promptfoo_assertions import JUDGED, KINDS, LEFT, assertion_of, inline, pattern
from evocluster.errors import ConfigError

EXAMPLES = Path(__file__).with_name("promptfoo")
KEY = "sk-" + "proj-" + "a1b2c3d4e5f6g7h8i9j0"
"""No key at all; in two pieces so that no scanner takes this file for a leak."""


def imported(name: str) -> Project:
    return convert(next((EXAMPLES / name).glob("promptfooconfig.*")))


def of(folder: Path, text: str) -> Project:
    """The import of a config with this text."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "promptfooconfig.yaml"
    path.write_text(text)
    return convert(path)


def config(project: Project) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(project.files["config.yaml"])
    return data


def rows(project: Project) -> list[dict[str, Any]]:
    return [json.loads(line) for line in project.files["examples.jsonl"].splitlines()]


def left(project: Project) -> dict[str, list[str]]:
    """What was left out -> its places."""
    return {entry.what: places for entry, places in project.report.left.items()}


def why(project: Project, what: str) -> str:
    """Why something was left out, changed or is to be filled in, and what to do."""
    report = project.report
    entries = [*report.left, *report.changed, *report.needed]
    return next(entry.told for entry in entries if entry.what.startswith(what))


# ---------------------------------------------------------------- whole projects


def test_a_table_of_tickets() -> None:
    project = imported("support")
    made = config(project)
    assert made["task"]["scorers"] == [{"kind": "exact", "name": "equals"}]
    assert made["space"]["model"] == ["mini", "our-7b"]
    assert made["models"]["mini"] == {"kind": "auto", "model": "openai/gpt-4o-mini", "timeout_s": 20}
    assert made["models"]["our-7b"]["base_url"] == "http://127.0.0.1:8000/v1"
    assert made["models"]["our-7b"]["key_env"] == "OUR_KEY"
    assert made["models"]["our-7b"]["price"] == {"prompt_usd_per_mtok": 0.2, "completion_usd_per_mtok": 0.2}
    assert made["space"]["temperature"] == [0, 0.7]
    assert made["engine"]["in_flight"] == 6
    system, inline_prompt = made["space"]["rubric"]
    assert system == "You sort support messages. Answer with billing, shipping or technical."
    assert inline_prompt.endswith("\n\n{input}")
    assert made["start"][0]["rubric"] == system
    found = rows(project)
    assert len(found) == 12
    assert found[0] == {
        "id": "t01",
        "input": "I was charged twice, please check.",
        "expected": "billing",
        "meta": {"description": "double charge", "metadata": {"language": "en", "tags": ["money", "card"]}},
    }
    assert found[3]["expected"] == "shipping"
    assert found[4]["meta"]["metadata"]["tags"] == ["money,invoice"]
    assert found[7]["input"] == "The courier left the box in the rain\nand it is wet now."
    assert not project.report.left
    assert "fewer" not in why(project, "kind of the task")
    assert "12 of them become" in why(project, "more examples")


def test_scenarios_and_a_judge() -> None:
    project = imported("translate")
    made = config(project)
    assert [scorer["kind"] for scorer in made["task"]["scorers"]] == ["judge", "includes", "latency", "function"]
    judge, includes, latency, checks = made["task"]["scorers"]
    assert judge == {"kind": "judge", "model": "judge-gpt-4.1-mini", "rubric": "rubrics/rubric-1.md", "name": "judge"}
    assert includes["texts"] == ["as an ai"]
    assert (includes["need"], includes["ignore_case"]) == ("none", True)
    assert latency["max_ms"] == 5000
    assert checks["function"] == "evals.py:checks"
    assert made["task"]["weights"] == {"judge": 2}
    assert "Is written in [language] and in no other language" in project.files["rubrics/rubric-1.md"]
    assert project.files["rubrics/rubric-1.md"].startswith("---\nversion: 1\nscale: 0-1\n")
    assert made["space"]["rubric"] == [
        "You are a translator. Translate this into {language}: {phrase}",
        "Say in {language_upper}: {phrase}\nGive the translation alone.",
        'Translate {phrase} into {language}, as JSON {"text": "..."} or { phrase }.',
    ]
    models = {name: made["models"][name]["model"] for name in made["space"]["model"]}
    assert models == {
        "claude-3-5-haiku-20241022": "anthropic/claude-3-5-haiku-20241022",
        "llama3.2": "llama3.2",
        "gemini-2.0-flash": "vertex_ai/gemini-2.0-flash",
        "small-mistral": "mistral/mistral-small-latest",
    }
    assert made["models"]["small-mistral"]["extra"] == {"top_p": 0.9}
    assert made["models"]["llama3.2"]["no_key"] is True
    assert (made["start"][0]["temperature"], made["start"][0]["max_tokens"]) == (0, 1024)
    assert made["space"]["temperature"] == [0, 0.3]
    assert made["space"]["max_tokens"] == [64, 1024]
    found = rows(project)
    assert [row["input"]["language"] for row in found] == ["Spanish", "Spanish", "French", "French", "German", "German"]
    assert found[3]["input"] == {"language": "French", "phrase": "Good morning", "language_upper": "FRENCH"}
    assert found[3]["meta"]["assert"] == [{"type": "similar", "threshold": 0.9, "value": "Bonjour"}]
    assert found[3]["meta"]["vars"] == {"hello": "Bonjour le monde", "morning": "Bonjour"}
    assert "no embeddings" in why(project, "assertion similar")
    assert list(left(project)) == ["safe_prompt of a provider"]
    assert left(project)["safe_prompt of a provider"] == ["provider.yaml:7 config.safe_prompt"]


def test_tests_that_ask_for_different_things() -> None:
    project = imported("facts")
    made = config(project)
    names = [scorer["name"] for scorer in made["task"]["scorers"]]
    assert names == ["judge", "criteria", "checks", "facts", "style"]
    assert made["task"]["weights"] == {"criteria": 0.5, "checks": 3.125, "facts": 0, "style": 0}
    assert made["task"]["validator"] == {"threshold": 0.75}
    assert made["models"]["our-deployment"] == {
        "kind": "auto",
        "model": "azure/our-deployment",
        "api_base": "https://bikes.openai.azure.com",
        "key_env": "BIKES_KEY",
    }
    price, distance, hours, rider = rows(project)
    assert price["input"]["context_text"].startswith("A city bike costs 18 euros")
    assert "{context_text}" in made["space"]["rubric"][0]
    assert price["meta"]["assert"] == [
        {"type": "contains", "metric": "facts", "value": "18 euros"},
        {"type": "word-count", "weight": 0.5, "metric": "style", "value": {"max": 40}},
    ]
    assert distance["meta"]["assert"][0] == {"type": "regex", "value": r"(?P<km>\d+) (km|kilometres)"}
    assert distance["meta"]["assert"][3]["assert"][1] == {"type": "starts-with", "value": "An e-bike"}
    assert hours["meta"]["assert"][0]["value"]["required"] == ["monday"]
    assert rider["expected"].splitlines()[1] == "2. Says that the context does not tell"
    assert price["expected"] is None
    assert "def python_1(output: str, context: dict[str, Any]) -> Any:" in project.files["evals.py"]
    assert project.files["asserts/python_2_hours.py"] == (EXAMPLES / "facts/asserts/hours.py").read_text()
    assert "python_2_hours.py" in project.files["evals.py"]
    assert {*left(project)} == {
        "apiVersion of a provider",
        "provider https://bikes.example/answer",
        "options.transform of a test",
        "assertion javascript output.length < 100",
        "assertion perplexity",
        "assertion sounds-nice 3",
    }
    assert left(project)["assertion javascript output.length < 100"] == ["promptfooconfig.yaml:42 tests.0.assert.2"]
    assert "read it before you run it" in why(project, "the config's own Python")
    assert "openai/gpt-4.1" in why(project, "the model that grades")


def test_json_that_is_expected() -> None:
    project = imported("shop")
    task = config(project)["task"]
    assert task["kind"] == "extraction"
    assert task["json_schema"] == {"type": "object", "required": ["item", "count"]}
    assert [scorer["kind"] for scorer in task["scorers"]] == ["json_equal", "is_json"]
    assert [row["expected"]["count"] for row in rows(project)] == [1, 3, 2, 2]
    assert [row["input"] for row in rows(project)][2:] == ["Two mugs please", "2 mugs"]
    assert config(project)["models"]["anthropic.claude-3-haiku-20240307-v1-0"]["model"].startswith("bedrock/anthropic.")


def test_what_cannot_be_taken_is_named_with_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(EXAMPLES / "odd", folder)
    project = convert(folder / "promptfooconfig.yaml")
    found = left(project)
    for what in (
        "prompt file://prompts/make.py:build",
        "prompt file://../../../../../../etc/passwd",
        "prompt langfuse://triage:3",
        "prompt {% if formal %}Dear Sir, {% endif %}{{question}}",
        "prompt {{ question | reverse }}",
        "prompt Use {{env.SECRET_RULES}}: {{question}}",
        "prompt file://prompts/none.txt",
        "provider exec:./answer.sh",
        "provider python:provider.py",
        "provider openai:embedding:text-embedding-3-small",
        "provider marvin:paranoid",
        "prompts of a provider",
        "transform of a provider",
        "tools of a provider",
        "env",
        "redteam",
        "outputPath",
        "surprise",
        "evaluateOptions.repeat",
        "defaultTest",
        "tests file://cases.xlsx",
        "tests file://make_cases.py",
        "tests https://docs.example/sheet",
        "tests file://gen.py:tests",
        "provider of a test",
        "storeOutputAs of a test",
        "assertion select-best the best",
        "assertion regex (unclosed",
        "assertion contains",
        "assertion webhook https://bikes.example/check",
        "options.prefix",
        "threshold of a test",
        "a secret",
    ):
        assert found[what], what
        assert found[what][0].split(" ")[0].split(":")[0] in ("promptfooconfig.yaml", "prompts/make.py")
    lines = (folder / "promptfooconfig.yaml").read_text().splitlines()
    place = found["assertion select-best the best"][0]
    assert place.endswith(" tests.6.assert.1")
    assert "select-best" in lines[int(place.split(":")[1].split(" ")[0]) - 1]
    assert not (folder / "prompts" / "was_run").exists()
    everything = "".join(project.files.values())
    assert "root:" not in everything
    assert KEY not in everything
    assert KEY[8:] not in everything
    assert config(project)["space"]["rubric"] == ["# Rules\n\nAnswer in a {tone} tone.\n\n---\n\n{question}"]
    assert len(rows(project)) == 7


@pytest.mark.parametrize("name", ["support", "translate", "facts", "shop", "odd"])
def test_the_terminal_and_the_file_tell_the_same(tmp_path: Path, name: str) -> None:
    source = next((EXAMPLES / name).glob("promptfooconfig.*"))
    outcome = call("init", tmp_path / "new", "--from", source, columns=80)
    assert outcome.code == 0, outcome
    assert max(map(len, outcome.out.splitlines())) <= max(80, len(str(tmp_path)) + 50)
    report = (tmp_path / "new" / "IMPORT.md").read_text()
    project = convert(source)
    assert report == project.files["IMPORT.md"]
    shown = " ".join(outcome.out.split())
    for title, entries in project.report.sections:
        assert f"{title} ({len(entries)})" in outcome.out
        for entry, places in entries.items():
            assert entry.told in report
            assert all(place.replace("`", "'") in report for place in places)
        assert next(iter(entries)).told in shown
    again = call("init", tmp_path / "new", "--from", source)
    assert again.code == 2
    assert "nothing was written" in again.err


# ---------------------------------------------------------------- what is no promptfoo config

NONE_OF_THEM = (
    ("package.json", '{"name": "x", "scripts": {}}', "no promptfoo config: its settings are name, scripts"),
    ("list.yaml", "- a\n- b\n", "it is no mapping of settings"),
    ("empty.yaml", "", "it is no mapping of settings"),
    ("ours.yaml", "name: x\ntask: {}\nspace: {}\n", "is a config of evocluster already"),
    ("config.js", "module.exports = {}", "no program is run"),
    ("broken.yaml", "prompts: [a\ntests: b", "broken.yaml:2: column"),
    ("tagged.yaml", "prompts: !!js/function 'x'\n", "cannot be read"),
)


@pytest.mark.parametrize(("name", "text", "said"), NONE_OF_THEM)
def test_another_file_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    outcome = call("init", tmp_path / "new", "--from", tmp_path / name)
    assert outcome.code == 2
    assert said in outcome.err
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"promptfooconfig.yaml': there is no such file"):
        convert(tmp_path / "promptfooconfig.yaml")


def test_a_config_with_nothing_to_take_still_says_what_to_do(tmp_path: Path) -> None:
    project = of(tmp_path, "providers: [exec:a.sh]\nprompts: ['{% if x %}y{% endif %}']\ntests: []\n")
    assert config(project)["models"]["stand-in"]["kind"] == "scripted"
    assert config(project)["task"]["scorers"][0]["kind"] == "length"
    needed = {entry.what for entry in project.report.needed}
    assert needed >= {"the model", "the prompt", "the examples", "how answers are judged"}


JUNK: tuple[Any, ...] = (
    *(
        None,
        0,
        -3.5,
        True,
        "",
        "x",
        "{{q}}",
        "{% x %}",
        "{{",
        "*",
        "(",
        "a{99999999999}",
        "[[a]]",
        "not-",
        "similar:",
        "\0",
    ),
    *("file://x", "file://..", "file://", "file://*", "file://" + "x" * 300, [], {}, [1], [[]], {"a": 1}, float("inf")),
    *({"type": "contains"}, {"$ref": "#/tests"}, {"id": None}, [{"role": "user", "content": None}], "\ud7ff", 10**30),
)


def places(value: Any, keys: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of some data stands."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([keys] if keys else []), *(place for key, item in entries for place in places(item, (*keys, key)))]


@pytest.mark.parametrize("name", ["support", "translate", "facts", "odd"])
def test_whatever_a_config_holds_an_import_ends_well(tmp_path: Path, name: str) -> None:
    """Values put in the place of others at random: a project that can be read, or one error of ours."""
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder)
    path = folder / "promptfooconfig.yaml"
    whole = json.dumps(yaml.safe_load(path.read_text()))
    for seed in range(12):
        chance = random.Random(seed)
        data = json.loads(whole)
        for _ in range(3):
            *above, last = chance.choice(places(data))
            at = data
            for key in above:
                at = at[key]
            at[last] = chance.choice(JUNK)
        path.write_text(yaml.safe_dump(data, allow_unicode=True))
        try:
            project = convert(path)
        except ConfigError:
            continue
        assert config(project)["space"]["model"]
        assert rows(project)
        compile(project.files.get("evals.py", ""), "evals.py", "exec")


# ---------------------------------------------------------------- files stay inside the folder


def test_links_and_dots_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("outside {{q}}")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    references = ("../outside.txt", "link.txt", "../*.txt", str(tmp_path / "outside.txt"), "x/../../outside.txt")
    prompts = "".join(f"  - file://{reference}\n" for reference in references)
    project = of(
        folder, f"prompts:\n  - ok {{{{q}}}}\n{prompts}providers: [openai:gpt-4o]\ntests: [{{vars: {{q: a}}}}]\n"
    )
    assert config(project)["space"]["rubric"] == ["ok {input}"]
    for reference in references:
        assert "lies outside the folder" in why(project, f"prompt file://{reference}"[:45])


# ---------------------------------------------------------------- templates


def test_values_are_put_in() -> None:
    given = {"user": {"name": "Ana", "likes": ["tea", "rain"]}, "n": 3, "s": ' "x" '}
    assert parse("{{ user.name | upper }} {{user.likes[1]}} {{ user['name'] }}").filled(given) == "ANA rain Ana"
    assert parse("{{ user.likes | join(', ') }}: {{ n }}{{ missing }}").filled(given) == "tea, rain: 3"
    assert parse("{{ s | trim | replace('\"', '') }}{{- user.likes|length -}}").filled(given) == "x2"
    assert parse("{{ user | dump }}").filled(given) == '{"name":"Ana","likes":["tea","rain"]}'
    assert parse("{{ gone | default('none') }}{# not shown #}").filled(given) == "none"
    assert filled({"a": "{{ n }}", "b": ["{{ user.likes }}", "n={{n}}"]}, given) == {
        "a": 3,
        "b": [["tea", "rain"], "n=3"],
    }


@pytest.mark.parametrize(
    "text",
    ["{% for x in y %}", "{{ a + b }}", "{{ f(x) }}", "{{ a | nothing }}", "{{ env.HOME }}", "{{ }}", "{{ a if b }}"],
)
def test_logic_is_not_taken(text: str) -> None:
    with pytest.raises(NotTaken):
        parse(text)


def test_placeholders_of_ours_do_not_meet_literal_braces() -> None:
    template = parse('{{ q }} in {"q": {q}, "input": {input}, "other": {other}}')
    names = {Expression(("q",)): "q"}
    assert template.rewritten(names) == '{q} in {"q": { q }, "input": { input }, "other": {other}}'


def test_names_that_mean_something_else_are_changed(tmp_path: Path) -> None:
    text = "prompts: ['{{context}} {{input}} {{a.b}} {{a_b}}']\nproviders: [openai:gpt-4o]\n"
    project = of(tmp_path, f"{text}tests: [{{vars: {{context: c, input: i, a: {{b: x}}, a_b: y}}}}]\n")
    assert config(project)["space"]["rubric"] == ["{context_text} {input_text} {a_b_2} {a_b}"]
    assert rows(project)[0]["input"] == {"context_text": "c", "input_text": "i", "a_b_2": "x", "a_b": "y"}
    assert "means something else in rubrics" in why(project, "{{ context }}")


def test_prompts_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.txt").write_text("one {{x}} {{y}}\n---\ntwo {{x}}\n")
    (tmp_path / "p" / "b.md").write_text("# three\n\n---\n{{x}}")
    (tmp_path / "p" / "c.csv").write_text("prompt,label\nfour {{x}},f\n")
    (tmp_path / "p" / "d.yaml").write_text("- {role: system, content: five}\n- {role: user, content: '{{x}}'}\n")
    chat = [
        {"role": "system", "content": "six"},
        {"role": "user", "content": [{"type": "text", "text": "{{x}}"}]},
        {"role": "assistant", "content": "seven"},
        {"role": "user", "content": "{{y}}"},
    ]
    (tmp_path / "p" / "e.json").write_text(json.dumps(chat))
    text = (
        "prompts: [p/a.txt, 'file://p/*.md', {id: file://p/c.csv, label: l}, file://p/d.yaml, file://p/e.json,"
        ' {raw: "eight {{x}}", label: eight}, "eight {{x}}"]\nproviders: openai:gpt-4o\n'
        "tests: [{vars: {x: 1, y: 2}}]\n"
    )
    project = of(tmp_path, text)
    assert config(project)["space"]["rubric"] == [
        "one {x} {y}",
        "two {x}",
        "# three\n\n---\n{x}",
        "four {x}",
        "five\n\n{x}",
        "six\n\nUser: {x}\n\nAssistant: seven\n\nUser: {y}",
        "eight {x}",
    ]
    assert "the same text as 'eight'" in why(project, "a prompt")
    assert "became one user turn" in why(project, "a chat prompt")


# ---------------------------------------------------------------- tests and assertions


def test_defaults_lie_under_tests(tmp_path: Path) -> None:
    text = """
prompts: ["{{q}} {{tone}}"]
providers: [openai:gpt-4o]
defaultTest:
  vars: {tone: kind, answer: "{{q}}!"}
  metadata: {of: default, kept: 1}
  assert: [{type: equals, value: "{{answer}}"}, {type: icontains, value: a}]
tests:
  - vars: {q: [a, b], tone: curt}
    metadata: {of: test}
  - vars: {q: c}
    options: {disableDefaultAsserts: true}
    assert: [{type: equals, value: d}, {type: icontains, value: a}, {type: not-regex, value: "x+"}]
"""
    project = of(tmp_path, text)
    found = rows(project)
    assert [row["input"] for row in found] == [
        {"q": "a", "tone": "curt"},
        {"q": "b", "tone": "curt"},
        {"q": "c", "tone": "kind"},
    ]
    assert [row["expected"] for row in found] == ["a!", "b!", "d"]
    assert found[0]["meta"]["metadata"] == {"of": "test", "kept": 1}
    assert [row["meta"].get("assert") for row in found] == [None, None, [{"type": "not-regex", "value": "x+"}]]
    kinds = [scorer["kind"] for scorer in config(project)["task"]["scorers"]]
    assert kinds == ["exact", "includes", "function"]


def test_all_kinds_that_tests_share_are_declared(tmp_path: Path) -> None:
    asserts: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"type": "contains", "value": 7}, {"kind": "includes", "texts": ["7"], "need": "all", "ignore_case": False}),
        (
            {"type": "not-icontains-any", "value": ["a", "b"], "metric": "clean"},
            {"kind": "includes", "texts": ["a", "b"], "need": "none", "ignore_case": True, "name": "clean"},
        ),
        ({"type": "regex", "value": "^a"}, {"kind": "matches", "pattern": "^a", "present": True}),
        ({"type": "not-starts-with", "value": "a.b"}, {"kind": "matches", "pattern": r"\Aa\.b", "present": False}),
        ({"type": "is-json"}, {"kind": "is_json"}),
        ({"type": "contains-json", "value": {"type": "object"}}, {"kind": "is_json", "inside": True}),
        (
            {"type": "word-count", "value": {"min": 2, "max": 9}},
            {"kind": "length", "unit": "words", "min": 2, "max": 9},
        ),
        ({"type": "cost", "threshold": 0.01}, {"kind": "cost", "max_usd": 0.01}),
        ({"type": "latency", "threshold": 900, "weight": 3}, {"kind": "latency", "max_ms": 900}),
    ]
    (tmp_path / "tests.json").write_text(json.dumps([{"vars": {"q": q}} for q in "ab"]))
    default = json.dumps({"assert": [given for given, _ in asserts]})
    text = f"prompts: ['{{{{q}}}}']\nproviders: [openai:gpt-4o]\ntests: file://tests.json\ndefaultTest: {default}\n"
    project = of(tmp_path, text)
    scorers = config(project)["task"]["scorers"]
    assert len(scorers) == len(asserts)
    for scorer, (_, wanted) in zip(scorers, asserts, strict=True):
        assert wanted.items() <= scorer.items()
    assert config(project)["task"]["weights"] == {"latency": 3}
    assert "evals.py" not in project.files


@pytest.mark.parametrize("kind", sorted(LEFT))
def test_every_kind_that_is_known_and_not_taken_is_left_out_with_advice(tmp_path: Path, kind: str) -> None:
    text = (
        f"prompts: ['{{{{q}}}}']\nproviders: [openai:gpt-4o]\ntests: [{{vars: {{q: a}}, assert: [{{type: '{kind}'}}]}}]"
    )
    project = of(tmp_path, text)
    assert list(left(project)) == [f"assertion {kind}"]
    assert left(project)[f"assertion {kind}"] == ["promptfooconfig.yaml:3 tests.0.assert.0"]
    assert len(why(project, f"assertion {kind}")) > 20


CELLS = (
    ("Paris", {"type": "equals", "value": "Paris"}),
    ("contains: Paris", {"type": "contains", "value": "Paris"}),
    ("contains:paris", {"type": "contains", "value": "paris"}),
    ("not-contains:error", {"type": "not-contains", "value": "error"}),
    ('contains-any: a, "b, c"', {"type": "contains-any", "value": ["a", "b, c"]}),
    ("similar(0.8):Hello there", {"type": "similar", "value": "Hello there", "threshold": 0.8}),
    ("levenshtein(5): x", {"type": "levenshtein", "value": "x", "threshold": 5.0}),
    ("is-json", {"type": "is-json"}),
    ("grade: is kind", {"type": "llm-rubric", "value": "is kind"}),
    ("fn:output.length", {"type": "javascript", "value": "output.length"}),
    ("python: len(output) > 3", {"type": "python", "value": "len(output) > 3"}),
    ("file://check.py:fine", {"type": "python", "value": "file://check.py:fine"}),
    ("note: not a type", {"type": "equals", "value": "note: not a type"}),
    ("12:30", {"type": "equals", "value": "12:30"}),
)


@pytest.mark.parametrize(("cell", "meant"), CELLS)
def test_assertions_in_cells(cell: str, meant: dict[str, Any]) -> None:
    assert assertion_of(cell) == meant


def test_columns_that_set_up_assertions(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "q,__expected1,__expected2,__metric,__threshold,__config:__expected2:threshold,__suffix,__odd\n"
        "a,contains: x,rouge-n: y,facts,0.5,0.4,!,1\n"
        "b,contains: z,rouge-n: y,facts,0.5,0.4,!,\n"
    )
    project = of(tmp_path, "prompts: ['{{q}}']\nproviders: [openai:gpt-4o]\ntests: t.csv\n")
    assert config(project)["space"]["rubric"] == ["{input}!"]
    assert config(project)["task"]["validator"] == {"threshold": 0.5}
    assert config(project)["task"]["scorers"][0] == {"kind": "contains", "ignore_case": False, "name": "facts"}
    assert [row["expected"] for row in rows(project)] == ["x", "z"]
    shared = {"type": "rouge-n", "threshold": 0.4, "metric": "facts", "value": "y"}
    assert rows(project)[1]["meta"]["assert"] == [shared]
    assert left(project) == {"column __odd": ["t.csv:2"]}


def test_anchors_and_references(tmp_path: Path) -> None:
    text = """
x-common: &common
  metadata: {set: one}
  assert: [{$ref: '#/assertionTemplates/kind'}]
assertionTemplates: {kind: {type: contains, value: please}}
prompts: ["{{q}}"]
providers: [openai:gpt-4o]
tests:
  - <<: *common
    vars: {q: a}
  - <<: *common
    vars: {q: b}
    metadata: {set: two}
"""
    project = of(tmp_path, text)
    assert [row["meta"]["metadata"]["set"] for row in rows(project)] == ["one", "two"]
    assert config(project)["task"]["scorers"][0]["texts"] == ["please"]
    assert list(left(project)) == ["x-common"]


def test_unknown_settings_are_listed_wherever_they_stand(tmp_path: Path) -> None:
    text = """
topmost: 1
prompts: [{raw: "{{q}}", odd_prompt: 1}]
providers: [{id: openai:gpt-4o, odd_provider: 1, config: {odd_setting: 1}}]
evaluateOptions: {odd_option: 1}
defaultTest: {odd_default: 1}
scenarios: [{odd_scenario: 1, config: [{vars: {q: b}}], tests: [{assert: [{type: contains, value: x}]}]}]
tests:
  - vars: {q: a}
    odd_test: 1
    options: {odd_inner: 1}
    assert: [{type: contains, value: x, odd_assert: 1}]
"""
    found = " ".join(left(of(tmp_path, text)))
    for name in (
        "topmost",
        "prompt",
        "provider",
        "setting",
        "option",
        "default",
        "scenario",
        "test",
        "inner",
        "assert",
    ):
        assert name in found
    assert found.count("odd_") == 9


def test_patterns_become_python() -> None:
    assert pattern(r"(?<y>\d{4})-\k<y>") == r"(?P<y>\d{4})-(?P=y)"
    assert pattern(r"(?<=a)b(?<!c)") == r"(?<=a)b(?<!c)"
    with pytest.raises(NotTaken, match="is not one in Python"):
        pattern("(a")


@pytest.mark.parametrize("code", ["x = ", "return 1\n)\nimport os", "pass\n\ndef other():\n  pass\n    ]"])
def test_what_is_no_function_body_is_not_taken(code: str) -> None:
    with pytest.raises(NotTaken):
        inline("python_1", code)


def test_code_cannot_leave_its_function() -> None:
    """What is copied is one function, whatever the text does to look like more."""
    namespace: dict[str, Any] = {"Any": Any}
    source = inline("python_1", "len(output) > 3")
    exec(compile(source, "evals.py", "exec"), namespace)
    assert namespace["python_1"]("long", {}) is True
    with pytest.raises(NotTaken):
        inline("python_1", "1)\nprint('ran')\n(2")


def test_graders_are_models_of_their_own(tmp_path: Path) -> None:
    text = """
prompts: ["{{q}}"]
providers: [openai:gpt-4o]
defaultTest:
  options: {provider: openai:gpt-4o}
  assert:
    - {type: llm-rubric, value: is kind, metric: kind}
    - {type: not-g-eval, value: [rude, loud], provider: xai:grok-3}
tests: [{vars: {q: a}}, {vars: {q: b}}]
"""
    project = of(tmp_path, text)
    scorers = config(project)["task"]["scorers"]
    assert {scorer["model"] for scorer in scorers} == {"judge-grok-3"}
    assert config(project)["models"]["judge-grok-3"]["model"] == "xai/grok-3"
    assert config(project)["space"]["model"] == ["gpt-4o"]
    assert "is kind" in project.files["rubrics/kind.md"]
    assert "It is not so that: rude\nloud" in project.files["rubrics/rubric-2.md"]
    assert "one model grades by all rubrics" in why(project, "a second grader")


def test_every_kind_of_promptfoo_is_accounted_for() -> None:
    """The types of its documentation: each is taken, graded, or left out with a reason."""
    documented = """
    equals contains icontains regex starts-with contains-any contains-all icontains-any icontains-all is-json
    contains-json contains-html is-html is-sql contains-sql is-xml contains-xml is-refusal javascript python ruby
    webhook rouge-n bleu gleu levenshtein latency meteor perplexity perplexity-score cost is-valid-function-call
    is-valid-openai-function-call is-valid-openai-tools-call tool-call-f1 trace-span-count trace-span-duration
    trace-error-spans skill-used trajectory:tool-used trajectory:tool-args-match trajectory:tool-sequence
    trajectory:step-count guardrails finish-reason word-count assert-set similar classifier moderation llm-rubric
    g-eval answer-relevance context-faithfulness context-recall context-relevance conversation-relevance
    trajectory:goal-success factuality model-graded-closedqa pi select-best max-score search-rubric
    """
    assert set(documented.split()) - KINDS == set()
    assert not set(JUDGED) & set(LEFT)
