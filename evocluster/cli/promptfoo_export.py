"""An exported configuration as a promptfoo config: its prompt, its provider, the test examples and their scorers.

promptfoo renders prompts, variables and the values of assertions as nunjucks templates, so literal text that would be
taken for one is kept apart in all of them. Answers are read as evocluster reads them, by inline Python where promptfoo
has no assertion that scores alike; scorers that cannot be said there are listed at the top of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from evocluster.cli.leaving import Export, origin, reading, refuse, single, unrepaired
from evocluster.cli.standalone import functions, laid_out

Settings = Mapping[str, Any]
Assertion = dict[str, Any]
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_KEYWORDS = frozenset(
    ("and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "null", "loop", "self", "super")
)
_TAG = re.compile(r"\{(?=[{%#])")
_FUZZY = re.compile(r"\\p|\{\s*[a-z]")
"""What the library `regex` reads otherwise than Python's `re`."""
_UNITS = {
    "chars": "len(answer.output.strip())",
    "words": "len(answer.output.split())",
    "lines": "len(answer.output.strip().splitlines())",
}
_NUMBERS = r"""
def numbers(text):
    pattern = r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+)?"
    return [float(found.replace(",", "")) for found in re.findall(pattern, text.replace("\u2212", "-"))]
"""
_SAME = """
def same(one, other):
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other
"""


def promptfoo(export: Export) -> str:
    """The text of promptfooconfig.yaml. Raises: ConfigError where promptfoo cannot hold the configuration."""
    winner = single(export, "promptfoo")
    _check_names(winner)
    default: list[Assertion] = []
    left: list[str] = []
    listed = {isinstance(test["expected"], list) for test in export["tests"]}
    for scorer in export["task"]["scorers"]:
        made = _assertion({**scorer, "lists": listed == {True} if len(listed) == 1 else None}, winner)
        if isinstance(made, str):
            left.append(f"{scorer['name']} ({scorer['kind']}): {made}")
        else:
            weight = export["task"]["weights"][scorer["name"]]
            default.append({**made, "metric": scorer["name"], **({"weight": weight} if weight != 1 else {})})
    left += [f"safety check {flag}" for flag in export["task"]["safety"]]
    left += [f"must_pass {name}: promptfoo's tests pass only where all do" for name in export["task"]["must_pass"]]
    config = {
        "description": f"{export['run']['name']} {export['genome']}",
        "prompts": [_prompt(winner)],
        "providers": [_provider(export, winner)],
        "defaultTest": {"options": {"disableVarExpansion": True}, "assert": default},
        "tests": [{"description": test["id"], "vars": _variables(test, winner)} for test in export["tests"]],
    }
    told = [*origin(export), *unrepaired(export), f"An answer is {reading(winner)}."]
    told += [f"Not in here: {each}." for each in left]
    from evocluster.document import written

    return "".join(f"# {' '.join(line.split())}\n" for line in told) + written(config)


def _check_names(winner: Settings) -> None:
    if winner["context"] and "context" in winner["fields"]:
        raise refuse("promptfoo", "'context' is a field of its inputs, and the passages are called so too", ["openai"])
    text = json.dumps(winner["ask"])
    for name in re.findall(r"\{\{(\w+)\}\}", text):
        if not _NAME.fullmatch(name) or name.lower() in _KEYWORDS or name == "expected":
            why = f"field {name!r} of its inputs is no name of a variable there"
            raise refuse("promptfoo", why, ["openai", "json"])


def _prompt(winner: Settings) -> dict[str, Any]:
    if winner["ask"]["prompt"] is not None:
        return {"label": "winner", "raw": winner["ask"]["prompt"]}
    # A prompt that is JSON: promptfoo renders each text inside it, so inputs need no escaping of their own.
    return {"label": "winner", "raw": laid_out(winner["ask"]["messages"])}


def _provider(export: Export, winner: Settings) -> dict[str, Any]:
    name = winner["votes"][0]
    call, endpoint = winner["calls"][name]["ask"], export["endpoints"][name]
    if call["parameters"] is None:
        why = f"model {name!r} is reached by litellm; start its proxy with what --as litellm writes"
        raise refuse("promptfoo", why, ["litellm"])
    parameters = dict(call["parameters"])
    model, more = parameters.pop("model"), parameters.pop("extra_body", None)
    if "max_completion_tokens" in parameters:
        # promptfoo sends the one or the other by what it knows of the model.
        parameters["max_tokens"] = parameters["max_completion_tokens"]
    form = "chat" if winner["ask"]["prompt"] is None else "completion"
    key = {"apiKeyEnvar": endpoint["key_env"]} if endpoint["key_env"] else {"apiKeyRequired": False}
    headers = {"headers": endpoint["headers"]} if endpoint["headers"] else {}
    passed = {"passthrough": more} if more else {}
    config = {"apiBaseUrl": endpoint["base_url"], **key, **headers, **parameters, **passed}
    return {"id": f"openai:{form}:{model}", "label": name, "config": config}


