"""Faults of the endpoint: a storm of 429, and answers that are late, broken, foreign or incomplete.

Each is a row of the fault table: `storm` and `broken_answers`. The endpoint is faulty.py, a process of its own that
counts what it answered; it is switched while calls go on.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import faulty
from chaos_judge import Row, Verdict, complaint
from chaos_local import Terms
from chaos_world import PRICE, Sitting, World, read, rows, start

from evocluster.cluster.loopback import Latency, stats

STORM_S = 60.0
CALM_S = 6.0
"""Before the storm, to know the throughput."""
BACK_S = 10.0
SHARE = 0.9
"""Of the throughput before, within BACK_S of the storm's end."""
CALLS_PER_SUCCESS = 1.2
DEADLINE_S = 3.0
UNLUCKY = 0.02
"""Of the calls may meet the mode at every attempt, where it is met by a share of the requests."""
CALLS = 100
BILLED = ("hang", "drip", "html", "not_json", "empty_choices", "no_usage", "cut")
"""Modes in which the endpoint has done the work and may charge for it."""


@dataclass(frozen=True)
class Mode:
    """One way to break answers, and how evocluster must take it."""

    name: str
    errors: tuple[str, ...]
    """Classes of evocluster.errors that may come out."""
    share: float = 1.0
    """Of the requests; the others are answered properly, and nearly all calls must succeed then."""
    deadline_s: float = DEADLINE_S


MODES = (
    Mode("overloaded", ("Overloaded",), 0.3, 30.0),
    Mode("hang", ("DeadlinePassed",)),
    Mode("drip", ("DeadlinePassed",)),
    Mode("html", ("BadReply",)),
    Mode("not_json", ("BadReply",)),
    Mode("empty_choices", ("BadReply",)),
    Mode("no_usage", ("BadReply",)),
    Mode("cut", ("Unreachable", "BadReply", "DeadlinePassed")),
    Mode("redirect", ("Refused",)),
)


@dataclass
class Answered:
    """What came of the calls of one mode."""

    replies: int = 0
    free: int = 0
    """Replies that say they cost nothing, or used no token."""
    errors: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    stored: int = 0
    """Answers in the cache afterwards."""
    told_calls: int = 0
    """Calls in the accounts of what failed."""
    told_usd: float = 0.0
    """Dollars there."""
    requests: int = 0
    """The endpoint's own count."""
    successes: int = 0


def storm(terms: Terms) -> Row:
    """A search meets a minute in which every request is turned away, with a Retry-After."""
    row = Row("429 storm of 60 s")
    for number in range(1 if terms.short else 5):
        with faulty.running(Latency.parse("fixed:0.1"), terms.seed + number) as url:
            told, verdict = _storm(terms.folder / f"storm-{number}", url)
        row.faults += 1
        row.verdict += verdict
        row.seen = told
    return row


def _storm(folder: Path, url: str) -> tuple[dict[str, Any], Verdict]:
    world = World(calls=3000, in_flight=16, population=12, block=8, sizes=(160, 20, 20), model={"timeout_s": 120})
    config, out = world.write(folder, url), folder / "out"
    sitting = start(config, out)
    try:
        began_s = _warm(url, sitting)
        faulty.switch(url, "storm", retry_after_s=2.0)
        time.sleep(STORM_S)
        faulty.switch(url, "ok")
        over_s = time.monotonic()
        code = sitting.wait()
    finally:
        sitting.end()
    seen = stats(url)
    seconds = {int(second): row for second, row in seen["per_second"].items()}
    begin, end = int(began_s - seen["started_s"]), int(over_s - seen["started_s"])
    told = weathered(seconds, begin, end) | {"requests": seen["requests"], "successes": seen["successes"]}
    told |= {"exit": code, "came_before_retry_after": seen["early"]}
    return told, judged(told, code, sitting.said(), out)


def _warm(url: str, sitting: Sitting) -> float:
    """Wait until the search has asked for CALM_S; the moment."""
    while sitting.over() is None and stats(url)["successes"] < 20:
        time.sleep(0.1)
    time.sleep(CALM_S)
    return time.monotonic()


def weathered(seconds: Mapping[int, Sequence[int]], begin: int, end: int) -> dict[str, Any]:
    """The storm in figures: second since the endpoint's start -> (requests, successes), and when it began and ended."""
    successes = {second: row[1] for second, row in seconds.items()}
    before = median([successes.get(second, 0) for second in range(begin - int(CALM_S) + 1, begin)])
    asked = sum(row[0] for row in seconds.values())
    back = next((n for n in range(61) if successes.get(end + n, 0) >= SHARE * before), None)
    return {
        "calls_per_success": round(asked / max(1, sum(successes.values())), 3),
        "successes_per_s_before": before,
        "back_to_90_percent_after_s": back,
        "requests_in_the_storm": sum(row[0] for second, row in seconds.items() if begin < second < end),
    }


