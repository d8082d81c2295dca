"""A scaling benchmark as one HTML file that asks nobody for anything: findings, pictures as inline SVG, tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from evocluster.errors import ConfigError
from evocluster.report.scaling import SIDES, TITLES, findings, sides, tables
from evocluster.store.files import unwritable, write_atomic

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 32, 34, 44
"""Margins of a picture in pixels."""
COLOURS = ("#1c7ed6", "#e8590c", "#2b8a3e", "#9c36b5", "#0b7285", "#c92a2a", "#868e96")
STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;max-width:1000px;margin:24px auto;padding:0 16px;color:#212529}"
    "h1{font-size:22px}h2{font-size:17px;margin-top:32px}table{border-collapse:collapse;font-size:12px}"
    "td,th{padding:3px 10px 3px 0;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}"
    "td:first-child,th:first-child{text-align:left}th{border-bottom:1px solid #adb5bd;font-weight:600}"
    ".wide{overflow-x:auto}.note{color:#495057;font-size:12px}svg{max-width:100%;height:auto}"
    "figure{display:inline-block;vertical-align:top;margin:8px 16px 8px 0}"
)


class Line(NamedTuple):
    """One curve."""

    name: str
    points: Sequence[tuple[float, float]]


def write(found: Mapping[str, Any], folder: Path) -> None:
    """scaling.json and scaling.html, each in one step. Raises: errors.ConfigError, errors.StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"--out {str(folder)!r} is a file; give a folder") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    write_atomic(folder / "scaling.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_atomic(folder / "scaling.html", page(found))


def page(found: Mapping[str, Any]) -> str:
    """The whole file."""
    said = "".join(f"<li>{escape(one)}</li>" for one in findings(found))
    shown = "".join(pictures(found))
    parts = [
        f"<h2>{escape(table.title)}</h2><p class='note'>{escape(table.note)}</p><div class='wide'><table><tr>"
        + "".join(f"<th>{escape(head)}</th>" for head in table.heads)
        + "</tr>"
        + "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
        + "</table></div>"
        for table in tables(found)
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>evocluster: scaling</title><style>{STYLE}</style></head><body><h1>How the engine scales</h1>"
        f"<ul>{said}</ul>{shown}{''.join(parts)}</body></html>\n"
    )


def pictures(found: Mapping[str, Any]) -> list[str]:
    """A picture of each part that has more than one point."""
    rows = found["searches"]
    made = []
    for part in ("strong", "weak"):
        same = [row for row in rows if row["part"] == part]
        made.append(chart(TITLES[part], "nodes", "efficiency", _by_latency(same, "nodes"), top=1.0))
    flying = [row for row in rows if row["part"] == "in-flight"]
    made.append(
        chart("Efficiency, more in flight", "calls in flight", "efficiency", _by_latency(flying, "in_flight"), 1.0)
    )
    costs = [Line(side, [(float(row["in_flight"]), sides(row)[side]) for row in flying]) for side in (*SIDES, "other")]
    made.append(chart("CPU of each side, more in flight", "calls in flight", "ms an evaluation", costs))
    aged = [
        Line(name, [(float(row["evaluations"]), float(row[figure])) for row in found["history"]])
        for name, figure in (("ask and tell", "ask_ms"), ("append", "append_ms"))
    ]
    made.append(chart("The population as history grows", "evaluations", "ms CPU an evaluation", aged))
    made.append(bars(found))
    return [picture for picture in made if picture]


def _by_latency(rows: Sequence[Mapping[str, Any]], axis: str) -> list[Line]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(row["latency"], []).append((float(row[axis]), row["efficiency"]["median"]))
    return [Line(name, sorted(points)) for name, points in lines.items()]


def chart(title: str, across: str, up: str, lines: Sequence[Line], top: float = 0.0) -> str:
    """Curves over a logarithmic axis from zero up, at least to `top`; nothing where there is no more than a point."""
    places = sorted({x for line in lines for x, _ in line.points})
    if len(places) < 2:
        return ""
    high = max([top, *(y for line in lines for _, y in line.points)]) * 1.05 or 1.0
    start, end = math.log(places[0]), math.log(places[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        share = (math.log(x) - start) / (end - start)
        return (
            round(LEFT + share * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - y / high * (HEIGHT - TOP - BOTTOM), 1),
        )

    parts = [_frame(title, across, up, high, at)]
    parts += [_mark(at(x, 0)[0], HEIGHT - BOTTOM + 15, f"{x:,.0f}", "middle") for x in places]
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        path = "M" + "L".join(f"{a} {b}" for a, b in (at(*point) for point in line.points))
        parts.append(f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        for x, y in line.points:
            a, b = at(x, y)
            told = f"{escape(line.name)}: {x:,.0f}, {y:.3f}"
            parts.append(f"<circle cx='{a}' cy='{b}' r='3' fill='{colour}'><title>{told}</title></circle>")
    return f"<figure>{_svg(title, ''.join(parts))}{_legend([line.name for line in lines])}</figure>"


def bars(found: Mapping[str, Any]) -> str:
    """Evaluations an hour of the ways to select."""
    rows = [row for row in found["searches"] if row["part"] == "steady"]
    if len(rows) < 2:
        return ""
    hourly = [(row["label"], row["evaluations_per_s"]["median"] * 3600) for row in rows]
    most, step = max(rate for _, rate in hourly), (HEIGHT - TOP - 16) / len(hourly)
    title = "Evaluations an hour under the heavy tail"
    parts = [_mark(12, 18, title, "start", "font-weight='600'")]
    for number, (label, rate) in enumerate(hourly):
        y = TOP + number * step
        width = round(rate / most * (WIDTH - 130), 1)
        parts.append(_mark(12, y + 12, label, "start"))
        parts.append(f"<rect x='12' y='{y + 17:.1f}' width='{width}' height='{step - 28:.1f}' fill='{COLOURS[0]}'/>")
        parts.append(_mark(width + 18, y + 17 + (step - 28) / 2 + 4, f"{rate:,.0f}", "start"))
    return f"<figure>{_svg(title, ''.join(parts))}</figure>"


def _frame(title: str, across: str, up: str, high: float, at: Any) -> str:
    step = 10.0 ** math.floor(math.log10(high / 2))
    step *= max(factor for factor in (1, 2, 5) if high / (step * factor) >= 2)
    bottom = HEIGHT - BOTTOM
    parts = [f"<path d='M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}' fill='none' stroke='#868e96'/>"]
    for number in range(int(high / step) + 1):
        y = round(bottom - number * step / high * (bottom - TOP), 1)
        parts.append(f"<path d='M{LEFT} {y}H{WIDTH - RIGHT}' stroke='#dee2e6'/>" * (number > 0))
        parts.append(_mark(LEFT - 6, y + 4, f"{number * step:.10g}", "end"))
    parts.append(_mark(12, 18, title, "start", "font-weight='600'"))
    parts.append(_mark((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, across, "middle"))
    middle = (TOP + bottom) / 2
    parts.append(_mark(14, middle, up, "middle", f"transform='rotate(-90 14 {middle})'"))
    return "".join(parts)


def _mark(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f"<text x='{x:.10g}' y='{y:.10g}' text-anchor='{anchor}' {more}>{escape(text)}</text>"


def _svg(title: str, inside: str) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' role='img' "
        f"style='font-size:11px' fill='currentColor'><title>{escape(title)}</title>{inside}</svg>"
    )


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return f"<p class='note'>{escape(names[0])}</p>"
    shown = " ".join(
        f"<span style='color:{COLOURS[number % len(COLOURS)]}'>&#9632; {escape(name)}</span>"
        for number, name in enumerate(names)
    )
    return f"<p class='note'>{shown}</p>"
