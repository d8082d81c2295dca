"""Recall: a scorer of retrieval alone, which says whether what was needed came into the prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from evocluster.errors import DataError
from evocluster.llm.client import LLM
from evocluster.parts import Part
from evocluster.records import Example, Score
from evocluster.tasks.execution import Execution
from evocluster.tasks.words import nearest


class Recall(Part):
    """The share of the example's relevant passages that were retrieved. It asks no model."""

    kind: Literal["recall"] = "recall"
    name: str = "recall"
    field: str = "documents"
    """Field of the example's meta that lists the ids of relevant passages or documents (or is one id). A document
    counts as soon as one of its chunks came."""

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        """Raises: ValueError when the example names nothing relevant."""
        wanted = self.relevant(example)
        came = _names(each.id for each in execution.passages)
        missing = [id for id in wanted if id not in came]
        reason = f"not retrieved: {', '.join(missing)}" if missing else ""
        return Score(value=1 - len(missing) / len(wanted), reason=reason)

    def relevant(self, example: Example) -> tuple[str, ...]:
        """The relevant ids, each once. Raises: ValueError when there is none."""
        there = example.meta.get(self.field)
        listed = there if isinstance(there, list | tuple) else (there,)
        if self.field not in example.meta or not listed or not all(_is_id(each) for each in listed):
            has = f"is {there!r}" if self.field in example.meta else f"is not in meta {sorted(example.meta)!r}"
            fix = f"list the relevant document ids under meta.{self.field}, or set `field`"
            raise ValueError(f"example {example.id!r}: {self.field!r} {has}{nearest(self.field, example.meta)}; {fix}")
        return tuple(dict.fromkeys(map(str, listed)))

    def fits(self, examples: Iterable[Example], ids: Iterable[str]) -> None:
        """That every relevant id is one of the passages', so that no misspelt one counts as never found.

        Raises: DataError for the first that is not, or when an example names none.
        """
        known = _names(ids)
        for example in examples:
            try:
                relevant = self.relevant(example)
            except ValueError as error:
                raise DataError(f"scorer {self.name!r}: {error}") from error
            for id in relevant:
                if id not in known:
                    names = f"example {example.id!r} names {id!r} in meta.{self.field}"
                    raise DataError(f"scorer {self.name!r}: {names}; no document has that id{nearest(id, known)}")


def _is_id(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and bool(str(value).strip())


def _names(ids: Iterable[str]) -> dict[str, None]:
    """The ids of passages and of the documents they are chunks of."""
    return {name: None for id in ids for name in (id, re.sub(r"#\d+$", "", id))}
