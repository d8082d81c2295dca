"""Keys and the hosts they belong to."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from small import settings

from evocluster.config import Config, parse
from evocluster.errors import ConfigError, Unreachable
from evocluster.llm import wire
from evocluster.llm.client import Message, Request
from evocluster.llm.direct import Direct
from evocluster.llm.hosts import is_loopback, is_private
from evocluster.llm.prices import Price

PRICE = {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 1}


def config(*models: dict[str, Any], **changes: Any) -> Config:
    """A config that calls these models beside the scripted one."""
    given = settings(**changes)
    given["models"] |= {f"m{index}": {"price": PRICE, **model} for index, model in enumerate(models)}
    given["space"]["model"] = list(given["models"])
    return parse(given)


def direct(url: str, key_env: str | None) -> dict[str, Any]:
    return {"kind": "direct", "base_url": url, "model": "m", "key_env": key_env}


def refused(*models: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(*models, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        direct("https://api.openai.com/v1", "OPENAI_API_KEY"),
        direct("https://me.openai.azure.com/v1", "AZURE_API_KEY"),
        direct("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
        direct("https://gateway.example.com/v1", "GATEWAY_KEY"),
        direct("http://127.0.0.1:8000/v1", "HOUSE_KEY"),
        direct("http://10.0.0.5:8000/v1", None),
        {"kind": "auto", "model": "openai/gpt-5-mini"},
        {"kind": "auto", "model": "openai/gpt-5-mini", "key_env": "MY_OPENAI"},
        {"kind": "remote", "model": "anthropic/claude-x", "key_env": "ANTHROPIC_API_KEY"},
    ],
)
def test_keys_at_home_need_no_word(model: dict[str, Any]) -> None:
    assert config(model).reaches["m0"] is not None


@pytest.mark.parametrize(
    ("model", "setting", "host"),
    [
        (direct("https://api.openai.com.evil.example/v1", "OPENAI_API_KEY"), "base_url", "api.openai.com.evil.example"),
        (direct("https://notapi.openai.com/v1", "OPENAI_API_KEY"), "base_url", "notapi.openai.com"),
        (direct("https://openai.azure.com/v1", "OPENAI_API_KEY"), "base_url", "openai.azure.com"),
        (direct("http://127.0.0.1:4000/v1", "OPENAI_API_KEY"), "base_url", "127.0.0.1"),
        (
            {"kind": "remote", "model": "openai/x", "api_base": "https://evil.example", "key_env": "OPENAI_API_KEY"},
            "api_base",
            "evil.example",
        ),
        ({"kind": "remote", "model": "openrouter/x", "key_env": "OPENAI_API_KEY"}, "key_env", "openrouter"),
        ({"kind": "auto", "model": "groq/x", "key_env": "ANTHROPIC_API_KEY"}, "key_env", "groq"),
        (
            {"kind": "auto", "model": "x", "base_url": "https://evil.example", "key_env": "RAY_AUTH_TOKEN"},
            "base_url",
            "evil.example",
        ),
    ],
)
def test_a_providers_key_goes_nowhere_else(model: dict[str, Any], setting: str, host: str) -> None:
    said = refused(model)
    assert f"models.m0.{setting}: {model['key_env']} belongs to" in said
    assert f"send it to {host!r}" in said
    assert f"allow_hosts: {{{host}: [{model['key_env']}]}}" in said
    if setting != "key_env":
        assert config(model, allow_hosts={host: [model["key_env"]]})


def test_a_key_of_ones_own_belongs_to_one_host() -> None:
    two = direct("https://one.example/v1", "SHARED"), direct("https://two.example/v1", "SHARED")
    said = refused(*two)
    assert "SHARED would go to 'one.example' and to 'two.example', and a key belongs to one host" in said
    assert config(*two, allow_hosts={"one.example": ["SHARED"], "two.example": ["SHARED"]})
    assert config(direct("https://one.example/v1", "SHARED"), direct("https://one.example:8443/v1", "SHARED"))


@pytest.mark.parametrize("host", ["10.0.0.5", "house.example"])
def test_a_key_travels_in_the_clear_only_where_that_is_said(host: str) -> None:
    plain = direct(f"http://{host}:8000/v1", "HOUSE_KEY")
    said = refused(plain)
    assert "over plain http" in said
    assert f"allow_hosts: {{'http://{host}': [HOUSE_KEY]}}" in said
    assert refused(plain, allow_hosts={host: ["HOUSE_KEY"]}) == said  # the host alone means https
    assert config(plain, allow_hosts={f"http://{host}": ["HOUSE_KEY"]})


def test_an_allowed_host_is_one_that_is_called() -> None:
    said = refused(direct("https://one.example/v1", "A_KEY"), allow_hosts={"elsewhere.example": ["A_KEY"]})
    assert "allow_hosts.elsewhere.example: no model of this config calls it; allowed: one.example" in said


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "http://metadata.google.internal./v1",
        "http://[fd00:ec2::254]/v1",
        "http://100.100.100.200/v1",
        "http://168.63.129.16/v1",
        "http://[::ffff:169.254.169.254]/v1",
    ],
)
def test_instance_metadata_is_no_model(url: str) -> None:
    with pytest.raises(ValueError, match="instance metadata"):
        wire.checked_url(url)


async def test_a_name_that_leads_to_instance_metadata_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lookup(*args: Any, **kwargs: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    model = Direct(base_url="http://innocent.example/v1", model="m", price=Price.model_validate(PRICE), timeout_s=5)
    await model.open()
    try:
        with pytest.raises(Unreachable) as caught:
            await model(Request(model="m", messages=(Message(role="user", content="hi"),)))
    finally:
        await model.close()
    assert "instance metadata" in repr(caught.value.__cause__)


def test_what_is_this_machine_and_what_a_network_of_its_own() -> None:
    assert [is_loopback(host) for host in ("localhost", "127.0.0.9", "::1", "10.0.0.1", "x.example")] == [True] * 3 + [
        False
    ] * 2
    assert [is_private(host) for host in ("10.0.0.1", "192.168.1.1", "127.0.0.1", "8.8.8.8", "x.example")] == [
        True,
        True,
        False,
        False,
        False,
    ]
