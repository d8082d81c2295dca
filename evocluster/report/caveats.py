"""What a reader must know before believing the headline: each a short paragraph with its kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from evocluster.errors import ConfigError
from evocluster.report.compare import Comparison, compare, verdict
from evocluster.report.figures import best_split, number
from evocluster.report.found import Found
from evocluster.report.honest import signed
from evocluster.report.limits import broken, feasible, limits
from evocluster.report.measure import declared
from evocluster.report.side import choose
from evocluster.report.wasted import wasted

FEW = 100
"""Below so many examples an interval of a share is wider than about 0.2."""
SCARCE = 40
"""Below so many validation examples most differences are smaller than their intervals."""
NOTABLE = 0.02
"""A gap between validation and test worth a warning."""
REASONS: Mapping[str, str] = {
    "calls": "the budget of calls",
    "usd": "the budget in US dollars",
    "minutes": "the time limit",
    "generations": "the number of generations asked for",
    "target": "the target was reached",
    "stall": "the hypervolume had stopped growing",
    "exhausted": "every configuration in the space had been tried",
}
REFINED = "nothing was left to repair, or reflection had brought no new prompt for several rounds"
"""The last of them, where a prompt was refined."""


def stop_reason(result: Found) -> str | None:
    """What ended the search, in words; None while it goes on."""
    reason = result.run.get("stop_reason")
    if reason == "exhausted" and result.run.get("refine"):
        return REFINED if "exploring" not in result.run else "neither the population nor refinement had more to try"
    return None if not reason else REASONS.get(str(reason), str(reason))


def caveats(
    result: Found, found: Comparison | str | None, errors: int, evaluations: int, known: bool
) -> list[dict[str, str]]:
    """Each {kind: 'bad' | 'warn' | 'note', text}, the gravest first.

    `found`: see `against_start`; `errors` of all `evaluations` failed; `known`: the folder holds the examples' texts.
    """
    said = [
        *_status(result, result.recommended is None),
        *_limited(result),
        *_measured(result),
        *_paired(found),
        *_failed(errors, evaluations),
    ]
    if not known:
        said.append(
            ("note", "This run folder has no examples.jsonl: examples are shown by id only, without their text.")
        )
    grave = ("bad", "warn", "note")
    return [{"kind": kind, "text": text} for kind, text in sorted(said, key=lambda one: grave.index(one[0]))]


def _status(result: Found, provisional: bool) -> Iterator[tuple[str, str]]:
    if result.barren:
        yield "bad", result.barren
    for text in wasted(result):
        yield "note", text
    if result.run.get("error"):
        yield "bad", f"The run ended with an error: {result.run['error']}"
    if result.status == "running":
        yield "note", "The run is not over; everything here is as far as it has come."
    elif result.status in ("interrupted", "failed"):
        yield (
            "warn",
            f"The run was {result.status}. evocluster resume goes on from here; nothing finished is paid again.",
        )
    if provisional:
        yield (
            "warn",
            "Nothing is recommended yet: validation has not been settled. What leads is judged on the train "
            "examples the search itself selects by, so its values flatter it.",
        )


def _limited(result: Found) -> Iterator[tuple[str, str]]:
    """What the recommended one keeps of the constraints."""
    chosen = result.recommended
    if chosen is None or not limits(result):
        return
    if not feasible(chosen):
        decided = "validation" if chosen.get("validation") else "train"
        what = ", ".join(broken(result, chosen, decided))
        yield "bad", f"No configuration keeps the constraints; the recommended one breaks them least: {what}."
    elif what := ", ".join(broken(result, chosen)):
        where = best_split(chosen)
        yield (
            "warn",
            f"The recommended configuration kept the constraints where it was chosen; on {where} it breaks {what}.",
        )


def _measured(result: Found) -> Iterator[tuple[str, str]]:
    chosen, start = result.recommended, result.start
    if chosen is None:
        return
    split = best_split(chosen)
    count = (result.run.get("examples") or {}).get(split)
    if split != "test":
        yield (
            "warn",
            f"The values are of {split}, which also decided what is recommended: expect somewhat less on new examples.",
        )
    yield from _gap(chosen)
    judges = (result.run.get("examples") or {}).get("validation")
    if split == "test" and judges is not None and (few := scarce(judges)):
        yield "warn", few
    if count is not None and count < FEW:
        yield "warn", f"Only {count} {split} examples: the intervals are wide, and small differences may be chance."
    if start is not None and start["genome"] == chosen["genome"]:
        yield "note", "The search recommends the configuration it started from: nothing better was found."


def _gap(chosen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """From validation to test: by the value that the choice has not flattered, where it was measured."""
    honest = (chosen.get("honest_gap") or {}).get("quality")
    if honest is not None and None not in honest.values():
        if honest["low"] > 0:
            yield (
                "warn",
                f"The recommended configuration loses {signed('quality', honest)} of its quality from validation to "
                "test, its luck of being chosen left out: they may differ in kind. The test is the value to believe.",
            )
        return
    gap = (chosen.get("gap") or {}).get("quality")
    if gap is not None:
        was, now = ((chosen.get(one) or {}).get("quality", {}).get("value") for one in ("validation", "test"))
        if was is not None and now is not None:
            said = f"The recommended configuration has quality {number('quality', was)} on validation, where it was"
            said += f" chosen, and {number('quality', now)} on test (gap {gap:+.2f})"
            yield (
                "warn" if gap > NOTABLE else "note",
                f"{said}. {'Being chosen flattered it; the test is the value to believe.' if gap > 0 else ''}".strip(),
            )


def scarce(count: int) -> str:
    """What to know of a choice by this many validation examples; '' where they are enough."""
    if count >= SCARCE:
        return ""
    return (
        f"Only {count} validation example{'' if count == 1 else 's'}: below {SCARCE}, intervals are wider than most "
        "differences, so a run can hardly tell configurations apart; add examples, or deal more of them to validation "
        "(data.validation, data.split.validation, data.limit)."
    )


def against_start(result: Found) -> Comparison | str | None:
    """Start and recommended on the same examples; why that cannot be; None where there are not two of them."""
    chosen, start = result.recommended, result.start
    if chosen is None or start is None or start["genome"] == chosen["genome"]:
        return None
    try:
        return compare(choose(result, "start"), choose(result, "recommended"), measures=declared(result))
    except ConfigError as nothing:
        return f"Start and recommended cannot be compared example by example: {nothing}"


def tested(found: Comparison | str | None) -> dict[str, int]:
    """Objective -> 1 where the recommended is shown to be better by the paired test, -1 worse, 0 neither."""
    lines = found.lines if isinstance(found, Comparison) else []
    return {line.measure.name: {"A": -1, "B": 1}.get(line.better or "", 0) for line in lines}


def _paired(found: Comparison | str | None) -> Iterator[tuple[str, str]]:
    """The paired test of quality: two intervals that overlap say less than the same examples side by side."""
    if isinstance(found, str):
        yield "note", found
    for line in found.lines if isinstance(found, Comparison) else ():
        if line.measure.name == "quality" and isinstance(found, Comparison):
            said = re.sub(r"\bA\b", "start", re.sub(r"\bB\b", "recommended", verdict(line)))
            yield "note" if line.better else "warn", f"Example by example on {found.split}: {said}."


def _failed(errors: int, evaluations: int) -> Iterator[tuple[str, str]]:
    if errors:
        share = errors / evaluations
        yield (
            "warn" if share >= 0.05 else "note",
            f"{errors:,} of {evaluations:,} evaluations failed with an error ({share:.1%}) and count as quality 0.",
        )
