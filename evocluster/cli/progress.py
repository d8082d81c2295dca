"""What a person sees while a run goes on: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from evocluster.cli import screen
from evocluster.cli.screen import plain
from evocluster.errors import Interrupted
from evocluster.report.figures import heading, number
from evocluster.report.found import Found

PLAIN_EVERY_S = 5.0
STILL_EVERY_S = 60.0
"""Between plain lines while nothing moves."""
ROWS = 8
Form = Literal["auto", "json"]
JSON_EVERY_S, JSON_RARELY_S = 2.0, 60.0
"""Between JSON lines at first, and in a long run: a log of days stays readable in one go."""


class Display:
    """Call it with progress. On a terminal a live picture, otherwise a line each five seconds, or each minute while
    nothing moves; silent when `quiet`. As `json`: an object a line on standard output, for programs.
    """

    def __init__(
        self,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        console: Console | None = None,
        form: Form = "auto",
    ) -> None:
        self._console = console or screen.console(stderr=True)
        self._quiet = quiet
        self._form = form
        self._clock = clock
        self._live: Live | None = None
        self._last = -STILL_EVERY_S
        self._told: tuple[Any, ...] = ()
        self._speed = Speed()

    def __enter__(self) -> Display:
        if not self._quiet and self._form == "auto" and self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self._quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """One line that stays, also when `quiet`."""
        self._console.print(plain(text), soft_wrap=True)

    def __call__(self, progress: Mapping[str, Any]) -> None:
        """Show this progress (see engine.Engine.progress)."""
        if not progress or (self._quiet and self._form == "auto"):
            return
        now = self._clock()
        if self._form == "json":
            self._tell(progress, now)
            return
        rate = self._speed.update(now, progress.get("evaluations", 0))
        if self._live is not None:
            self._live.update(Group(plain(line(progress, rate), "bold"), _front(progress)))
            return
        moved = tuple(progress.get(name) for name in ("phase", "evaluations", "calls"))
        if now - self._last >= (PLAIN_EVERY_S if moved != self._told else STILL_EVERY_S):
            self._last, self._told = now, moved
            self._console.print(plain(line(progress, rate)), soft_wrap=True)

    def _tell(self, progress: Mapping[str, Any], now: float) -> None:
        pause_s = min(JSON_RARELY_S, max(JSON_EVERY_S, float(progress.get("elapsed_s", 0.0)) / 200))
        moved = tuple(progress.get(name) for name in ("phase", "evaluations", "calls"))
        if now - self._last >= (pause_s if moved != self._told else JSON_RARELY_S):
            self._last, self._told = now, moved
            tell("progress", progress={**progress, "front": list(progress.get("front", []))[:ROWS]})


def tell(kind: str, **what: object) -> None:
    """A line for programs, all ASCII; cli.arrival, which must not import this, writes the same."""
    sys.stdout.write(json.dumps({"evocluster": kind, **what}) + "\n")
    sys.stdout.flush()


def tell_result(result: Found) -> None:
    """What a run came to, as a line for programs."""
    tell("result", result={"folder": str(result.path), "run": result.run, "front": result.front})


class Speed:
    """Evaluations a second over the last ten seconds."""

    def __init__(self, window_s: float = 10.0) -> None:
        self._window_s = window_s
        self._seen: list[tuple[float, int]] = []

    def update(self, now: float, count: int) -> float:
        """Note the count; returns the rate."""
        self._seen.append((now, count))
        while len(self._seen) > 2 and now - self._seen[0][0] > self._window_s:
            self._seen.pop(0)
        since, before = self._seen[0]
        seconds = now - since
        return (count - before) / seconds if seconds > 0 else 0.0


def line(progress: Mapping[str, Any], rate: float) -> str:
    """One line of progress: phase, generation, evaluations, cache hits, spend against budget, time."""
    calls, cached = progress.get("calls", 0), progress.get("cached", 0)
    budget = progress.get("budget") or {}
    parts = [
        f"{progress.get('phase', '')}",
        f"generation {progress.get('generation', 0)}",
        f"{progress.get('evaluations', 0)} evaluations ({rate:.1f}/s, {progress.get('handed_out', 0)} handed out)",
        f"{calls}{_of(budget.get('calls'))} calls, {100 * cached / max(1, calls):.0f}% from the cache",
        f"${progress.get('usd', 0.0):.4f}{_of(budget.get('usd'), '$')}",
        f"{progress.get('elapsed_s', 0.0):.0f} s{_left(progress)}",
    ]
    if progress.get("constraints") and not progress.get("feasible"):
        parts.append("nobody keeps the constraints yet")
    if restarts := progress.get("restarts"):
        parts.append(f"restarts {restarts}")
    best = progress.get("best_quality")
    if best is not None:
        parts.insert(2, f"best train quality {best:.2f}")
    return " | ".join(parts)


def _of(limit: float | None, unit: str = "") -> str:
    return f" of {unit}{limit:g}" if limit else ""


def _left(progress: Mapping[str, Any]) -> str:
    """Time left for the search, by whichever budget is used up first at the present pace."""
    budget, elapsed = progress.get("budget") or {}, float(progress.get("elapsed_s", 0.0))
    shares = [
        float(progress.get(name, 0.0)) / limit for name in ("calls", "usd", "generation") if (limit := budget.get(name))
    ]
    if minutes := budget.get("minutes"):
        shares.append(elapsed / (minutes * 60))
    share = max(shares, default=0.0)
    return f", about {elapsed / share - elapsed:.0f} s left" if 0.02 < share < 1 else ""


def _front(progress: Mapping[str, Any]) -> Table:
    """The best of the population so far, on train."""
    names: list[str] = list(progress.get("objectives", []))
    table = Table(show_edge=False, pad_edge=False, title="front so far (train)", title_justify="left")
    table.add_column("genome")
    for name in names:
        table.add_column(plain(heading(name)), justify="right")
    front: list[Mapping[str, Any]] = list(progress.get("front", []))
    for member in front[:ROWS]:
        values = member["values"]
        shown = ("-" if (value := values.get(name)) is None else number(name, value) for name in names)
        table.add_row(str(member["genome"])[:8], *shown)
    if len(front) > ROWS:
        table.add_row(f"… {len(front) - ROWS} more")
    return table


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """A question whether Ctrl-C was pressed, or SIGTERM came. Once: finish and save; twice: leave at once.

    `say` is told of the first one when the question is next asked: nothing is printed inside a signal handler.
    Raises: errors.Interrupted at the second.
    """
    pressed: list[int] = []
    said = False

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        if len(pressed) > 1:
            raise KeyboardInterrupt

    def asked() -> bool:
        nonlocal said
        if pressed and not said:
            said = True
            again = "Ctrl-C" if signal.SIGINT in pressed else "SIGTERM"
            say(f"interrupted: finishing what is in flight and saving it; {again} again leaves at once")
        return bool(pressed)

    before = {each: signal.signal(each, press) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    except KeyboardInterrupt:
        raise Interrupted(
            "left at once: what was in flight is lost, everything finished is kept; "
            "go on with `evocluster resume FOLDER`"
        ) from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def leave(result: Found) -> None:
    """Raises: SystemExit 130 when the run was interrupted."""
    if result.status == "interrupted":
        raise SystemExit(130)
