"""Cost inefficiency, checked by replay: a cheaper model answers the same examples, and is found only where it is surely
not worse by more than a margin.

Both models are asked again, side by side, so that neither is held against answers picked because they were right. The
interval is that of paired differences after Agresti and Min (2005): one more win and one more loss, half each, so that
equal answers to few examples are no proof. Its level is shared over all pairs of models that are tried.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import sqrt
from statistics import NormalDist

from evocluster.errors import FATAL, ModelError
from evocluster.llm.prices import Price
from evocluster.online.finding import Finding, named, of_intent, severity, streams, told
from evocluster.online.outcome import Row
from evocluster.records import Example
from evocluster.telemetry import log

Replay = Callable[[Sequence[Example], str], Awaitable[Sequence[float | None]]]
"""(examples, model) -> the quality of its answer to each, None where there is none (a judge or an endpoint failed)."""
SAVES = 0.2
"""Share of a stream's cost that the cheaper model saves, at least."""
MARGIN = 0.05
"""Quality that it may surely lose at most."""
ALPHA = 0.05
REPLAYED, MOST_REPLAYED = 40, 120
"""Examples it takes, and takes at most, of a stream."""
TRIED = 2
"""Cheaper models tried in a stream, the cheapest first."""


async def cheaper(
    rows: Sequence[Row], examples: Sequence[Example], replay: Replay, prices: Mapping[str, Price]
) -> list[Finding]:
    """Streams that a cheaper model would answer as well. `examples`: with what is expected, `meta.intent` their intent;
    `prices`: of every model that may be used.

    A replay that fails finds nothing. Raises: FATAL errors only.
    """
    plans = []
    for (intent, model), members in streams(rows):
        asked = [each for each in examples if str(each.meta.get("intent") or "") == intent][:MOST_REPLAYED]
        able = _cheaper(members, model, prices)
        if able and len(asked) >= REPLAYED:
            plans.append((intent, model, members, asked, able))
    tried = sum(len(able) for *_, able in plans)
    spent = sum(float(row["cost_usd"]) for row in rows)
    found = []
    for intent, model, members, asked, able in plans:
        try:
            finding = await _tried(intent, model, members, asked, able, replay, ALPHA / tried, spent)
        except FATAL:
            raise
        except ModelError as failure:
            log.warning("replay of %s stopped: %s: %s", of_intent(intent, model), type(failure).__name__, failure)
            continue
        found += [finding] if finding else []
    return found


def _cheaper(members: Sequence[Row], model: str, prices: Mapping[str, Price]) -> list[tuple[str, float]]:
    """(model, what it would have cost for the same tokens) that would have saved enough, the cheapest first."""
    now = sum(float(row["cost_usd"]) for row in members)
    would = [
        (name, sum(price.cost(int(row["prompt_tokens"]), int(row["completion_tokens"])) for row in members))
        for name, price in prices.items()
        if name != model
    ]
    able = [(name, usd) for name, usd in would if now > 0 and usd <= (1 - SAVES) * now]
    return sorted(able, key=lambda each: (each[1], each[0]))[:TRIED]


async def _tried(
    intent: str,
    model: str,
    members: Sequence[Row],
    asked: Sequence[Example],
    able: Sequence[tuple[str, float]],
    replay: Replay,
    alpha: float,
    spent: float,
) -> Finding | None:
    now = await replay(asked, model)
    cost = sum(float(row["cost_usd"]) for row in members)
    for other, usd in able:
        then = await replay(asked, other)
        pairs = [(a, b) for a, b in zip(now, then, strict=True) if a is not None and b is not None]
        low, high = paired([b - a for a, b in pairs], 1 - 2 * alpha)
        if len(pairs) < REPLAYED or low < -MARGIN:
            continue
        return Finding(
            kind="cost",
            severity=severity((cost - usd) / spent if spent else 0.0),
            layer="strategy",
            intent=intent,
            model=model,
            key=other,
            title=f"{of_intent(intent, model)}: {other!r} answers as well for {usd / cost:.0%} of the cost",
            evidence=told(
                model=other,
                examples=len(pairs),
                quality=[round(sum(each) / len(pairs), 4) for each in zip(*pairs, strict=True)],
                interval=[round(low, 4), round(high, 4)],
                margin=MARGIN,
                usd=[round(cost, 6), round(usd, 6)],
                tokens="as recorded; another tokenizer may count otherwise",
                requests=named(members),
            ),
            recommendation=f"send {of_intent(intent)} to {other!r} (strategy.intents), through shadow as any change",
        )
    return None


def paired(differences: Sequence[float], confidence: float) -> tuple[float, float]:
    """The interval of a mean of paired differences in [-1, 1], two-sided; all of it where there are none."""
    if not differences:
        return -1.0, 1.0
    n = len(differences) + 2
    mean = sum(differences) / n
    variance = max(0.0, (sum(each * each for each in differences) + 1) / n - mean * mean)
    spread = NormalDist().inv_cdf(0.5 + confidence / 2) * sqrt(variance / n)
    return max(-1.0, mean - spread), min(1.0, mean + spread)