def judged(told: Mapping[str, Any], code: int, said: str, out: Path) -> Verdict:
    """The verdict on a search that met a storm."""
    wrong = []
    if told["calls_per_success"] > CALLS_PER_SUCCESS:
        wrong.append(f"{told['calls_per_success']} HTTP calls a success, at most {CALLS_PER_SUCCESS}")
    back = told["back_to_90_percent_after_s"]
    if back is None or back > BACK_S:
        wrong.append(f"90 % of the throughput after {back} s, at most {BACK_S:g}")
    if code:
        wrong.append(f"left with {code}: {said[-300:]}")
    failed = sum(bool(row["error"]) for row in rows(out))
    if failed or read(out, "run.json").get("status") != "finished":
        wrong.append(f"{failed} evaluations failed; status {read(out, 'run.json').get('status')!r}")
    return complaint(*wrong)


def broken_answers(terms: Terms) -> Row:
    """A hundred calls to an endpoint that breaks its answers, for each way to break them."""
    row = Row("5xx, hang, drip, HTML, empty, no usage, cut")
    for number, mode in enumerate(MODES):
        calls = CALLS if terms.short else 10 * CALLS
        with faulty.running(Latency.parse("fixed:0.02"), terms.seed + number) as url:
            faulty.switch(url, mode.name, share=mode.share)  # type: ignore[arg-type]
            came = asyncio.run(ask(url, calls, mode.deadline_s, terms.folder / mode.name))
            seen = stats(url)
            came.requests, came.successes = seen["requests"], seen["successes"]
        row.faults += calls
        row.verdict += taken(mode, came, calls).of(mode.name)
        row.seen[mode.name] = f"{dict(came.errors)}, {came.replies} replies, longest {came.longest_s:.1f} s"
    return row


async def ask(url: str, calls: int, deadline_s: float, folder: Path) -> Answered:
    """So many different calls through the models' own stack, limits and cache as in a run."""
    from evocluster.errors import ModelError
    from evocluster.llm.cached import LocalCache
    from evocluster.llm.client import LLM, Message, Request
    from evocluster.llm.direct import Direct
    from evocluster.llm.stack import Stack
    from evocluster.store.cache import DiskCache

    came = Answered()
    model = {"base_url": f"{url}/v1", "model": "loopback", "timeout_s": deadline_s, "price": PRICE}
    stack, disk = Stack({"loopback": Direct.model_validate({"kind": "direct", **model})}), DiskCache(folder / "cache")

    async def one(llm: LLM, number: int) -> None:
        request = Request(model="loopback", messages=(Message(role="user", content=f"question {number}"),))
        started = time.perf_counter()
        try:
            reply = await llm(request)
        except ModelError as error:
            came.errors[type(error).__name__] += 1
            used = getattr(error, "used", None)
            came.told_calls += used.calls if used else 0
            came.told_usd += used.paid_usd if used else 0.0
        else:
            came.replies += 1
            came.free += reply.usd <= 0 or reply.prompt_tokens <= 0
        came.longest_s = max(came.longest_s, time.perf_counter() - started)

    for start_at in range(0, calls, CALLS):
        llm = await stack.open(LocalCache(disk), CALLS)
        try:
            await asyncio.gather(*(one(llm, start_at + number) for number in range(CALLS)))
        finally:
            await stack.close()
    came.stored = disk.stats()["rows"]
    disk.close()
    return came


def taken(mode: Mode, came: Answered, calls: int) -> Verdict:
    """The verdict on the calls of one mode."""
    wrong = []
    if foreign := sorted(set(came.errors) - set(mode.errors)):
        wrong.append(f"became {foreign}, not {mode.errors}")
    if came.replies + sum(came.errors.values()) != calls:
        wrong.append(f"{came.replies} replies and {sum(came.errors.values())} errors of {calls} calls")
    if mode.share == 1.0 and came.replies:
        wrong.append(f"{came.replies} broken answers were taken for good")
    if mode.share < 1.0 and came.replies < (1 - UNLUCKY) * calls:
        wrong.append(f"{calls - came.replies} calls failed although the endpoint answers {1 - mode.share:.0%} of them")
    if mode.share < 1.0 and came.requests > 1.6 * came.successes:
        wrong.append(f"{came.requests} requests for {came.successes} successes")
    if came.stored != came.replies:
        wrong.append(f"{came.stored} answers are in the cache, {came.replies} were good")
    if came.free:
        wrong.append(f"{came.free} replies were free")
    least_usd = came.requests * (PRICE["prompt_usd_per_mtok"] + PRICE["completion_usd_per_mtok"]) / 1e6
    if mode.name in BILLED and (came.told_usd < least_usd or came.told_calls < calls):
        told = f"{came.told_calls} calls and {came.told_usd:.6f} dollars paid"
        wrong.append(f"the accounts of what failed tell {told}; the endpoint worked on {came.requests}")
    if came.longest_s > mode.deadline_s + 1:
        wrong.append(f"the longest call took {came.longest_s:.1f} s, its deadline is {mode.deadline_s:g} s")
    return complaint(*wrong)
