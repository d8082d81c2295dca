"""An invented run folder of any size: written by the real table, shaped like a search, its numbers drawn by seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evocluster.engine.folder import COLUMNS, rows
from evocluster.records import Evaluation, Genome, Item, Proposal, Score, Split, Trial, Usage
from evocluster.report.aims import Aim, Ruler
from evocluster.report.board import Tally
from evocluster.store.table import Table

NEW = {
    **dict.fromkeys(("judge_calls", "judge_cached", "judge_prompt_tokens", "judge_completion_tokens"), "int64"),
    **dict.fromkeys(("judge_usd", "judge_paid_usd", "judge_seconds"), "float64"),
    "trace": "string",
    "spend": "string",
}
"""Columns that folders of today have and older ones lack."""
LABELS = ("billing", "refund", "shipping", "returns", "account", "technical", "cancellation", "sales")
OBJECTIVES = ("quality", "latency_ms", "cost_usd", "robustness")
FIRST = "Which queue should this message go to?"
SENTENCES = (
    "Read the whole message before you decide.",
    "Answer with exactly one of: {labels}.",
    "A refund is money going back; a return is an article going back.",
    "When a message complains about two things, choose the one the customer asks us to act on.",
    "Words such as invoice, charge or statement mean billing, unless money is asked back.",
    "Ignore greetings, signatures and thanks.",
    "If the customer wants to leave, the queue is cancellation, even when the reason is technical.",
    "Do not explain your answer.",
)
TOPICS = (
    "I was charged twice for order {n} and nobody answers",
    "where is my parcel {n}, it should have come on Tuesday",
    "please send my money back for the jacket in order {n}",
    "the app closes as soon as I open invoice {n}, and after three months of this I would like to end my subscription",
    "how do I send the shoes of order {n} back, they are too small",
    "do you offer a discount for {n} licences, and how long would the contract run",
    "I cannot log in since the update {n}, it says that my password has expired",
)


class Invented:
    """Writes one run. Call order: construct, then `search`, `check`, `finish`; each may be left out."""

    def __init__(
        self,
        path: Path,
        *,
        seed: int = 0,
        train: int = 80,
        validation: int = 60,
        test: int = 100,
        examples: bool = True,
        spend: bool = True,
        say: Callable[[str], str] = lambda text: text,
    ) -> None:
        """`say` may twist every text a model or a user could have written; `spend`: as folders of today."""
        path.mkdir(parents=True)
        self.path, self.say, self._spend = path, say, spend
        self.rng = np.random.default_rng(seed)
        self.sizes: dict[Split, int] = {"train": train, "validation": validation, "test": test}
        columns = {**COLUMNS, **NEW} if spend else {name: COLUMNS[name] for name in COLUMNS if name not in NEW}
        self.table = Table.create(path / "trials", columns)
        self._answers: list[dict[str, Any]] = []
        self.calls = self.number = 0
        self.evaluations = 0
        self.genomes: dict[str, tuple[Genome, tuple[str, ...], str, int]] = {}
        self.tallies: dict[str, dict[str, Tally]] = {}
        self.ruler = Ruler(
            [Aim(name, name, "min" if name[0] in "lc" else "max", "mean", 0.9) for name in OBJECTIVES], {}
        )
        self.start = Genome(
            genes={
                "rubric": say(FIRST),
                "cot": False,
                "temperature": 0.0,
                "max_tokens": 16,
                "model": "small",
                "demos": [],
            }
        )
        (path / "config.yaml").write_text("name: invented\nsearch:\n  population: 12\nobjectives:\n" + _objectives())
        if examples:
            self._write_examples()

    def _write_examples(self) -> None:
        lines = []
        for split, count in self.sizes.items():
            for n in range(count):
                one = {"split": split, "id": f"{split}-{n:03d}", **self.example(n), "meta": {}}
                lines.append(json.dumps(one))
        (self.path / "examples.jsonl").write_text("\n".join(lines) + "\n")

    def example(self, n: int) -> dict[str, str]:
        """Input and expected of the n-th example of any split."""
        text = TOPICS[n % len(TOPICS)].format(n=1000 + n * 7)
        return {"input": self.say(text), "expected": self.say(LABELS[n % len(LABELS)])}

    def worth(self, genome: Genome) -> float:
        """The probability that it answers right."""
        rubric = sum(sentence in genome["rubric"] for sentence in SENTENCES)
        gain = (
            0.035 * rubric + 0.018 * len(genome["demos"]) + 0.14 * (genome["model"] == "large") + 0.05 * genome["cot"]
        )
        return float(min(0.97, 0.36 + gain - 0.06 * genome["temperature"]))

    def evaluate(self, genome: Genome, item: Item) -> Evaluation:
        """One invented answer; the same example is hard for every genome."""
        n = int(item.example.rsplit("-", 1)[1])
        hard = np.random.default_rng([n, len(item.split)]).random()
        luck, kind = self.rng.random(2)
        right = 0.75 * hard + 0.25 * luck < self.worth(genome) - 0.05 * item.twin
        expected = self.example(n)["expected"]
        wrong = self.say(LABELS[(n * 3 + 1) % len(LABELS)])
        output = expected if right else wrong if wrong != expected else self.say("I do not know")
        large = genome["model"] == "large"
        tokens = 40 + len(genome["rubric"]) // 4 + 34 * len(genome["demos"]) + 20 * n % 17
        seconds = float((0.9 if large else 0.24) * (1 + 1.2 * genome["cot"]) * self.rng.lognormal(0, 0.35))
        usd = (tokens * 2.5e-6 if large else tokens * 1.5e-7) + (60 if genome["cot"] else 4) * (1e-5 if large else 6e-7)
        usage = Usage(
            calls=1,
            cached=int(self.rng.random() < 0.1),
            prompt_tokens=tokens,
            completion_tokens=60 if genome["cot"] else 4,
            usd=usd,
            seconds=seconds,
        )
        usage = usage.model_copy(update={"paid_usd": 0.0 if usage.cached else usd})
        if kind < 0.012:
            said = self.say(f"model {genome['model']!r} gave no complete answer within 60 s (request {n * 91})")
            return Evaluation(item=item, usage=usage, error=said)
        value = float(right)
        reason = "" if right else self.say(f"expected {expected!r}")
        return Evaluation(
            item=item,
            output=output,
            scores={"label": Score(value=value, reason=reason)},
            quality=value,
            validator=value,
            schema_ok=kind < 0.985,
            usage=usage,
            repairs=int(kind > 0.97),
            flags=("shouting",) if 0.95 < kind < 0.96 else (),
        )

    def trial(
        self,
        genome: Genome,
        items: Sequence[Item],
        operator: str,
        parents: Sequence[Genome],
        purpose: str,
        generation: int,
    ) -> None:
        """Carry one proposal out and keep it."""
        proposal = Proposal(
            number=self.number, operator=operator, parents=tuple(parents), generation=generation, purpose=purpose
        )
        self.number += 1
        own = operator in ("rewrite", "merge")
        usage = Usage(calls=1, prompt_tokens=900, completion_tokens=160, usd=0.004, paid_usd=0.004) if own else Usage()
        evaluations = tuple(self.evaluate(genome, item) for item in items)
        trial = Trial(proposal=proposal, genome=genome, evaluations=evaluations, usage=usage)
        kept = rows(trial)
        if self._spend:
            self._note_spend(kept, genome, trial)
        else:
            kept = [{name: value for name, value in row.items() if name not in NEW} for row in kept]
        self._note_genome(genome, operator, parents, generation)
        self.table.append(kept)
        self.calls += trial.total.calls
        self.evaluations += len(evaluations)
        for row in kept:
            if row["kind"] == "evaluation":
                tally = self.tallies[genome.id].setdefault(row["split"], Tally(self.ruler.aims))
                tally.add(row, self.ruler.measure(row))

    def copy(self, genome: Genome, items: Sequence[Item]) -> None:
        """Keep a child of the start cheaply: the same answers for every such child, under its own name."""
        if not self._answers:
            proposal = Proposal(number=0, operator="rewrite", parents=(self.start,), generation=1, purpose="search")
            answers = tuple(self.evaluate(genome, item) for item in items)
            self._answers = rows(Trial(proposal=proposal, genome=genome, evaluations=answers))
        self.table.append([{**row, "proposal": self.number, "genome_id": genome.id} for row in self._answers])
        self._note_genome(genome, "rewrite", [self.start], 1)
        self.number += 1
        self.calls += len(self._answers)
        self.evaluations += len(self._answers)

    def _note_genome(self, genome: Genome, operator: str, parents: Sequence[Genome], generation: int) -> None:
        if genome.id in self.genomes:
            return
        ids = tuple(parent.id for parent in parents)
        self.genomes[genome.id] = (genome, () if operator == "evaluate" else ids, operator, generation)
        self.tallies[genome.id] = {}
        line = {"id": genome.id, "generation": generation, "parents": ids, "operator": operator, "genes": genome.genes}
        with (self.path / "genomes.jsonl").open("a") as out:
            out.write(json.dumps(line) + "\n")

    @staticmethod
    def _note_spend(kept: list[dict[str, Any]], genome: Genome, trial: Trial) -> None:
        def part(model: str, purpose: str, usages: Sequence[Usage]) -> dict[str, Any]:
            total = sum(usages, Usage()).model_dump(exclude={"seconds"})
            return {"model": model, "purpose": purpose, **total}

        parts = [part(genome["model"], "evaluate", [one.usage for one in trial.evaluations])]
        if trial.usage.calls:
            parts.append(part("large", "rewrite", [trial.usage]))
        kept[0]["spend"] = json.dumps(parts)
        for row in kept:
            if row["kind"] == "evaluation" and not row["error"]:
                row["trace"] = json.dumps(
                    [
                        {
                            "purpose": "evaluate",
                            "prompt": f"{genome['rubric']}\n\n{row['example_id']}",
                            "reply": row["output"],
                        }
                    ]
                )

    def items(self, split: Split, first: int, last: int) -> list[Item]:
        """Examples first to last, every fourth with a twin."""
        chosen = range(first, min(last, self.sizes[split]))
        return [
            Item(split=split, example=f"{split}-{n:03d}", twin=twin)
            for n in chosen
            for twin in ((0, 1) if n % 4 == 0 else (0,))
        ]

    def vary(self, operator: str, parents: Sequence[Genome]) -> Genome:
        """A child."""
        one = parents[0]
        free = [sentence for sentence in SENTENCES if sentence not in one["rubric"]]
        if operator == "rewrite" and free:
            return one.replace(rubric=f"{one['rubric']} {free[int(self.rng.integers(len(free)))]}")
        if operator in ("crossover", "merge"):
            other = parents[-1]
            return Genome(genes={name: (one if self.rng.random() < 0.5 else other)[name] for name in one.genes})
        if operator == "demos":
            demo = f"train-{int(self.rng.integers(self.sizes['train'])):03d}"
            return one.replace(demos=[*[each for each in one["demos"] if each != demo], demo][-8:])
        moves: list[dict[str, Any]] = [
            {"temperature": round(float(self.rng.random()), 3)},
            {"model": "large" if one["model"] == "small" else "small"},
            {"cot": not one["cot"]},
            {"max_tokens": int(self.rng.choice([4, 16, 64]))},
        ]
        return one.replace(**moves[int(self.rng.integers(4))])

    def search(self, children: int = 60, block: int = 16, seeds: int = 11) -> Invented:
        """Seeds, then children of the better ones by turns of the operators, and more blocks for the best."""
        for first in range(0, self.sizes["train"], block):
            self.trial(self.start, self.items("train", first, first + block), "evaluate", [self.start], "seed", 0)
        for _ in range(seeds):
            genome = self.start
            for _ in range(4):
                genome = self.vary("mutate", [self.vary("demos", [genome])])
            self.trial(genome, self.items("train", 0, block), "seed", [], "seed", 0)
        names = ("mutate", "rewrite", "crossover", "demos", "rewrite", "merge")
        for turn in range(children):
            ranked = sorted(self.tallies, key=lambda id: -self.value(id, "train", "quality"))
            pool = [self.genomes[id] for id in ranked[: 4 + len(ranked) // 3]]
            parents = [pool[int(i)] for i in self.rng.integers(len(pool), size=2)]
            operator = names[turn % len(names)]
            arity = 2 if operator in ("crossover", "merge") else 1
            child = self.vary(operator, [one[0] for one in parents])
            generation = 1 + max(one[3] for one in parents[:arity])
            known = child.id in self.genomes
            given = [one[0] for one in parents[:arity]]
            if not known:
                self.trial(child, self.items("train", 0, block), operator, given, "search", generation)
            best = max(self.tallies, key=lambda id: (self.value(id, "train", "quality"), -len(id)))
            done = len(self.tallies[best]["train"].by_example)
            if done < self.sizes["train"]:
                genome = self.genomes[best][0]
                self.trial(genome, self.items("train", done, done + block), "evaluate", [genome], "extend", 0)
        return self

    def value(self, id: str, split: str, name: str) -> float:
        """A mean of a genome; -1 where there is none."""
        tally = self.tallies[id].get(split)
        return tally.values()[OBJECTIVES.index(name)] if tally else -1.0

    def check(self, members: int = 6) -> list[str]:
        """Validate and test the best and the start; the ids of the members, the recommended one first."""
        ranked = sorted(self.tallies, key=lambda id: -self.value(id, "train", "quality"))
        ranked = [id for id in ranked if self.tallies[id] and id != self.start.id]
        measured = [id for id in ranked if len(self.tallies[id]["train"].by_example) > 16] or ranked
        chosen = measured[:members]
        for split in ("validation", "test"):
            for id in (self.start.id, *chosen):
                genome = self.genomes[id][0]
                for first in range(0, self.sizes[split], 4):
                    self.trial(genome, self.items(split, first, first + 4), "evaluate", [genome], split, 0)
        return sorted(chosen, key=lambda id: -self.value(id, "validation", "quality"))

    def member(self, id: str, recommended: bool = False) -> dict[str, Any]:
        """The member as front.json holds it."""
        genome, parents, operator, generation = self.genomes[id]
        splits = {split: self._intervals(id, split) for split in ("train", "validation", "test")}
        gap = {name: splits["validation"][name]["value"] - splits["test"][name]["value"] for name in OBJECTIVES}
        return {
            "genome": id,
            "genes": dict(genome.genes),
            "generation": generation,
            "parents": list(parents),
            "operator": "start" if id == self.start.id else operator,
            "recommended": recommended,
            "why": "best quality: quality 0.8" if recommended else "",
            **splits,
            "gap": gap,
        }

    def _intervals(self, id: str, split: str) -> dict[str, dict[str, float]]:
        tally = self.tallies[id][split]
        n = len(tally.by_example)
        found = {}
        for name, value in zip(OBJECTIVES, tally.values(), strict=True):
            half = 1.96 * np.sqrt(value * (1 - value) / n) if name[0] in "qr" else value * 0.08
            found[name] = {"value": value, "low": value - half, "high": value + half}
        return found

    def finish(self, members: Sequence[str] = (), status: str = "finished", **more: Any) -> Path:
        """Write run.json, and front.json when there are members; the folder."""
        self.table.close()
        if members:
            front = {
                "objectives": list(OBJECTIVES),
                "start": self.member(self.start.id),
                "members": [self.member(id, at == 0) for at, id in enumerate(members)],
            }
            (self.path / "front.json").write_text(json.dumps(front))
        self.status(status, **more)
        return self.path

    def status(self, status: str, **more: Any) -> None:
        """Write run.json."""
        run = {
            "name": "invented",
            "seed": 3,
            "versions": {"evocluster": "0.1.0", "python": "3.11.7"},
            "models": {"small": "gpt-small", "large": "gpt-large"},
            "examples": self.sizes,
            "started_at": "2026-01-05T08:00:00+00:00",
            "status": status,
            "evaluations": self.evaluations,
            "calls": self.calls,
            "cached": self.calls // 10,
            "usd": 1.234,
            "paid_usd": 1.1,
            "objectives": list(OBJECTIVES),
            "stop_reason": "calls" if status == "finished" else None,
            "elapsed_s": 431.0,
            "operators": {"mutate": {"uses": 10, "successes": 4, "probability": 0.3}},
            **more,
        }
        (self.path / "run.json").write_text(json.dumps(run))


def _objectives() -> str:
    lines = []
    for name in OBJECTIVES:
        direction = "min" if name in ("latency_ms", "cost_usd") else "max"
        lines.append(
            f"- name: {name}\n  source: {name}\n  direction: {direction}\n  aggregate: mean\n  threshold: 0.9\n"
        )
    return "".join(lines)


def invent(path: Path, **more: Any) -> Path:
    """A finished run of about 2,500 evaluations."""
    made = Invented(path, **more).search()
    return made.finish(made.check())
