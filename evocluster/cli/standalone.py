"""An exported configuration as one Python file that needs the openai package only: `winner.py` with constants in it."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evocluster.cli.leaving import Export, of_program, origin, reading, refuse

_HERE = Path(__file__).parent
_ONLY = re.compile(r"\s*# only: (?P<needs>[\w ]+)$")
_EMPTY = 'json.loads(r"""\n{}\n""")'
_SIMPLE = frozenset(
    {"type", "enum", "const", "properties", "required", "additionalProperties", "items", "pattern"}
    | {"minItems", "maxItems", "minLength", "maxLength"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    | {"title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly"}
)
"""Rules of a JSON schema that `flaws.py` knows, and words that are no rules."""
_TYPES = frozenset({"string", "object", "array", "boolean", "null", "number", "integer"})
_LATEST = "https://json-schema.org/draft/2020-12/schema"


def standalone(export: Export) -> str:
    """The text of the file. Raises: ConfigError where no OpenAI-compatible endpoint is asked."""
    winner = of_program(export, "openai")
    for name, endpoint in export["endpoints"].items():
        if not endpoint:
            raise refuse("openai", f"model {name!r} is reached by litellm only", ["litellm"])
    features = _features(winner)
    lines = list(_kept((_HERE / "winner.py").read_text(encoding="utf-8").splitlines(), features))
    code = "\n".join(lines) + "\n"
    if "several" not in features:
        code = code.replace("client: OpenAI | Mapping[str, OpenAI]", "client: OpenAI")
    constants = laid_out(_constants(export, winner))
    constants = re.sub(r"[^\x20-\x7e\n\xa1-\u1fff\u2070-\ud7ff\uf900-\ufdff]", _coded, constants)
    code = re.sub(r"\n{3,}WINNER", "\n\nWINNER", code.partition('"""\n')[2])
    return _header(export, winner, features) + code.replace(_EMPTY, f'json.loads(r"""\n{constants}\n""")', 1)


def laid_out(value: Any, indent: int = 0, width: int = 110) -> str:
    """JSON for reading: on one line what fits there."""
    compact = json.dumps(value, ensure_ascii=False)
    if indent + len(compact) <= width or not value or not isinstance(value, dict | list):
        return compact
    inner, end = "\n" + " " * (indent + 2), "\n" + " " * indent
    if isinstance(value, list):
        return f"[{','.join(inner + laid_out(each, indent + 2, width) for each in value)}{end}]"
    each_line = (
        f"{inner}{json.dumps(name, ensure_ascii=False)}: {laid_out(each, indent + 2, width)}"
        for name, each in value.items()
    )
    return f"{{{','.join(each_line)}{end}}}"


def functions(winner: Mapping[str, Any], *names: str) -> str:
    """The source of some functions of that file and of all that they call, without docstrings and comments."""
    lines = _kept((_HERE / "winner.py").read_text(encoding="utf-8").splitlines(), _features(winner) | {"normalised"})
    tree = ast.parse("\n".join(lines))
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    wanted, waiting = set[str](), list(names)
    while waiting:
        name = waiting.pop()
        if name in defined and name not in wanted:
            wanted.add(name)
            waiting += [node.id for node in ast.walk(defined[name]) if isinstance(node, ast.Name)]
    for name in wanted:
        body = defined[name].body
        defined[name].body = [node for node in body if not _is_text(node)]
    return "\n".join(ast.unparse(node) for name, node in defined.items() if name in wanted)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _coded(found: re.Match[str]) -> str:
    """A character that an editor or a terminal would not show as it is, as JSON escapes it."""
    return json.dumps(found[0])[1:-1]


def _kept(lines: Iterable[str], features: frozenset[str]) -> Iterable[str]:
    """The lines of the module that these features call for, without the marks."""
    blocks: list[bool] = []
    for line in lines:
        found = _ONLY.search(line)
        wanted = found is None or bool(features & set(found["needs"].split()))
        if line.strip() == "# end":
            blocks.pop()
        elif found and not line[: found.start()].strip():
            blocks.append(wanted)
        elif line.startswith("# include: "):
            if "checked" in features:
                yield from _functions(line.removeprefix("# include: "))
        elif wanted and all(blocks):
            yield line[: found.start()] if found else line


def _functions(name: str) -> list[str]:
    """What stands below the imports of a file beside this one."""
    text = (_HERE / name).read_text(encoding="utf-8")
    return [*text[text.index("\n_BOUNDS") + 1 :].rstrip("\n").splitlines(), "", ""]


