"""The checks of all tests made into a task's scorers: what all tests share is declared, the rest stands with each test.

    plan(cases, checks, prompts, judge) -> Plan      scorers, weights, what every example expects, files to write

- one `equals` (or contains, icontains) in every test: `expected`, and the scorer of that name
- the same check in every test: a scorer in the config
- anything else: `meta.assert` of its example, applied by `checks` in evals.py
- a criterion for a judge in every test: a rubric of its own; one that differs from test to test: `expected`, which
  judges are shown as the reference
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from evocluster.cli.imported import NotTaken, Report
from evocluster.cli.nunjucks import Expression, as_text, parse
from evocluster.cli.promptfoo_assertions import Check, Checks, Judged, PythonFunctions
from evocluster.cli.promptfoo_prompts import Prompts
from evocluster.records import Json, canonical

EXPECTING: Mapping[str, Mapping[str, Json]] = {
    "equals": {"kind": "exact"},
    "contains": {"kind": "contains", "ignore_case": False},
    "icontains": {"kind": "contains"},
}
"""Assertions whose value an example may expect -> the scorer that then does the same."""
EVALS = "evals.py"


@dataclass
class Plan:
    """How answers are judged."""

    scorers: list[dict[str, Json]] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    expected: list[Json] = field(default_factory=list)
    """One for every test; null where nothing is expected."""
    kept: list[list[Check]] = field(default_factory=list)
    """For every test, the checks that stand in its `meta.assert`."""
    files: dict[str, str] = field(default_factory=dict)
    expects: str = ""
    """What `expected` is: 'answer', 'criteria' for a judge, or '' where nothing is."""
    json: bool = False
    """Every answer is a JSON object."""
    schema: dict[str, Json] | None = None
    """What all of these objects fit, where the tests say so."""

    def add(self, scorer: Mapping[str, Json], weight: float = 1.0) -> str:
        """One more scorer under a name of its own."""
        wanted = re.sub(r"[^\w.-]+", "_", str(scorer.get("name") or scorer["kind"])).strip("_") or "score"
        taken = {str(each["name"]) for each in self.scorers}
        name, number = wanted, 2
        while name in taken:
            name, number = f"{wanted}_{number}", number + 1
        self.scorers.append({**scorer, "name": name})
        if weight != 1:
            self.weights[name] = weight
        return name


def plan(
    checks: Sequence[Checks],
    prompts: Prompts,
    python: PythonFunctions,
    judge: Callable[[Sequence[Judged]], str],
    report: Report,
) -> Plan:
    """The scorers for tests with these checks; `judge` gives the name of the model that grades."""
    made = Plan(expected=[None] * len(checks), kept=[[] for _ in checks])
    _add_judges(made, checks, prompts, judge, report)
    rest = _expect(made, [list(each.plain) for each in checks], report)
    shared = _shared(rest)
    for check in shared:
        scorer = declared(check)
        if scorer is not None:
            made.add({**scorer, **_named(check)}, _weight(check))
            if len(scorer.get("texts", ())) > 1 and scorer["need"] == "all":
                report.change("", f"{check['type']} in all tests", "the share of the texts that are there counts")
            rest = [[each for each in one if each != check] for one in rest]
    made.kept = rest
    if made.json:
        made.schema = _schema(shared, made.expected)
    if any(rest):
        _add_evals(made, rest, python)
    elif not made.scorers:
        made.add({"kind": "length", "unit": "chars", "min": 1, "name": "answered"})
        report.need(
            "how answers are judged",
            "no assertion could be taken; for now any answer that is not empty counts as right",
            "add scorers under task.scorers",
        )
    return made


def declared(check: Check) -> dict[str, Json] | None:
    """The scorer that does what a check says, or None."""
    kind = str(check["type"])
    made = DECLARED.get(kind.removeprefix("not-"))
    return made(check, kind.startswith("not-")) if made else None


def _includes(check: Check, negated: bool) -> dict[str, Json] | None:
    kind, value = str(check["type"]).removeprefix("not-"), check["value"]
    if negated and kind.endswith("-all"):
        return None
    need = "none" if negated else "any" if kind.endswith("-any") else "all"
    texts = [*map(as_text, value if isinstance(value, list) else [value])]
    return {"kind": "includes", "texts": texts, "need": need, "ignore_case": kind.startswith("i")}


def _matches(check: Check, negated: bool) -> dict[str, Json]:
    pattern = check["value"] if check["type"].endswith("regex") else rf"\A{re.escape(as_text(check['value']))}"
    return {"kind": "matches", "pattern": pattern, "present": not negated}


def _is_json(check: Check, negated: bool) -> dict[str, Json] | None:
    schema = {"json_schema": check["value"]} if check.get("value") is not None else {}
    inside = {"inside": True} if check["type"] == "contains-json" else {}
    return None if negated else {"kind": "is_json", **schema, **inside}


def _length(check: Check, negated: bool) -> dict[str, Json] | None:
    value = check["value"]
    bounds: Mapping[str, Json] = value if isinstance(value, Mapping) else {"min": value, "max": value}
    ends = {name: int(bound) for name, bound in bounds.items() if name in ("min", "max")}
    return None if negated else {"kind": "length", "unit": "words", **ends}


def _limit(check: Check, negated: bool) -> dict[str, Json] | None:
    kind = str(check["type"])
    return None if negated else {"kind": kind, "max_usd" if kind == "cost" else "max_ms": check["threshold"]}


DECLARED: Mapping[str, Callable[[Check, bool], dict[str, Json] | None]] = {
    **dict.fromkeys(
        ("contains", "contains-any", "contains-all", "icontains", "icontains-any", "icontains-all"), _includes
    ),
    **dict.fromkeys(("regex", "starts-with"), _matches),
    **dict.fromkeys(("is-json", "contains-json"), _is_json),
    "word-count": _length,
    "cost": _limit,
    "latency": _limit,
}
"""Type of a check -> the scorer that does the same; a negated one may have none."""


# ---------------------------------------------------------------- expected, and what is checked with each test


def _expect(made: Plan, plain: list[list[Check]], report: Report) -> list[list[Check]]:
    """Where every test has exactly one check of a kind that can be expected, expect it; the checks that are left."""
    if made.expects:
        return plain
    for kind, scorer in EXPECTING.items():
        found = [[check for check in one if check["type"] == kind] for one in plain]
        values = [canonical(one[0].get("value")) for one in found if len(one) == 1]
        alike = len({(_weight(one[0]), one[0].get("metric")) for one in found if one}) == 1
        if len(values) < len(plain) or not alike or (kind != "equals" and len(set(values)) == 1):
            continue
        first = found[0][0]
        made.expected = [one[0].get("value") for one in found]
        made.expects = "answer"
        made.json = kind == "equals" and all(isinstance(value, Mapping) for value in made.expected)
        if made.json:
            made.add({"kind": "json_equal", **_named(first)}, _weight(first))
        else:
            made.expected = [as_text(value) for value in made.expected]
            made.add({**scorer, **_named(first)}, _weight(first))
            _hint_labels(made.expected, kind, report)
        return [[check for check in one if check["type"] != kind] for one in plain]
    return plain


def _hint_labels(expected: Sequence[str], kind: str, report: Report) -> None:
    labels = sorted(set(expected))
    if kind == "equals" and 2 <= len(labels) <= min(20, len(expected) / 2):
        report.need(
            "kind of the task",
            f"only {len(labels)} different answers are expected ({', '.join(labels[:6])}...), which look like labels",
            "kind: classification with `labels:` reads them out of longer answers too, and may limit answers to them",
        )


def _shared(rest: Sequence[Sequence[Check]]) -> list[Check]:
    """The checks that every test has, in the order of the first."""
    if not rest:
        return []
    others = [{canonical(check) for check in one} for one in rest[1:]]
    return [check for check in rest[0] if all(canonical(check) in one for one in others)]


def _schema(shared: Sequence[Check], expected: Sequence[Json]) -> dict[str, Json] | None:
    """The JSON schema that all tests ask for, where everything that is expected fits it."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    for check in shared:
        schema = check.get("value")
        if check["type"] == "is-json" and isinstance(schema, dict):
            try:
                validator_for(schema).check_schema(schema)
            except SchemaError:
                continue
            validator = validator_for(schema)(schema, registry=Registry())
            if all(validator.is_valid(value) for value in expected):
                return schema
    return None


