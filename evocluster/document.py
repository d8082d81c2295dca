"""YAML as plain data with the place of every value, and plain data as YAML: the one home of the library.

It is read by its 1.2 core schema, so `yes`, `on` and dates stay texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from evocluster.complaints import Complaints, Keys, Place, dotted, nearest
from evocluster.errors import ConfigError
from evocluster.records import Json

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
"""Values in a file, aliases counted as often as they are used."""
MAX_DEPTH = 40


def written(data: Json) -> str:
    """Plain data as YAML that any version reads back alike; long texts stand as blocks."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Loader(yaml.SafeLoader):
    """Composes nodes; plain scalars by the YAML 1.2 core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Quotes whatever any YAML version could misread; long texts stand as blocks."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_str)
_NUMBER = {"0o": 8, "0x": 16}
_SCALARS: Mapping[str, tuple[str, list[str], Callable[[str], Json]]] = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""], lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF"), lambda text: text.lower() == "true"),
    "int": (
        r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        list("-+0123456789"),
        lambda text: int(text, _NUMBER.get(text[:2], 10)),
    ),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf",
        list("-+.0123456789"),
        lambda text: float(text.replace(".inf", "inf")),
    ),
    "str": (r"(?!)", [], lambda text: text),
}
"""Tag -> (what a plain scalar looks like, its first characters, its value)."""
_TAG = "tag:yaml.org,2002:"
for _name, (_looks, _first, _) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_looks})$"), _first)


class Document(Complaints):
    """A config file as plain data, with the place every value came from and the problems found so far."""

    def __init__(self, name: str, data: Mapping[str, Json]) -> None:
        super().__init__(name, data)
        self._nodes = 0
        self._sets = 0

    @classmethod
    def read(cls, path: Path) -> Document:
        """A YAML file. Raises: ConfigError when it is not one mapping in readable YAML of bearable size."""
        document = cls(str(path), {})
        node = _compose(_text(path), document.name)
        if not isinstance(node, yaml.MappingNode):
            what = "is empty" if node is None else f"holds one {node.tag.removeprefix(_TAG)}, not a mapping"
            raise ConfigError(f"{path}:1: the file {what}; allowed: sections such as `name:`, `task:`, `models:`")
        document.places[()] = (1, f"{path}:1")
        document.data = document._value(node, (), lambda node: _at_line(document.name, node))
        return document

    def set(self, text: str) -> None:
        """Lay `a.b=c` over the data; c is YAML, a number is a list index. What is wrong becomes a problem."""
        self._sets += 1
        place = (MAX_BYTES + self._sets, f"--set {text}")
        path, equals, value = text.partition("=")
        try:
            if not equals or not all(path.split(".")):
                raise ValueError("not a setting; write path.to.key=value, e.g. budget.calls=500")
            node = _compose(value, place[1])
            keys = self._made(path.split("."), place)
            parsed = self._value(node, keys, lambda node: place)
            at: Any = self.data
            for key in keys[:-1]:
                at = at[key]
            at[keys[-1]] = parsed
        except (ValueError, ConfigError) as error:
            self.add((), str(error).removeprefix(f"{place[1]}:1: "), place)

    def _made(self, parts: list[str], place: Place) -> Keys:
        """The keys of a dotted path, missing mappings made on the way; a key may itself hold dots."""
        keys: Keys = ()
        at: Any = self.data
        while parts:
            used = 1
            key: str | int = parts[0]
            if isinstance(at, list):
                if not (parts[0].isdigit() and int(parts[0]) < len(at)):
                    raise ValueError(f"{dotted(keys)} has no item {parts[0]!r}; allowed: 0 to {len(at) - 1}")
                key = int(parts[0])
            elif isinstance(at, dict):
                used = next((n for n in range(len(parts), 1, -1) if ".".join(parts[:n]) in at), 1)
                key = ".".join(parts[:used])
            else:
                raise ValueError(f"{dotted(keys)} is {at!r}, which has nothing inside; allowed: mappings and lists")
            parts, keys = parts[used:], (*keys, key)
            if not parts:
                self.places = {known: at for known, at in self.places.items() if known[: len(keys)] != keys}
            self.places.setdefault(keys, place)
            if parts and isinstance(at, dict) and at.get(str(key)) is None:
                at[str(key)] = {}
            at = at[key] if parts else None
        return keys

    def _value(self, node: yaml.Node | None, keys: Keys, place: Callable[[yaml.Node], Place]) -> Json:
        """The plain value of a node; places are noted, problems added."""
        if node is None:
            return None
        self._nodes += 1
        if self._nodes > MAX_NODES or len(keys) > MAX_DEPTH:
            raise ConfigError(
                f"{place(node)[1]}: {dotted(keys)}: more than {MAX_NODES} values or {MAX_DEPTH} "
                "levels, aliases followed; write it flatter, and use anchors sparingly"
            )
        self.places.setdefault(keys, place(node))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, keys, place)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self._value(item, (*keys, i), place) for i, item in enumerate(node.value)]
        kind = node.tag.removeprefix(_TAG)
        try:
            return _SCALARS[kind][2](node.value)
        except (KeyError, TypeError, ValueError):
            self.add(keys, f"{node.tag!r} cannot be read from this; allowed: texts, numbers, true, false, null")
            return None

    def _mapping(self, node: yaml.MappingNode, keys: Keys, place: Callable[[yaml.Node], Place]) -> Json:
        made: dict[str, Json] = {}
        lines: dict[str, str] = {}
        for key_node, value_node in node.value:
            key, here = key_node.value, place(key_node)
            if not isinstance(key, str) or key == "<<":
                self.add(keys, "this key cannot be used (lists, mappings and `<<`); write the settings out", here)
            elif key in made:
                self.add((*keys, key), f"written twice, first at {lines[key]}; remove one", here)
            else:
                lines[key] = here[1]
                self.places[*keys, key] = here
                made[key] = self._value(value_node, (*keys, key), place)
        return made


def _at_line(name: str, node: yaml.Node) -> Place:
    line = node.start_mark.line + 1
    return line, f"{name}:{line}"


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        beside = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        there = f"; beside it: {', '.join(beside[:10])}" if beside else ""
        raise ConfigError(f"{path}: cannot be read: {error.strerror}{there}{nearest(path.name, beside)}") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: has {len(raw)} bytes; allowed: {MAX_BYTES}; examples belong into data files")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error


_FIXES = {
    "'\\t'": "; indent with spaces, not tabs",
    "got '?'": "; put texts that hold a question mark in quotes",
    "mapping values are not allowed": "; put texts that hold ': ' in quotes, and check the indentation",
}
"""Part of what the YAML library says -> the remedy."""


def _compose(text: str, name: str) -> yaml.Node | None:
    """The node tree of a text. Raises: ConfigError with line and column."""
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}: column {mark.column + 1}" if mark else name
        fix = next((fix for sign, fix in _FIXES.items() if sign in str(error.problem)), "")
        raise ConfigError(f"{where}: {', '.join(filter(None, (error.context, error.problem)))}{fix}") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(f"{name}:{line}: character {error.character!r}: {error.reason}; remove it") from error
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply; allowed: {MAX_DEPTH} levels") from None
    return node


def read_yaml(path: Path) -> tuple[Json, dict[Keys, Place]]:
    """Any YAML file (so JSON too) as plain data, and the place of every value: for the formats of others.

    Unlike a config it may be a list or one value, and `<<` merges. Raises: ConfigError with a line for every problem.
    """
    document = Document(str(path), {})
    node = _compose(_text(path), document.name)
    _merge(node, set())
    value = document._value(node, (), lambda node: _at_line(document.name, node))
    document.refuse()
    return value, document.places


def _merge(node: yaml.Node | None, seen: set[int]) -> None:
    """Put what `<<` names into the mappings that name it; their own keys win."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _merge(item, seen)
        return
    pairs: list[tuple[yaml.Node, yaml.Node]] = []
    for key, value in node.value:
        _merge(value, seen)
        if key.value == "<<":
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            pairs += [pair for one in sources if isinstance(one, yaml.MappingNode) for pair in one.value]
    own = [pair for pair in node.value if pair[0].value != "<<"]
    names = [str(key.value) for key, _ in own]
    for pair in pairs:
        if str(pair[0].value) not in names:
            names.append(str(pair[0].value))
            own.append(pair)
    node.value = own
