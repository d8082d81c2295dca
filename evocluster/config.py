"""One YAML file -> one frozen `Config`, or one error that lists every problem by line with its fix.

    load(path, sets)   read -> lay `--set` texts over -> refuse secrets -> validate -> Config
    dump(config)       the resolved text: every default written out; `load` of it gives an equal Config
    paths, shipped     the settings that name files, and the text in which they name them elsewhere
    moved(config)      a config of a shipped one whose files lie in another folder now
    schema()           JSON schema for editors

Problems read
`file.yaml:12: task.scorers.0.kind: unknown kind (got 'labl'); allowed: label, exact; did you mean 'label'?`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PrivateAttr, model_validator

from evocluster.complaints import Keys, described, failure, holders, unknown
from evocluster.document import Document, written
from evocluster.errors import ConfigError
from evocluster.llm.direct import Direct
from evocluster.llm.endpoints import Endpoint
from evocluster.llm.hosts import Reach, wrong_entries, wrong_reaches
from evocluster.llm.local import Local
from evocluster.llm.remote import Remote
from evocluster.llm.scripted import Scripted
from evocluster.names import PATTERN, checked_name
from evocluster.parts import Part
from evocluster.records import FrozenMap, Json
from evocluster.release.settings import Online
from evocluster.search.across import How
from evocluster.search.budget import Budget
from evocluster.search.feasible import Constraint
from evocluster.search.objectives import FOUR, Composite, Objective
from evocluster.search.recommend import Recommend
from evocluster.search.recommend import parse as parse_rule
from evocluster.search.settings import Search
from evocluster.search.space import Genes
from evocluster.tasks.code import is_spec
from evocluster.tasks.task import BUILT_IN_NAMES, Task

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

    name: Annotated[str, Field(pattern=PATTERN), AfterValidator(checked_name)]
    """Letters, digits, '.', '_' and '-'; the run folder is called so."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    task: Task | None = None
    """What is to be answered, and how answers are judged."""
    tasks: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")], Task] = Field(default_factory=dict)
    """Several related tasks by name in place of `task`, which one genome serves."""
    across: How = "mean"
    """With `tasks`: every objective is the mean of the tasks, or that of the worst."""
    python_path: tuple[str, ...] = (".",)
    """Folders that modules named in the config are imported from, after everything installed."""
    models: dict[str, AnyModel] = Field(min_length=1)
    """Name -> model; the gene `model` takes these names."""
    allow_hosts: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Host -> variables whose values may go there although they belong elsewhere; 'http://HOST' also without TLS."""
    space: Genes
    """Gene -> one value (frozen), a list (choice), or {low, high} (range)."""
    start: tuple[FrozenMap, ...] = Field(min_length=1)
    """What runs today, as genes; left-out genes take the first value of the space."""
    warm_start: str | None = None
    """Folder of an earlier run, or its s3://..., whose front joins the first population."""
    objectives: tuple[Objective, ...] = Field(default=FOUR, min_length=1)
    constraints: tuple[Constraint, ...] = ()
    """What a configuration has to keep: whoever keeps less of it is behind, whatever else it is worth."""
    composite: Composite = Composite()
    recommend: Recommend = "composite"
    search: Search = Search()
    budget: Budget = Field(default_factory=lambda: Budget.model_validate({}))
    engine: Engine = Engine()
    cache: CacheSettings = CacheSettings()
    online: Online = Online()
    runs: str = "runs"
    """Where run folders are made, relative to the working directory."""

    _root: Path = PrivateAttr(default_factory=Path.cwd)

    @property
    def root(self) -> Path:
        """Where relative paths start: the config file's folder, or the working directory without a file."""
        return self._root

    @property
    def every(self) -> dict[str, Task]:
        """The tasks by name; the one of `task` has none."""
        return {"": self.task} if self.task is not None else self.tasks

    def resolved_models(self) -> dict[str, Scripted | Direct | Remote | Local]:
        """The models by name, kind `auto` decided."""
        return {name: model.resolve() if isinstance(model, Endpoint) else model for name, model in self.models.items()}

    def __eq__(self, other: object) -> bool:
        """By value; where it was read from does not count."""
        return isinstance(other, Config) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.task is None) == (not self.tasks):
            text = "missing; describe the task here, or several under `tasks:`"
            raise failure([(("task",), text if self.task is None else "is there beside `tasks:`; keep one of them")])
        if len(self.tasks) == 1:
            raise failure([(("tasks",), "holds one task; write it under `task:`, or add another")])
        wrong = [
            *(*self._wrong_start(), *self._wrong_names(), *self._wrong_limits()),
            *(*self._wrong_models(), *self._wrong_genes(), *self._wrong_hosts(), *self._wrong_judge()),
        ]
        if wrong:
            raise failure(wrong)
        return self

    def _names(self) -> Mapping[str, Sequence[str]]:
        """Gene -> the names its values must be among."""
        styles = dict.fromkeys(style for task in self.every.values() for style in task.label_names)
        return {"model": tuple(self.models), "label_names": (*BUILT_IN_NAMES, *styles)}

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

    @property
    def reaches(self) -> dict[str, Reach]:
        """Where the calls of each model go that calls another machine or process by URL or provider."""
        return {
            name: model.reach for name, model in self.models.items() if isinstance(model, Direct | Remote | Endpoint)
        }

    def _wrong_hosts(self) -> list[tuple[Keys, str]]:
        """Keys that would go where they do not belong, and hosts allowed for nothing."""
        reaches = self.reaches
        wrong: list[tuple[Keys, str]] = [
            (("models", name, setting), text) for name, setting, text in wrong_reaches(reaches, self.allow_hosts)
        ]
        entries = wrong_entries(self.allow_hosts, reaches.values())
        return wrong + [(("allow_hosts", entry), text) for entry, text in entries]

    @property
    def _scorers(self) -> list[str]:
        """Every scorer as an objective names it."""
        return [f"scores.{scorer.name}" for task in self.every.values() for scorer in task.scorers]

    def _wrong_limits(self) -> list[tuple[Keys, str]]:
        """Constraints and a recommendation that speak of no objective."""
        names = [one.name for one in self.objectives]
        wrong: list[tuple[Keys, str]] = [
            (("constraints", at), text)
            for at, one in enumerate(self.constraints)
            if (text := one.wrong(names, self._scorers)) is not None
        ]
        try:
            parse_rule(self.recommend, names)
        except ValueError as error:
            wrong.append((("recommend",), str(error)))
        return wrong

    def _wrong_names(self) -> list[tuple[Keys, str]]:
        """The rewriting and the reflecting model, scorers and objectives that are named and not there."""
        wrong: list[tuple[Keys, str]] = []
        asked = {"rewriter": self.search.rewriter, "reflector": self.search.reflector}
        wrong += [
            (("search", setting), unknown("nothing of this name under models", name, self.models))
            for setting, name in asked.items()
            if name is not None and name not in self.models
        ]
        scorers, names = self._scorers, [objective.name for objective in self.objectives]
        read: list[tuple[Keys, str]] = [
            (("objectives", i, "source"), one.source) for i, one in enumerate(self.objectives)
        ]
        read += [(("recommend",), name) for name in parse_rule(self.recommend, None).names if name not in names]
        wrong += [
            (keys, unknown("no such scorer in the task", source, scorers))
            for keys, source in read
            if source.startswith("scores.") and source not in scorers
        ]
        wrong += [
            (("objectives", i), f"two objectives are named {name!r}; give one another `name:`")
            for i, name in enumerate(names)
            if name in names[:i]
        ]
        if self.budget.target is not None and self.budget.target_objective not in names:
            text = unknown("no such objective", self.budget.target_objective, names)
            wrong.append((("budget", "target_objective"), text))
        return wrong

    def _sections(self) -> list[tuple[Keys, Task]]:
        """Where each task stands."""
        return [(("tasks", name) if name else ("task",), task) for name, task in self.every.items()]

    def _wrong_models(self) -> list[tuple[Keys, str]]:
        """Judges, deciding and voting models and fallbacks that are named and not there."""
        asked: list[tuple[Keys, Json]] = [
            ((*keys, *inner), name) for keys, task in self._sections() for inner, name in task.models.items()
        ]
        for at, value in enumerate(self.space.values("use_consensus")):
            asked += [(("space", "use_consensus", at), name) for name in (value if isinstance(value, tuple) else ())]
        wrong: list[tuple[Keys, str]] = []
        for model, settings in self.models.items():
            for at, name in enumerate(settings.fallbacks):
                keys = ("models", model, "fallbacks", at)
                asked.append((keys, name))
                if name == model or name in settings.fallbacks[:at]:
                    text = "is the model itself" if name == model else "is named twice"
                    wrong.append((keys, f"{name!r} {text}; name other models, each once"))
        return wrong + [
            (keys, unknown("nothing of this name under models", value, self.models))
            for keys, value in asked
            if value not in self.models
        ]

    def _wrong_judge(self) -> list[tuple[Keys, str]]:
        """A judge of live traffic that is none of the task's."""
        named = self.online.judge.scorer
        judges = [scorer.name for task in self.every.values() for scorer in task.scorers if scorer.kind == "judge"]
        if named is None or named in judges:
            return []
        return [(("online", "judge", "scorer"), unknown("no scorer of kind 'judge' in the task", named, judges))]

    def _wrong_genes(self) -> list[tuple[Keys, str]]:
        """Genes without what they need, and the other way round."""
        built_in = [(keys, task) for keys, task in self._sections() if task.executor is None]
        if not built_in:
            return []
        asked = "retriever_topk" in self.space.root or any("retriever_topk" in genes for genes in self.start)
        wrong: list[tuple[Keys, str]] = []
        if asked and not any(task.retrieval for _, task in built_in):
            text = "nothing to retrieve from; add `retrieval: {documents: FOLDER}` to the task, or remove the gene"
            wrong.append((("space", "retriever_topk"), text))
        for keys, task in built_in:
            if task.retrieval is not None and not asked:
                text = "nothing uses it; add a gene to `space:`, e.g. retriever_topk: [0, 2, 4]"
                wrong.append(((*keys, "retrieval"), text))
        return wrong


