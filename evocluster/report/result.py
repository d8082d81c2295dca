"""What a run found, for people: a run folder that shows itself in a notebook, as tables, and compares its members."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from evocluster.report import front
from evocluster.report.compare import Comparison, compare
from evocluster.report.found import Found, rows
from evocluster.report.inline import comparison_html, front_html
from evocluster.report.measure import declared
from evocluster.report.side import choose


class Compared(Comparison):
    """A comparison that shows itself in a notebook."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return comparison_html(self)


class Result(Found):
    """A run folder, finished or not. Raises: errors.RunDamaged when it holds no readable run."""

    def evaluations(self) -> Iterator[dict[str, Any]]:
        """Every evaluation kept so far: the rows of trials/*.parquet, `scores` as a dict. Raises: errors.RunDamaged."""
        for row in rows(self):
            yield {**row, "scores": json.loads(row["scores"] or "{}")}

    def table(self) -> list[dict[str, Any]]:
        """The front, a dict a configuration: role, genome, split, each objective with _low and _high, gap, genes."""
        return front.table(self)

    def to_pandas(self) -> Any:
        """`table()` as a pandas DataFrame, a column a gene. Raises: ImportError where pandas is not installed."""
        import pandas

        return pandas.json_normalize(self.table(), max_level=1)

    def compare(self, a: str = "start", b: str = "recommended", split: str | None = None) -> Compared:
        """Two configurations of this run on the examples both were evaluated on; `a`, `b`: start, recommended, or the
        first digits of a genome's id. Raises: errors.ConfigError.
        """
        return Compared(*compare(choose(self, a), choose(self, b), split, declared(self)))

    def _repr_html_(self) -> str:
        return front_html(self)
