"""Searches with random caps on calls and dollars, against an endpoint that fails a part of them: the row `budget`.

Every answer of the endpoint costs the same, so what a run spent follows from the endpoint's own count: the answers it
gave, and those it worked on and broke (an answer without usage, an HTML page, a body cut in the middle are billed all
the same). A run may spend its cap and, beyond it, what it had reserved for calls in flight when it reached it.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faulty
from chaos_calls import BILLED
from chaos_child import Nursery
from chaos_judge import Row, Verdict, complaint
from chaos_local import Terms
from chaos_world import World, read

from evocluster.cluster.loopback import Latency, stats

USD = 0.001
"""What each answer costs: one token at a thousand dollars a million."""
PRICE = {"prompt_usd_per_mtok": 0.0, "completion_usd_per_mtok": USD * 1e6}
IN_FLIGHT = 16
FAULTS = ("ok", "overloaded", "html", "empty_choices", "no_usage", "cut", "storm")
AT_ONCE = 3
LEFT = (0, 5, 7)
"""A capped run may leave with: done, spent before it had a front, or too much of what it asked failed."""


@dataclass(frozen=True)
class Cap:
    """One search: its caps, and how its endpoint misbehaves."""

    calls: int | None
    usd: float | None
    mode: str
    share: float
    seed: int

    def __str__(self) -> str:
        return f"calls {self.calls}, usd {self.usd}, {self.mode} {self.share}"


def caps(draw: random.Random, count: int) -> list[Cap]:
    """So many random ones: calls, dollars, or both."""
    made = []
    for number in range(count):
        calls = draw.randint(30, 120) if draw.random() < 0.7 else None
        usd = round(draw.uniform(0.04, 0.15), 3) if calls is None or draw.random() < 0.4 else None
        made.append(Cap(calls, usd, draw.choice(FAULTS), round(draw.uniform(0.05, 0.3), 2), number))
    return made


def budget(terms: Terms) -> Row:
    """A hundred capped searches, three at a time; what each spent, by the endpoint's count."""
    row = Row("budget")
    drawn = caps(terms.draw(), 100 if terms.short else 1000)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        came = list(pool.map(_lane, [(terms, number, drawn[number::AT_ONCE]) for number in range(AT_ONCE)]))
    codes: Counter[str] = Counter()
    over: list[float] = []
    for verdict, left in (each for lane in came for each in lane):
        row.faults += 1
        row.verdict += verdict
        codes[str(left["code"])] += 1
        over.append(left["beyond"])
    row.seen = {"exit_codes": dict(codes), "most_beyond_a_cap_in_answers": max(over, default=0.0)}
    return row


def _lane(given: tuple[Terms, int, list[Cap]]) -> list[tuple[Verdict, dict[str, Any]]]:
    terms, number, drawn = given
    folder = terms.folder / f"lane-{number}"
    folder.mkdir()
    with faulty.running(Latency.parse("fixed:0.01"), terms.seed + number) as url, Nursery(folder) as nursery:
        return [_capped(cap, url, nursery, folder / str(cap.seed)) for cap in drawn]


def _capped(cap: Cap, url: str, nursery: Nursery, folder: Path) -> tuple[Verdict, dict[str, Any]]:
    world = World(
        in_flight=IN_FLIGHT,
        seed=cap.seed,
        sizes=(8, 3, 3),
        population=4,
        block=2,
        model={"price": PRICE, "retries": 2, "timeout_s": 20},
        more={"budget": {name: value for name, value in (("calls", cap.calls), ("usd", cap.usd)) if value is not None}},
    )
    faulty.switch(url, cap.mode, share=cap.share)  # type: ignore[arg-type]
    before = billed(stats(url))
    config, out = world.write(folder, url), folder / "out"
    left = nursery.run(["run", str(config), "--out", str(out), "--json"], [folder])
    answers = billed(stats(url)) - before
    verdict, beyond = kept(cap, answers, read(out, "run.json"))
    if left.code not in LEFT or "Traceback" in left.said:
        verdict += complaint(f"left with {left.code}: {left.said[-300:]}")
    shutil.rmtree(folder)
    return verdict.of(str(cap)), {"code": left.code, "beyond": beyond}


def billed(seen: Mapping[str, Any]) -> int:
    """Answers that the endpoint worked on, whole or broken."""
    return int(seen["successes"]) + sum(int(seen["met"].get(mode, 0)) for mode in BILLED)


def kept(cap: Cap, answers: int, run: Mapping[str, Any]) -> tuple[Verdict, float]:
    """The verdict on what a capped run spent, and by how many answers it passed its tightest cap."""
    wrong = []
    beyond = max(
        answers - cap.calls if cap.calls is not None else -answers,
        (answers - cap.usd / USD) if cap.usd is not None else -answers,
    )
    if beyond > IN_FLIGHT:
        wrong.append(
            f"the endpoint billed {answers} answers: {beyond:.0f} beyond the cap, {IN_FLIGHT} can be in flight"
        )
    told = run.get("paid_usd")
    if told is not None and told < answers * USD * (1 - 1e-9) and run.get("status") == "finished":
        wrong.append(f"the run tells {told:.6f} dollars paid, the endpoint billed {answers * USD:.6f}")
    return complaint(*wrong), beyond
