"""Assertions of a promptfoo test: which of them are taken, and what they say for one test.

    checks(case, ...) -> Checks(plain, judged)       plain: applied by evals.py or a scorer; judged: graded by a model

A check is plain data, the same whether it stood inline, in a default, in a set or in a CSV cell:
{"type", "value", "threshold", "weight", "metric", "config", "assert"}; what it does not say is left out.
"""

from __future__ import annotations

import ast
import csv
import json
import math
import re
import textwrap
import warnings
from collections.abc import Mapping
from typing import NamedTuple

from evocluster.cli.imported import Cursor, Folder, NotTaken, Report
from evocluster.cli.nunjucks import as_text, filled
from evocluster.records import Json

Check = dict[str, Json]

TEXTUAL = (
    *("equals", "contains", "contains-all", "contains-any", "icontains", "icontains-all", "icontains-any"),
    *("starts-with", "regex", "levenshtein", "rouge-n", "bleu", "gleu", "similar"),
)
"""Those that hold the output against a text or texts under `value`."""
OTHER = ("is-json", "contains-json", "word-count", "cost", "latency", "python", "assert-set")
JUDGED: Mapping[str, str] = {
    "llm-rubric": "{}",
    "model-graded-closedqa": "{}",
    "g-eval": "{}",
    "factuality": "What the answer says agrees with this, and contradicts none of it: {}",
    "model-graded-factuality": "What the answer says agrees with this, and contradicts none of it: {}",
}
"""Graded by a model -> how the criterion reads."""
_CODE = "write it in Python: a function (output, example) in evals.py, named under task.scorers"
_JUDGE = "write a rubric for it and add a scorer {kind: judge, model: ..., rubric: ...}"
_PATTERN = "look for what you mean with a scorer {kind: matches, pattern: ...}"
_TOOLS = (
    "answers are texts here, without calls of tools and traces",
    "check it in a pipeline (`executor`) of your own",
)
_CONTEXT = ("the passages that were shown are not part of the test here", _JUDGE)
LEFT: Mapping[str, tuple[str, str]] = {
    "javascript": ("JavaScript is not run here", _CODE),
    "ruby": ("Ruby is not run here", _CODE),
    "webhook": ("outputs are sent nowhere", _CODE),
    "perplexity": ("models give no log probabilities here", "leave it out"),
    "perplexity-score": ("models give no log probabilities here", "leave it out"),
    "answer-relevance": ("it needs embeddings", _JUDGE),
    "context-faithfulness": _CONTEXT,
    "context-recall": _CONTEXT,
    "context-relevance": _CONTEXT,
    "conversation-relevance": ("there are no conversations of several turns", _JUDGE),
    "classifier": ("it needs a classifier served elsewhere", _JUDGE),
    "moderation": ("it needs a moderation service", "add a check under task.safety, {kind: judge, flag: ..., ...}"),
    "guardrails": ("it needs a guardrail service", "add a check under task.safety"),
    "pi": ("it needs a scoring service", _JUDGE),
    "search-rubric": ("it needs a web search", _JUDGE),
    "agent-rubric": ("it needs an agent", _JUDGE),
    "research-rubric": ("it needs a web search", _JUDGE),
    "video-rubric": ("answers are texts here", "leave it out"),
    "select-best": ("outputs are not compared with each other", "the front compares configurations; leave it out"),
    "max-score": ("outputs are not compared with each other", "the front compares configurations; leave it out"),
    "human": ("nobody is asked during a run", "grade answers into labels.jsonl, and let a judge be held against them"),
    "is-refusal": ("its list of phrases is promptfoo's own", _PATTERN),
    "finish-reason": ("scorers do not see why a model stopped", "limit the length with {kind: length, ...}"),
    "meteor": ("it needs lists of stems and synonyms", "use rouge-n, or a judge"),
    "is-sql": ("no SQL is parsed here", _CODE),
    "contains-sql": ("no SQL is parsed here", _CODE),
    "is-xml": ("no XML is parsed here", _CODE),
    "contains-xml": ("no XML is parsed here", _CODE),
    "is-html": ("no HTML is parsed here", _CODE),
    "contains-html": ("no HTML is parsed here", _CODE),
    **dict.fromkeys(
        (
            *("is-valid-function-call", "is-valid-openai-function-call", "is-valid-openai-tools-call", "tool-call-f1"),
            *("skill-used", "trace-span-count", "trace-span-duration", "trace-error-spans", "trajectory:tool-used"),
            *("trajectory:tool-args-match", "trajectory:tool-sequence", "trajectory:step-count"),
            *("trajectory:goal-success",),
        ),
        _TOOLS,
    ),
}
"""Types that are known and not taken: why, and what to do."""
KINDS = frozenset({*TEXTUAL, *OTHER, *JUDGED, *LEFT, "similar:cosine", "similar:dot", "similar:euclidean"})
"""Every type that promptfoo has, without 'not-'."""
_TYPED = re.compile(
    rf"(?P<type>(?:not-)?(?:{'|'.join(sorted(map(re.escape, KINDS), key=len, reverse=True))}))"
    r"(?:\((?P<threshold>\d+(?:\.\d+)?)\))?(?::(?P<value>.*))?",
    re.DOTALL,
)
_KNOWN = ("type", "value", "threshold", "weight", "metric", "provider", "config", "assert", "description", "name")


