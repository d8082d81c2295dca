"""Curves as an SVG file, in a few lines of our own: a panel a task, a line a strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
"""Tol's bright scheme: told apart by colour-blind readers too."""
WIDTH, HEIGHT = 360, 260
LEFT, TOP, RIGHT, BOTTOM = 44, 28, 12, 34
STEPS = 4
"""Marks on an axis, besides its start."""


def picture(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], x: str, y: str) -> str:
    """The SVG text. `panels`: title -> name of a line -> its points; lines without points are left out."""
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(names)}
    parts = [_panel(title, lines, colours, n * WIDTH, x, y) for n, (title, lines) in enumerate(panels.items())]
    legend = "".join(
        f'<text x="{LEFT + n * 96}" y="{HEIGHT + 14}" fill="{colours[name]}">— {escape(name)}</text>'
        for n, name in enumerate(names)
    )
    width = max(WIDTH * len(panels), LEFT + 96 * len(names))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT + 24}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}{legend}</svg>\n'
    )


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
            drawn.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="1.8"/>')
    return "".join(drawn)
