"""A promptfoo config as a project of ours: config, examples, evals, rubrics, and a report of what became of it.

    convert(path) -> Project(files, report)

prompts -> rubrics; providers -> models; variables that prompts show -> the input of examples, the others -> their
meta; assertions -> scorers. Nothing in the file is run, nothing outside its folder is read, no secret is copied, and
whatever has no counterpart is named with its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evocluster.cli.imported import Cursor, Folder, NotTaken, Report
from evocluster.cli.promptfoo_assertions import Checks, Judged, PythonFunctions, Reader
from evocluster.cli.promptfoo_prompts import Prompts
from evocluster.cli.promptfoo_prompts import read as read_prompts
from evocluster.cli.promptfoo_providers import MAX_TOKENS, Providers
from evocluster.cli.promptfoo_scorers import Plan, plan
from evocluster.cli.promptfoo_tests import Case, Tests
from evocluster.cli.schema import MODELINE
from evocluster.cli.yamltext import dumped, flow
from evocluster.errors import ConfigError
from evocluster.records import Json

EXAMPLES = "examples.jsonl"
FEW = 40
"""Tests; fewer leave splits too small to tell configurations apart."""
GRADER = {"kind": "auto", "model": "openai/gpt-4.1"}
"""promptfoo's own grader where it finds a key of OpenAI."""
_TELLING = ("prompts", "providers", "targets", "tests", "scenarios", "defaultTest")
_TOP: Mapping[str, tuple[str, str]] = {
    "env": ("values of the environment are never copied", "set them in your shell"),
    "redteam": ("attacks are not generated", "add checks under task.safety"),
    "extensions": ("no program of the file is run", "use a pipeline (`executor`)"),
    "nunjucksFilters": ("no program of the file is run", "put what they make into variables of the tests"),
    "derivedMetrics": ("there are no metrics made of others", "write a function in evals.py"),
    "outputPath": ("results go to a run folder", "see evocluster show, report and export"),
    "commandLineOptions": ("options are given to evocluster itself", "see evocluster run --help"),
    "sharing": ("nothing is shared", "nothing"),
    "tags": ("runs have a name and no tags", "nothing"),
    "metadata": ("runs have a name and no metadata", "nothing"),
}
_TAKEN = (*_TELLING, "description", "evaluateOptions", "assertionTemplates", "$schema")
_OPTIONS: Mapping[str, tuple[str, str]] = {
    "repeat": ("an evaluation is repeated only where it is cached apart", "raise the number of examples instead"),
    "delay": ("calls are paced by `max_concurrency` of a model", "set it where a provider asks for it"),
    "showProgressBar": ("progress is always shown", "nothing"),
    "cache": ("completions are cached", "set cache.enabled: false to ask again"),
    "maxEvalTimeMs": ("a budget ends the search", "set budget.minutes"),
}


class Project(NamedTuple):
    """What an import makes."""

    files: dict[str, str]
    """Path below the project's folder -> text."""
    report: Report


def convert(path: Path) -> Project:
    """The project of a promptfoo config. Raises: ConfigError when the file is none."""
    report = Report(path.name)
    folder = Folder(path.parent, report)
    top = _opened(path, folder)
    _leave_rest(top, report)
    providers = Providers(folder, report)
    section = "providers" if "providers" in top.value else "targets"
    names = providers.read(top.get(section))
    prompts = Prompts(read_prompts(top.get("prompts"), folder, report), report)
    tests = Tests(folder, report, top.get("defaultTest"))
    cases = [*tests.read(top.get("tests")), *tests.scenarios(top.get("scenarios"))]
    python = PythonFunctions()
    reader = Reader(folder, report, python)
    checks = [reader.checks(case.asserts, case.variables) for case in cases]
    scored = plan(checks, prompts, python, _grader(providers, cases, report), report)
    if python.names:
        why = "it was copied into evals.py, and every run will run it"
        report.change("", "the config's own Python", why, "read it before you run it")
    rubrics = _affixed(prompts.rubrics(), cases, report)
    config = _config(top, names, providers, rubrics, cases, scored, report)
    _count(report, top, (rubrics, names), cases, checks, scored)
    _needs(report, cases, scored, names, rubrics)
    _try(config, report)
    files = {
        "config.yaml": _text(config, path.name),
        EXAMPLES: _examples(cases, prompts, scored, python),
        **scored.files,
    }
    return Project({**files, "IMPORT.md": report.markdown()}, report)


def _opened(path: Path, folder: Folder) -> Cursor:
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ConfigError(f"{str(path)!r}: only configs in .yaml, .yml and .json are imported; no program is run")
    if not path.is_file():
        raise ConfigError(f"{str(path)!r}: there is no such file; name a promptfooconfig.yaml")
    try:
        top = folder.load(path)
    except NotTaken as problem:
        raise ConfigError(f"{problem.why}; {problem.do}") from problem
    keys = list(top.value) if isinstance(top.value, Mapping) else []
    if {"task", "space"} <= set(keys):
        raise ConfigError(f"{str(path)!r} is a config of evocluster already; run it: evocluster run {path}")
    if not set(_TELLING) & set(keys):
        shown = f"its settings are {', '.join(map(str, keys[:8]))}" if keys else "it is no mapping of settings"
        raise ConfigError(f"{str(path)!r} is no promptfoo config: {shown}; a config has some of {', '.join(_TELLING)}")
    return top


