"""Robustness twins: the same example written a little differently, with the same meaning and the same answer.

A perturbation never touches digits nor words of the expected answer, and is drawn from (seed, example id,
twin), so a twin is the same everywhere. Kinds of noise after Belinkov and Bisk 2018 (arXiv 1711.02173),
section 3; reordering only moves whole sentences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from evocluster.records import Example, Json, digest
from evocluster.tasks.words import plain, sentences

Kind = Literal["typos", "case", "spacing", "reorder"]
"""typos: letters swapped, dropped, doubled or replaced by a neighbour on the keyboard; case: lower, upper, or
first letters; spacing: doubled or outer spaces; reorder: sentences."""
Perturbation = Callable[[str, frozenset[str], np.random.Generator], str]
"""(text, case-folded words to leave alone, rng) -> changed text, or the same where no change is possible."""

_WORD = re.compile(r"[^\W_]+")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {key: row[max(0, at - 1) : at] + row[at + 1 : at + 2] for row in _ROWS for at, key in enumerate(row)}


def perturb(
    example: Example, twin: int, kinds: Sequence[Kind], seed: int, keep: frozenset[str] = frozenset()
) -> Example:
    """The twin-th twin (from 1) of the example: same id, expected and meta, another input.

    Each twin has one kind of change; where that kind cannot change the text, the next is tried. Only when
    none can is the input returned as it is. `keep`: case-folded words (of label names, say) that typos leave
    alone. Of an object, the fields of more than one word are changed.
    """
    spread = int(digest([seed, example.id])[:16], 16)
    rng = np.random.default_rng([spread, twin])
    expected = frozenset(_words(example.expected))
    for step in range(len(kinds)):
        kind = kinds[(spread + twin - 1 + step) % len(kinds)]
        spared = expected | keep if kind == "typos" else expected
        changed = _changed(example.input, PERTURBATIONS[kind], spared, rng)
        if changed != example.input:
            return Example(id=example.id, input=changed, expected=example.expected, meta=example.meta)
    return example


def typos(text: str, spared: frozenset[str], rng: np.random.Generator) -> str:
    """One typo in eight words, at least one, inside words of four letters or more; first letters stay."""
    words = [word for word in _WORD.finditer(text) if _survives_typo(word.group(), spared)]
    count = min(len(words), 1 + len(_WORD.findall(text)) // 8)
    chosen = sorted(rng.permutation(len(words))[:count], reverse=True)
    for at in chosen:
        word = words[at]
        text = text[: word.start()] + _mistyped(word.group(), rng) + text[word.end() :]
    return text


def case(text: str, spared: frozenset[str], rng: np.random.Generator) -> str:
    """Everything lower, everything upper, or the case of first letters turned round."""
    styles: list[Callable[[str], str]] = [str.lower, str.upper, lambda word: word[:1].swapcase() + word[1:]]
    for at in rng.permutation(len(styles)):
        style = styles[at]
        changed = _each_word(text, spared, style)
        if changed != text:
            return changed
    return text


def spacing(text: str, spared: frozenset[str], rng: np.random.Generator) -> str:
    """One space in eight doubled, at least one, not between two spared words; around a single word."""
    gaps = [
        gap.start()
        for gap in re.finditer(r"(?<=\S) (?=\S)", text)
        if not (_beside(text[: gap.start()], -1) in spared and _beside(text[gap.end() :], 0) in spared)
    ]
    if not gaps:
        return f" {text}  " if text.strip() else text
    chosen = rng.permutation(len(gaps))[: 1 + len(gaps) // 8]
    for at in sorted(chosen, reverse=True):
        text = text[: gaps[at]] + " " + text[gaps[at] :]
    return text


def reorder(text: str, spared: frozenset[str], rng: np.random.Generator) -> str:
    """Sentences in another order; the spaces and line ends between them stay where they are."""
    given, between = sentences(text)
    if len(set(given)) < 2:
        return text
    moved = given
    while moved == given:
        moved = [given[at] for at in rng.permutation(len(given))]
    return "".join(part for pair in zip(moved, [*between, ""], strict=True) for part in pair)


PERTURBATIONS: Mapping[Kind, Perturbation] = {
    "typos": typos,
    "case": case,
    "spacing": spacing,
    "reorder": reorder,
}


def _changed(value: Json, change: Perturbation, spared: frozenset[str], rng: np.random.Generator) -> Json:
    if isinstance(value, str):
        return change(value, spared, rng)
    return {
        # One-word fields are codes, names or options more often than prose.
        name: change(item, spared, rng) if isinstance(item, str) and len(item.split()) > 1 else item
        for name, item in value.items()
    }


def _words(value: Json) -> list[str]:
    if isinstance(value, Mapping):
        return [word for item in value.values() for word in _words(item)]
    if isinstance(value, list | tuple):
        return [word for item in value for word in _words(item)]
    return _WORD.findall(plain(value).casefold())


def _each_word(text: str, spared: frozenset[str], change: Callable[[str], str]) -> str:
    def changed(match: re.Match[str]) -> str:
        word = match.group()
        return word if word.casefold() in spared or any(char.isdigit() for char in word) else change(word)

    return _WORD.sub(changed, text)


def _beside(text: str, which: int) -> str:
    words = _WORD.findall(text)
    return words[which].casefold() if words else ""


def _survives_typo(word: str, spared: frozenset[str]) -> bool:
    # Scripts without case (Chinese, say) can mean something else with one character less.
    cased = word.lower() != word.upper()
    return len(word) >= 4 and word.isalpha() and cased and word.casefold() not in spared


def _mistyped(word: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(1, len(word)))
    match int(rng.integers(4)):
        case 0 if word[at] != word[at - 1] and at > 1:
            return word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]
        case 1:
            return word[:at] + word[at + 1 :]
        case 2 if word[at].lower() in _NEIGHBOURS:
            near = _NEIGHBOURS[word[at].lower()]
            return word[:at] + near[int(rng.integers(len(near)))] + word[at + 1 :]
        case _:
            return word[:at] + word[at] + word[at:]
