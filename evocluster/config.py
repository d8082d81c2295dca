"""One YAML file -> one frozen `Config`, or one error that lists every problem by line with its fix.

    load(path, sets)   read -> lay `--set` texts over -> refuse secrets -> validate -> Config
    dump(config)       the resolved text: every default written out; `load` of it gives an equal Config
    schema()           JSON schema for editors

YAML is read by its 1.2 core schema, so `yes`, `on` and dates stay texts. Problems read
`file.yaml:12: task.scorers.0.kind: unknown kind (got 'labl'); allowed: label, exact; did you mean 'label'?`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from evocluster.complaints import Complaints, Keys, Place, described, dotted, failure, nearest, unknown
from evocluster.errors import ConfigError
from evocluster.llm.direct import Direct
from evocluster.llm.endpoints import Endpoint
from evocluster.llm.local import Local
from evocluster.llm.remote import Remote
from evocluster.llm.scripted import Scripted
from evocluster.parts import Part
from evocluster.records import FrozenMap, Json
from evocluster.search.budget import Budget
from evocluster.search.objectives import FOUR, Composite, Objective
from evocluster.search.optimizer import Search
from evocluster.search.recommend import Recommend
from evocluster.search.recommend import parse as parse_rule
from evocluster.search.space import Genes
from evocluster.tasks.task import BUILT_IN_NAMES, Task

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
"""Values in a file, aliases counted as often as they are used."""
MAX_DEPTH = 40

AnyModel = Annotated[Scripted | Direct | Remote | Local | Endpoint, Field(discriminator="kind")]


class Engine(Part):
    """How the search is carried out."""

    runner: Literal["ray", "local"] = "ray"
    """local: in this process, no cluster."""
    in_flight: int = Field(default=16, ge=1, le=5000)
    """Evaluations under way at once, over all workers."""
    workers: int | None = Field(default=None, ge=1, le=10_000)
    """None: as many as the machines and `in_flight` call for."""
    address: str | None = None
    """Of a Ray cluster that is there already; None: one is started on this machine."""


class CacheSettings(Part):
    """Completions that are never paid twice."""

    enabled: bool = True
    path: str | None = "~/.cache/evocluster/completions"
    """Folder, shared by all runs; None: in memory, for one run."""

    def folder(self) -> Path | None:
        """The folder, `~` expanded."""
        return Path(self.path).expanduser() if self.path is not None else None


class Config(Part):
    """Everything one run needs to know. From `load` its paths are absolute; else they start at `root`."""

    model_config = ConfigDict(title="evocluster config", use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Letters, digits, '.', '_' and '-'; the run folder is called so."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    task: Task
    models: dict[str, AnyModel] = Field(min_length=1)
    """Name -> model; the gene `model` takes these names."""
    space: Genes
    """Gene -> one value (frozen), a list (choice), or {low, high} (range)."""
    start: tuple[FrozenMap, ...] = Field(min_length=1)
    """What runs today, as genes; left-out genes take the first value of the space."""
    warm_start: str | None = None
    """Folder of an earlier run, whose front joins the first population."""
    objectives: tuple[Objective, ...] = Field(default=FOUR, min_length=1)
    composite: Composite = Composite()
    recommend: Recommend = "composite"
    search: Search = Search()
    budget: Budget = Field(default_factory=lambda: Budget.model_validate({}))
    engine: Engine = Engine()
    cache: CacheSettings = CacheSettings()
    runs: str = "runs"
    """Where run folders are made, relative to the working directory."""

    _root: Path = PrivateAttr(default_factory=Path.cwd)

    @property
    def root(self) -> Path:
        """Where relative paths start: the config file's folder, or the working directory without a file."""
        return self._root

    def resolved_models(self) -> dict[str, Scripted | Direct | Remote | Local]:
        """The models by name, kind `auto` decided."""
        return {name: model.resolve() if isinstance(model, Endpoint) else model for name, model in self.models.items()}

    def __eq__(self, other: object) -> bool:
        """By value; where it was read from does not count."""
        return isinstance(other, Config) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        wrong = [*self._wrong_start(), *self._wrong_names()]
        if wrong:
            raise failure(wrong)
        return self

    def _names(self) -> Mapping[str, Sequence[str]]:
        """Gene -> the names its values must be among."""
        return {"model": tuple(self.models), "label_names": (*BUILT_IN_NAMES, *self.task.label_names)}

    def _wrong_start(self) -> list[tuple[Keys, str]]:
        """Genes of `start` and `space` that the rest of the config does not know."""
        wrong: list[tuple[Keys, str]] = []
        for index, genes in enumerate(self.start):
            wrong += [(("start", index, gene), reason) for gene, reason in self.space.check(genes)]
        if "model" not in self.space.root and len(self.models) > 1:
            wrong.append((("space", "model"), f"missing; say which of the models: [{', '.join(self.models)}]"))
        for gene, known in self._names().items():
            places: list[tuple[Keys, Json]] = [
                (("space", gene, index), value) for index, value in enumerate(self.space.values(gene))
            ]
            places += [(("start", index, gene), genes[gene]) for index, genes in enumerate(self.start) if gene in genes]
            section = "models" if gene == "model" else "task.label_names"
            wrong += [
                (keys, unknown(f"nothing of this name under {section}", value, known))
                for keys, value in places
                if value not in known
            ]
        return wrong

    def _wrong_names(self) -> list[tuple[Keys, str]]:
        """The rewriting model, scorers and objectives that are named and not there."""
        wrong: list[tuple[Keys, str]] = []
        if self.search.rewriter is not None and self.search.rewriter not in self.models:
            text = unknown("nothing of this name under models", self.search.rewriter, self.models)
            wrong.append((("search", "rewriter"), text))
        scorers = [f"scores.{scorer.name}" for scorer in self.task.scorers]
        read: list[tuple[Keys, str]] = [
            (("objectives", i, "source"), one.source) for i, one in enumerate(self.objectives)
        ]
        read += [(("recommend",), name) for name in parse_rule(self.recommend).names]
        wrong += [
            (keys, unknown("no such scorer in the task", source, scorers))
            for keys, source in read
            if source.startswith("scores.") and source not in scorers
        ]
        names = [objective.name for objective in self.objectives]
        wrong += [
            (("objectives", i), f"two objectives are named {name!r}; give one another `name:`")
            for i, name in enumerate(names)
            if name in names[:i]
        ]
        if self.budget.target is not None and self.budget.target_objective not in names:
            text = unknown("no such objective", self.budget.target_objective, names)
            wrong.append((("budget", "target_objective"), text))
        return wrong