def _leave_rest(top: Cursor, report: Report) -> None:
    unknown = ("it has no counterpart here", "check what it did there")
    for name, value in top.items():
        if name not in _TAKEN:
            report.leave(value.where, name, *_TOP.get(name, unknown))
    for name, value in top.get("evaluateOptions").items():
        if name not in ("maxConcurrency", "timeoutMs"):
            report.leave(value.where, f"evaluateOptions.{name}", *_OPTIONS.get(name, unknown))


def _grader(providers: Providers, cases: Sequence[Case], report: Report) -> Callable[[Sequence[Judged]], str]:
    def choose(judged: Sequence[Judged]) -> str:
        """The first grader that is named; the model of all rubrics."""
        named = [one.grader for one in judged if one.grader is not None]
        named += [case.options["provider"] for case in cases if "provider" in case.options]
        different = {json.dumps(each.value, sort_keys=True): each for each in named}
        for number, each in enumerate(different.values()):
            if number == 0:
                continue
            report.change(each.where, "a second grader", "one model grades by all rubrics", "change `model` of a judge")
        for each in named:
            try:
                return providers.grader(each)
            except NotTaken as problem:
                report.leave(each.where, "a grader", problem.why, problem.do)
        providers.models["grader"] = dict(GRADER)
        report.need(
            "the model that grades",
            f"the file names none; promptfoo's own choice with a key of OpenAI was written, {GRADER['model']}",
            "put the model of your choice under models.grader",
        )
        return "grader"

    return choose


def _affixed(rubrics: Mapping[str, str], cases: Sequence[Case], report: Report) -> dict[str, str]:
    """Rubrics with the prefix and suffix that all tests share."""
    ends = {"prefix": "", "suffix": ""}
    for name in ends:
        found = {str(case.options[name].value) if name in case.options else "" for case in cases}
        if len(found) == 1 and "{{" not in (text := found.pop()):
            ends[name] = text
            continue
        for case in cases:
            if name in case.options:
                why = f"prompts get a {name} only where all tests have the same"
                report.leave(case.options[name].where, f"options.{name}", why, "write it into the prompts")
    return {f"{ends['prefix']}{text}{ends['suffix']}": label for text, label in rubrics.items()}


# ---------------------------------------------------------------- what is written


def _config(
    top: Cursor,
    names: Sequence[str],
    providers: Providers,
    rubrics: Mapping[str, str],
    cases: Sequence[Case],
    scored: Plan,
    report: Report,
) -> dict[str, Any]:
    """The config as plain data, its sections in their order."""
    models = providers.models
    names = list(names)
    if not names:
        models["stand-in"] = {"kind": "scripted", "default": "I am a stand-in; put a model in my place."}
        names = ["stand-in"]
    timeout = top.get("evaluateOptions").get("timeoutMs").value
    if isinstance(timeout, int | float) and timeout > 0:
        for model in models.values():
            model["timeout_s"] = timeout / 1000
    texts = [*rubrics] or [""]
    genes = {
        "model": names,
        "rubric": texts,
        "temperature": sorted(set(providers.temperatures)) or [0],
        "max_tokens": sorted(set(providers.max_tokens)) or [MAX_TOKENS],
    }
    start = {
        "model": names[0],
        "rubric": texts[0],
        "temperature": (providers.temperatures or [0])[0],
        "max_tokens": (providers.max_tokens or [MAX_TOKENS])[0],
    }
    together = top.get("evaluateOptions").get("maxConcurrency").value
    engine = {"runner": "local", **({"in_flight": together} if isinstance(together, int) and together > 0 else {})}
    return {
        "name": _name(top),
        "seed": 0,
        "task": _task(cases, scored, report),
        "models": models,
        "space": genes,
        "start": [start],
        "recommend": "best quality",
        "budget": {"calls": 2000, "usd": 2, "minutes": 30},
        "engine": engine,
    }


def _task(cases: Sequence[Case], scored: Plan, report: Report) -> dict[str, Json]:
    task: dict[str, Json] = {
        "kind": "extraction" if scored.json else "text",
        "data": {"train": EXAMPLES, "split": {"validation": 0.25, "test": 0.25}},
        "scorers": scored.scorers,
    }
    if scored.schema is not None:
        task["json_schema"] = scored.schema
    if scored.weights:
        task["weights"] = scored.weights
    thresholds = {case.threshold for case in cases}
    if len(thresholds) == 1 and (threshold := thresholds.pop()) is not None:
        task["validator"] = {"threshold": min(1.0, max(0.0, float(threshold)))}
        why = "it became the threshold that robustness is held against (task.validator)"
        report.change("", "the threshold of all tests", why)
    elif len(thresholds) > 1:
        for case in cases:
            if case.threshold is not None:
                why = "tests have no thresholds of their own here: the mean over their assertions counts"
                report.leave(case.where, "threshold of a test", why, "see task.validator and task.must_pass")
    return task


