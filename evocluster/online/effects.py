"""Tool calls that change something outside, made by a user's own pipeline: once for real, never again for a shadow.

    sent = await effect(llm, "send_mail", {"to": address}, perform)

In production `perform` runs, and what it returned goes into the trace (`Calls.note`). Where the same question is
answered in the shadow, the call is answered from that trace; one that production did not make raises `Unrecorded`, and
the pair is skipped and counted. Observe, never mutate: a shadow that writes makes every side effect twice.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from evocluster.errors import EvoclusterError
from evocluster.records import Json, canonical
from evocluster.tasks.calls import Calls
from evocluster.tasks.execution import Step

PREFIX = "tool: "
"""What the purpose of a recorded step begins with."""


class Unrecorded(EvoclusterError):
    """A shadow asked for a side effect that production did not make."""


class Recording:
    """The side effects of one answer: (name, arguments) -> results, in the order they came."""

    def __init__(self, trace: Iterable[Step] = ()) -> None:
        self._results: dict[tuple[str, str], list[str]] = {}
        for step in trace:
            if step.purpose.startswith(PREFIX):
                self._results.setdefault((step.purpose.removeprefix(PREFIX), step.prompt), []).append(step.reply)
        self.missed: list[str] = []
        """Names of what was asked for and is not in it."""

    def result(self, name: str, arguments: Mapping[str, Json]) -> Json:
        """What it returned then; the last of several is repeated. Raises: Unrecorded."""
        found = self._results.get((name, canonical(dict(arguments))))
        if not found:
            self.missed.append(name)
            raise Unrecorded(f"tool {name!r} was not called so in production; a shadow performs nothing itself")
        return json.loads(found.pop(0) if len(found) > 1 else found[0])


_REPLAYED: ContextVar[Recording | None] = ContextVar("evocluster_replayed", default=None)


@contextmanager
def replaying(recording: Recording) -> Iterator[Recording]:
    """Side effects are answered from the recording in here, and in every task that begins in here."""
    token = _REPLAYED.set(recording)
    try:
        yield recording
    finally:
        _REPLAYED.reset(token)


async def effect(llm: Calls, name: str, arguments: Mapping[str, Json], perform: Callable[[], Awaitable[Json]]) -> Json:
    """What the tool returns: a JSON value. Raises: Unrecorded, and what `perform` raises."""
    recording = _REPLAYED.get()
    if recording is not None:
        return recording.result(name, arguments)
    returned = await perform()
    llm.note(f"{PREFIX}{name}", canonical(dict(arguments)), canonical(returned))
    return returned
