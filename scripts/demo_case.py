"""What the closed loop is shown on: messages with their labels, a model, a configuration that is weak, one that fails.

    case = snips7(folder) | assistant(folder) | scripted(folder)
    case.write(folder, rng)                 data and two configs of runs; the messages that are left for traffic

The weak configuration shows the model examples of three labels only, so it answers these well and the others badly. The
settings that shorten waiting are `SHORTENED`, written into the config for everybody to see.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

SPLITS = ("train", "validation", "test")
CHECKED = 1
"""Messages of each label in validation and test of the first run."""
SHOWN = 3
"""Examples of each handled label in the weak configuration."""
CARDS = {
    "CC0": "snips7: CC0 1.0, snipsco/nlu-benchmark b86ac7f (Coucke et al. 2018, arXiv 1805.10190)",
    "own": "the project's own messages",
}
SHORTENED: Mapping[str, Mapping[str, Any]] = {
    "shadow": {"hours": 0, "pairs": 50, "budget": 1.0},
    "promotion": {
        "hours": 0,
        "live_hours": 0,
        "watch_hours": 0.002,
        "holdout_days": 0.0001,
        "pairs": 40,
        "live": 0.5,
        "latency_margin": 3.0,
        "cost_margin": 0.5,
    },
    "bandit": {"hours": 0, "start": 0.5},
    "evolution": {"calls": 500, "regress": 0.2},
}
WHY = {
    "shadow": "24 h and 100 pairs beside production, for a tenth of the spend, are 50 pairs at once",
    "promotion": "days of waiting are seconds, half of the traffic is live; two cores shared with a shadow give no p95",
    "bandit": "challengers begin with the half that `promotion.live` gives them",
    "evolution": "a budget of 500 calls; one success in five may turn out otherwise",
}


class Message(NamedTuple):
    """What a user asks, and what he would have liked to hear."""

    id: str
    text: str
    label: str


@dataclass(frozen=True)
class Case:
    """A task, its messages and the two configurations."""

    name: str
    licence: str
    messages: Mapping[str, Sequence[Message]]
    """Split -> messages."""
    handled: tuple[str, ...]
    """Labels that the weak configuration answers well."""
    model: Mapping[str, Any]
    space: Mapping[str, Any]
    weak: Mapping[str, Any]
    failing: Mapping[str, Any]
    evolution: Mapping[str, Any]
    """Settings of the search."""

    @property
    def labels(self) -> list[str]:
        """All of them, sorted."""
        return sorted({one.label for rows in self.messages.values() for one in rows})

    def write(self, folder: Path, rng: np.random.Generator) -> dict[str, list[Message]]:
        """Data and the configs `weak.yaml` and `failing.yaml`; label -> messages that traffic may use, shuffled."""
        piles: dict[str, list[Message]] = defaultdict(list)
        for split in ("validation", "test"):
            for one in self.messages[split]:
                piles[one.label].append(one)
        named = {id for start in (self.weak, self.failing) for id in start.get("demos", ())}
        piles = {label: [pile[at] for at in rng.permutation(len(pile))] for label, pile in sorted(piles.items())}
        kept: dict[str, list[Message]] = {"train": list(self.messages["train"]), "validation": [], "test": []}
        for label, pile in piles.items():
            kept["validation"] += pile[:CHECKED]
            kept["test"] += pile[CHECKED : 2 * CHECKED]
            unused = [one for one in self.messages["train"] if one.label == label and one.id not in named]
            piles[label] = [*unused, *pile[2 * CHECKED :]]  # drawn from the end: the unused ones last
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in kept.items():
            lines = [json.dumps({"id": one.id, "input": one.text, "expected": one.label}) for one in rows]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._config(folder / "weak.yaml", self.weak)
        self._config(folder / "failing.yaml", self.failing)
        return piles

    def _config(self, path: Path, start: Mapping[str, Any]) -> None:
        told = {
            "name": self.name,
            "seed": 7,
            "task": {
                "kind": "classification",
                "data": {split: f"{split}.jsonl" for split in SPLITS},
                "labels": self.labels,
                "scorers": [{"kind": "label"}],
            },
            "models": {"model": dict(self.model)},
            "space": dict(self.space) | ({"max_tokens": start["max_tokens"]} if "max_tokens" in start else {}),
            "start": [dict(start)],
            "objectives": ["quality", "cost_usd"],
            "recommend": "best quality",
            "search": dict(self.evolution),
            "budget": {"calls": 120, "minutes": 0.05},
            "engine": {"runner": "local"},
            "online": {section: dict(values) for section, values in SHORTENED.items()},
        }
        path.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")


def read(folder: Path) -> dict[str, list[Message]]:
    """Split -> the messages of a folder of JSONL files."""
    found = {}
    for split in SPLITS:
        rows = map(json.loads, (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())
        found[split] = [Message(row["id"], row["input"], row["expected"]) for row in rows]
    return found


def shown(messages: Sequence[Message], labels: Sequence[str]) -> list[str]:
    """The first examples of each of these labels, by turns."""
    each = [[one.id for one in messages if one.label == label][:SHOWN] for label in labels]
    return [id for turn in zip(*each, strict=True) for id in turn]


def embedded(folder: Path, name: str, licence: str, handled: tuple[str, ...], rubric: str) -> Case:
    """A case for the embedded model."""
    messages = read(folder)
    genes = {"rubric": rubric, "demo_style": "completion", "constrain": True, "label_names": "as_is"}
    prompt = {**genes, "cot": False, "temperature": 0, "model": "model"}
    return Case(
        name=name,
        licence=licence,
        messages=messages,
        handled=handled,
        model={
            "kind": "local",
            "name": "smollm2-135m-instruct",
            "price": {"prompt_usd_per_mtok": 0.02, "completion_usd_per_mtok": 0.06},
        },
        space={
            "rubric": [rubric],
            "cot": False,
            "temperature": 0,
            "max_tokens": 8,
            "model": ["model"],
            "demos": {"max": 10},
            "demo_style": ["completion", "chat"],
            "constrain": True,
            "label_names": ["as_is"],
        },
        weak={**prompt, "max_tokens": 8, "demos": shown(messages["train"], handled)},
        failing={**prompt, "max_tokens": 1, "demos": [], "demo_style": "chat"},
        evolution={"population": 8, "block": 12, "finalists": 2},
    )


def snips7(folder: Path) -> Case:
    """Seven intents of spoken requests, of a folder in that layout."""
    return embedded(
        folder, "snips7", CARDS["CC0"], ("music", "weather", "restaurant"), "What does this message ask for?"
    )


def assistant(folder: Path) -> Case:
    """Six things that people ask a device at home."""
    return embedded(
        folder, "assistant", CARDS["own"], ("music", "weather", "restaurant"), "What does this message ask for?"
    )


def scripted(folder: Path) -> Case:
    """Messages of configs/quickstart for a model that answers by rules; what it is told decides which ones it knows."""
    messages, handled = read(folder), ("refund", "account", "shipping")
    everything = [one for rows in messages.values() for one in rows]
    rules: list[dict[str, str]] = [{"pattern": "(?s)^Write a poem", "text": "Roses are red."}]
    for one in everything:
        known = "" if one.label in handled else "Sort.*"
        ending = re.escape(one.text)
        rules.append({"pattern": rf"(?s)^{known}.*Text: {ending}\nLabel:$", "text": one.label})
    told = ("Which queue is it?", "Sort the message into its queue.", "Where does it go?", "Write a poem about it.")
    paced = {"latency_s": 0.02, "sigma": 0.0, "time_scale": 1.0}
    genes = {"cot": False, "temperature": 0, "max_tokens": 8, "model": "model"}
    genes |= {"demo_style": "completion", "constrain": False, "label_names": "as_is"}
    return Case(
        name="scripted",
        licence=CARDS["own"],
        messages=messages,
        handled=handled,
        model={"kind": "scripted", "rules": rules, "default": handled[0], **paced},
        space={**genes, "rubric": list(told), "model": ["model"]},
        weak={**genes, "rubric": told[0]},
        failing={**genes, "rubric": told[-1]},
        evolution={"population": 4, "block": 8, "finalists": 2},
    )
