"""The faulty endpoint misbehaves as it is told, and our client calls every fault by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import pytest
from contract_llm import chat, opened
from faulty import LATE_S, Behaviour, Mode, Seen, Service, running, switch

from evocluster.cluster.loopback import Latency, stats
from evocluster.errors import (
    BadReply,
    DeadlinePassed,
    ModelError,
    Overloaded,
    RateLimited,
    Refused,
    Unreachable,
)
from evocluster.llm.direct import Direct
from evocluster.llm.prices import Price


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(Latency.parse("fixed:0.01"), seed=3) as root:
        yield root


def model(url: str) -> Direct:
    price = Price(prompt_usd_per_mtok=1, completion_usd_per_mtok=1)
    return Direct(base_url=f"{url}/v1", model="m", price=price, timeout_s=0.5)


@dataclass(frozen=True)
class Fault:
    mode: Mode
    raised: type[ModelError]


FAULTS = [
    Fault("storm", RateLimited),
    Fault("overloaded", Overloaded),
    Fault("hang", DeadlinePassed),
    Fault("drip", DeadlinePassed),
    Fault("html", BadReply),
    Fault("not_json", BadReply),
    Fault("empty_choices", BadReply),
    Fault("no_usage", BadReply),
    Fault("cut", Unreachable),
    Fault("redirect", Refused),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.mode)
async def test_every_fault_is_called_by_its_name(url: str, fault: Fault) -> None:
    async with opened(model(url)) as one:
        switch(url, fault.mode, retry_after_s=2.5)
        before = stats(url)
        with pytest.raises(fault.raised) as caught:
            await one(chat())
        after = stats(url)
        assert after["requests"] - before["requests"] == 1
        assert after["successes"] == before["successes"]
        assert after["met"][fault.mode] == before["met"].get(fault.mode, 0) + 1
        if isinstance(caught.value, RateLimited):
            assert caught.value.retry_after_s == 2.5
        switch(url, "ok")
        assert (await one(chat())).text == "ok"


async def test_a_share_of_the_requests_and_no_more_than_it_can_take(url: str) -> None:
    async with opened(model(url)) as one:
        switch(url, "overloaded", share=0.3)
        before = stats(url)
        said = await asyncio.gather(*(one(chat(str(n))) for n in range(200)), return_exceptions=True)
        failed = sum(isinstance(reply, Overloaded) for reply in said)
        assert 30 < failed < 90
        assert stats(url)["successes"] - before["successes"] == 200 - failed
        switch(url, "ok", capacity=5)
        said = await asyncio.gather(*(one(chat(str(n))) for n in range(50)), return_exceptions=True)
        assert sum(not isinstance(reply, RateLimited) for reply in said) >= 5
        assert stats(url)["met"]["capacity"] > 0


def test_who_comes_before_the_time_is_counted(url: str) -> None:
    service = Service(Latency(0, 0), 0, Behaviour("storm", retry_after_s=10), Seen(), Random(1))
    assert not service.early()
    service.close()
    assert not service.early()
    told, over = service.closed[0]
    service.closed = [(told - LATE_S - 0.1, over)]
    assert service.early()
    service.closed = [(told - 20, told - 10)]
    assert not service.early()
