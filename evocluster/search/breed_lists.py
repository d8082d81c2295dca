"""Estimation of distribution: a model goes on with a list of prompts (Fernando et al. 2023, section 3.2.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from evocluster.search.breed_form import MUTATION, Breeding, Unit
from evocluster.search.operators import Child

CONTINUE = """Instructions for one and the same task:

{listed}

Go on with number {next}: one more instruction for this task, which differs from all above{kept}.
Answer with that instruction only.
{next}."""

DESCENDING = """{mutation}

Instructions for one and the same task, the highest score first:

{listed}

Number {next} has the best score of all.{like}
Write number {next}{kept}. Answer with that instruction only.
{next}."""

ANCESTRY = """{mutation}

Instructions for one and the same task in the order they were found; each was the best of its time:

{listed}

Write number {next}, which is better than all above{kept}. Answer with that instruction only.
{next}."""


def numbered(texts: Sequence[str]) -> str:
    """The texts as a list from 1, a line each."""
    return "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(texts, 1))


def continued(answer: str) -> str:
    """The first entry of a list that a model has gone on with, without its number."""
    entry = re.sub(r"^\s*(\d+[.):]|[-*])\s*", "", answer.strip())
    return re.split(r"\n\s*(?:\d+[.):]|[-*])\s", entry, maxsplit=1)[0]


async def _next(unit: Unit, texts: Sequence[str], form: str, like: str = "") -> Child:
    text = form.format(mutation=unit.mutation, listed=numbered(texts), next=len(texts) + 1, like=like, kept=unit.kept)
    return unit.reworded(continued(await unit.ask(text)), texts)


def _population(unit: Unit) -> list[str]:
    """Prompts of the population without near twins, in ascending order of fitness."""
    return [str(text) for text in unit.hints.get("ranked") or (unit.rubric,)]


@dataclass(frozen=True)
class Distribution(Breeding):
    """Prompts of the population in no order; the model goes on with the list."""

    name: str = "distribution"
    needs: tuple[str, ...] = (MUTATION, "ranked")

    async def breed(self, unit: Unit) -> Child:
        texts = _population(unit)
        return await _next(unit, [texts[int(i)] for i in unit.rng.permutation(len(texts))], CONTINUE)


@dataclass(frozen=True)
class Ranked(Breeding):
    """EDA rank and index: prompts in ascending order of fitness, called descending.

    A model writes what resembles the last entries of a list, so the best stand last; told that the list descends and
    that the next is the best, it does not copy the last (the paper's finding).
    """

    name: str = "ranked"
    needs: tuple[str, ...] = (MUTATION, "ranked")

    async def breed(self, unit: Unit) -> Child:
        texts = _population(unit)
        like = f" It has more in common with number {len(texts)} than with number 1." if len(texts) > 1 else ""
        return await _next(unit, texts, DESCENDING, like)


@dataclass(frozen=True)
class Lineage(Breeding):
    """The ancestors that were the best of their time, the oldest first; the model goes on with them."""

    name: str = "lineage"
    needs: tuple[str, ...] = (MUTATION, "lineage")

    async def breed(self, unit: Unit) -> Child:
        texts = [str(text) for text in unit.hints.get("lineage") or (unit.rubric,)]
        return await _next(unit, texts, ANCESTRY)
