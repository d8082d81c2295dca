"""The assertions of an imported promptfoo config: `checks` applies those that stand in `meta.assert` of an example.

The score is the mean of an example's assertions by their weights, as promptfoo reckons it. An assertion that is a
matter of degree (rouge-n, bleu, gleu, similar) counts 1 from its threshold on, and its own value below it.
Add to it what could not be taken over: an entry in `FAMILIES`, or a function of the answer and the example.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evocluster import Example, Score

Check = Mapping[str, Any]
Outcome = tuple[float, str]
"""0 to 1, and why it is not 1."""
PYTHON: dict[str, Callable[..., Any]] = {}
"""Functions of (output, context) that the config's python assertions became, by name."""


def checks(output: str, example: Example, execution: Any) -> Score:
    """All assertions of the example together."""
    return _mean(example.meta.get("assert", ()), output, example, execution)


def metric(name: str) -> Callable[[str, Example, Any], Score]:
    """A scorer of those assertions alone that bear this metric."""

    def scored(output: str, example: Example, execution: Any) -> Score:
        named = [each for each in _flat(example.meta.get("assert", ())) if each.get("metric") == name]
        return _mean(named, output, example, execution)

    return scored


def from_file(path: str, name: str) -> Callable[..., Any]:
    """A function of a Python file beside this one, loaded when it is first called."""

    def called(*arguments: Any) -> Any:
        file = Path(__file__).with_name("asserts") / path
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path!r} is no Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, name)
        return function(*arguments[: len(inspect.signature(function).parameters)])

    return called


# ---------------------------------------------------------------- one assertion


def _outcome(check: Check, output: str, example: Example, execution: Any) -> Outcome:
    kind = check["type"]
    family = FAMILIES[kind.removeprefix("not-")]
    value, reason = family(output, check, example, execution)
    if not kind.startswith("not-"):
        return value, reason
    return float(value < 1), f"{kind} {_shown(check)}" if value >= 1 else ""


def _mean(given: Any, output: str, example: Example, execution: Any) -> Score:
    weighed = [(float(check.get("weight", 1)), *_outcome(check, output, example, execution)) for check in given]
    total = sum(weight for weight, _, _ in weighed)
    if not total:
        return Score(value=1.0, reason="nothing to check")
    reasons = [reason for weight, value, reason in weighed if reason and weight and value < 1]
    return Score(value=sum(weight * value for weight, value, _ in weighed) / total, reason="; ".join(reasons))


def _flat(given: Any) -> Iterator[Check]:
    for check in given:
        yield check
        yield from _flat(check.get("assert", ()))


