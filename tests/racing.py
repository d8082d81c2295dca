"""A process whose threads race for the epochs and claims of a ledger: python racing.py NAME URL; "go" starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from evocluster.errors import LedgerConflict
from evocluster.store.ledger import Ledger

THREADS = 8
EPOCHS = 6
SLOTS = 10


def contend(ledger: Ledger, name: str) -> dict[str, Any]:
    """Try for every epoch in order, then for every slot; what was won."""
    won: dict[str, Any] = {"name": name, "epochs": [], "slots": [], "lost": 0}
    for epoch in range(1, EPOCHS + 1):
        incident = {"id": f"{name}-{epoch}", "deployment": "d", "at": 1.0}
        audit = {"at": 1.0, "actor": name, "action": "promote"}
        try:
            ledger.move("d", epoch, audit=audit, snapshot=f"{name}-{epoch}", also=[("incidents", incident)])
            won["epochs"].append(epoch)
        except LedgerConflict:
            won["lost"] += 1
    for slot in range(SLOTS):
        if ledger.claim("d", "analyze", float(slot), name, 60.0, 0.0):
            won["slots"].append(slot)
    return won


def race(url: str, processes: int = 2) -> list[dict[str, Any]]:
    """What each thread of so many processes won."""
    running = [
        subprocess.Popen([sys.executable, __file__, f"p{number}", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for number in range(processes)
    ]
    try:
        for each in running:
            assert each.stdout is not None
            assert each.stdout.readline() == b"ready\n"
        told = []
        for each in running:
            assert each.stdin is not None
            each.stdin.write(b"go\n")
            each.stdin.flush()
        for each in running:
            out, _ = each.communicate(timeout=120)
            assert each.returncode == 0
            told.append(out)
    finally:
        for each in running:
            each.kill()
            each.wait()
    return [result for out in told for result in json.loads(out)]


def _main(name: str, url: str) -> None:
    ledger = Ledger.open(url)
    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(THREADS) as threads:
        print(json.dumps(list(threads.map(lambda number: contend(ledger, f"{name}t{number}"), range(THREADS)))))
    ledger.close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
