"""A landscape: what every configuration of a small grid answered to every example, recorded once.

A search on it costs no model: `evaluate` looks an outcome up, so many seeds of many strategies are compared in
seconds, and the true quality of whatever they recommend is known. The file is Parquet, a row an outcome; what the
configurations are (rubrics, names; demos as ids) stands in its metadata, texts of examples nowhere.

    read(path) -> Landscape;  write(path, task, lines, groups, price)     lines: see record_landscape.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evocluster.llm.client import Abilities
from evocluster.llm.prices import Price
from evocluster.records import Evaluation, Example, Genome, Item, Json, Split, Usage, canonical
from evocluster.search.objectives import Composite, Objective, Tally
from evocluster.search.space import Space
from evocluster.tasks.dataset import order

Floats = NDArray[np.float64]
GENES = ("rubric", "shots", "demo_style", "constrain", "label_names")
"""Of the grid; `shots` names a set of demos."""
Config = tuple[Json, ...]
"""A configuration of the grid: its values of GENES."""
KEY = b"landscape"
DIGITS = 2
"""Of a recorded latency: more is noise, and takes space."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Recorded(Space):
    """The space of a landscape. While the grid is not whole, what was not recorded becomes the nearest that was."""

    def __init__(self, genes: Mapping[str, Json], models: Mapping[str, Abilities], known: Sequence[Config]):
        """`known`: the recorded configurations."""
        super().__init__(genes, models=models)
        self._known = dict.fromkeys(known)

    def fix(self, genes: Mapping[str, Json]) -> Genome:
        """The recorded genome that is nearest to these genes: with the most of them, and of those the first."""
        genome = super().fix(genes)
        wanted = key(genome)
        if wanted in self._known:
            return genome
        near = max(self._known, key=lambda one: sum(a == b for a, b in zip(one, wanted, strict=True)))
        return genome.replace(**dict(zip(GENES, near, strict=True)))


def key(genome: Genome) -> Config:
    """What names a genome's configuration in the grid."""
    return tuple(genome.genes[name] for name in GENES)


@dataclass
class Landscape:
    """Recorded outcomes. Arrays are [configurations, items]; quality is NaN where nothing was recorded."""

    task: str
    grid: Mapping[str, Sequence[Json]]
    """Gene -> its values; what was recorded is all or part of their product."""
    configs: Sequence[Config]
    items: Sequence[Item]
    groups: Mapping[str, int]
    """Example -> number of the group of those with the same expected answer."""
    price: Price
    arrays: Mapping[str, NDArray[Any]]
    _made: dict[int, dict[Item, Evaluation]] = field(default_factory=dict)

    @cached_property
    def place(self) -> dict[Config, int]:
        """Configuration -> its row."""
        return {config: row for row, config in enumerate(self.configs)}

    @cached_property
    def column(self) -> dict[Item, int]:
        """Item -> its column."""
        return {item: column for column, item in enumerate(self.items)}

    @cached_property
    def space(self) -> Recorded:
        """Choice genes only."""
        genes = {name: list(values) for name, values in self.grid.items() if name != "rubric"}
        rubric = {"texts": list(self.grid["rubric"]), "fixed": True}
        able = Abilities(completion=True, choices=True)
        return Recorded({**genes, "rubric": rubric, "model": "recorded"}, {"recorded": able}, self.configs)

    @property
    def start(self) -> Genome:
        """The first value of every gene: the plain question."""
        return self.space.fix({name: values[0] for name, values in self.grid.items()})

    @property
    def size(self) -> int:
        """Configurations of the whole grid, recorded or not."""
        return len(list(product(*self.grid.values())))

    def dealt(self, split: Split, seed: int) -> tuple[Item, ...]:
        """The items of a split in the order that a run with this seed has them in, twins after their example."""
        mine = [item for item in self.items if item.split == split]
        examples = dict.fromkeys(item.example for item in mine)
        named = [Example(id=id, input="", expected=self.groups[id]) for id in examples]
        twins = {id: [item for item in mine if item.example == id] for id in examples}
        return tuple(item for id in order(named, seed) for item in twins[id])

    def row(self, genome: Genome) -> int:
        """Which configuration a genome is. Raises: KeyError for one that was not recorded."""
        return self.place[key(genome)]

    def evaluate(self, row: int, item: Item) -> Evaluation:
        """What was recorded of a configuration. Raises: KeyError for an item that was not."""
        made = self._made.setdefault(row, {})
        if item not in made:
            made[item] = self._evaluation((row, self.column[item]), item)
        return made[item]

    def _evaluation(self, at: tuple[int, int], item: Item) -> Evaluation:
        one = {name: values[at].item() for name, values in self.arrays.items()}
        prompt, completion = int(one["prompt_tokens"]), int(one["completion_tokens"])
        return Evaluation(
            item=item,
            quality=one["quality"],
            validator=one["validator"],
            schema_ok=bool(one["schema_ok"]),
            error="model: as recorded" if one["error"] else None,
            usage=Usage(
                calls=1,
                prompt_tokens=prompt,
                completion_tokens=completion,
                usd=self.price.cost(prompt, completion),
                seconds=one["latency_ms"] / 1000,
            ),
        )

    def _quality(self, splits: Sequence[Split]) -> Floats:
        """Mean quality of every configuration on the examples, as given, of some splits."""
        wanted = np.array([item.split in splits and item.twin == 0 for item in self.items])
        return np.asarray(np.nanmean(self.arrays["quality"][:, wanted], axis=1))

    @cached_property
    def truth(self) -> Floats:
        """The true quality of every configuration: its mean over validation and test."""
        return self._quality(("validation", "test"))

    @cached_property
    def test(self) -> Floats:
        """Mean quality on test alone, which no search sees."""
        return self._quality(("test",))

    @cached_property
    def validation(self) -> Floats:
        """Mean quality on validation alone, which the search does not select by."""
        return self._quality(("validation",))

    def values(self, objectives: Sequence[Objective]) -> Floats:
        """What every configuration measures over validation and test, [configurations, objectives]."""
        items = [item for item in self.items if item.split != "train"]
        table = []
        for row in range(len(self.configs)):
            tally = Tally(Composite())
            tally.add([self.evaluate(row, item) for item in items])
            table.append([tally.value(one) for one in objectives])
        return np.array(table)


