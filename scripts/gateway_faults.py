"""The faults of the gateway, one after the other, and the table of what was seen."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import gateway_crash
import gateway_database
import gateway_storm
from gateway_verdict import Fault, Inject, Terms, shown

FAULTS: dict[str, Inject] = {
    "kill": gateway_crash.killed,
    "sqlite": gateway_database.locked,
    "postgres": gateway_database.away,
    "feedback": gateway_storm.feedback,
    "flips": gateway_storm.flips,
    "slow": gateway_storm.slow,
    "replica": gateway_crash.replica,
}
"""Short name -> what injects it."""


def inject(name: str, terms: Terms) -> Fault:
    """One of them; whatever breaks the injector itself fails it, with what it said."""
    began = time.monotonic()
    try:
        fault = FAULTS[name](terms)
    except Exception as failure:  # the others are still to be injected
        traceback.print_exc()
        fault = Fault(name, wrong=[f"the injector broke: {type(failure).__name__}: {failure}"[:1000]])
    fault.seconds = time.monotonic() - began
    return fault


def carried_out(names: Sequence[str], folder: Path, short: bool, told: bool, say: Callable[[str], None]) -> int:
    """All of these: 1 where one failed."""
    faults = []
    for name in names:
        faults.append(inject(name, Terms(folder / name, short)))
        say(shown(faults[-1]))
    say(f"load average at the end: {', '.join(f'{one:.2f}' for one in os.getloadavg())}")
    failed = [one.name for one in faults if one.wrong]
    if told:
        states = {name: one.state for name, one in zip(names, faults, strict=True)}
        say(json.dumps({"faults": states, "failed": len(failed)}))
    return int(bool(failed))
