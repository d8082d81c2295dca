"""Tests of a promptfoo config, each with its variables and assertions: files, defaults, scenarios, combinations.

    Tests(folder, report, default).read(tests) / .scenarios(section) -> list[Case]

promptfoo lays `defaultTest` under every test: variables and metadata of the test win, assertions add up. A variable
that is a list makes one test of each of its values, combined with those of the others.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evocluster.cli.imported import Cursor, File, Folder, NotTaken, Report
from evocluster.cli.nunjucks import filled
from evocluster.cli.promptfoo_assertions import assertion_of
from evocluster.records import Json

MAX_CASES = 20_000
_HARMLESS = ("description", "vars", "assert", "threshold", "metadata", "options")
_OPTIONS = ("provider", "rubricPrompt", "disableDefaultAsserts", "disableVarExpansion", "prefix", "suffix")
_LEFT: Mapping[str, tuple[str, str]] = {
    "provider": ("every test runs on every model here", "leave out of `space.model` what makes no sense"),
    "providers": ("every test runs on every model here", "leave out of `space.model` what makes no sense"),
    "prompts": ("every test runs with every prompt here", "split the tests over two configs where they differ"),
    "transform": ("outputs are not transformed", "read the output as it is, or use a pipeline (`executor`)"),
    "transformVars": ("variables are not transformed", "write the transformed values into the tests"),
    "storeOutputAs": ("a test cannot use the output of another", "use a pipeline (`executor`)"),
    "assertScoringFunction": ("scores are a weighted mean here", "write the rule as a function in evals.py"),
}
_ELSE = ("it has no counterpart here", "check what it did there")


class Case(NamedTuple):
    """One test with everything that applies to it."""

    where: str
    description: str
    variables: Mapping[str, Json]
    asserts: tuple[Cursor, ...]
    metadata: Mapping[str, Json]
    threshold: float | None
    options: Mapping[str, Cursor]


class Tests:
    """Reads tests over one `defaultTest`."""

    def __init__(self, folder: Folder, report: Report, default: Cursor) -> None:
        self._folder, self._report = folder, report
        self._default = default
        if isinstance(default.value, str):
            try:
                self._default = folder.load(folder.one(default.value))
            except NotTaken as problem:
                report.leave(default.where, "defaultTest", problem.why, problem.do)
                self._default = Cursor(None, default.file, default.keys)

    @property
    def default(self) -> Cursor:
        """What lies under every test."""
        return self._default

    def read(self, section: Cursor) -> list[Case]:
        """The tests under `tests:`."""
        return [case for test in self._tests(section) for case in self._cases([self._default, test])]

    def scenarios(self, section: Cursor) -> list[Case]:
        """Every test of a scenario with every one of its configs."""
        cases: list[Case] = []
        for scenario in self._flat(section):
            unknown = [name for name, _ in scenario.items() if name not in ("config", "tests", "description")]
            for name in unknown:
                self._report.leave(scenario.get(name).where, f"{name} of a scenario", *_ELSE)
            for config in scenario.get("config", [{}]):
                if isinstance(config.value, Mapping) and {"$values", "$expand"} & set(config.value):
                    self._report.leave(
                        config.where, "configs of a scenario", "$values and $expand are not read", "write them out"
                    )
                    continue
                for test in self._tests(scenario.get("tests")):
                    cases += self._cases([self._default, config, test])
        return cases

    def _flat(self, section: Cursor) -> list[Cursor]:
        found: list[Cursor] = []
        for entry in section:
            found += self._from_files(entry) if isinstance(entry.value, str) else [entry]
        return found

    def _tests(self, section: Cursor) -> list[Cursor]:
        found: list[Cursor] = []
        for entry in section:
            if isinstance(entry.value, str):
                found += self._from_files(entry)
            elif isinstance(entry.value, Mapping) and "path" in entry.value and "vars" not in entry.value:
                path = entry.get("path")
                self._report.leave(path.where, f"tests {path.value}", "they are made by a program", "write them out")
            elif isinstance(entry.value, Mapping):
                found.append(entry)
            else:
                self._report.leave(entry.where, f"test {entry.value!r}", "it is no mapping", "write its `vars`")
        return found

    def _from_files(self, entry: Cursor) -> list[Cursor]:
        found: list[Cursor] = []
        try:
            if re.match(r"(https?|huggingface|az|s3)://", entry.value):
                raise NotTaken("it is fetched from elsewhere, and an import fetches nothing", "save it as a CSV file")
            for path in self._folder.paths(entry.value):
                files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
                for file in files:
                    suffix = file.suffix.lower()
                    if suffix == ".csv":
                        found += rows_of(self._folder.text(file), self._folder.name(file), self._report)
                    elif suffix in (".yaml", ".yml", ".json", ".jsonl", ".ndjson"):
                        found += self._tests(self._folder.load(file))
                    else:
                        raise NotTaken(f"{suffix or 'such'} files are not read", "save the tests as CSV, YAML or JSONL")
        except NotTaken as problem:
            self._report.leave(entry.where, f"tests {entry.value}", problem.why, problem.do)
        return found

    def _cases(self, layers: Sequence[Cursor]) -> list[Case]:
        """The tests that a test and what lies under it make, one for each combination."""
        test = layers[-1]
        try:
            variables = {name: value for layer in layers for name, value in self._variables(layer.get("vars")).items()}
            options = {name: value for layer in layers for name, value in layer.get("options").items()}
            asserts = self._asserts(layers, options)
            whole = _is_set(options.get("disableVarExpansion"))
            combined = [variables] if whole else _combinations(variables)
        except NotTaken as problem:
            self._report.leave(test.where, "a test", problem.why, problem.do)
            return []
        for layer in layers:
            self._leave_rest(layer)
        metadata = {name: value.value for layer in layers for name, value in layer.get("metadata").items()}
        thresholds = [number for layer in layers if (number := self._threshold(layer)) is not None]
        description = test.get("description").value
        cases = []
        for each in combined:
            try:
                given = _composed(each)
            except NotTaken as problem:
                self._report.leave(test.where, "a test", problem.why, problem.do)
                continue
            cases.append(
                Case(
                    where=test.where,
                    description=str(description) if description is not None else "",
                    variables=given,
                    asserts=asserts,
                    metadata=metadata,
                    threshold=thresholds[-1] if thresholds else None,
                    options=options,
                )
            )
        return cases

    def _asserts(self, layers: Sequence[Cursor], options: Mapping[str, Cursor]) -> tuple[Cursor, ...]:
        used = layers[1:] if _is_set(options.get("disableDefaultAsserts")) else layers
        return tuple(each for layer in used for each in layer.get("assert"))

    def _variables(self, section: Cursor) -> dict[str, Json]:
        """Raises: NotTaken."""
        if isinstance(section.value, str):
            loaded = [self._folder.load(path) for path in self._folder.paths(section.value)]
            return {name: value for one in loaded for name, value in self._variables(one).items()}
        return {name: self._variable(name, value) for name, value in section.items()}

    def _variable(self, name: str, cursor: Cursor) -> Json:
        value = cursor.value
        if isinstance(value, list):
            return [self._variable(name, each) for each in cursor]
        if not isinstance(value, str) or not value.startswith("file://"):
            return value
        found: list[Json] = []
        for path in self._folder.paths(value):
            suffix = path.suffix.lower()
            if suffix in (".yaml", ".yml", ".json"):
                found.append(self._folder.load(path).value)
            elif suffix in (".txt", ".md", ".csv", ".html", ".xml", ""):
                found.append(self._folder.text(path).strip("\n"))
            else:
                raise NotTaken(f"variable {name!r} is in a {suffix} file, which is not read", "write its text out")
        return found if len(found) > 1 else found[0]

    def _threshold(self, layer: Cursor) -> float | None:
        cursor = layer.get("threshold")
        number = _float(str(cursor.value))
        if number is None and cursor.value is not None:
            self._report.leave(cursor.where, f"threshold {cursor.value!r}"[:60], "it is no number", "write a number")
        return number

    def _leave_rest(self, layer: Cursor) -> None:
        for name, value in layer.items():
            if name not in _HARMLESS:
                self._report.leave(value.where, f"{name} of a test", *_LEFT.get(name, _ELSE))
        for name, value in layer.get("options").items():
            if name not in _OPTIONS:
                self._report.leave(value.where, f"options.{name} of a test", *_LEFT.get(name, _ELSE))


def rows_of(text: str, name: str, report: Report) -> list[Cursor]:
    """The rows of a CSV file as tests: columns are variables, `__expected` and the like mean what they say."""
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [cell.strip() for cell in next(reader, [])]
    tests: list[Json] = []
    lines: dict[tuple[str | int, ...], int] = {}
    at = reader.line_num + 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            lines[(len(tests),)] = at
            tests.append(_row(dict(zip(header, cells, strict=False)), f"{name}:{at}", report))
        at = reader.line_num + 1
    file = File(name, tests, lines)
    return list(Cursor(tests, file))


def _row(row: Mapping[str, str], where: str, report: Report) -> dict[str, Json]:
    test: dict[str, Json] = {"vars": {}, "assert": [], "metadata": {}, "options": {}}
    for column, cell in row.items():
        if column.startswith("__expected"):
            if cell.strip():
                test["assert"].append(assertion_of(cell.strip()))
        elif column.startswith("__metadata:"):
            name = column.removeprefix("__metadata:")
            listed = [part.replace("\\,", ",").strip() for part in re.split(r"(?<!\\),", cell)]
            test["metadata"][name.removesuffix("[]")] = listed if name.endswith("[]") else cell
        elif column in ("__prefix", "__suffix") and cell:
            test["options"][column[2:]] = cell
        elif column == "__description":
            test["description"] = cell
        elif column == "__threshold":
            test["threshold"] = _float(cell)
        elif column.startswith("__"):
            if column != "__metric" and not column.startswith("__config:__expected") and cell:
                report.leave(where, f"column {column}", *_ELSE)
        else:
            test["vars"][column] = cell
    _configure(test["assert"], row, where, report)
    return test


def _configure(asserts: list[dict[str, Json]], row: Mapping[str, str], where: str, report: Report) -> None:
    """What `__metric` and `__config:__expected2:threshold` columns say of a row's assertions."""
    for number, each in enumerate(asserts, 1):
        if row.get("__metric"):
            each["metric"] = row["__metric"]
        for column, cell in row.items():
            found = re.fullmatch(r"__config:__expected(\d*):(\w+)", column)
            if found and cell and found[1] in ("", str(number)):
                if found[2] == "threshold":
                    each["threshold"] = _float(cell)
                else:
                    report.leave(where, f"column {column}", *_ELSE)


def _combinations(variables: Mapping[str, Json]) -> list[dict[str, Json]]:
    lists = {name: value for name, value in variables.items() if isinstance(value, list)}
    count = 1
    for values in lists.values():
        count *= len(values)
    if count > MAX_CASES:
        raise NotTaken(f"its variables make {count} combinations; allowed: {MAX_CASES}", "list fewer values")
    return [{**variables, **dict(zip(lists, values, strict=True))} for values in itertools.product(*lists.values())]


def _composed(variables: Mapping[str, Json]) -> dict[str, Json]:
    """Variables with those in their texts filled in. Raises: NotTaken."""
    given = dict(variables)
    for _ in range(3):
        changed = {name: filled(value, given) for name, value in given.items()}
        if changed == given:
            break
        given = changed
    return given


def _is_set(cursor: Cursor | None) -> bool:
    return cursor is not None and cursor.value is True


def _float(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