PATHS: tuple[Keys, ...] = (
    ("task", "data", "train"),
    ("task", "data", "validation"),
    ("task", "data", "test"),
    ("task", "json_schema"),
    ("warm_start",),
    ("cache", "path"),
)
"""Settings that are paths where they are texts; relative ones start at the folder of the config file."""


def load(path: str | Path, sets: Sequence[str] = ()) -> Config:
    """The config of a file with `a.b=c` texts laid over it. Data files need not exist yet.

    Raises: ConfigError with a line for every problem.
    """
    path = Path(path)
    document = Document.read(path)
    for text in sets:
        document.set(text)
    return _config(document, path.absolute().parent)


def parse(data: Mapping[str, Json], root: Path | None = None, name: str = "config") -> Config:
    """The config of plain data, for Python callers; paths start at `root` (None: the working directory).

    Raises: ConfigError with a line for every problem, each beginning with `name`.
    """
    return _config(Document(name, data), (root or Path()).absolute())


def dump(config: Config) -> str:
    """The resolved config as YAML, to be read from any folder."""
    data = config.model_dump(mode="json")
    _absolute(data, config.root)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def schema() -> dict[str, Any]:
    """The JSON schema of a config file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **described(Config)}


def _config(document: Document, root: Path) -> Config:
    _absolute(document.data, root)
    config = document.fit(Config)
    config._root = root
    return config


def _absolute(data: Json, root: Path) -> None:
    for *above, last in PATHS:
        at = data
        for key in above:
            at = at.get(key) if isinstance(at, dict) else None
        if isinstance(at, dict) and isinstance(at.get(last), str) and not at[last].startswith("~"):
            at[last] = str((root / at[last]).absolute())


# ---------------------------------------------------------------- reading, with a place for every value


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