def read(path: Path) -> Landscape:
    """A landscape from its file."""
    with pq.ParquetFile(path) as file:
        table, about = file.read(), json.loads(file.metadata.metadata[KEY])
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
    named = list(zip(*(table.column(name).to_pylist() for name in ("split", "example", "twin")), strict=True))
    places = {one: place for place, one in enumerate(dict.fromkeys(named))}
    rows, at = columns["config"].astype(int), np.array([places[one] for one in named])
    arrays = {}
    for name in ("quality", "validator", "schema_ok", "error", "latency_ms", "prompt_tokens", "completion_tokens"):
        array = np.full((len(about["configs"]), len(places)), np.nan)
        array[rows, at] = columns[name]
        arrays[name] = array
    return Landscape(
        task=about["task"],
        grid=about["grid"],
        configs=[tuple(one[name] for name in GENES) for one in about["configs"]],
        items=[Item(split=cast(Split, split), example=example, twin=twin) for split, example, twin in places],
        groups=dict(zip((example for _, example, _ in named), columns["group"].tolist(), strict=True)),
        price=Price(**about["price"]),
        arrays=arrays,
    )


def write(
    path: Path, task: str, lines: Sequence[Mapping[str, Any]], groups: Mapping[str, int], price: Mapping[str, Any]
) -> None:
    """Lines of a recording as a landscape; a configuration that is there twice counts once."""
    lines = list({canonical(line["config"]): line for line in lines}.values())
    lines.sort(key=lambda line: canonical(line["config"]))
    configs = [{**line["config"], "rubric": line["genes"]["rubric"]} for line in lines]
    demos = {line["config"]["shots"]: line["genes"]["demos"] for line in lines}
    grid = {name: _values(lines, configs, name) for name in GENES}
    about = {"task": task, "grid": grid, "configs": configs, "demos": demos, "price": price}
    rows = [(n, *row[:3], groups[row[1]], *row[3:]) for n, line in enumerate(lines) for row in line["rows"]]
    columns = list(zip(*rows, strict=True))
    coded = pa.dictionary(pa.int16(), pa.string())
    types: dict[str, Any] = {
        "config": pa.int16(),
        "split": coded,
        "example": coded,
        "twin": pa.int8(),
        "group": pa.int8(),
        "quality": pa.float32(),
        "validator": pa.float32(),
        "schema_ok": pa.bool_(),
        "error": pa.bool_(),
        "latency_ms": pa.float32(),
        "prompt_tokens": pa.int16(),
        "completion_tokens": pa.int16(),
    }
    arrays = [pa.array(_cells(name, column), kind) for (name, kind), column in zip(types.items(), columns, strict=True)]
    schema = pa.schema(list(types.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without Arrow's own copy of the schema, which would hold everything about the grid a second time.
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=19, store_schema=False) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        writer.add_key_value_metadata({KEY.decode(): json.dumps(about, ensure_ascii=False)})


def _values(lines: Sequence[Mapping[str, Any]], configs: Sequence[Mapping[str, Any]], name: str) -> list[Json]:
    """The values of a gene, the plainest first: by number, then by name, no demos and names as they are before all."""
    first = {"none": "", "as_is": ""}
    both = [(line["config"][name], config[name]) for line, config in zip(lines, configs, strict=True)]
    pairs = {canonical(value): (given, value) for given, value in both}
    return [value for _, value in sorted(pairs.values(), key=lambda pair: first.get(pair[0], pair[0]))]


def _cells(name: str, column: Sequence[Any]) -> Sequence[Any]:
    if name in ("schema_ok", "error"):
        return [bool(value) for value in column]
    if name == "latency_ms":
        return [float(f"{value:.{DIGITS}g}") for value in column]
    return column