def _add_evals(made: Plan, rest: Sequence[Sequence[Check]], python: PythonFunctions) -> None:
    """The scorer `checks`, its weight the mean of what the tests' own checks weigh; metrics are watched besides."""
    weight = sum(_weight(check) for one in rest for check in one) / len(rest)
    made.add({"kind": "function", "function": f"{EVALS}:checks", "name": "checks"}, round(weight, 4))
    source = (files("evocluster.cli") / "starters" / "promptfoo" / "imported_evals.py").read_text(encoding="utf-8")
    used = {check["value"] for one in rest for check in _flat(one) if check["type"].removeprefix("not-") == "python"}
    parts = [source.rstrip("\n") + "\n"]
    for name in sorted(used & set(python.sources), key=list(python.sources).index):
        gap = "\n\n" if python.sources[name].startswith("def ") else "\n"
        parts.append(f"{gap}{python.sources[name]}\n\nPYTHON[{json.dumps(name)}] = {name}\n")
    metrics = sorted({str(check["metric"]) for one in rest for check in _flat(one) if check.get("metric")})
    for number, metric in enumerate(metrics, 1):
        parts.append(f"\nmetric_{number} = metric({json.dumps(metric)})\n")
        made.add({"kind": "function", "function": f"{EVALS}:metric_{number}", "name": metric}, 0)
    made.files[EVALS] = "".join(parts)
    made.files |= {f"asserts/{path}": text for path, text in python.files.items()}


