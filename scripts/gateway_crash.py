"""Serving processes that are killed: what of their records is lost, and who serves on."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil
from gateway_load import Aim, Told, beside
from gateway_rival import free_port
from gateway_site import NAMES, Place, Site, ended, listening, made, start
from gateway_verdict import Fault, Terms

from evocluster.cluster.loopback import Latency, running

OLD_S = 0.1
"""A kill may take records that are younger, and no older ones."""
RATE = 100.0
BACK_S = 60.0
"""Within which what is in a journal has to be in the ledger."""
REPLICA = "ServeReplica"
"""Stands in the title of the processes that Ray Serve keeps."""


def missing(place: Place, answers: Iterable[Told], within_s: float = BACK_S) -> list[Told]:
    """Of the answers that clients have, those of which the ledger has no record, also after waiting for them."""
    good = {one.request: one for one in answers if one.status == 200}
    last = time.monotonic() + within_s
    with place.open() as home:
        while True:
            rows = home.ledger.find("exchanges", {"deployment": "named", "is_shadow": False})
            absent = [one for id, one in good.items() if id not in {row["request_id"] for row in rows}]
            if not absent or time.monotonic() > last:
                return absent
            time.sleep(0.5)


def killed(terms: Terms) -> Fault:
    """kill -9 while it records, again and again; the next process reads the journal back."""
    fault = Fault("kill -9 of a serving process while it records")
    answered, lost, youngest = 0, 0, 0.0
    with running(Latency.parse("fixed:0.05")) as url:
        place = made(terms.folder, url)
        for number in range(terms.count(8, 3)):
            log = terms.folder / f"serve-{number}.log"
            site = listening(start(place, "named", log))
            with beside(Aim(site.url, "named", RATE, 60.0, seed=number)) as answers:
                time.sleep(2.0 + 0.037 * number)
                at = time.time()
                site.kill()
                time.sleep(0.3)
            after = listening(start(place, "named", log))
            before = [one for one in answers if one.status == 200 and one.at <= at]
            absent = missing(place, [one for one in before if one.at < at - OLD_S])
            all_absent = absent or missing(place, before, within_s=3.0)
            ended([after])
            fault.times += 1
            answered, lost = answered + len(before), lost + len(all_absent)
            youngest = max([youngest, *(at - one.at for one in all_absent)])
            fault.must(
                not absent, f"kill {number}: {len(absent)} answers older than {OLD_S * 1000:g} ms left no record"
            )
    fault.must(not journals(place.folder), f"{journals(place.folder)} journals were not read back")
    fault.must(answered > 0, "nobody was answered")
    fault.seen = {
        "answered before a kill": answered,
        "of them without a record": lost,
        "the oldest of these": f"{youngest * 1000:.0f} ms before the kill",
        "load average": f"{os.getloadavg()[0]:.1f}",
    }
    return fault


def replicas(site: Site) -> list[psutil.Process]:
    """The processes of its replicas."""
    found = []
    for one in psutil.Process(site.pid).children(recursive=True):
        try:
            if any(REPLICA in part for part in one.cmdline()):
                found.append(one)
        except psutil.Error:
            continue
    return found


def _steady(site: Site, count: int, gone: Sequence[int], within_s: float) -> bool:
    """So many replicas, none of them of these processes, within so long."""
    last = time.monotonic() + within_s
    while time.monotonic() < last:
        if len([one for one in replicas(site) if one.pid not in gone]) >= count:
            return True
        time.sleep(0.2)
    return False


def replica(terms: Terms) -> Fault:
    """kill -9 of one of two replicas of Ray Serve."""
    fault = Fault("kill -9 of one of two replicas under Ray Serve", times=1)
    with running(Latency.parse("fixed:0.05")) as url:
        place = made(terms.folder, url)
        log = terms.folder / "serve.log"
        site = start(place, "named", log, "--replicas", "2", "--port", str(free_port()))
        try:
            listening(site, 180.0)
            _replica_killed(fault, site, place)
        finally:
            ended([site])
    return fault


def _replica_killed(fault: Fault, site: Site, place: Place) -> None:
    fault.must(_steady(site, 2, (), 60.0), "two replicas did not come up")
    with beside(Aim(site.url, "named", 20.0, 300.0)) as answers:
        time.sleep(4.0)
        victim = replicas(site)[0].pid
        at = time.time()
        os.kill(victim, signal.SIGKILL)
        back = _steady(site, 2, (victim,), 90.0)
        took = time.time() - at
        time.sleep(6.0)
        end = time.time()
    before = [one for one in answers if one.at < at]
    last = [one for one in answers if one.at > end - 4.0]
    failed = [one for one in answers if one.status != 200 and one.at >= at]
    statuses = Counter(one.status for one in before)
    fault.must(set(statuses) == {200}, f"requests failed before the kill: {dict(statuses)}")
    fault.must(back, "Serve did not start another replica within 90 s")
    fault.must(bool(last) and all(one.status == 200 for one in last), "requests still fail after the restart")
    meanwhile = [one for one in answers if at <= one.at < at + took and one.status == 200]
    fault.must(bool(meanwhile), "nobody was answered while a replica was missing")
    fault.must({one.text for one in before if one.status == 200} == {NAMES[0]}, "answers are not of v1.0")
    with place.open() as home:
        heard = home.ledger.count("replicas", {"deployment": "named", "seen_at": (">=", time.time() - 5.0)})
    fault.must(heard >= 2, f"{heard} replicas follow the ledger, 2 are wanted")
    fault.seen = {
        "answered while a replica was missing": len(meanwhile),
        "failed after the kill": f"{len(failed)} of {sum(one.at >= at for one in answers)}",
        "statuses after it": dict(Counter(one.status for one in answers if one.at >= at)),
        "last failure": f"{max((one.at - at for one in failed), default=0.0):.1f} s after the kill",
        "two replicas again after": f"{took:.1f} s",
    }


def journals(folder: Path) -> int:
    """Files that wait to be read back."""
    return len(list((folder / "journal").rglob("*.jsonl")))