def _variables(test: Settings, winner: Settings) -> dict[str, str]:
    given = test["input"]
    named = {"input": _show(given), **({"context": test["context"]} if winner["context"] else {})}
    if isinstance(given, dict) and winner["fields"]:
        named |= {name: _text(value) for name, value in given.items()}
    spoken = set(re.findall(r"\{\{(\w+)\}\}", json.dumps(winner["ask"])))
    variables = {name: value for name, value in named.items() if name in spoken or name == "context"}
    # Evocluster leaves the name of a field that an input lacks as it stands.
    variables |= {name: f"{{{name}}}" for name in spoken - set(variables)}
    if test["expected"] is not None:
        variables["expected"] = _canonical(test["expected"])
    return {name: literal(value) for name, value in variables.items()}


def literal(text: str) -> str:
    """A text that nunjucks renders as itself."""
    if not _TAG.search(text):
        return text
    parts = re.split(r"(?<=\{)(?=%[-+]?\s*endraw)", text)
    return "".join(f"{{% raw %}}{part}{{% endraw %}}" for part in parts)


def _show(given: Any) -> str:
    if isinstance(given, dict):
        return "\n".join(f"{name}: {_text(value)}" for name, value in given.items())
    return _text(given)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _canonical(value: Any) -> str:
    """A text as it is, anything else as the JSON that scorers compare with."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _assertion(scorer: Settings, winner: Settings) -> Assertion | str:
    """What scores alike in promptfoo, or why nothing does."""
    if scorer["kind"] == "cost":
        return {"type": "cost", "threshold": scorer["max_usd"]}
    if scorer["kind"] == "latency":
        return {"type": "latency", "threshold": scorer["max_ms"]}
    if winner["read"]["kind"] == "text" and not winner["read"]["after"]:
        plain = _plain(scorer)
        if plain is not None:
            return plain
    if scorer["kind"] == "label" and _bare_label(winner):
        return {"type": "equals", "value": "{{expected}}"}
    say = _EXPRESSIONS.get(scorer["kind"])
    made = say(scorer) if say is not None else None
    if made is None:
        return _WHY.get(scorer["kind"], "promptfoo has nothing that scores alike")
    return {"type": "python", "value": _code(made, winner)}


def _bare_label(winner: Settings) -> bool:
    """Whether every reply is a label as it stands."""
    call = winner["calls"][winner["votes"][0]]["ask"]
    same = all(name == label for name, label in winner["read"]["names"].items())
    return call["limited"] and not call["wrapped"] and same and winner["ask"]["prompt"] is None


def _plain(scorer: Settings) -> Assertion | None:
    """promptfoo's own assertion for a reply that is the answer."""
    fold = "i" if scorer.get("ignore_case") else ""
    match scorer["kind"]:
        case "includes" if scorer["need"] == "any" or len(scorer["texts"]) == 1:
            lead = "not-" if scorer["need"] == "none" else ""
            return {"type": f"{lead}{fold}contains-any", "value": [literal(text) for text in scorer["texts"]]}
        case "is_json":
            schema = {"value": scorer["json_schema"]} if scorer["json_schema"] is not None else {}
            return {"type": "contains-json" if scorer["inside"] else "is-json", **schema}
        case "matches" if not scorer["ignore_case"] and _portable(scorer["pattern"]):
            return {"type": "regex" if scorer["present"] else "not-regex", "value": literal(scorer["pattern"])}
    return None