def _flat(checks: Sequence[Check]) -> list[Check]:
    return [each for check in checks for each in (check, *_flat(check.get("assert", [])))]


# ---------------------------------------------------------------- judges


def _add_judges(
    made: Plan,
    checks: Sequence[Checks],
    prompts: Prompts,
    judge: Callable[[Sequence[Judged]], str],
    report: Report,
) -> None:
    every = [one for each in checks for one in each.judged]
    if not every:
        return
    model = judge(every)
    sizes = [len({_key(one, prompts) for one in each.judged}) for each in checks]
    keys = [{_key(one, prompts): one for one in each.judged} for each in checks]
    shared = [key for key in keys[0] if all(key in other for other in keys)] if min(sizes) else []
    for number, key in enumerate(shared, 1):
        one = keys[0][key]
        path = f"rubrics/{_slug(one.metric) or f'rubric-{number}'}.md"
        path = path if path not in made.files else f"rubrics/rubric-{number}.md"
        made.files[path] = rubric(_about(one, prompts), reference=False)
        made.add(
            {"kind": "judge", "model": model, "rubric": path, **({"name": one.metric} if one.metric else {})},
            one.weight,
        )
    own = [[one for key, one in each.items() if key not in shared] for each in keys]
    if any(own):
        _add_criteria(made, own, model, report)


def _add_criteria(made: Plan, own: Sequence[Sequence[Judged]], model: str, report: Report) -> None:
    """Criteria that differ from test to test: each test expects its own, and one judge grades by them."""
    made.expected = [_numbered([one.text for one in each]) for each in own]
    made.expects = "criteria"
    made.files["rubrics/criteria.md"] = rubric(CRITERIA, reference=True)
    weight = sum(one.weight for each in own for one in each) / len(own)
    made.add({"kind": "judge", "model": model, "rubric": "rubrics/criteria.md", "name": "criteria"}, round(weight, 4))
    without = sum(not each for each in own)
    lacking = f"; {without} tests have none and get full marks, which costs a call each" if without else ""
    report.change(
        "",
        "rubrics that differ from test to test",
        f"they stand in `expected` of each example, which the judge is shown as its reference{lacking}",
    )


CRITERIA = """The reference is a list of criteria and no answer. Grade how well the answer meets them.

1: it meets all of them
0.5: it meets about half of them
0: it meets none of them

Where there is no reference there is nothing to grade: give 1."""


def rubric(text: str, reference: bool) -> str:
    """A rubric file."""
    head = f"---\nversion: 1\nscale: 0-1\nneeds_expected: {json.dumps(reference)}\n---\n"
    return f"{head}{text.strip()}\n"


def _about(one: Judged, prompts: Prompts) -> str:
    """The body of a rubric: the criterion, variables in it named as the judge sees them."""
    try:
        template = parse(one.template)
    except NotTaken:
        template = parse("{{ x }}")._replace(parts=(one.text,))
    text = "".join(part if isinstance(part, str) else f"[{_called(part, prompts)}]" for part in template.parts)
    fields = list(dict.fromkeys(_called(part, prompts) for part in template.expressions))
    legend = f"\n\nIn brackets: {', '.join(fields)} of what is given as input." if fields else ""
    return f"Grade how well the answer meets this:\n\n{text.strip()}{legend}\n\n1: fully\n0: not at all"


def _called(part: Expression, prompts: Prompts) -> str:
    return prompts.names.get(part, part.name)


def _key(one: Judged, prompts: Prompts) -> str:
    """What makes two criteria one rubric: the same words, or the same template over what the judge is shown."""
    try:
        shown = all(part in prompts.names for part in parse(one.template).expressions)
    except NotTaken:
        shown = False
    return canonical([one.template if shown else one.text, one.weight, one.metric])


def _numbered(texts: Sequence[str]) -> str | None:
    if len(texts) < 2:
        return texts[0] if texts else None
    return "\n".join(f"{number}. {text}" for number, text in enumerate(texts, 1))


def _weight(check: Check) -> float:
    return float(check.get("weight", 1))


def _named(check: Check) -> dict[str, Json]:
    kind = re.sub(r"\W+", "_", str(check["type"]))
    return {"name": check.get("metric") or kind}


def _slug(text: str) -> str:
    return re.sub(r"[^\w-]+", "-", text.lower()).strip("-")
