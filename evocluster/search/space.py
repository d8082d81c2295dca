"""The space of genomes: which genes there are, which values each may take, and how to stay inside.

`Genes` is the `space:` section of a config as written; `Space` is the same bound to what it speaks about: the
training examples that may become demos, what each model can do, the names of labels. A genome of a space
always has all of its genes. Genes left out of the section have one value (`OMITTED`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import ConfigDict, GetJsonSchemaHandler, RootModel, ValidationError, model_validator
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from evocluster.errors import ConfigError
from evocluster.llm.client import Abilities
from evocluster.records import FrozenMap, Genome, Json, canonical
from evocluster.search import described
from evocluster.search.demos import Demos, Shots
from evocluster.search.genes import CHECKS, Choice, Frozen, Gene, Range, Texts, checked, is_number, parse

OMITTED: Mapping[str, Json] = {
    "rubric": "",
    "cot": False,
    "temperature": 0.0,
    "max_tokens": 64,
    "demos": (),
    "demo_style": "chat",
    "constrain": False,
    "label_names": "as_is",
}
"""What a known gene is when the section leaves it out. `model` is then the only configured model."""
KNOWN = (*CHECKS, "demos")


class Candidate(NamedTuple):
    """A training example that may become a demo."""

    id: str
    group: str
    """Its label as text; balanced samples take as many of every group."""


class Pool(tuple[Candidate, ...]):
    """All examples that may become demos, in a fixed order."""

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Pool:
        """From (example id, group)."""
        return cls(Candidate(id, group) for id, group in pairs)


def nearest(name: str, allowed: Sequence[str]) -> str:
    """'; did you mean ...?' or nothing."""
    near = get_close_matches(name, allowed, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _parse_demos(given: Json) -> Frozen | Demos:
    if isinstance(given, Mapping):
        return Demos.model_validate(given)
    if isinstance(given, list | tuple) and all(isinstance(id, str) for id in given):
        return Frozen(value=_shown(given))
    raise ValueError(f"got {given!r}; allowed: {{max: 8}}, or a list of ids of training examples to freeze it")


def _shown(given: Json) -> tuple[str, ...]:
    """The demos of one genome. Raises: ValueError."""
    if not isinstance(given, list | tuple) or not all(isinstance(id, str) for id in given):
        raise ValueError(f"got {given!r}; allowed: a list of ids of training examples, [] for none")
    if len(set(given)) < len(given):
        raise ValueError(f"got {list(given)!r}; an example can be a demo once: list every id once")
    return tuple(given)


def _lines(name: str, given: Json, error: ValueError) -> Iterator[InitErrorDetails]:
    """What is wrong with a gene, each where it stands: what pydantic says stays its own, to be told as that of any
    other section (see `complaints.py`).
    """
    if not isinstance(error, ValidationError):
        kind = PydanticCustomError("gene", "{reason}", {"reason": str(error)})
        yield InitErrorDetails(type=kind, loc=(name,), input=given)
        return
    for line in error.errors(include_url=False):
        within = line["loc"] if isinstance(given, Mapping) else ()
        yield InitErrorDetails(type=line["type"], loc=(name, *within), input=line["input"], ctx=line.get("ctx", {}))


class Genes(RootModel[FrozenMap]):
    """The `space:` section: gene -> one value (frozen), a list (choice), {low, high, step, log} (range).

    `rubric` as a list: seed texts that rewriting may go beyond; {texts, fixed: true} forbids new ones.
    `demos`: {max, min}, or a list of ids (frozen). Any other name is a gene of the user's own. Errors stand
    at the gene they speak of.
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _parses(self) -> Genes:
        wrong: list[InitErrorDetails] = []
        for name, given in self.root.items():
            try:
                self._gene(name, given)
            except ValueError as error:
                wrong += _lines(name, given, error)
        if wrong:
            raise ValidationError.from_exception_data("Genes", wrong)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """With the known genes in it."""
        made = handler.resolve_ref_schema(handler(core))
        made.update(described.section(made))
        return made

    @staticmethod
    def _gene(name: str, given: Json) -> Gene | Demos:
        if name == "demos":
            return _parse_demos(given)
        if name not in KNOWN:
            near = get_close_matches(name, KNOWN, n=1, cutoff=0.8)
            if near:
                raise ValueError(f"{name!r} is not a known gene; did you mean {near[0]!r}?")
        return parse(name, given)

    @cached_property
    def parts(self) -> dict[str, Gene | Demos]:
        """Every gene of the space, the left-out ones frozen; sorted by name."""
        given = {name: self._gene(name, value) for name, value in self.root.items()}
        frozen = {name: Frozen(value=value) for name, value in OMITTED.items() if name not in given}
        return dict(sorted({**given, **frozen}.items()))

    def values(self, name: str) -> tuple[Json, ...]:
        """The values that are listed for a gene (its one value, its choices, its texts); () for ranges and
        demos.
        """
        part = self.parts.get(name)
        if isinstance(part, Choice):
            return part.values
        if isinstance(part, Texts):
            return part.texts
        return (part.value,) if isinstance(part, Frozen) else ()

    def ends(self, name: str) -> tuple[Json, ...]:
        """The values that are listed for a gene, or the two ends of a range: whatever it can be lies among these."""
        gene = self.parts.get(name)
        return (gene.low, gene.high) if isinstance(gene, Range) else self.values(name)

    def check(self, given: Mapping[str, Json]) -> list[tuple[str, str]]:
        """What is wrong with a starting genome's genes, as (gene, reason); empty when nothing is."""
        names = {*self.parts, "model"}
        wrong = []
        for name, value in given.items():
            if name not in names:
                near = nearest(name, sorted(names))
                wrong.append((name, f"{name!r} is no gene of the space; allowed: {', '.join(sorted(names))}{near}"))
                continue
            try:
                _ = _shown(value) if name == "demos" else checked(name, value)
            except ValueError as error:
                wrong.append((name, str(error)))
        return wrong