def _portable(pattern: str) -> bool:
    """Whether Python's `re` reads it as the library `regex` does."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    return not _FUZZY.search(pattern)


def _quoted(value: Any) -> str:
    """A JSON value as Python reads it, without anything that nunjucks would take for a tag."""
    if isinstance(value, list):
        return f"[{', '.join(map(_quoted, value))}]"
    return _TAG.sub(r"\\u007b", json.dumps(value, ensure_ascii=False)) if isinstance(value, str) else repr(value)


def _contains(settings: Settings) -> str | None:
    if settings["lists"] is None:
        return None
    fold = ".casefold()" if settings["ignore_case"] else ""
    found = f"text{fold} in answer.output{fold}"
    if not settings["lists"]:
        return found.replace("text", "expected", 1)
    texts = "[text if isinstance(text, str) else json.dumps(text) for text in json.loads(expected)]"
    return f"sum({found} for text in {texts}) / len(json.loads(expected))"


def _regex(settings: Settings) -> str | None:
    if not _portable(settings["pattern"].replace("{expected}", "expected")):
        return None
    flags = ", re.IGNORECASE" if settings["ignore_case"] else ""
    pattern = f"{_quoted(settings['pattern'])}.replace('{{expected}}', re.escape(expected))"
    return f"re.search({pattern}, answer.output{flags}) is not None"


def _matches(settings: Settings) -> str | None:
    if not _portable(settings["pattern"]):
        return None
    flags = ", re.IGNORECASE" if settings["ignore_case"] else ""
    found = f"re.search({_quoted(settings['pattern'])}, answer.output{flags})"
    return f"{found} is {'not ' if settings['present'] else ''}None"


def _includes(settings: Settings) -> str:
    fold = ".casefold()" if settings["ignore_case"] else ""
    found = f"text{fold} in answer.output{fold} for text in {_quoted(settings['texts'])}"
    if settings["need"] == "all":
        return f"sum({found}) / {len(settings['texts'])}"
    return f"any({found})" if settings["need"] == "any" else f"not any({found})"


def _numeric(settings: Settings) -> str:
    near = f"max({settings['absolute']!r}, {settings['relative']!r} * abs(numbers(expected)[-1]))"
    return f"bool(numbers(answer.output)) and abs(numbers(answer.output)[-1] - numbers(expected)[-1]) <= {near}"


def _number(settings: Settings) -> str:
    taken = {"last": "[-1:]", "first": "[:1]", "all": ""}[settings["which"]]
    found = f"numbers(answer.output){taken}"
    return f"bool({found}) and all({_within('each', settings)} for each in {found})"


def _within(what: str, settings: Settings) -> str:
    low, high = settings["min"], settings["max"]
    return f"{'' if low is None else f'{low!r} <= '}{what}{'' if high is None else f' <= {high!r}'}"


def _length(settings: Settings) -> str | None:
    return _within(_UNITS[settings["unit"]], settings) if settings["unit"] in _UNITS else None


def _similarity(settings: Settings) -> str | None:
    if settings["measure"] != "ratio":
        return None
    pair = "normalise(answer.output), normalise(expected)"
    return f"difflib.SequenceMatcher(None, {pair}, autojunk=False).ratio()"


_EXPRESSIONS: Mapping[str, Callable[[Settings], str | None]] = {
    "label": lambda settings: "answer.parsed == expected",
    "exact": lambda settings: "answer.output.strip() == expected.strip()",
    "normalised": lambda settings: "normalise(answer.output) == normalise(expected)",
    "contains": _contains,
    "numeric": _numeric,
    "regex": _regex,
    "json_equal": lambda settings: None if settings["partial"] else "same(answer.parsed, json.loads(expected))",
    "similarity": _similarity,
    "includes": _includes,
    "matches": _matches,
    "one_of": lambda settings: f"normalise(answer.output) in map(normalise, {_quoted(settings['texts'])})",
    "length": _length,
    "number": _number,
}
"""Kind of scorer -> its score as a Python expression of `answer` and `expected`, None where that cannot be said."""
_WHY = {
    "function": "your own Python, whose arguments are evocluster's; call it from a promptfoo `python` assertion",
    "judge": "a judge with evocluster's own prompt; an `llm-rubric` assertion would grade otherwise",
    "recall": "it looks at what was retrieved, which promptfoo does not see",
    "json_path": "promptfoo has no JSONPath; write a `python` assertion",
}


def _code(expression: str, winner: Settings) -> str:
    """The inline Python of an assertion: reads the answer, then scores it."""
    names = ["read", *(["normalise"] if "normalise(" in expression else [])]
    more = "".join(
        text.strip("\n") + "\n" for word, text in (("numbers(", _NUMBERS), ("same(", _SAME)) if word in expression
    )
    wrapped = winner["calls"][winner["votes"][0]]["ask"]["wrapped"]
    reply = "output if isinstance(output, str) else json.dumps(output)"
    read = {"read": {key: winner["read"][key] for key in ("after", "names", "fold", "opening")}}
    lines = [
        "import difflib, json, re, unicodedata",
        "from collections.abc import Mapping",
        "from dataclasses import dataclass",
        "from typing import Any",
        f"WINNER = json.loads({_quoted(json.dumps(read, ensure_ascii=False))})",
        functions(winner, *names),
        *([more.rstrip("\n")] if more else []),
        f"reply = {reply}",
        *(["reply = str(json.loads(reply)['answer'])"] if wrapped else []),
        "answer = read(reply)",
        "expected = context['vars'].get('expected', '')",
        "expected = re.sub(r'[{]% raw %[}](.*?)[{]% endraw %[}]', r'\\1', expected, flags=re.DOTALL)",
        f"return {expression}",
    ]
    return "\n".join(line for line in lines if line) + "\n"