_TASK_PATHS: tuple[Keys, ...] = (
    ("data", "train"),
    ("data", "validation"),
    ("data", "test"),
    ("json_schema",),
    ("executor",),
    ("executor", "function"),
    ("retrieval", "documents"),
    ("retrieval", "embed"),
    *((section, "*", name) for section in ("scorers", "safety") for name in ("function", "rubric", "labelled")),
)
PATHS: tuple[Keys, ...] = (
    *(("task", *keys) for keys in _TASK_PATHS),
    *(("tasks", "*", *keys) for keys in _TASK_PATHS),
    ("python_path", "*"),
    ("warm_start",),
    ("cache", "path"),
)
"""Settings that are paths, or code in a file (`file.py:name`), where they are texts; relative ones start at the folder
of the config file. '*' is every entry of a list or mapping."""
SHIPPED = "evocluster-files"
"""The folder of a package that the files of a submitted run are in; what stands before it differs by cluster."""


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
    return written(resolved(config))


def resolved(config: Config) -> dict[str, Any]:
    """The config as plain data, its paths absolute."""
    data = config.model_dump(mode="json")
    _absolute(data, config.root)
    return data


def paths(config: Config) -> list[tuple[Keys, str]]:
    """The settings of PATHS that are set, as texts; what lies on object storage is none of them."""
    data = config.model_dump(mode="json")
    return [
        (keys, holder[last])
        for keys in PATHS
        for holder, last in holders(data, keys)
        if isinstance(holder[last], str) and "://" not in holder[last]
    ]


