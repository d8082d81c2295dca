"""The config file: what loads, what is refused, and how well the refusal reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_config

from evocluster import config as configs
from evocluster import document as documents
from evocluster.config import Config
from evocluster.errors import ConfigError
from evocluster.llm.direct import Direct
from evocluster.llm.scripted import Scripted

ROOT = Path(__file__).resolve().parents[1]

RUN = """\
name: run
seed: 7
task:
  kind: classification
  data:
    train: rows/train.jsonl
  labels: ['yes', no]
  label_names:
    plain: {'yes': agreed, no: refused}
  scorers:
    - kind: label
    - {kind: contains, name: word}
models:
  small: {kind: scripted}
  gpt-4.1: {kind: direct, base_url: http://127.0.0.1:9/v1, model: big, key_env: SOME_KEY}
space:
  rubric: [Sort it., 'Which one?']
  temperature: {low: 0.0, high: 1.0}
  model: [small, gpt-4.1]
  demos: {max: 4}
start:
  - rubric: Sort it.
    model: small
objectives: [quality, cost_usd]
budget:
  calls: 100
engine:
  in_flight: 8
"""


def write(folder: Path, text: str = RUN) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str = RUN, sets: tuple[str, ...] = ()) -> list[str]:
    """The lines of the one error, the folder taken off."""
    with pytest.raises(ConfigError) as caught:
        configs.load(write(folder, text), sets)
    return str(caught.value).replace(f"{folder}/", "").split("\n")


def changed(old: str, new: str) -> str:
    assert RUN.count(old) == 1
    return RUN.replace(old, new)


def test_loads_what_was_written(tmp_path: Path) -> None:
    config = configs.load(write(tmp_path))
    assert config.name == "run"
    assert config.task is not None
    assert config.task.labels == ("yes", "no")
    assert config.task.data.train == str(tmp_path / "rows/train.jsonl")
    assert isinstance(config.models["small"], Scripted)
    assert isinstance(config.resolved_models()["gpt-4.1"], Direct)
    assert [one.name for one in config.objectives] == ["quality", "cost_usd"]
    assert config.engine.runner == "ray"
    assert config.root == tmp_path
    folder = config.cache.folder()
    assert folder is not None
    assert folder.is_absolute()


def test_objectives_default_to_four(tmp_path: Path) -> None:
    config = configs.load(write(tmp_path, changed("objectives: [quality, cost_usd]\n", "")))
    assert [one.name for one in config.objectives] == ["quality", "latency_ms", "cost_usd", "robustness"]


def test_constraints_and_rules_may_name_own_objectives(tmp_path: Path) -> None:
    own = "objectives: [quality, {name: brevity, source: scores.word}]\nrecommend: cheapest where brevity >= 0.5\n"
    own += "constraints: [brevity >= 0.3, scores.label > 0.1, {objective: latency, aggregate: p95, max: 900}]\n"
    config = configs.load(write(tmp_path, changed("objectives: [quality, cost_usd]\n", own)))
    said = ["brevity >= 0.3", "scores.label > 0.1", "latency p95 <= 900"]
    assert [str(one) for one in config.constraints] == said
    dumped = configs.dump(config)
    assert yaml.safe_load(dumped)["constraints"] == said
    assert configs.load(write(tmp_path, dumped)) == config


BAD: tuple[tuple[str, str, str], ...] = (
    # misspelt sections and settings
    (
        "engine:\n",
        "enginee:\n",
        "run.yaml:27: enginee: unknown setting; allowed: name, seed, * did you mean 'engine'?",
    ),
    (
        "in_flight: 8",
        "in_flite: 8",
        "run.yaml:28: engine.in_flite: unknown setting; allowed: runner, in_flight, workers, address; "
        "did you mean 'in_flight'?",
    ),
    # wrong types
    (
        "seed: 7",
        "seed: many",
        "run.yaml:2: seed: should be a valid integer*(got 'many'); allowed: a whole number from 0 to *",
    ),
    (
        "name: run",
        "name: 12",
        "run.yaml:1: name: should be a valid string (got 12); allowed: a text * put it in quotes",
    ),
    (
        "  calls: 100",
        "  - 100",
        "run.yaml:25: budget: should be a valid dictionary*(got [100]); allowed: a mapping of *",
    ),
    # numbers out of range
    (
        "in_flight: 8",
        "in_flight: 9000",
        "run.yaml:28: engine.in_flight: should be less than or equal to 5000 (got 9000); "
        "allowed: a whole number from 1 to 5000",
    ),
    (
        "calls: 100",
        "calls: 0",
        "run.yaml:26: budget.calls: * (got 0); allowed: a whole number from 1 or null",
    ),
    (
        "name: run",
        "name: a/b",
        "run.yaml:1: name: should match pattern *(got 'a/b'); allowed: a text matching *",
    ),
    # kinds and enumerations
    (
        "{kind: scripted}",
        "{kind: scriptd}",
        "run.yaml:14: models.small.kind: unknown kind (got 'scriptd'); allowed: scripted, direct, remote, "
        "local, auto; did you mean 'scripted'?",
    ),
    (
        "{kind: scripted}",
        "{default: x}",
        "run.yaml:14: models.small.kind: missing; allowed: scripted, direct, *",
    ),
    (
        "kind: contains",
        "kind: contians",
        "run.yaml:12: task.scorers.1.kind: unknown kind (got 'contians'); allowed: exact, * did you mean 'contains'?",
    ),
    (
        "name: word",
        "nam: word",
        "run.yaml:12: task.scorers.1.nam: unknown setting; allowed: * did you mean 'name'?",
    ),
    (
        "kind: classification",
        "kind: Classificaton",
        "run.yaml:4: task.kind: unknown value (got 'Classificaton'); allowed: classification, "
        "extraction, text; did you mean 'classification'?",
    ),
    # names that point nowhere
    (
        "model: [small, gpt-4.1]",
        "model: [smal, gpt-4.1]",
        "run.yaml:19: space.model.0: nothing of this name under models (got 'smal'); allowed: small, "
        "gpt-4.1; did you mean 'small'?",
    ),
    (
        "    model: small",
        "    model: smaal",
        "run.yaml:23: start.0.model: *(got 'smaal'); * did you mean 'small'?",
    ),
    ("    model: small", "    modl: small", "run.yaml:23: start.0.modl: *allowed: * did you mean 'model'?"),
    (
        "  model: [small, gpt-4.1]\n",
        "",
        "run.yaml:16: space.model: missing; say which of the models: [small, gpt-4.1]",
    ),
    (
        "[quality, cost_usd]",
        "[quality, scores.wrod]",
        "run.yaml:24: objectives.1: no such scorer in the task (got 'scores.wrod'); "
        "allowed: scores.label, scores.word; did you mean 'scores.word'?",
    ),
    (
        "[quality, cost_usd]",
        "[quality, quality]",
        "run.yaml:24: objectives.1: two objectives are named 'quality'; *",
    ),
    (
        "budget:",
        "recommend: best scores.wrod\nbudget:",
        "run.yaml:25: recommend: no such scorer in the task (got 'scores.wrod'); *; did you mean 'scores.word'?",
    ),
    (
        "budget:",
        "recommend: best qualty\nbudget:",
        "run.yaml:25: recommend: got 'best qualty': 'qualty' is no objective; *; did you mean 'quality'?",
    ),
    (
        "budget:",
        "constraints: [cost <= 1, qualty >= 0.8]\nbudget:",
        "run.yaml:25: constraints.1: 'qualty' is no objective; allowed: quality, cost_usd, *; did you mean 'quality'?",
    ),
    (
        "budget:",
        "constraints: [scores.wrod >= 0.8]\nbudget:",
        "run.yaml:25: constraints.0: *'scores.wrod' is no objective; *; did you mean 'scores.word'?",
    ),
    (
        "budget:",
        "constraints: [quality == 0.8]\nbudget:",
        "run.yaml:25: constraints.0: got 'quality == 0.8': '==' is no comparison; allowed: >=, <=, >, <; "
        "did you mean '>=' (at least)?",
    ),
    (
        "budget:",
        "constraints: [cost <= 1, latency p95=>900]\nbudget:",
        "run.yaml:25: constraints.1: got 'latency p95=>900': '=>' is no comparison; allowed: >=, <=, >, <; "
        "did you mean '>='?",
    ),
    (
        "budget:",
        "recommend: best quality where cost = 0.001\nbudget:",
        "run.yaml:25: recommend: got 'best quality where cost = 0.001': '=' is no comparison; "
        "allowed: >=, <=, >, <; did you mean '<=' (at most)?",
    ),
    (
        "budget:",
        "constraints:\n  - {objective: latency, aggregate: p99, max: 900}\nbudget:",
        "run.yaml:26: constraints.0.aggregate: unknown value (got 'p99'); allowed: mean, p95*",
    ),
    (
        "budget:",
        "constraints:\n  - {objective: latency, maximum: 900}\nbudget:",
        "run.yaml:26: constraints.0.maximum: unknown setting; allowed: *did you mean 'max'?",
    ),
    (
        "budget:",
        "constraints:\n  - {objective: latency, min: 1, max: 900}\nbudget:",
        "run.yaml:26: constraints.0: has min and max; give one of min, max, above, below*",
    ),
    (
        "budget:",
        "search: {rewriter: smalll}\nbudget:",
        "run.yaml:25: search.rewriter: nothing of this name under models (got 'smalll'); allowed: small, "
        "gpt-4.1; did you mean 'small'?",
    ),
    (
        "budget:",
        "search: {strategy: refine, reflector: smalll}\nbudget:",
        "run.yaml:25: search.reflector: nothing of this name under models (got 'smalll'); allowed: small, "
        "gpt-4.1; did you mean 'small'?",
    ),
    (
        "  calls: 100",
        "  target: 0.9\n  target_objective: qualty",
        "run.yaml:27: budget.target_objective: no such objective (got 'qualty'); allowed: quality, cost_usd; "
        "did you mean 'quality'?",
    ),
    (
        "  demos: {max: 4}",
        "  label_names: [plain, palin]",
        "run.yaml:20: space.label_names.1: *(got 'palin'); allowed: as_is, *plain; did you mean 'plain'?",
    ),
    # the space
    ("{low: 0.0, high: 1.0}", "{low: 2.0, high: 1.0}", "run.yaml:18: space.temperature: *2.0*below*1.0*"),
    ("{low: 0.0, high: 1.0}", "5", "run.yaml:18: space.temperature: got 5; allowed: a number from 0 to 2"),
    (
        "{low: 0.0, high: 1.0}",
        "{low: 0.0, high: 1.0, step: 0}",
        "run.yaml:18: space.temperature.step: should be greater than 0 (got 0); allowed: a number above 0",
    ),
    (
        "{max: 4}",
        "{max: -1}",
        "run.yaml:20: space.demos.max: should be greater than or equal to 0 (got -1); allowed: a whole number from 0",
    ),
    ("{max: 4}", "{max: 2.5}", "run.yaml:20: space.demos.max: should be *(got 2.5); allowed: a whole number from 0"),
    ("{max: 4}", "{}", "run.yaml:20: space.demos.max: missing; allowed: a whole number from 0"),
    (
        "{max: 4}",
        "{max: 4, mxa: 3}",
        "run.yaml:20: space.demos.mxa: unknown setting; allowed: max, min, share; did you mean 'max'?",
    ),
    ("{max: 4}", "{max: 1, min: 2}", "run.yaml:20: space.demos: min=2 must not be above max=1; lower min or raise max"),
    (
        "[Sort it., 'Which one?']",
        "{texts: []}",
        "run.yaml:17: space.rubric.texts: should have at least 1 item (got []); allowed: a list with *",
    ),
    (
        "[Sort it., 'Which one?']",
        "{texts: [a, 1]}",
        "run.yaml:17: space.rubric.texts.1: should be a valid string (got 1); allowed: a text; put it in quotes",
    ),
    (
        "[Sort it., 'Which one?']",
        "{texts: a}",
        "run.yaml:17: space.rubric.texts: should be a list (got 'a'); allowed: a list with at least one entry",
    ),
    (
        "[Sort it., 'Which one?']",
        "[a, a]",
        "run.yaml:17: space.rubric: 'a' is listed 2 times; list every text once",
    ),
    (
        "    model: small\n",
        "    model: small\n    demos: {max: 3}\n",
        "run.yaml:24: start.0.demos: got {'max': 3}; allowed: a list of ids of training examples, [] for none",
    ),
    (
        "no: refused}",
        "on: refused}",
        "run.yaml:9: task.label_names.plain: no label 'on'; labels are yes, no*",
    ),
    # missing
    ("name: run\n", "", "run.yaml:1: name: missing; allowed: a text matching *"),
    ("    train: rows/train.jsonl", "    limit: 3", "run.yaml:5: task.data.train: missing; allowed: a text"),
    (
        "  - rubric: Sort it.\n    model: small\n",
        "  []\n",
        "run.yaml:21: start: * (got []); allowed: a list with at *",
    ),
    # YAML
    ("seed: 7", "seed: 7\nname: again", "run.yaml:3: name: written twice, first at run.yaml:1; remove one"),
    ("seed: 7", "\tseed: 7", "run.yaml:2: column 1: *; indent with spaces, not tabs"),
    (
        "'Which one?'",
        "Which one?",
        "run.yaml:17: column 31: *, but got '?'; put texts that hold a question mark in quotes",
    ),
    (
        "seed: 7",
        "seed: a: 7",
        "run.yaml:2: column 8: mapping values are not allowed here; put texts that hold ': ' *",
    ),
    ("seed: 7", "seed: [7", "run.yaml:3: column 5: *expected ',' or ']'*"),
    (
        "seed: 7",
        "seed: !!python/object/apply:os.getcwd []",
        "run.yaml:2: seed: *python*allowed: texts, numbers, *",
    ),
    ("seed: 7", "seed: 7\n<<: {a: 1}", "run.yaml:3: this key cannot be used *"),
    ("name: run", "name: run\x01", "run.yaml:1: character *; remove it"),
)


@pytest.mark.parametrize(("old", "new", "said"), BAD, ids=[said.split(": ")[1] for _, _, said in BAD])
def test_refusal_names_line_value_allowed_and_fix(tmp_path: Path, old: str, new: str, said: str) -> None:
    (line,) = refusal(tmp_path, changed(old, new))
    at = 0
    pieces = said.split("*")
    for piece in pieces:
        assert piece in line[at:], line
        at = line.index(piece, at) + len(piece)
    assert line.startswith(pieces[0])
    assert line.endswith(pieces[-1])


def test_everything_wrong_with_a_gene_is_told(tmp_path: Path) -> None:
    assert refusal(tmp_path, changed("{max: 4}", "{mx: 3, min: -1}")) == [
        "run.yaml:20: space.demos.max: missing; allowed: a whole number from 0",
        "run.yaml:20: space.demos.min: should be greater than or equal to 0 (got -1); allowed: a whole number from 0",
        "run.yaml:20: space.demos.mx: unknown setting; allowed: max, min, share; did you mean 'max'?",
    ]


def test_problems_are_listed_at_once_by_line(tmp_path: Path) -> None:
    text = changed("in_flight: 8", "in_flight: 0").replace("seed: 7", "seed: -1").replace("budget:", "bugdet:")
    lines = refusal(tmp_path, text, sets=("cache.enabled=perhaps",))
    assert [line.split(": ")[:2] for line in lines] == [
        ["run.yaml:2", "seed"],
        ["run.yaml:25", "bugdet"],
        ["run.yaml:28", "engine.in_flight"],
        ["--set cache.enabled=perhaps", "cache.enabled"],
    ]


def test_long_lists_of_problems_are_cut(tmp_path: Path) -> None:
    lines = refusal(tmp_path, RUN + "".join(f"extra_{i}: 1\n" for i in range(50)))
    assert len(lines) == 31
    assert lines[-1] == "... and 20 more"


def test_sets_lie_over_the_file(tmp_path: Path) -> None:
    sets = (
        "budget.calls=5",
        "engine.runner=local",
        "cache={enabled: false}",
        "models.gpt-4.1.model=huge",
        "task.scorers.1.name=text",
        "space.temperature=[0, 1e-1]",
        "budget.minutes=",
    )
    config = configs.load(write(tmp_path), sets)
    assert config.budget.calls == 5
    assert config.engine.runner == "local"
    assert not config.cache.enabled
    model = config.models["gpt-4.1"]
    assert isinstance(model, Direct)
    assert model.model == "huge"
    assert config.task is not None
    assert config.task.scorers[1].name == "text"
    assert config.space.root["temperature"] == (0, 0.1)
    assert config.budget.minutes is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budget", "write path.to.key=value"),
        ("budget..calls=3", "write path.to.key=value"),
        ("start.3.model=small", "start has no item '3'; allowed: 0 to 0"),
        ("name.first=x", "name is 'run', which has nothing inside"),
        ("seed=[1", "column 3: "),
        ("seed=-3", "seed: should be greater than or equal to 0 (got -3); allowed: a whole number from 0"),
        ("bugdet.calls=3", "bugdet: unknown setting; allowed: "),
        (
            "engine.runner=rey",
            "engine.runner: unknown value (got 'rey'); allowed: ray, local; did you mean 'ray'?",
        ),
        ("seed={a: 1, a: 2}", "seed.a: written twice"),
    ],
)
def test_bad_set_is_named(tmp_path: Path, text: str, said: str) -> None:
    (line,) = refusal(tmp_path, sets=(text,))
    assert line.startswith(f"--set {text}: ")
    assert said in line


@pytest.mark.parametrize(
    ("old", "new", "leaked"),
    [
        ("key_env: SOME_KEY", "key_env: sk-proj-ab12cd34ef56gh78ij", "ab12cd34"),
        ("key_env: SOME_KEY", "api_key: dGhpcyBpcyBhIHNlY3JldCBrZXk5", "dGhpcyBp"),
        ("{kind: scripted}", "{kind: scripted, default: ghp_abcdefghijklmnopqrst0123}", "abcdefgh"),
        ("key_env: SOME_KEY", "headers: {X-Auth: Bearer abcdefghij0123456789}", "abcdefghij"),
    ],
)
def test_secret_is_refused_and_not_repeated(tmp_path: Path, old: str, new: str, leaked: str) -> None:
    lines = refusal(tmp_path, changed(old, new))
    assert len(lines) == 1
    assert "looks like a secret" in lines[0]
    assert "key_env: OPENAI_API_KEY" in lines[0]
    assert lines[0].startswith("run.yaml:1")
    assert leaked not in lines[0]


def test_secret_in_set_is_not_repeated(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, sets=("models.gpt-4.1.key_env=sk-ab12cd34ef56gh78ij90",))
    assert "looks like a secret" in line
    assert "ab12cd34" not in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "run.yaml:1: the file is empty; allowed: sections such as"),
        ("# only words\n", "the file is empty"),
        ("- a\n", "run.yaml:1: the file holds one seq, not a mapping"),
        ("word\n", "run.yaml:1: the file holds one str, not a mapping"),
        ("a: 1\n---\nb: 2\n", "run.yaml:2: column 1: expected a single document"),
        ("x: *y\n", "run.yaml:1: column 4: found undefined alias"),
        ("a: " + "[" * 60 + "]" * 60, "run.yaml:1: a.0.0"),
        ("a: " + "[" * 1500, "nested too deeply"),
        ("x: &x [*x]\n", "more than"),
        ("#" * 1_000_001, "has 1000001 bytes; allowed: 1000000"),
    ],
)
def test_unreadable_file(tmp_path: Path, text: str, said: str) -> None:
    (line,) = refusal(tmp_path, text)
    assert said in line


def test_alias_bomb_is_refused(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (line,) = refusal(tmp_path, "\n".join(levels))
    assert "more than 100000 values" in line


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"name: run\nseed: \xff\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:2: not UTF-8 at byte 16; save the file as UTF-8"):
        configs.load(path)


def test_missing_file_names_neighbours(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match=r"No such file.*beside it: run\.yaml; did you mean 'run\.yaml'\?"):
        configs.load(tmp_path / "runn.yaml")


def test_dump_loads_equal_from_anywhere(tmp_path: Path) -> None:
    config = configs.load(
        write(tmp_path), ["warm_start=../earlier", "cache.path=kept", "space.rubric=['a: b', '1e-3']"]
    )
    other = tmp_path / "runs" / "one"
    other.mkdir(parents=True)
    text = configs.dump(config)
    again = configs.load(write(other, text))
    assert again == config
    assert again.root != config.root
    assert configs.dump(again) == text
    assert "finalists:" in text
    assert yaml.safe_load(text)["task"]["data"]["train"] == str(tmp_path / "rows/train.jsonl")


def test_configs_differ_by_value(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert configs.load(path) == configs.load(path)
    assert configs.load(path) != configs.load(path, ["seed=8"])


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(TEXTS, TEXTS.map("one\n{}".format), st.sampled_from(["yes", "1", "1e3", "~", ".inf", "0x1", ""]))
    )
)
def test_every_text_survives_dump(texts: list[str]) -> None:
    data = _data()
    data["space"]["mood"] = [*dict.fromkeys([*texts, "calm"])]
    data["space"]["pi"] = [3.5, 1e-09, 10**15, True, None, 2e20]
    config = configs.parse(data)
    text = configs.dump(config)
    node = documents._compose(text, "text")
    document = documents.Document("text", {})
    read = document._value(node, (), lambda node: (0, ""))
    assert read["space"]["mood"] == data["space"]["mood"]
    assert configs.parse(read) == config


def _data() -> dict[str, dict[str, object]]:
    data: dict[str, dict[str, object]] = yaml.load(RUN, Loader=documents._Loader)
    return data


def test_parse_takes_plain_data(tmp_path: Path) -> None:
    data = _data()
    config = configs.parse(data, tmp_path)
    assert config == configs.load(write(tmp_path))
    assert data["task"]["data"] == {"train": "rows/train.jsonl"}
    data["engine"]["in_flight"] = 0
    with pytest.raises(ConfigError, match=r"^config: engine\.in_flight: .*\(got 0\); allowed: a whole number from 1"):
        configs.parse(data)


def test_schema_is_one_editors_can_use() -> None:
    text = json.dumps(configs.schema())
    assert configs.schema()["properties"]["engine"]
    assert str(Path.home()) not in text
    assert "Where run folders are made" in text


def test_quickstart_loads(tmp_path: Path) -> None:
    config = configs.load(ROOT / "configs/quickstart.yaml")
    assert config.name == "quickstart"
    alone = shutil.copy(ROOT / "configs/quickstart.yaml", tmp_path)
    assert isinstance(configs.load(alone), Config)


def _changed(tmp_path: Path, **task: Any) -> Path:
    data = _data()
    data["task"] = {"kind": "text", "data": {"train": "rows/train.jsonl"}, **task}
    data.pop("objectives", None)
    data.pop("recommend", None)
    data["space"] = {"rubric": ["Answer."], "model": "small", **data.pop("more", {})}
    data["start"] = [{"rubric": "Answer."}]  # type: ignore[assignment]
    path = tmp_path / "config" / "run.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def test_code_rubrics_and_documents_start_at_the_folder_of_the_config(tmp_path: Path) -> None:
    path = _changed(
        tmp_path,
        scorers=[
            {"kind": "function", "function": "../evals.py:polite", "name": "a"},
            {"kind": "function", "function": "package.evals:polite", "name": "b"},
            {"kind": "judge", "model": "small", "rubric": "rubrics/good.md"},
        ],
        executor="pipeline.py:answer",
    )
    config = configs.load(path)
    task = config.task
    assert task is not None
    root = tmp_path / "config"
    assert [getattr(scorer, "function", None) for scorer in task.scorers[:2]] == [
        f"{root / '..' / 'evals.py'}:polite",
        "package.evals:polite",
    ]
    assert getattr(task.scorers[2], "rubric", None) == str(root / "rubrics/good.md")
    assert task.executor is not None
    assert task.executor.function == f"{root / 'pipeline.py'}:answer"
    assert config.python_path == (str(root),)
    again = tmp_path / "elsewhere.yaml"
    again.write_text(configs.dump(config))
    assert configs.load(again) == config


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            {"scorers": [{"kind": "judge", "model": "smal", "rubric": "r.md"}]},
            r"run\.yaml:\d+: task\.scorers\.0\.model: nothing of this name under models \(got 'smal'\); allowed: small",
        ),
        (
            {"consensus": {"decide": "judge", "model": "bigg"}},
            r"task\.consensus\.model: nothing of this name under models \(got 'bigg'\)",
        ),
        ({"retrieval": {"documents": "docs"}}, r"task\.retrieval: nothing uses it; add a gene to `space:`"),
        ({"repairs": 9}, r"task\.repairs: .*\(got 9\); allowed: .*from 0 to 5"),
        (
            {"executor": {"function": "p.py:a", "call": 3}},
            r"task\.executor\.call: unknown setting; allowed: function, calls",
        ),
    ],
)
def test_what_the_parts_of_a_task_need(tmp_path: Path, task: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configs.load(_changed(tmp_path, **task))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"fallbacks": ["smal"]}, r"models\.small\.fallbacks\.0: nothing of this name .*'smal'.*allowed: small, gpt-4"),
        ({"fallbacks": ["gpt-4.1", "small"]}, r"models\.small\.fallbacks\.1: 'small' is the model itself"),
        ({"fallbacks": ["gpt-4.1", "gpt-4.1"]}, r"fallbacks\.1: 'gpt-4\.1' is named twice"),
        ({"hedge": 0.5}, r"models\.small\.hedge: should be less than or equal to 0\.2"),
        ({"requests_per_minute": -1}, r"requests_per_minute"),
    ],
)
def test_limits_of_models_that_cannot_be(tmp_path: Path, model: dict[str, Any], said: str) -> None:
    data = yaml.safe_load(RUN)
    data["models"]["small"].update(model)
    with pytest.raises(ConfigError, match=said):
        configs.parse(data, tmp_path)


def test_limits_of_models_reach_the_model_behind_a_name(tmp_path: Path) -> None:
    data = yaml.safe_load(RUN)
    limits = {"requests_per_minute": 60, "tokens_per_minute": 9000, "hedge": 0.05, "fallbacks": ["small"]}
    data["models"]["gpt-4.1"] = {"kind": "auto", "model": "openai/gpt-4.1", "max_concurrency": 3, **limits}
    model = configs.parse(data, tmp_path).resolved_models()["gpt-4.1"]
    assert isinstance(model, Direct)
    assert {name: model.model_dump(mode="json")[name] for name in limits} == limits
    assert (model.terms.max_concurrency, model.terms.requests_per_minute) == (3, 60)


def test_the_embedded_model_has_no_provider_to_be_patient_with(tmp_path: Path) -> None:
    data = yaml.safe_load(RUN)
    data["models"]["small"] = {"kind": "local", "name": "smollm2-135m-instruct", "hedge": 0.05}
    with pytest.raises(ConfigError, match=r"hedge.*no provider whose patience could end"):
        configs.parse(data, tmp_path)


def test_genes_that_need_something(tmp_path: Path) -> None:
    path = _changed(tmp_path)
    with pytest.raises(ConfigError, match=r"space\.retriever_topk: nothing to retrieve from; add `retrieval:"):
        configs.load(path, ["space.retriever_topk=[0, 2]"])
    with pytest.raises(ConfigError, match=r"space\.use_consensus.*: nothing of this name under models \(got 'big'\)"):
        configs.load(path, ["space.use_consensus=[1, [small, big]]"])
    with pytest.raises(ConfigError, match=r"space\.use_consensus: got 99; allowed: a number of samples from 1 to 16"):
        configs.load(path, ["space.use_consensus=[1, 99]"])
    config = configs.load(path, ["space.use_consensus=[false, true, 5, [small, small]]"])
    assert config.space.values("use_consensus") == (1, 3, 5, ("small", "small"))


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (
            {"strategy": "hybrid", "selection": "random"},
            "'random' with strategy 'hybrid'(?s:.*)allowed here: race, steady",
        ),
        ({"strategy": "refine", "selection": "generational"}, "leave `selection` out"),
        ({"selection": "race", "mode": "generational"}, "mode 'generational' with selection 'race'"),
        ({"selection": "generational", "extend": False}, "extend False (?s:.*) leave `extend` out"),
    ],
)
def test_settings_that_take_each_other_s_sense_are_refused(tmp_path: Path, search: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small_config(tmp_path, search={"population": 4, **search})