class Judged(NamedTuple):
    """One criterion that a model grades."""

    template: str
    """As it stands in the file."""
    text: str
    """For this test."""
    weight: float
    metric: str
    grader: Cursor | None


class Checks(NamedTuple):
    """What one test is held against."""

    plain: tuple[Check, ...]
    judged: tuple[Judged, ...]


class Reader:
    """Reads assertions; functions of the config's own Python are collected by `python`."""

    def __init__(self, folder: Folder, report: Report, python: PythonFunctions) -> None:
        self._folder, self._report, self._python = folder, report, python

    def checks(self, asserts: tuple[Cursor, ...], variables: Mapping[str, Json]) -> Checks:
        """The checks of one test, with its variables filled in."""
        plain: list[Check] = []
        judged: list[Judged] = []
        for cursor in asserts:
            try:
                found = self._read(cursor, variables)
            except NotTaken as problem:
                self._report.leave(cursor.where, f"assertion {_title(cursor)}", problem.why, problem.do)
                continue
            if isinstance(found, Judged):
                judged.append(found)
            else:
                plain.append(found)
        return Checks(tuple(plain), tuple(judged))

    def _read(self, cursor: Cursor, variables: Mapping[str, Json]) -> Check | Judged:
        if isinstance(cursor.value, str):
            cursor = Cursor(assertion_of(cursor.value), cursor.file, cursor.keys)
        kind = cursor.get("type").value
        if not isinstance(kind, str):
            raise NotTaken("it has no type", "write one, e.g. type: contains")
        bare = kind.removeprefix("not-")
        if bare in LEFT:
            raise NotTaken(*LEFT[bare])
        if bare not in KINDS:
            raise NotTaken(f"type {kind!r} is not known here", _CODE)
        self._leave_rest(cursor)
        if bare in JUDGED:
            return self._judged(cursor, bare, variables)
        return self._plain(cursor, bare, variables)

    def _plain(self, cursor: Cursor, bare: str, variables: Mapping[str, Json]) -> Check:
        kind = str(cursor.get("type").value)
        if bare.startswith("similar"):
            kind, bare = kind.split(":")[0], "similar"
            self._report.change(
                cursor.where,
                f"assertion {kind}",
                "there are no embeddings here: it became the share of words in common, without a threshold",
                "use a judge where meaning counts",
            )
        check: Check = {"type": kind}
        for name in ("threshold", "weight"):
            number = _number(cursor.get(name).value)
            if number is not None:
                check[name] = number
        if cursor.get("metric").value is not None:
            check["metric"] = str(filled(cursor.get("metric").value, variables))
        if bare == "assert-set":
            return {**check, "assert": self._members(cursor, variables)}
        if bare == "python":
            config = cursor.get("config").value
            named = self._python.function(str(cursor.get("value").value), self._folder)
            return {**check, "value": named, **({"config": config} if config else {})}
        value = self._value(cursor.get("value"), variables)
        if value is not None:
            check["value"] = value
        return _checked(check, bare)

    def _members(self, cursor: Cursor, variables: Mapping[str, Json]) -> list[Check]:
        found = self.checks(tuple(cursor.get("assert")), variables)
        for _ in found.judged:
            self._report.leave(
                cursor.where,
                "a rubric within an assert-set",
                "judges are scorers of their own and in no set",
                "take it out of the set and import again",
            )
        if not found.plain:
            raise NotTaken("nothing in the set could be taken", "see its members")
        return list(found.plain)

    def _judged(self, cursor: Cursor, bare: str, variables: Mapping[str, Json]) -> Judged:
        value = cursor.get("value")
        given = self._file(value) if isinstance(value.value, str) else value.value
        raw = "\n".join(map(as_text, given)) if isinstance(given, list) else as_text(given)
        if not raw.strip():
            raise NotTaken("it says nothing to grade by", "write `value`")
        form = JUDGED[bare]
        if str(cursor.get("type").value).startswith("not-"):
            form = f"It is not so that: {form}"
        if cursor.get("threshold").value is not None:
            self._report.change(
                cursor.get("threshold").where,
                f"threshold of {bare}",
                "the grade itself counts, from 0 to 1",
                "see task.must_pass for a grade that must be reached",
            )
        grader, weight = cursor.get("provider"), _number(cursor.get("weight").value)
        return Judged(
            template=form.replace("{}", raw),
            text=form.replace("{}", str(filled(raw, variables))),
            weight=1.0 if weight is None else float(weight),
            metric=str(cursor.get("metric").value or ""),
            grader=grader if grader.value is not None else None,
        )

    def _value(self, cursor: Cursor, variables: Mapping[str, Json]) -> Json:
        if isinstance(cursor.value, list):
            return [self._value(each, variables) for each in cursor]
        given = self._file(cursor) if isinstance(cursor.value, str) else cursor.value
        return filled(given, variables)

    def _file(self, cursor: Cursor) -> Json:
        """What a `file://` reference holds; any other text is itself. Raises: NotTaken."""
        if not cursor.value.startswith("file://"):
            return cursor.value
        path = self._folder.one(cursor.value)
        suffix = path.suffix.lower()
        if suffix in (".json", ".yaml", ".yml"):
            return self._folder.load(path).value
        if suffix in (".txt", ".md", ""):
            return self._folder.text(path).strip("\n")
        raise NotTaken(f"its value is in a {suffix} file, which is not read", "write it as text, JSON or YAML")

    def _leave_rest(self, cursor: Cursor) -> None:
        for name, value in cursor.items():
            if name == "rubricPrompt":
                why = "the prompt of judges is their own and fixed"
                self._report.leave(value.where, "rubricPrompt", why, "put what matters of it into the rubric")
            elif name not in _KNOWN:
                why = "it has no counterpart here"
                self._report.leave(value.where, f"{name} of an assertion", why, "check what it did there")


