"""Plain data written as YAML that people go on editing: block style, texts as blocks, short things in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from evocluster.records import Json

WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*(?: [\w./-]+)*")
_WORDS = frozenset(["null", "true", "false", "yes", "no", "on", "off", "y", "n", "~"])


def dumped(value: Json, indent: int = 0) -> str:
    """A mapping or a list as block YAML, without a line end; deeper lines begin with `indent` spaces."""
    pad = " " * indent
    lines: list[str] = []
    for key, item in value.items() if isinstance(value, Mapping) else (("-", item) for item in value):
        lead = f"{pad}{key}" if key == "-" and not isinstance(value, Mapping) else f"{pad}{scalar(key)}:"
        line = flow(item)
        if isinstance(item, str) and _block(item):
            lines.append(f"{lead} {_as_block(item, indent + 2)}")
        elif not isinstance(item, Mapping | list | tuple) or not item or _short(lead + line):
            lines.append(f"{lead} {line}")
        elif key == "-" and not isinstance(value, Mapping):
            lines.append(f"{lead} {dumped(item, indent + 2).lstrip()}")
        else:
            lines.append(f"{lead}\n{dumped(item, indent + 2)}")
    return "\n".join(lines)


def flow(value: Json) -> str:
    """Any value in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return scalar(value)


def scalar(value: Json) -> str:
    """A text, number, truth value or null; texts in quotes wherever any YAML version could misread them."""
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)


def _short(line: str) -> bool:
    """It can stand in one line: it fits, and holds no text of several lines."""
    return len(line) < WIDTH and "\\n" not in line


def _block(text: str) -> bool:
    """It has lines, and reads the same when it is written as a block."""
    lines = text.split("\n")
    tidy = all(line == line.rstrip() for line in lines) and not text[:1].isspace()
    return len(lines) > 1 and tidy and text.replace("\n", "").isprintable() and not text.endswith("\n\n")


def _as_block(text: str, indent: int) -> str:
    pad = " " * indent
    lines = text.removesuffix("\n").split("\n")
    head = "|" if text.endswith("\n") else "|-"
    return "\n".join([head, *(f"{pad}{line}" if line else "" for line in lines)])
