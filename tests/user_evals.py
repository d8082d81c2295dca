# mypy: ignore-errors
"""Functions as users write them, for tests of `kind: function`."""

import asyncio
import time

import numpy as np

from evocluster.records import Score

LIMIT = 3


def polite(output, example):
    return "please" in output


async def polite_later(output, example):
    await asyncio.sleep(0)
    return {"value": 0.25, "reason": f"asked by {example.id}"}


def with_execution(output, example, execution):
    return execution.usage.usd < 1, f"{execution.usage.usd} USD"


def with_threshold(output, example, threshold=0.5):
    return len(output) / 10 > threshold


def third_by_name(output, example, execution=None):
    return execution is not None


def everything(*given):
    return len(given) / 3


def plain_json(output, example, execution):
    example.expected["tags"].append("mine")
    same = example.expected == {"tags": ["a", "mine"]} and execution.parsed == [{"a": []}]
    return same and example.input == {"words": ["x"]}


def returns(output, example):
    """What the example's meta names."""
    kinds = {
        "bool": True,
        "int": 1,
        "float": 0.5,
        "numpy": np.float32(0.5),
        "numpy bool": np.bool_(True),
        "numpy int": np.int64(1),
        "score": Score(value=0.5, reason="half"),
        "mapping": {"value": 0.5, "reason": "half"},
        "value only": {"value": 0.5},
        "pair": (0.5, "half"),
        "none": None,
        "text": "yes",
        "list": [0.5, "half"],
        "other keys": {"score": 0.5},
        "text inside": {"value": "0.5"},
        "number as reason": (0.5, 3),
        "array": np.zeros(2),
    }
    return kinds[example.meta["kind"]]


def fails(output, example):
    words = {}
    return words["colour"]


def exits(output, example):
    raise SystemExit(1)


def hangs(output, example):
    while True:
        pass


async def blocks(output, example):
    time.sleep(1)  # noqa: ASYNC251


def one(output):
    return True


def four(a, b, c, d):
    return True


def keyword(output, example, *, strict):
    return True


class Polite:
    """A callable object."""

    def __call__(self, output, example):
        return "please" in output


polite_object = Polite()