def _shown(check: Check) -> str:
    text = json.dumps(check.get("value"), ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _verdict(right: bool, check: Check) -> Outcome:
    return float(right), "" if right else f"{check['type']} {_shown(check)}"


def _degree(value: float, check: Check, threshold: float) -> Outcome:
    limit = float(check.get("threshold") or threshold)
    return (1.0, "") if value >= limit else (value, f"{check['type']} {value:.2f} is below {limit:g}")


def _texts(check: Check) -> list[str]:
    value = check.get("value")
    return [_text(each) for each in value] if isinstance(value, list | tuple) else [_text(value)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------- the families


def _equals(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    value = check.get("value")
    if isinstance(value, str):
        return _verdict(output.strip() == value.strip(), check)
    try:
        found = json.loads(output)
    except ValueError:
        return _verdict(False, check)
    return _verdict(json.dumps(found, sort_keys=True) == json.dumps(value, sort_keys=True), check)


def _contains(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    kind = check["type"].removeprefix("not-")
    texts = _texts(check)
    if kind.startswith("icontains"):
        output, texts = output.casefold(), [text.casefold() for text in texts]
    found = [text in output for text in texts]
    return _verdict(any(found) if kind.endswith("-any") else all(found), check)


def _starts_with(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    return _verdict(output.startswith(_texts(check)[0]), check)


def _regex(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    return _verdict(re.search(_texts(check)[0], output) is not None, check)


def _is_json(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    try:
        return _fits(json.loads(output), check)
    except ValueError as error:
        return 0.0, f"no JSON: {error}"


def _contains_json(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    decoder = json.JSONDecoder()
    reason = "no JSON in it"
    for start in re.finditer(r"[{\[]", output):
        try:
            value, _ = decoder.raw_decode(output, start.start())
        except ValueError:
            continue
        right, reason = _fits(value, check)
        if right:
            return 1.0, ""
    return 0.0, reason


def _fits(value: Any, check: Check) -> Outcome:
    schema = check.get("value")
    if not isinstance(schema, Mapping):
        return 1.0, ""
    from jsonschema.validators import validator_for
    from referencing import Registry

    validator = validator_for(schema)(_thawed(schema), registry=Registry())
    error = next(iter(validator.iter_errors(value)), None)
    return (0.0, f"{error.json_path}: {error.message}") if error else (1.0, "")


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, list | tuple) else value


def _levenshtein(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    expected = _texts(check)[0]
    row = list(range(len(expected) + 1))
    for number, char in enumerate(output, 1):
        above, row[0] = row[0], number
        for at, other in enumerate(expected, 1):
            above, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, above + (char != other))
    return _verdict(row[-1] <= float(check.get("threshold") or 5), check)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _grams(words: list[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1))


def _rouge(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    """Recall of single words (Lin 2004, ROUGE-1)."""
    wanted = _grams(_words(_texts(check)[0]), 1)
    shared = (wanted & _grams(_words(output), 1)).total()
    return _degree(shared / wanted.total() if wanted else 0.0, check, 0.75)


def _bleu(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    """Geometric mean of n-gram precision, 1 to 4, with the brevity penalty (Papineni et al. 2002)."""
    return _degree(max(_bleu_of(_words(output), _words(text)) for text in _texts(check)), check, 0.5)


def _bleu_of(said: list[str], wanted: list[str]) -> float:
    logs = []
    for size in range(1, min(4, len(said), len(wanted)) + 1):
        grams = _grams(said, size)
        shared = (grams & _grams(wanted, size)).total()
        if not shared:
            return 0.0
        logs.append(math.log(shared / grams.total()))
    brevity = min(0.0, 1 - len(wanted) / len(said)) if said else 0.0
    return math.exp(sum(logs) / len(logs) + brevity) if logs else 0.0


def _gleu(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    """The smaller of n-gram precision and recall, 1 to 4 (Wu et al. 2016, section 5.2)."""
    said = _words(output)
    values = []
    for text in _texts(check):
        wanted = _words(text)
        ours = sum((_grams(said, size) for size in range(1, 5)), Counter[tuple[str, ...]]())
        theirs = sum((_grams(wanted, size) for size in range(1, 5)), Counter[tuple[str, ...]]())
        values.append((ours & theirs).total() / max(ours.total(), theirs.total(), 1))
    return _degree(max(values), check, 0.5)


def _similar(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    """F1 of words with the nearest of the texts: there are no embeddings here, so no threshold of theirs holds."""
    said = _grams(_words(output), 1)
    values = []
    for text in _texts(check):
        wanted = _grams(_words(text), 1)
        total = said.total() + wanted.total()
        values.append(2 * (said & wanted).total() / total if total else 1.0)
    best = max(values)
    return best, "" if best >= 1 else f"similar {best:.2f} to {_shown(check)}"


def _word_count(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    value = check.get("value")
    count = len(output.split())
    if not isinstance(value, Mapping):
        return _verdict(count == float(str(value)), check)
    low, high = float(value.get("min", 0)), float(value.get("max", math.inf))
    return _verdict(low <= count <= high, check)


def _cost(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    limit = float(check["threshold"])
    spent = execution.usage.usd
    return (1.0, "") if spent <= limit else (0.0, f"cost {spent:.6f} is above {limit:g}")


def _latency(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    limit = float(check["threshold"])
    took = execution.usage.seconds * 1000
    return (1.0, "") if took <= limit else (0.0, f"latency {took:.0f} ms is above {limit:g}")


def _python(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    context = {
        "vars": dict(example.meta.get("vars", {})),
        "prompt": execution.trace[-1].prompt if execution.trace else None,
        "test": {"assert": list(example.meta.get("assert", ())), "metadata": example.meta.get("metadata", {})},
        "config": dict(check.get("config") or {}),
    }
    found = PYTHON[check["value"]](output, context)
    if isinstance(found, Mapping):
        passed = bool(found.get("pass", found.get("pass_", True)))
        score = float(found.get("score", passed)) if passed else 0.0
        return score, str(found.get("reason", ""))
    if isinstance(found, bool):
        return float(found), "" if found else f"python {check['value']}"
    score = float(found)
    limit = check.get("threshold")
    passed = score >= float(limit) if limit is not None else True
    return (score if passed else 0.0), "" if passed else f"python {check['value']} {score:g} is below {limit:g}"


def _set(output: str, check: Check, example: Example, execution: Any) -> Outcome:
    together = _mean(check["assert"], output, example, execution)
    limit = check.get("threshold")
    if limit is None:
        return together.value, together.reason
    return float(together.value >= float(limit)), together.reason


FAMILIES: Mapping[str, Callable[[str, Check, Example, Any], Outcome]] = {
    "equals": _equals,
    **dict.fromkeys(
        ("contains", "contains-all", "contains-any", "icontains", "icontains-all", "icontains-any"), _contains
    ),
    "starts-with": _starts_with,
    "regex": _regex,
    "is-json": _is_json,
    "contains-json": _contains_json,
    "levenshtein": _levenshtein,
    "rouge-n": _rouge,
    "bleu": _bleu,
    "gleu": _gleu,
    "similar": _similar,
    "word-count": _word_count,
    "cost": _cost,
    "latency": _latency,
    "python": _python,
    "assert-set": _set,
}
"""Type of assertion -> what applies it."""
