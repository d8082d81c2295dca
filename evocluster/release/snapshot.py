"""What serves, named by its content: three layers, each of which can be changed, judged and rolled back by itself.

    prompt     the genes that say what the model is told (rubric, demos, their style, reasoning, label names)
    memory     notes from recorded traffic, the ones that fit a question put beside the instruction
    strategy   which model answers what, how it samples, when a stronger one is asked, timeouts, how many at once

A snapshot's name is the digest of the names of its layers; a layer's name the digest of its canonical JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field

from evocluster.records import Example, FrozenDict, FrozenMap, Genome, Json, Record, digest

Layer = Literal["prompt", "memory", "strategy"]
LAYERS: tuple[Layer, ...] = ("prompt", "memory", "strategy")
STRATEGIC = ("model", "temperature", "max_tokens", "use_consensus", "retriever_topk")
"""Genes of the strategy layer; all others are of the prompt layer."""
HASH = 16
"""Hex digits of the names of layers and snapshots."""


class Note(Record):
    """One entry of the memory."""

    id: str
    text: str
    intent: str = ""
    """For questions of this intent only; empty: for all."""
    sources: tuple[str, ...] = ()
    """Requests that it was taken from: it goes when they are deleted."""
    state: Literal["active", "deprecated"] = "active"
    why: str = ""
    """Of a deprecated one: what speaks against it."""


class Prompt(Record):
    """What the model is told, whoever asks."""

    genes: FrozenMap
    """All but those of STRATEGIC."""
    examples: tuple[Example, ...] = ()
    """What the gene `demos` names; `meta.source` of one that was taken from traffic is its request."""


class Escalation(Record):
    """A cascade: an answer that the first model is not sure of is asked of a stronger one (FrugalGPT, 2023)."""

    model: str
    below: float = Field(ge=0, le=1)
    """Confidence under which the stronger model is asked: the share of votes for the answer, 0 where none parsed."""


class Strategy(Record):
    """How a question is answered, whatever is asked."""

    genes: FrozenMap = FrozenDict()
    """Those of STRATEGIC."""
    intents: FrozenMap = FrozenDict()
    """Intent -> genes that it has in place of `genes`, e.g. its model."""
    shares: FrozenMap = FrozenDict()
    """Router weights: model -> share of the episodes whose intent names no model; empty: the model in `genes`."""
    escalate: Escalation | None = None
    timeout_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Of one answer, all calls together."""
    concurrency: int = Field(default=64, ge=1)
    """Answers under way at once, in each replica."""
    notes: int = Field(default=3, ge=0, le=20)
    """Notes of the memory that a question is asked with, at most."""


class Snapshot(Record):
    """Everything that decides an answer of a deployment. Equal content is the same snapshot, whoever made it."""

    prompt: Prompt
    memory: tuple[Note, ...] = ()
    strategy: Strategy = Strategy()

    @classmethod
    def of(
        cls,
        genome: Genome,
        examples: Mapping[str, Example],
        strategy: Strategy = Strategy(),  # noqa: B008 - frozen
        memory: tuple[Note, ...] = (),
    ) -> Self:
        """The snapshot that answers as this genome does; `examples`: by id, those it shows among them."""
        genes = {name: value for name, value in genome.genes.items() if name in STRATEGIC}
        told = {name: value for name, value in genome.genes.items() if name not in STRATEGIC}
        prompt = Prompt(genes=told, examples=tuple(examples[id] for id in told.get("demos", ())))
        return cls(prompt=prompt, memory=memory, strategy=strategy.model_copy(update={"genes": FrozenDict(genes)}))

    @cached_property
    def bodies(self) -> dict[str, Json]:
        """Layer -> its content as plain JSON."""
        told = self.model_dump(mode="json")
        return {layer: told[layer] for layer in LAYERS}

    @cached_property
    def layers(self) -> dict[str, str]:
        """Layer -> its name."""
        return {layer: digest(body)[:HASH] for layer, body in self.bodies.items()}

    @cached_property
    def id(self) -> str:
        """Its name: HASH hex digits."""
        return digest(self.layers)[:HASH]

    @classmethod
    def read(cls, bodies: Mapping[str, Any]) -> Self:
        """From the content of its layers, as `bodies` gives it."""
        return cls.model_validate({layer: bodies[layer] for layer in LAYERS})

    def genome(self, intent: str = "", model: str | None = None) -> Genome:
        """The genome that answers a question of this intent; `model`: that one, whatever the strategy says."""
        own = self.strategy.intents.get(intent) or {}
        chosen = {"model": model} if model is not None else {}
        return Genome(genes={**self.prompt.genes, **self.strategy.genes, **own, **chosen})

    def changed(self, **layers: Any) -> Self:
        """This snapshot with other layers. (A `model_copy` would keep the names of the old ones.)"""
        return type(self)(**{layer: layers.get(layer, getattr(self, layer)) for layer in LAYERS})

    def replaced(self, layer: Layer, other: Snapshot) -> Snapshot:
        """This snapshot with that layer of another one."""
        return self.changed(**{layer: getattr(other, layer)})