def shipped(config: Config, place: Callable[[Keys, str], str]) -> str:
    """The resolved config as YAML for a run on a cluster that is there; `place` says where each path of PATHS is."""
    data = _placed_by(config, place)
    data["engine"] |= {"runner": "ray", "address": "auto"}
    return written(data)


def moved(config: Config, root: Path) -> Config:
    """The config of a shipped run whose files lie at `root` now; other paths stay. Raises: errors.ConfigError."""

    def place(keys: Keys, text: str) -> str:
        _, found, rest = text.partition(f"/{SHIPPED}/")
        if text.endswith(f"/{SHIPPED}"):
            return str(root)
        return str(root / rest) if found else text

    return parse(_placed_by(config, place), config.root)


def unmoved(text: str) -> str:
    """A path, or code in a file, by the same name wherever a package was unpacked."""
    return text.partition(f"/{SHIPPED}/")[2] or text


def _placed_by(config: Config, place: Callable[[Keys, str], str]) -> dict[str, Any]:
    data = config.model_dump(mode="json")
    for keys in PATHS:
        for holder, last in holders(data, keys):
            if isinstance(holder[last], str) and "://" not in holder[last]:
                holder[last] = place(keys, holder[last])
    return data


def schema() -> dict[str, Any]:
    """The JSON schema of a config file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **described(Config)}


def _config(document: Document, root: Path) -> Config:
    _absolute(document.data, root)
    config = document.fit(Config)
    config._root = root
    return config


def _absolute(data: Json, root: Path) -> None:
    if isinstance(data, dict):
        data.setdefault("python_path", ["."])
    for keys in PATHS:
        for holder, last in holders(data, keys):
            if isinstance(holder[last], str) and not holder[last].startswith("~"):
                holder[last] = _placed(holder[last], root)


def _placed(text: str, root: Path) -> str:
    """A path, or the file of `file.py:name`, made absolute; `module:name` and what lies on object storage stay."""
    if "://" in text:
        return text
    if not is_spec(text):
        return str((root / text).absolute())
    where, name = text.rsplit(":", 1)
    return f"{(root / where).absolute()}:{name}" if where.endswith(".py") else text


CHANGEABLE = ("budget.", "engine.runner", "engine.workers", "engine.address", "cache.")
PACING = (
    "max_concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "adaptive",
    "timeout_s",
    "retries",
    "retry_share",
    "patience_s",
)
"""What a resumed run may change, PACING of each model: nothing that would change what has been decided."""


def raised(old: Config, new: Config) -> list[str]:
    """The budgets that a resumed run raises. Raises: ConfigError for any change that it may not make."""
    before, after = (_flat(one.model_dump(mode="json")) for one in (old, new))
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    for name in changed:
        if not name.startswith(CHANGEABLE) and not _paces(name, new):
            raise ConfigError(
                f"--set {name}={after.get(name)!r}: resume can change only {', '.join(CHANGEABLE)}; "
                f"of each model {', '.join(PACING)}; for anything else start a new run "
                "(`warm_start:` begins it with this one's front)"
            )
    budget = [name for name in changed if name.startswith("budget.")]
    for name in budget:
        was, now = before.get(name), after.get(name)
        if not (isinstance(was, int | float) and (now is None or now > was)):
            raise ConfigError(f"--set {name}={now!r}: a resumed run's budget can only be raised; it was {was!r}")
    return budget


def _paces(name: str, config: Config) -> bool:
    return name in {f"models.{model}.{setting}" for model in config.models for setting in PACING}


def _flat(data: Any, name: str = "") -> dict[str, Any]:
    """Every value of nested mappings by its dotted name."""
    if not isinstance(data, dict):
        return {name: data}
    return {
        key: value
        for part, inner in data.items()
        for key, value in _flat(inner, f"{name}.{part}" if name else part).items()
    }
