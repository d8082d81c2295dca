"""Known holes in the locked packages, by pip-audit: fixed, or excused in pyproject.toml with a reason and a date.

    python scripts/audit.py             exit 1 for a hole that is not excused, or an excuse whose review is due
    python scripts/audit.py --strict    also where no service could be asked about a package

A machine without network is no failure: it says that it could not ask, and about how many packages.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("pypi", "osv")
"""Asked in this order until one answers about any package."""
TIMEOUT_S = 180


class Excuse(NamedTuple):
    """A known hole that does not concern us, an entry of `[[tool.audit.excused]]`."""

    id: str
    package: str
    why: str
    review: date
    """From this day on the reason has to be looked at again."""


class Verdict(NamedTuple):
    """What an audit found."""

    lines: list[str]
    failed: bool


def excuses(pyproject: str) -> list[Excuse]:
    """The excused holes. Raises: ValueError for one without reason, package or date."""
    found = []
    for entry in tomllib.loads(pyproject).get("tool", {}).get("audit", {}).get("excused", []):
        one = Excuse(*(entry.get(name) for name in Excuse._fields))
        if not (one.id and one.package and one.why and isinstance(one.review, date)):
            raise ValueError(f"excused hole {entry!r}: id, package, why and review (a date) are all needed")
        found.append(one)
    return found


def judged(dependencies: Iterable[dict[str, Any]], excused: Sequence[Excuse], today: date, strict: bool) -> Verdict:
    """What pip-audit's JSON means."""
    known = list(dependencies)
    asked = [one for one in known if "vulns" in one]
    lines, failed = [], False
    for due in (excuse for excuse in excused if today >= excuse.review):
        lines.append(f"{due.package}: the reason to excuse {due.id} was to be reviewed on {due.review}: {due.why}")
        failed = True
    met: set[Excuse] = set()
    for one in asked:
        for hole in one["vulns"]:
            names = {hole["id"], *hole.get("aliases", ())}
            fitting = [excuse for excuse in excused if excuse.id in names and excuse.package == one["name"]]
            met.update(fitting)
            if not fitting:
                fix = ", ".join(hole.get("fix_versions") or ()) or "no version yet"
                lines.append(f"{one['name']} {one['version']}: {hole['id']}, fixed in {fix}; raise it in the lock")
                failed = True
    there = {one["name"] for one in asked}
    idle = [excuse for excuse in excused if excuse.package in there and excuse not in met]
    lines += [f"{excuse.package}: {excuse.id} is excused for nothing now; remove it" for excuse in idle]
    if silent := len(known) - len(asked):
        lines.append(f"could not ask about {silent} of {len(known)} packages: no service answered from this machine")
        failed = failed or strict
    lines.append(f"{len(asked)} packages asked about, {len(met)} known hole(s) excused")
    return Verdict(lines, failed)


def ask(lock: Path, service: str) -> list[dict[str, Any]] | None:
    """pip-audit's answer about every locked package; None where it got none from this service."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(lock), "--require-hashes", "--disable-pip", "--no-deps"]
    try:
        done = subprocess.run(
            [*command, "--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        answer: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    return answer


def locked(lock: str) -> list[dict[str, Any]]:
    """The packages of a lock as nobody could be asked about them."""
    return [{"name": line.split("==")[0]} for line in lock.splitlines() if "==" in line and line[:1].isalnum()]


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strict", action="store_true", help="fail where no service could be asked")
    strict = parser.parse_args().strict
    lock = ROOT / "requirements.lock"
    found = locked(lock.read_text(encoding="utf-8"))
    for service in SERVICES:
        answer = ask(lock, service)
        if answer and any("vulns" in one for one in answer):
            found = answer
            break
    excused = excuses((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    verdict = judged(found, excused, date.today(), strict)
    print("\n".join(f"audit: {line}" for line in verdict.lines))
    return int(verdict.failed)


if __name__ == "__main__":
    sys.exit(main())