class Space:
    """All genomes that may be tried. Immutable; every method that draws takes its generator."""

    def __init__(
        self,
        genes: Genes | Mapping[str, Json],
        pool: Sequence[tuple[str, str]] = (),
        models: Mapping[str, Abilities] | None = None,
        label_names: Sequence[str] | None = None,
        constrain_by: Sequence[Literal["choices", "json_schema"]] = ("choices",),
        near: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`pool`: (example id, group) of demo candidates; `models`: what each can do; `label_names`: the
        names there are.

        `constrain_by` names the abilities that the gene `constrain` needs; `near`: see the property. Raises:
        ConfigError.
        """
        self.settings = genes if isinstance(genes, Genes) else _section(genes)
        self._models = dict(models or {})
        self._needed = tuple(constrain_by)
        self._near = {id: tuple(ids) for id, ids in (near or {}).items()}
        self._genes: dict[str, Gene] = {}
        for name, part in self.settings.parts.items():
            self._genes[name] = Shots(part, pool) if isinstance(part, Demos) else part
        if "model" not in self._genes and self._models:
            if len(self._models) > 1:
                raise ConfigError(
                    f"space: 'model' is missing and there are {len(self._models)} models; "
                    f"write `model: [{', '.join(self._models)}]` to choose, or one name to freeze it"
                )
            self._genes["model"] = Frozen(value=next(iter(self._models)))
        self._genes = dict(sorted(self._genes.items()))
        self._check_demos(frozenset(id for id, _ in pool))
        self._check_names(label_names)
        self._check_models()

    @property
    def names(self) -> tuple[str, ...]:
        """Every gene, sorted."""
        return tuple(self._genes)

    @cached_property
    def free(self) -> tuple[str, ...]:
        """The genes that can have more than one value, sorted."""
        return tuple(name for name, gene in self._genes.items() if gene.free)

    @property
    def possible(self) -> dict[str, tuple[Json, ...]]:
        """Gene -> the values listed for it; genes without a list (ranges, demos) are left out."""
        listed = {name: self.settings.values(name) for name in self._genes}
        return {name: values for name, values in listed.items() if values}

    @property
    def near(self) -> Mapping[str, tuple[str, ...]]:
        """Id of a scored train example -> ids of demo candidates with inputs like its own, the nearest first; empty
        where nobody compared them.
        """
        return self._near

    @property
    def shots(self) -> Shots | None:
        """The few-shot gene, where it is free."""
        gene = self._genes["demos"]
        return gene if isinstance(gene, Shots) and gene.free else None

    @property
    def rewritable(self) -> bool:
        """New rubric texts are allowed."""
        gene = self._genes.get("rubric")
        return isinstance(gene, Texts) and not gene.fixed

    def movable(self, name: str) -> bool:
        """`move` has another value to go to.

        A rewritable rubric with one seed text is free and yet cannot move.
        """
        gene = self._genes[name]
        return len(gene.texts) > 1 if isinstance(gene, Texts) else gene.free

    def numeric(self, name: str) -> bool:
        """Its values are numbers: they have an order."""
        gene = self._genes[name]
        return isinstance(gene, Range) or (isinstance(gene, Choice) and all(map(is_number, gene.values)))

    def alike(self, name: str, one: Json, other: Json) -> bool:
        """Two values of a gene that are the same but for a trifle: see `Range.alike`."""
        gene = self._genes[name]
        return gene.alike(one, other) if isinstance(gene, Range) else canonical(one) == canonical(other)

    def abilities(self, model: str) -> Abilities:
        """What a model can do (chat, when nothing is known of it)."""
        return self._models.get(model, Abilities())

    def complete(self, given: Mapping[str, Json]) -> Genome:
        """A starting genome as the user wrote it, left-out genes filled with the first value of the space.

        It may lie outside the space: it is what runs today. Raises: ConfigError.
        """
        wrong = self.settings.check(given)
        if wrong:
            raise ConfigError("; ".join(f"start: {name}: {reason}" for name, reason in wrong))
        first = {name: gene.first for name, gene in self._genes.items()}
        return Genome(genes={**first, **{name: checked(name, value) for name, value in given.items()}})

    def sample(self, rng: np.random.Generator) -> Genome:
        """A random genome of the space."""
        return self.fix({name: gene.sample(rng) for name, gene in self._genes.items()})

    def spread(self, count: int, rng: np.random.Generator) -> list[Genome]:
        """`count` genomes that cover every gene evenly (a Latin hypercube over all genes); repeats are
        possible.
        """
        columns = {name: gene.spread(count, rng) for name, gene in self._genes.items()}
        return [self.fix({name: column[i] for name, column in columns.items()}) for i in range(count)]

    def move(self, name: str, value: Json, rng: np.random.Generator) -> Json:
        """Another value of one gene, near this one."""
        return self._genes[name].move(value, rng)

    def refill(self, demos: Json, rng: np.random.Generator) -> Json:
        """Demos filled up, or with one replaced, in another order; as they are where they are frozen."""
        gene = self._genes["demos"]
        return gene.refill(demos, rng) if isinstance(gene, Shots) and gene.free else demos

    def mix(self, one: Genome, other: Genome, rng: np.random.Generator) -> Genome:
        """A child of two: discrete genes from either, numbers blended, demos from either or from both."""
        genes = {}
        for name, gene in self._genes.items():
            first = one.genes.get(name, gene.first)
            genes[name] = gene.mix(first, other.genes.get(name, first), rng)
        return self.fix(genes)

    def fix(self, genes: Mapping[str, Json]) -> Genome:
        """The genome inside the space that is nearest to these genes; the same every time, and itself when
        inside.
        """
        fixed = {name: gene.fix(genes[name]) if name in genes else gene.first for name, gene in self._genes.items()}
        return Genome(genes={**fixed, **self._within_abilities(fixed)})

    def contains(self, genome: Genome) -> bool:
        """Every gene is there, allowed, and within what its model can do."""
        return self.fix(genome.genes) == genome

    def _within_abilities(self, genes: Mapping[str, Json]) -> dict[str, Json]:
        """Genes to change because the genome's model cannot do what they ask."""
        known = self._models.get(genes.get("model", ""))
        if known is None:
            return {}
        changed: dict[str, Json] = {}
        style = genes.get("demo_style")
        if not _can_show(known, style):
            able = [value for value in self.settings.values("demo_style") if _can_show(known, value)]
            changed["demo_style"] = able[0] if able else style
        if genes.get("constrain") and not self._can_bound(known):
            changed["constrain"] = False
        return changed

    def _can_bound(self, able: Abilities) -> bool:
        """Whether a model can limit its output as the tasks need it."""
        return all(getattr(able, ability) for ability in self._needed)

    def _check_demos(self, known: frozenset[str]) -> None:
        part = self.settings.parts["demos"]
        if isinstance(part, Frozen):
            missing = [id for id in part.value if id not in known]
            if missing:
                raise ConfigError(
                    f"space: demos: {missing[0]!r} is no id of a training example; demos come from train only"
                    f"{nearest(missing[0], sorted(known))}"
                )
        elif part.min > len(known):  # type: ignore[union-attr]
            raise ConfigError(
                f"space: demos: min={part.min!r} but there are {len(known)} training examples; lower min"  # type: ignore[union-attr]
            )

    def _check_names(self, names: Sequence[str] | None) -> None:
        for value in self.settings.values("label_names"):
            if names is not None and value not in names and value != OMITTED["label_names"]:
                raise ConfigError(
                    f"space: label_names: got {value!r}; allowed: {', '.join(names)}"
                    f"{nearest(str(value), names)}; add it under task.label_names"
                )

    def _check_models(self) -> None:
        """Every model of the space has a demo style and a value of `constrain` that it can do."""
        model = self._genes.get("model")
        chosen = model.values if isinstance(model, Choice) else [model.first] if model else []
        for name in chosen:
            if not self._models:
                return
            if name not in self._models:
                raise ConfigError(
                    f"space: model: got {name!r}; allowed: {', '.join(self._models)}"
                    f"{nearest(str(name), [*self._models])}"
                )
            able = self._models[name]
            styles = self.settings.values("demo_style")
            if not any(_can_show(able, style) for style in styles):
                raise ConfigError(
                    f"space: demo_style: model {name!r} can do none of {list(styles)!r}; "
                    f"add {'chat' if able.chat else 'completion'!r}, or take the model out of the space"
                )
            allowed = [canonical(value) for value in self.settings.values("constrain")]
            if "false" not in allowed and not self._can_bound(able):
                raise ConfigError(
                    f"space: constrain: model {name!r} cannot limit its output ({', '.join(self._needed)}); "
                    "write `constrain: [false, true]`, or take the model out of the space"
                )


def _can_show(able: Abilities, style: Json) -> bool:
    return able.completion if style == "completion" else able.chat


def _section(genes: Mapping[str, Json]) -> Genes:
    try:
        return Genes(dict(genes))
    except ValidationError as error:
        told = (
            f"{'.'.join(map(str, line['loc']))}: {line['msg'].removeprefix('Value error, ')}"
            + (f" (got {line['input']!r})" if line["type"] not in ("gene", "value_error") else "")
            for line in error.errors(include_url=False)
        )
        raise ConfigError(f"space: {'; '.join(told)}") from None