def _text(config: Mapping[str, Json], source: str) -> str:
    """The config as YAML with what each section is for."""
    told = {
        "task": "What is to be answered, and how answers are judged. Validation and test are carved from the one file.",
        "models": "Prices: those without `price` are looked up in litellm's list; unknown is an error, not zero.",
        "space": "What may vary; widen it: temperature: {low: 0, high: 1}, cot: [false, true], demos: {max: 4}...",
        "start": "What ran until now: the search begins here and is compared with it.",
        "recommend": "Which configuration of the front to take.",
        "budget": "The first limit that is reached ends the search.",
        "engine": "Where it runs: local is this process; ray uses the whole machine, or a cluster.",
    }
    name = re.sub(r"\s+", " ", source)
    lines = [MODELINE, f"# Made of {name}; what was left out or changed stands in IMPORT.md.", ""]
    for section, value in config.items():
        if section in told:
            lines += ["", f"# {told[section]}"]
        whole = isinstance(value, Mapping | list) and section not in ("budget", "engine")
        lines.append(f"{section}:\n{dumped(value, 2)}" if whole else f"{section}: {flow(value)}")
    return "\n".join(lines) + "\n"


def _examples(cases: Sequence[Case], prompts: Prompts, scored: Plan, python: PythonFunctions) -> str:
    rows = []
    width = len(str(len(cases)))
    for number, case in enumerate(cases):
        meta: dict[str, Json] = {}
        if case.description:
            meta["description"] = case.description
        unseen = {
            name: value for name, value in case.variables.items() if python.names or name not in prompts.variables
        }
        if unseen:
            meta["vars"] = unseen
        if case.metadata:
            meta["metadata"] = dict(case.metadata)
        if scored.kept[number]:
            meta["assert"] = scored.kept[number]
        rows.append(
            {
                "id": f"t{number + 1:0{width}d}",
                "input": prompts.input(case.variables),
                "expected": scored.expected[number],
                "meta": meta,
            }
        )
    if not rows:
        rows = [{"id": "t1", "input": "put an input here", "expected": None, "meta": {}}]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _name(top: Cursor) -> str:
    text = str(top.get("description").value or "")
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._").lower()[:40].strip("-._")
    return words or "imported"


# ---------------------------------------------------------------- what is said


def _count(
    report: Report,
    top: Cursor,
    found: tuple[Mapping[str, str], Sequence[str]],
    cases: Sequence[Case],
    checks: Sequence[Checks],
    scored: Plan,
) -> None:
    scorers = ", ".join(str(scorer["name"]) for scorer in scored.scorers)
    asserts = sum(len(case.asserts) for case in cases)
    taken = sum(len(each.plain) + len(each.judged) for each in checks)
    rubrics, names = found
    given = [*top.get("providers"), *top.get("targets")]
    report.took = [
        f"{len(list(top.get('prompts')))} prompts -> {len(rubrics)} rubrics under `space`, the first is the start",
        f"{len(given)} providers -> {len(names)} models: {', '.join(names) or 'none'}",
        f"{len(cases)} tests -> {EXAMPLES}",
        f"{taken} of {asserts} assertions -> scorers: {scorers}",
    ]


def _needs(
    report: Report, cases: Sequence[Case], scored: Plan, names: Sequence[str], rubrics: Mapping[str, str]
) -> None:
    if not names:
        why = "no provider could be taken; a stand-in answers the same text always, and its scores mean nothing"
        report.need("the model", why, "put a model under `models` and name it under space.model")
    if not rubrics:
        report.need("the prompt", "no prompt could be taken", "write one under space.rubric and start")
    if not cases:
        report.need("the examples", "no test could be taken", f"write examples into {EXAMPLES}")
    elif len(cases) < FEW:
        report.need(
            "more examples",
            f"promptfoo has one list of tests; {len(cases)} of them become train, validation and test, and with "
            f"a quarter of them for the test, differences below {min(1.0, 2 / len(cases) ** 0.5):.0%} may be chance",
            f"add tests, {FEW} or more; or name files of their own under task.data",
        )
    else:
        report.change("", "the list of tests", "a half is train, a quarter validation, a quarter test (task.data)")
    if len(scored.scorers) > 1 or (scored.kept and any(scored.kept)):
        why = "promptfoo passes a test when every assertion does; here quality is their mean by weight"
        report.change("", "passing", why, "name scorers that must not fail under task.must_pass")


def _try(config: Mapping[str, Json], report: Report) -> None:
    from evocluster import config as configs

    try:
        configs.parse(config, name="config.yaml")
    except ConfigError as error:
        for line in str(error).splitlines():
            report.need("config.yaml", f"it does not load yet: {line}", "correct it there")