class PythonFunctions:
    """The config's own Python, as functions to be written into evals.py: copied, never run here."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        """What stood in the file -> the name of its function."""
        self.sources: dict[str, str] = {}
        """Name -> the source that defines it."""
        self.files: dict[str, str] = {}
        """Path below `asserts/` -> what a Python file holds."""

    def function(self, code: str, folder: Folder) -> str:
        """The name of the function that some code became. Raises: NotTaken."""
        if code not in self.names:
            name = f"python_{len(self.names) + 1}"
            from_file = code.startswith("file://")
            self.sources[name] = self._from_file(name, code, folder) if from_file else inline(name, code)
            self.names[code] = name
        return self.names[code]

    def _from_file(self, name: str, code: str, folder: Folder) -> str:
        reference, _, function = code.removeprefix("file://").partition(".py")
        path = folder.one(f"{reference}.py")
        function = function.removeprefix(":") or "get_assert"
        if not function.isidentifier():
            raise NotTaken(f"{function!r} is no name of a function", "write file://path.py:function")
        kept = f"{name}_{path.name}"
        self.files[kept] = folder.text(path)
        return f"{name} = from_file({json.dumps(kept)}, {json.dumps(function)})\n"


def inline(name: str, code: str) -> str:
    """A function of (output, context) made of an expression or of lines with `return`. Raises: NotTaken."""
    head = f"def {name}(output: str, context: dict[str, Any]) -> Any:\n"
    body = textwrap.dedent(code.strip("\n"))
    try:
        ast.parse(body.strip(), mode="eval")
        return f"{head}    return (\n{textwrap.indent(body.strip(), ' ' * 8)}\n    )\n"
    except SyntaxError:
        source = head + textwrap.indent(body, "    ") + "\n"
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise NotTaken(f"it is no Python: {error.msg}", _CODE) from error
    if len(tree.body) != 1:
        raise NotTaken("it is more than the body of one function", _CODE)
    return source


def assertion_of(text: str) -> Check:
    """An assertion written as one text, as in CSV: `contains: x`, `similar(0.8): x`; a bare text is what must come."""
    for lead, kind in (("fn:", "javascript"), ("eval:", "javascript"), ("grade:", "llm-rubric")):
        if text.startswith(lead):
            return {"type": kind, "value": text.removeprefix(lead).strip()}
    if text.startswith("file://"):
        return {"type": "python" if ".py" in text else "javascript", "value": text}
    found = _TYPED.fullmatch(text)
    if not found:
        return {"type": "equals", "value": text}
    kind, value = found["type"], (found["value"] or "").strip()
    made: Check = {"type": kind}
    if kind.endswith(("contains-all", "contains-any")):
        made["value"] = [part.strip() for part in next(csv.reader([value], skipinitialspace=True), [])]
    elif value:
        made["value"] = value
    if found["threshold"] is not None:
        made["threshold"] = float(found["threshold"])
    return made


def _checked(check: Check, bare: str) -> Check:
    """The check, once it can be applied. Raises: NotTaken."""
    value = check.get("value")
    if bare in TEXTUAL and value is None:
        raise NotTaken("it has no value", "write `value`")
    if bare in ("cost", "latency") and check.get("threshold") is None:
        raise NotTaken("it has no threshold", "write `threshold`; cost and latency are objectives anyway")
    if bare == "regex":
        check["value"] = pattern(as_text(value))
    elif bare in ("contains", "icontains", "starts-with", "levenshtein", "rouge-n"):
        check["value"] = as_text(value)
    elif bare in ("is-json", "contains-json") and value is not None and not isinstance(value, Mapping):
        check["value"] = _schema(as_text(value))
    elif bare == "word-count" and not isinstance(value, Mapping) and _number(value) is None:
        raise NotTaken(f"value {value!r} is neither a number nor {{min, max}}", "write one of them")
    return check


def pattern(text: str) -> str:
    """A JavaScript pattern as Python writes it. Raises: NotTaken."""
    ours = re.sub(r"\(\?<(?=[A-Za-z_])", "(?P<", text)
    ours = re.sub(r"\\k<(\w+)>", r"(?P=\1)", ours)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(ours)
    except (re.error, OverflowError, RecursionError) as error:
        raise NotTaken(f"pattern {text!r} is not one in Python: {error}", "write it as Python reads it") from error
    return ours


def _schema(text: str) -> Json:
    try:
        return json.loads(text)
    except ValueError as error:
        raise NotTaken(f"its value is no JSON schema: {error}", "write the schema as YAML or JSON") from error


def _number(value: Json) -> float | int | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if fits else None


def _title(cursor: Cursor) -> str:
    value = cursor.value
    if not isinstance(value, Mapping):
        return repr(value)[:60]
    told = as_text(value.get("value"))
    told = " ".join(told.split())
    return f"{value.get('type')} {told[:50]}".strip()
