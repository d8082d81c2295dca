"""Notices: signed, bounded, repeated a little, never with a body, and never worth a loop."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from pydantic import ValidationError

from evocluster.errors import ConfigError
from evocluster.online.notify import LONGEST, Notice, Notifier, signature
from evocluster.release.settings import Notify

NOTICE = Notice(at=1_800_000_000.5, deployment="d", event="promoted", text="layer prompt", facts={"judge_score": 0.8})
SETTINGS = Notify(webhook_env="HOOK", timeout_s=0.5)


class Hook:
    """A webhook that answers with these statuses, the last one on and on."""

    def __init__(self, *statuses: int, wait_s: float = 0.0) -> None:
        self._statuses = statuses
        self._wait_s = wait_s
        self.heard: list[tuple[dict[str, str], bytes]] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.heard.append((dict(request.headers), await request.read()))
        await asyncio.sleep(self._wait_s)
        status = self._statuses[min(len(self.heard), len(self._statuses)) - 1]
        return web.Response(status=status, headers={"location": "/"} if status == 302 else {})

    @asynccontextmanager
    async def serving(self, **known: str) -> AsyncIterator[dict[str, str]]:
        """The environment that names it."""
        app = web.Application()
        app.router.add_post("/", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        try:
            yield {"HOOK": f"http://{host}:{port}/", **known}
        finally:
            await runner.cleanup()


async def test_a_notice_arrives_signed() -> None:
    hook = Hook(200)
    async with hook.serving(HOOK_SECRET="between us two") as environment:
        assert await Notifier(SETTINGS, environment)(NOTICE)
    [(headers, body)] = hook.heard
    said = json.loads(body)
    assert (said["event"], said["facts"], said["id"]) == ("promoted", {"judge_score": 0.8}, NOTICE.id)
    signed = signature("between us two", 1_800_000_000, body)
    assert headers["x-evocluster-signature"] == f"t=1800000000,v1={signed}"
    assert signature("another", 1_800_000_000, body) != signed


async def test_without_a_second_variable_it_is_not_signed() -> None:
    hook = Hook(204)
    async with hook.serving() as environment:
        assert await Notifier(SETTINGS, environment)(NOTICE)
    assert "x-evocluster-signature" not in {name.lower() for name in hook.heard[0][0]}


@pytest.mark.parametrize(
    ("statuses", "taken", "calls"), [((500, 200), True, 2), ((503,), False, 3), ((404,), False, 1), ((302,), False, 1)]
)
async def test_it_is_repeated_a_little(statuses: tuple[int, ...], taken: bool, calls: int) -> None:
    hook = Hook(*statuses)
    async with hook.serving() as environment:
        assert await Notifier(SETTINGS, environment, pause_s=0.001)(NOTICE) is taken
    assert len(hook.heard) == calls
    assert len({body for _, body in hook.heard}) == 1


async def test_a_webhook_that_does_not_answer_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    hook = Hook(200, wait_s=5)
    settings = Notify(webhook_env="HOOK", timeout_s=0.05)
    async with hook.serving() as environment:
        with caplog.at_level(logging.ERROR, "evocluster"):
            assert not await Notifier(settings, environment, attempts=2, pause_s=0.001)(NOTICE)
    assert "did not take notice" in caplog.text
    assert environment["HOOK"] not in caplog.text


async def test_nobody_there_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(SETTINGS, {"HOOK": "http://127.0.0.1:9/"}, attempts=1)
    with caplog.at_level(logging.ERROR, "evocluster"):
        assert not await notifier(NOTICE)
    assert "127.0.0.1" in caplog.text


async def test_without_a_webhook_the_log_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "evocluster"):
        assert await Notifier(Notify(), {})(NOTICE)
    assert "d: promoted: layer prompt" in caplog.text


@pytest.mark.parametrize(
    "url",
    ["", "http://example.org/hook", "ftp://127.0.0.1/", "http://10.0.0.1/", "example.org", "https://", "http://["],
)
def test_only_https_or_this_machine(url: str) -> None:
    with pytest.raises(ConfigError, match="HOOK"):
        Notifier(SETTINGS, {"HOOK": url})


@pytest.mark.parametrize(
    "url", ["https://example.org/a", "http://localhost:1/", "http://[::1]:80/", "http://127.0.0.2"]
)
def test_what_is_allowed(url: str) -> None:
    Notifier(SETTINGS, {"HOOK": url})


def test_a_notice_carries_nothing_that_somebody_wrote() -> None:
    with pytest.raises(ValidationError, match="no numbers"):
        Notice(at=1.0, deployment="d", event="alarm", text="x", facts={"question": "Where is my parcel?"})
    long = Notice(at=1.0, deployment="d", event="alarm", text="a key sk-abcdefghij1234567890 " + "x" * 999)
    assert len(long.text) == LONGEST
    assert "abcdefghij1234567890" not in long.text
