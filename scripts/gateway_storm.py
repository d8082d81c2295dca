"""Storms that a gateway has to stand: feedback in every disorder, a pointer that never rests, clients that dawdle."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from gateway_load import Aim, Lines, Told, beside, loop, post, quantile, shoot
from gateway_site import listening, made, start, texts
from gateway_verdict import Fault, Terms

from evocluster.cluster.loopback import Latency, running
from evocluster.online.actuator import rollback
from evocluster.online.feedback import last
from evocluster.online.state import push

DRIPS = 20
"""Connections of each kind that dawdle at once."""
HEAD_S = 2.0
"""Seconds that a request has to arrive in, where clients dawdle."""


Slot = tuple[str, str, str]
"""Request, metric, source."""


@dataclass(frozen=True)
class Event:
    """One thing that is said."""

    id: str
    token: str
    request: str
    metric: str
    value: Any
    source: str
    observed_at: float
    supersedes: str

    @property
    def body(self) -> dict[str, Any]:
        """As it is posted."""
        said = {
            "feedback_id": self.id,
            "target": self.token,
            "metric": self.metric,
            "value": self.value,
            "source": self.source,
            "observed_at": self.observed_at,
        }
        return {**said, "supersedes": self.supersedes} if self.supersedes else said


def _events(answers: Sequence[Told], count: int, rng: random.Random) -> list[Event]:
    """So many different ones: several of one slot, some that take an earlier one back."""
    now, events = time.time(), list[Event]()
    slots: dict[Slot, str] = {}
    for number in range(count):
        answer = answers[number % len(answers)]
        metric, source = rng.choice(("quality", "correct")), rng.choice(("user", "human"))
        slot = (answer.request, metric, source)
        value: Any = rng.random() if metric == "quality" else rng.random() < 0.5
        taken_back = slots.get(slot, "") if rng.random() < 0.2 else ""
        id = f"event-{number}"
        at = now - rng.uniform(0, 7200)
        events.append(Event(id, answer.token, answer.request, metric, value, source, at, taken_back))
        slots[slot] = id
    return events


async def _posted(url: str, bodies: Sequence[bytes], at_once: int) -> Counter[str]:
    """Post all of them, so many at once: what they were answered."""
    lines, told, left = Lines(url), Counter[str](), iter(bodies)

    async def one() -> None:
        for body in left:
            status, _, said = await lines.ask(post(url, "/v1/feedback", body))
            told[str(json.loads(said).get("status", "refused")) if status == 202 else str(status)] += 1

    await asyncio.gather(*(one() for _ in range(at_once)))
    lines.close()
    return told


def feedback(terms: Terms) -> Fault:
    """Feedback through HTTP: every fifth twice, all of it shuffled, some of it before its request's record."""
    fault, rng = Fault("feedback: duplicates, late, out of order"), random.Random(7)
    unique = terms.count(8000, 800)
    with running(Latency.parse("fixed:0.05")) as url:
        place = made(terms.folder, url)
        site = listening(start(place, "named", terms.folder / "serve.log"))
        answers: list[Told] = []
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(shoot(Aim(site.url, "named", 100.0, 2.0), answers.append))
            good = [one for one in answers if one.status == 200]
            events = _events(good, unique, rng)
            sent = [*events, *rng.choices(events, k=unique // 4)]
            rng.shuffle(sent)
            # The first ones are said at once: their records are on their way yet.
            began = time.monotonic()
            told = runner.run(_posted(site.url, [json.dumps(one.body).encode() for one in sent], 16))
            took = time.monotonic() - began
        time.sleep(3.0)
        site.end()
        fault.times = len(sent)
        with place.open() as home:
            fault.wrong += wrong(home.ledger.find("feedback", {"deployment": "named"}), events)
    duplicates = len(sent) - len(events)
    fault.must(told["duplicate"] == duplicates, f"{told['duplicate']} were called duplicates; there were {duplicates}")
    fault.must(sum(told.values()) == len(sent), "some were not answered")
    refused = {name: count for name, count in told.items() if name.isdecimal() or name == "refused"}
    fault.must(not refused, f"refused: {refused}")
    fault.seen = {"answered": dict(told), "a second": f"{len(sent) / took:.0f}"}
    return fault


def wrong(rows: Sequence[dict[str, Any]], events: Sequence[Event]) -> list[str]:
    """What is wrong with the ledger's rows of these events: each has to be there once, and of every slot the last one
    stands."""
    ids, wanted = Counter(row["feedback_id"] for row in rows), {one.id for one in events}
    told = [f"{len(ids.keys() ^ wanted)} ids are missing or strange"] if ids.keys() != wanted else []
    if max(ids.values(), default=0) > 1:
        told.append("some are there twice")
    if waiting := sum(row["state"] != "accepted" for row in rows):
        told.append(f"{waiting} have not found their request")
    there: dict[Slot, list[dict[str, Any]]] = {}
    for row in rows:
        there.setdefault((row["request_id"], row["metric"], row["source"]), []).append(row)
    said: dict[Slot, list[Event]] = {}
    for one in events:
        said.setdefault((one.request, one.metric, one.source), []).append(one)
    others = sum(slot not in there or last(there[slot])["feedback_id"] != standing(mine) for slot, mine in said.items())
    return [*told, f"in {others} of {len(said)} slots another one stands than should"] if others else told


def standing(said: Sequence[Event]) -> str:
    """The last of a slot that nothing takes back: the rule once more, from what was sent."""
    gone = {one.supersedes for one in said}
    return max((one for one in said if one.id not in gone), key=lambda one: (one.observed_at, one.id)).id


def event(id: str, at: float, back: str = "") -> Event:
    """One of a single slot."""
    return Event(id, "r.signature", "r", "quality", 0.5, "user", at, back)


def flips(terms: Terms) -> Fault:
    """The pointer moves to and fro under load; every answer is of one snapshot, and so is its record."""
    fault = Fault("pointer flips under load")
    with running(Latency.parse("fixed:0.05")) as url:
        place = made(terms.folder, url)
        site = listening(start(place, "named", terms.folder / "serve.log"))
        with place.open() as home, beside(Aim(site.url, "named", 100.0, 600.0)) as heard:
            told, secret = texts(home), home.pointer("named")["secret"]
            time.sleep(0.5)
            for number in range(terms.count(1000, 150)):
                rollback(home.ledger, "named", time.time(), version=("v2.0", "v1.0")[number % 2])
                push([site.url], "named", secret)
                fault.times += 1
            time.sleep(1.0)
            answers = list(heard)
        _whole(fault, answers, told)
        site.end()
        with place.open() as home:
            rows = home.ledger.find("exchanges", {"deployment": "named"})
            audit = {row["epoch"]: row["to_snapshot"] for row in home.ledger.find("audit", {"deployment": "named"})}
            bodies = {row["request_id"]: row["output"] for row in home.ledger.find("bodies", {"deployment": "named"})}
    torn = [row for row in rows if row["snapshot_id"] != audit[row["epoch"]] or row["arm"] != row["snapshot_id"]]
    fault.must(not torn, f"{len(torn)} records name another snapshot than their epoch had")
    other = [row for row in rows if bodies.get(row["request_id"]) != told[row["snapshot_id"]]]
    fault.must(not other, f"{len(other)} records hold the answer of another snapshot")
    epochs = len({row["epoch"] for row in rows})
    fault.must(epochs > fault.times / 20, f"only {epochs} epochs answered somebody: too few to show anything")
    fault.seen |= {"epochs that answered somebody": epochs, "records": len(rows)}
    return fault


def _whole(fault: Fault, answers: Sequence[Told], told: dict[str, str]) -> None:
    bad = [one for one in answers if one.status != 200]
    fault.must(not bad, f"{len(bad)} of {len(answers)} requests failed")
    mixed = 0
    for one in answers:
        if one.status == 200:
            body = json.loads(one.body)
            arm = one.headers.get("x-evocluster-arm")
            fits = one.text == told.get(one.snapshot) and body["system_fingerprint"] == one.snapshot == arm
            mixed += not fits
    fault.must(not mixed, f"{mixed} answers are of two snapshots")
    said = Counter(one.text for one in answers if one.status == 200)
    fault.must(len(said) == 2, f"answers came of {dict(said)}: both versions should have answered")
    fault.seen = {"answers": dict(said)}


class Drips:
    """Clients that send so much at once, and then a byte every tenth of a second until they are hung up on."""

    def __init__(self, url: str, at_once: bytes, slowly: bytes) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._address, self._at_once, self._slowly = (host, int(port)), at_once, slowly
        self._threads = [threading.Thread(target=self._drip) for _ in range(DRIPS)]
        self.ends: list[tuple[float, bytes]] = []
        """(seconds until it was hung up on, what it was told) of each."""

    def __enter__(self) -> Self:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._threads:
            one.join()

    def _drip(self) -> None:
        began, said = time.monotonic(), b""
        with socket.create_connection(self._address, timeout=0.1) as line:
            line.sendall(self._at_once)
            for byte in self._slowly:
                try:
                    line.sendall(bytes([byte]))
                    got = line.recv(4096)
                except TimeoutError:
                    continue
                except OSError:
                    got = b""
                said += got
                if not got:
                    self.ends.append((time.monotonic() - began, said))
                    return


def _status(url: str, payload: bytes) -> int:
    """What a request is answered, however much of it was sent by then."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        with suppress(OSError):  # it has heard enough
            line.sendall(payload)
        return int(line.recv(64).split(b" ")[1])


def slow(terms: Terms) -> Fault:
    """Heads and bodies that drip in, and bodies that are too large, while others are served."""
    fault = Fault("clients that dawdle, bodies that are too large")
    with running(Latency.parse("fixed:0.05")) as url:
        place = made(terms.folder, url, online={"gateway": {"header_timeout_s": HEAD_S}})
        site = listening(start(place, "named", terms.folder / "serve.log"))
        whole = post(site.url, "/v1/chat/completions", b"x" * 400)
        head = whole[:-400]
        told = {"alone": _asked(site.url, 5.0)}
        with Drips(site.url, b"", whole) as heads:
            told["beside heads that drip"] = _asked(site.url, HEAD_S * 2)
        with Drips(site.url, head, b"x" * 400) as bodies:
            told["beside bodies that drip"] = _asked(site.url, HEAD_S * 2)
        endless = head.replace(b"Content-Length: 400", b"Transfer-Encoding: chunked")
        endless += b"%x\r\n%b\r\n" % (2**16, b" " * 2**16) * 40
        large = post(site.url, "/v1/chat/completions", b" " * (2**20 + 1))
        statuses = [_status(site.url, payload) for payload in (large, endless)]
        told["afterwards"] = _asked(site.url, 2.0)
        fault.must(site.end() == 0, "it did not end well")
    fault.times = 2 * DRIPS + len(statuses)
    for name, one in (("heads", heads), ("bodies", bodies)):
        left = DRIPS - len(one.ends)
        fault.must(not left, f"{left} of {DRIPS} clients whose {name} drip were not hung up on")
    fault.must(all(b" 408 " in said for _, said in bodies.ends), "bodies that drip were not answered 408")
    fault.must(statuses == [413, 413], f"bodies that are too large were answered {statuses}, not 413")
    for name, answers in told.items():
        fault.must(bool(answers) and all(status == 200 for status, _ in answers), f"others were not served {name}")
    fault.seen = {f"p99 {name}": f"{quantile([ms for _, ms in each], 0.99):.0f} ms" for name, each in told.items()}
    longest = max((seconds for seconds, _ in heads.ends + bodies.ends), default=0.0)
    fault.seen |= {"hung up after at most": f"{longest:.1f} s (allowed: {HEAD_S:g} s)", "too large": statuses}
    return fault


def _asked(url: str, seconds: float) -> list[tuple[int, float]]:
    """(status, milliseconds) of requests at a calm rate for so long."""
    told: list[Told] = []
    with asyncio.Runner(loop_factory=loop) as runner:
        volley = runner.run(shoot(Aim(url, "named", 40.0, seconds), told.append))
    bad = [(one.status, float("inf")) for one in told if one.status != 200]
    return [*((200, ms) for ms in volley.latencies_ms), *bad]
