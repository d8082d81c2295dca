"""Curves as an SVG file, in a few lines of our own: a panel a task, a line a strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#000000")
"""Tol's bright scheme and black: told apart by colour-blind readers too."""
LETTER = 6.5
"""Width of a letter of the legend, on the safe side."""
WIDTH, HEIGHT = 360, 260
LEFT, TOP, RIGHT, BOTTOM = 44, 28, 18, 34
STEPS = 4
"""Marks on an axis, besides its start."""


def picture(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], x: str, y: str) -> str:
    """The SVG text. `panels`: title -> name of a line -> its points; lines without points are left out.

    Names with the same first word have one colour; the line of a name with more words is dashed.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    firsts = list(dict.fromkeys(name.split()[0] for name in names))
    colours = {name: COLOURS[firsts.index(name.split()[0]) % len(COLOURS)] for name in names}
    parts = [_panel(title, lines, colours, n * WIDTH, x, y) for n, (title, lines) in enumerate(panels.items())]
    legend, at = [], float(LEFT)
    for name in names:
        mark = f'<path d="M{at:.1f} {HEIGHT + 10}h16" stroke="{colours[name]}" stroke-width="1.8"{_dashed(name)}/>'
        legend.append(f'{mark}<text x="{at + 20:.1f}" y="{HEIGHT + 14}" fill="{colours[name]}">{escape(name)}</text>')
        at += 32 + LETTER * len(name)
    width = max(WIDTH * len(panels), round(at))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT + 24}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{"".join([*parts, *legend])}</svg>\n'
    )


def _dashed(name: str) -> str:
    return ' stroke-dasharray="5 3"' if " " in name else ""


def _panel(
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    colours: Mapping[str, str],
    offset: int,
    x: str,
    y: str,
) -> str:
    points = [point for line in lines.values() for point in line]
    if not points:
        return f'<text x="{offset + LEFT}" y="{TOP}">{escape(title)}: nothing yet</text>'
    right = max(one for one, _ in points) or 1.0
    low, high = min(one for _, one in points), max(one for _, one in points)
    low, high = low - 0.05 * (high - low or 1.0), high + 0.05 * (high - low or 1.0)

    def across(value: float) -> float:
        return offset + LEFT + value / right * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    drawn = [f'<text x="{offset + LEFT}" y="{TOP - 12}" font-weight="bold">{escape(title)}: {escape(y)}</text>']
    for n in range(STEPS + 1):
        value, level = right * n / STEPS, low + (high - low) * n / STEPS
        drawn.append(
            f'<text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{value:.0f}</text>'
            f'<text x="{offset + LEFT - 4}" y="{up(level) + 4:.1f}" text-anchor="end">{level:.2f}</text>'
            f'<path d="M{across(0):.1f} {up(level):.1f}H{across(right):.1f}" stroke="#ddd"/>'
        )
    drawn.append(f'<text x="{across(right / 2):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>')
    for name, line in lines.items():
        if line:
            path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in line)
            look = f'fill="none" stroke="{colours[name]}" stroke-width="1.8"{_dashed(name)}'
            drawn.append(f'<polyline points="{path}" {look}/>')
    return "".join(drawn)
