"""Several related tasks in one number: the mean of the tasks, or the worst of them.

Every task counts alike, however many examples it has; within a task the aggregate is the objective's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
How = Literal["mean", "worst"]


class Tasks(NamedTuple):
    """Which task each example belongs to, and how tasks become one number."""

    names: tuple[str, ...]
    of: NDArray[np.int64]
    """Example number -> place of its task in `names`."""
    how: How

    @classmethod
    def among(cls, examples: Iterable[str], task_of: Callable[[str], str], how: How) -> Tasks:
        """Over example ids in the order of their numbers."""
        found = [task_of(example) for example in examples]
        names = tuple(sorted(set(found)))
        return cls(names, np.array([names.index(name) for name in found], dtype=np.int64), how)

    def split(self, examples: Floats) -> list[NDArray[np.bool_]]:
        """For every task that has rows, which rows are its own; `examples`: the example number of each row."""
        owners = self.of[examples.astype(np.int64)]
        masks = [owners == place for place in range(len(self.names))]
        return [mask for mask in masks if mask.any()]

    def join(self, values: Sequence[Floats] | Sequence[float], direction: Literal["max", "min"]) -> Floats:
        """The tasks' values (or arrays of resamples) as one."""
        stacked = np.array(values, dtype=np.float64)
        if self.how == "mean":
            return np.asarray(stacked.mean(axis=0))
        return np.asarray(stacked.min(axis=0) if direction == "max" else stacked.max(axis=0))
