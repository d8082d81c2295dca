"""A result inside a notebook: headline, table and picture of the front as one piece of HTML.

    front_html(result)         what a Found shows itself as
    comparison_html(found)     the same for a Comparison

Every text is escaped. Colours are the notebook's own (currentColor) and two that stand out on dark and on light; styles
stand in the elements, since notebooks share one page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from evocluster.report.figures import best_split, heading, number
from evocluster.report.found import Found
from evocluster.report.front import Row, front_rows
from evocluster.report.honest import honest_line
from evocluster.report.limits import limits
from evocluster.report.limits import said as sentence

if TYPE_CHECKING:
    from evocluster.report.compare import Comparison

RECOMMENDED = "#e8590c"
MEMBER = "#1c7ed6"
"""At least 3:1 against white and against the dark grounds of notebooks."""
WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 16, 46
"""Margins of the picture in pixels."""
DOWN = ("latency_ms", "cost_usd", "tokens")
WIDE = 20
"""A positive axis that spans more than this factor is logarithmic."""
GENES = 400
"""Characters shown of a configuration."""

_CELL = "padding:2px 12px 2px 0;text-align:left;vertical-align:top;white-space:nowrap"
_LAST = "padding:2px 0;text-align:left;vertical-align:top;white-space:normal"


def front_html(result: Found) -> str:
    """The result for a notebook."""
    parts = [f"<div style='margin:4px 0 8px'>{_headline(result)}</div>"]
    rows = front_rows(result) if result.members else []
    if rows:
        parts += [_front_table(result, rows), _legend(result), front_svg(result)]
        if hint := result.barren:
            parts.append(f"<div style='color:{RECOMMENDED}'>{_text(hint)}</div>")
    if result.run.get("error"):
        parts.append(f"<div style='color:{RECOMMENDED}'>error: {_text(result.run['error'])}</div>")
    return f"<div style='line-height:1.4'>{''.join(parts)}</div>"


def comparison_html(found: Comparison) -> str:
    """A comparison for a notebook: the objectives, what they mean, and how many examples changed."""
    from evocluster.report.compare import KINDS, verdict

    lines = [[_text(part) for part in verdict(line).split(": ", 1)] for line in found.lines]
    counts = ", ".join(f"{found.count(kind)} {kind}" for kind in KINDS)
    genes = ", ".join(change.name for change in found.genes) or "none"
    notes = "".join(f"<div style='opacity:.75'>Note: {_text(note)}</div>" for note in found.notes)
    return (
        f"<div style='line-height:1.4'><div><b>{_text(found.title)}</b>, on "
        f"{_text(found.split)}: {counts}, {found.examples - len(found.changes)} with the same output; genes that "
        f"differ: {_text(genes)}</div>{_table((), lines)}{notes}</div>"
    )


def _text(value: object) -> str:
    """Escaped, and its writing direction kept to itself."""
    return f"<bdi>{escape(str(value))}</bdi>"


def _headline(result: Found) -> str:
    run, start, best = result.run, result.start, result.recommended
    said = [f"<b>{_text(run.get('name', result.path.name))}</b>: {_text(result.status)}"]
    if run.get("stop_reason"):
        said[0] += f" by {_text(run['stop_reason'])}"
    if start and best:
        split = best_split(best)
        before, after = ((one.get(split) or {}).get("quality") or {} for one in (start, best))
        if before.get("value") is not None and after.get("value") is not None:
            count = (run.get("examples") or {}).get(split)
            said.append(
                f"quality {number('quality', before['value'])} &rarr; <b>{number('quality', after['value'])}</b> "
                f"on {_text(split)}" + (f" ({count} examples)" if count else "")
            )
    spent = f"{run.get('evaluations', 0)} evaluations, {run.get('calls', 0)} calls"
    said.append(f"{_text(spent)}, ${run.get('paid_usd', 0.0):.4f}, {run.get('elapsed_s', 0.0):.0f} s")
    return " &middot; ".join(said)


def _front_table(result: Found, rows: Sequence[Row]) -> str:
    names = ["", "genome", "split", *map(heading, result.objectives), "gap", "configuration"]
    body = []
    for row in rows:
        chosen = "*" in row.mark
        mark = " ".join(filter(None, [row.mark.removesuffix("*"), "&#9733;" * chosen, "!" * (not row.feasible)]))
        cells = [f"<span style='color:{RECOMMENDED}'>{mark}</span>" if chosen else mark]
        cells += [f"<code>{_text(row.genome)}</code>", _text(row.split)]
        cells += [f"{_text(value)}<br><span style='opacity:.65'>{_text(ends)}</span>" for value, ends in row.cells]
        text = row.configuration if len(row.configuration) <= GENES else row.configuration[: GENES - 1] + "…"
        cells += [_text(row.gap), _text(text)]
        body.append([f"<b>{cell}</b>" if chosen and at < len(cells) - 1 else cell for at, cell in enumerate(cells)])
    return _table(names, body)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already, names are not; the last column takes what width is left."""
    head = "".join(f"<th style='{_CELL}'>{_text(name)}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(f"<td style='{_CELL}'>{cell}</td>" for cell in row[:-1])
        + f"<td style='{_LAST}'>{row[-1]}</td></tr>"
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if names else ""
    return (
        "<div style='overflow-x:auto'><table style='border-collapse:collapse;font-variant-numeric:tabular-nums;"
        f"margin:0;color:inherit;font-size:inherit'>{top}<tbody>{body}</tbody></table></div>"
    )


def _legend(result: Found) -> str:
    said = ["95 % intervals in brackets", "cost at list price", "gap: validation quality minus test quality"]
    if found := limits(result):
        said.insert(0, f"! breaks a constraint ({_text(', '.join(map(sentence, found)))})")
    if result.recommended:
        said.insert(0, f"&#9733; recommended: {_text(result.recommended['why'])}")
    if line := honest_line(result):
        said.append(f"honestly: {_text(line)}")
    return f"<div style='opacity:.75;margin:4px 0'>{'; '.join(said)}</div>"


class Dot(NamedTuple):
    """One configuration in the picture."""

    x: Mapping[str, float | None]
    y: Mapping[str, float | None]
    role: str
    title: str


class Axis:
    """Values of an objective to pixels: linear, or logarithmic where they span much."""

    def __init__(self, name: str, values: Sequence[float], start: float, end: float) -> None:
        self.name = name
        low, high = min(values), max(values)
        self.log = low > 0 and high / low > WIDE
        if self.log:
            low, high = math.log10(low), math.log10(high)
        pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        self._low, self._high = low - pad, high + pad
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        """Its pixel, kept inside the picture."""
        placed = math.log10(value) if self.log and value > 0 else self._low if self.log else value
        share = min(1.0, max(0.0, (placed - self._low) / (self._high - self._low)))
        return round(self._start + share * (self._end - self._start), 1)

    @property
    def ticks(self) -> list[float]:
        """Three to seven round values."""
        if self.log:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
            inside = [mark for mark in marks if self._low <= math.log10(mark) <= self._high]
            return inside[:: 1 + len(inside) // 7]
        span = self._high - self._low
        step = 10.0 ** math.floor(math.log10(span / 3))
        step *= max(factor for factor in (1, 2, 5) if span / (step * factor) >= 3)
        first = math.ceil(self._low / step)
        return [mark * step for mark in range(first, math.floor(self._high / step) + 1)]

    @property
    def title(self) -> str:
        """Name, unit and which way is good."""
        unit = " (ms)" if self.name == "latency_ms" else ""
        known = self.name in (*DOWN, "quality", "robustness", "composite")
        wish = (", less is better" if self.name in DOWN else ", more is better") if known else ""
        return heading(self.name) + unit + wish


def front_svg(result: Found) -> str:
    """The front as a picture: quality against cost, or the first two objectives; nothing when there is only one."""
    names = result.objectives
    if {"quality", "cost_usd"} <= set(names):
        names = ["cost_usd", "quality"]
    elif len(names) >= 2:
        names = [names[1], names[0]]
    dots = [dot for dot in (_dot(result, member, *names) for member in _shown(result)) if dot] if len(names) > 1 else []
    if not dots:
        return ""
    x, y = (
        Axis(name, [end for dot in dots for end in _finite(getattr(dot, side))], *ends)
        for name, side, ends in (
            (names[0], "x", (LEFT, WIDTH - RIGHT)),
            (names[1], "y", (HEIGHT - BOTTOM, TOP)),
        )
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' role='img' "
        f"style='max-width:100%;height:auto;font-size:11px' fill='currentColor' stroke='none'>"
        f"<title>{escape(f'{heading(names[1])} against {heading(names[0])}')}</title>"
        f"{_axes(x, y)}{''.join(_drawn(dot, x, y) for dot in dots)}</svg>"
    )


def _shown(result: Found) -> list[Mapping[str, Any]]:
    """The start, then the members that are not it; the recommended last, so that it lies on top."""
    start = result.start
    rest = [one for one in reversed(result.members) if start is None or one["genome"] != start["genome"]]
    return [start, *rest] if start else [*rest]


def _dot(result: Found, member: Mapping[str, Any], x: str, y: str) -> Dot | None:
    measured = member.get(best_split(member)) or {}
    at = [measured.get(name) or {} for name in (x, y)]
    if any(one.get("value") is None for one in at):
        return None
    chosen = result.recommended is not None and result.recommended["genome"] == member["genome"]
    start = result.start is not None and result.start["genome"] == member["genome"]
    role = " ".join(["start"] * start + ["recommended"] * chosen)
    values = ", ".join(f"{heading(name)} {number(name, one['value'])}" for name, one in zip((x, y), at, strict=True))
    return Dot(at[0], at[1], role, f"{str(member['genome'])[:8]} {role}: {values}".replace(" :", ":"))


def _finite(interval: Mapping[str, float | None]) -> list[float]:
    return [end for end in (interval.get(name) for name in ("value", "low", "high")) if end is not None]


def _axes(x: Axis, y: Axis) -> str:
    bottom, line = HEIGHT - BOTTOM, "stroke='currentColor' stroke-opacity="
    parts = [f"<path d='M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}' fill='none' {line}'.5'/>"]
    for value in x.ticks:
        parts.append(f"<text x='{x.at(value)}' y='{bottom + 15}' text-anchor='middle'>{_tick(x, value)}</text>")
    for value in y.ticks:
        at = y.at(value)
        parts.append(f"<path d='M{LEFT} {at}H{WIDTH - RIGHT}' fill='none' {line}'.12'/>")
        parts.append(f"<text x='{LEFT - 6}' y='{at + 4}' text-anchor='end'>{_tick(y, value)}</text>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f"<text x='{middle}' y='{HEIGHT - 8}' text-anchor='middle'>{escape(x.title)}</text>")
    height = (TOP + bottom) / 2
    turned = f"transform='rotate(-90 14 {height})' text-anchor='middle'"
    parts.append(f"<text x='14' y='{height}' {turned}>{escape(y.title)}</text>")
    return "".join(parts)


def _tick(axis: Axis, value: float) -> str:
    if axis.name == "cost_usd":
        value *= 1e6
    return escape(f"{value:.10g}" if abs(value) < 1e5 else f"{value:.3g}")


def _drawn(dot: Dot, x: Axis, y: Axis) -> str:
    at_x, at_y = x.at(_finite(dot.x)[0]), y.at(_finite(dot.y)[0])
    colour = RECOMMENDED if "recommended" in dot.role else "currentColor" if dot.role else MEMBER
    ends = [
        f"M{x.at(low)} {at_y}H{x.at(high)}"
        for low, high in [(dot.x.get("low"), dot.x.get("high"))]
        if low is not None and high is not None
    ] + [
        f"M{at_x} {y.at(low)}V{y.at(high)}"
        for low, high in [(dot.y.get("low"), dot.y.get("high"))]
        if low is not None and high is not None
    ]
    fill = "none" if dot.role == "start" else colour
    left = at_x > WIDTH - RIGHT - 120
    place = f"x='{at_x - 9 if left else at_x + 9}' y='{at_y - 8}' text-anchor='{'end' if left else 'start'}'"
    label = f"<text {place} fill='{colour}'>{escape(dot.role)}</text>" if dot.role else ""
    return (
        f"<g><title>{escape(dot.title)}</title><path d='{''.join(ends)}' fill='none' stroke='{colour}' "
        f"stroke-opacity='.45'/><circle cx='{at_x}' cy='{at_y}' r='{6 if dot.role else 4.5}' fill='{fill}' "
        f"stroke='{colour}' stroke-width='1.5'/>{label}</g>"
    )