def _features(winner: Mapping[str, Any]) -> frozenset[str]:
    read, calls = winner["read"], winner["calls"]
    sent = [call for steps in calls.values() for call in steps.values()]
    kind, voting = read["kind"], len(winner["votes"]) > 1
    seeded = any(call["seeded"] for call in sent)
    schema = read["json_schema"]
    checking = "modelled" if read["model"] else "checked" if _simple(schema) else "validated"
    found = {
        kind: True,
        "reasoning": bool(read["after"]),
        "concluding": winner["conclude"] is not None,
        "repairing": winner["repairs"] > 0,
        "unrepaired": winner["repairs"] == 0,
        "voting": voting,
        "judged": winner["ballot"] is not None,
        "wrapped": any(call["wrapped"] for call in sent),
        "seeded": seeded,
        "seedless": not seeded,
        "retrieving": winner["passages"] > 0,
        "normalised": kind == "label" or voting,
        checking: schema is not None,
        "several": len(calls) > 1,
        "single": len(calls) == 1,
    }
    return frozenset(name for name, there in found.items() if there)


def _simple(schema: Any) -> bool:
    """Whether `flaws.py` says of any value what jsonschema would."""
    if schema is None:
        return True
    if not isinstance(schema, Mapping) or schema.get("$schema", _LATEST) != _LATEST:
        return False
    kinds = schema.get("type", [])
    listed = kinds if isinstance(kinds, list) else [kinds]
    fixed = [*(schema.get("enum") or ()), schema.get("const")]
    inner = [*(schema.get("properties") or {}).values(), *([schema["items"]] if "items" in schema else [])]
    return (
        set(schema) <= _SIMPLE | {"$schema"}
        and set(listed) <= _TYPES
        and not any(isinstance(value, dict | list) for value in fixed)
        and isinstance(schema.get("additionalProperties", True), bool)
        and all(_simple(each) and each is not None for each in inner)
    )


def _constants(export: Export, winner: Mapping[str, Any]) -> dict[str, Any]:
    """What `WINNER` holds in the file: nothing that its functions do not read, but for where it came from."""
    models = {
        name: {
            "endpoint": {key: value for key, value in export["endpoints"][name].items() if key != "note"},
            "calls": {
                step: {key: call[key] for key in ("parameters", "seeded", "wrapped")} for step, call in steps.items()
            },
        }
        for name, steps in winner["calls"].items()
    }
    told = {
        "votes": winner["votes"],
        "ask": winner["ask"],
        **{key: winner[key] for key in ("conclude", "repair", "ballot") if winner[key] is not None},
        "repairs": winner["repairs"],
        "fields": winner["fields"],
        "context": winner["context"],
        "read": winner["read"],
        "models": models,
    }
    source = {"run": export["run"]["name"], "genome": export["genome"], "digest": export["digest"]}
    return {"from": source, **told}


def _header(export: Export, winner: Mapping[str, Any], features: frozenset[str]) -> str:
    needs = ["openai>=1.40", *(["jsonschema>=4.20"] if "validated" in features else [])]
    listed = ", ".join(json.dumps(each) for each in needs)
    lines = [_safe(line) for line in origin(export)]
    endpoints = export["endpoints"].values()
    keys = sorted({each["key_env"] for each in endpoints if each["key_env"]})
    uses = [
        f"    pip install {' '.join(re.split('[>=]', each)[0] for each in needs)}",
        *(f"    export {key}=..." for key in keys),
        *(f"    export {each['url_env']}=...  # instead of {_safe(each['base_url'])}" for each in endpoints),
        '    echo "some input" | python THIS_FILE',
    ]
    if "modelled" in features:
        lines.append(_safe(f"Your pydantic model {winner['read']['model']} checks its answers: keep it beside this."))
    lines.append(_safe(f"An answer is {reading(winner)}."))
    script = ["# /// script", '# requires-python = ">=3.10"', f"# dependencies = [{listed}]", "# ///"]
    body = [lines[0], "", *(part for line in lines[1:] for part in textwrap.wrap(line, 110)), "", *uses]
    return "\n".join([*script, "# ruff: noqa: E501", '"""' + "\n".join(body), '"""', ""])


def _safe(text: str) -> str:
    """A line that may stand in a docstring."""
    return " ".join(text.split()).replace("\\", "/").replace('"', "'")
