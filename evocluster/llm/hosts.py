"""Which host gets which key: a key goes to the host it belongs to, and nowhere else unless the config says so.

A provider's variable (OPENAI_API_KEY) belongs to that provider's hosts. Any other variable belongs to the one host
whose model names it. `allow_hosts:` of the config names what may go further. Keys travel over https, plain http only
on the same machine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

PLAIN = "http://"


class Reach(NamedTuple):
    """Where a model's calls go and what they carry."""

    variable: str | None
    """Whose value is sent as the key; None: no key of ours."""
    url: str | None
    """None: the provider's own, through litellm."""
    provider: str
    """As litellm names it; '' where there is a URL."""
    setting: str = "base_url"
    """Where the config says so."""

    @property
    def host(self) -> str:
        """Without a port; the provider where there is no URL."""
        return _host(self.url) if self.url else self.provider


class Home(NamedTuple):
    """Where a provider's key belongs."""

    providers: tuple[str, ...]
    """litellm's names, by which it calls the provider's own host."""
    hosts: tuple[str, ...]
    """Each with everything below it ('.example.com': only what is below)."""


_AZURE = Home(
    ("azure", "azure_ai", "azure_text"), (".openai.azure.com", ".services.ai.azure.com", ".models.ai.azure.com")
)
_GOOGLE = Home(("gemini", "palm", "vertex_ai"), ("generativelanguage.googleapis.com", ".aiplatform.googleapis.com"))
_HUGGING = Home(("huggingface",), ("huggingface.co", ".endpoints.huggingface.cloud"))
_TOGETHER = Home(("together_ai",), ("api.together.xyz", "api.together.ai"))
_FIREWORKS = Home(("fireworks_ai",), ("api.fireworks.ai",))
_NVIDIA = Home(("nvidia_nim",), ("integrate.api.nvidia.com",))
_PERPLEXITY = Home(("perplexity",), ("api.perplexity.ai",))
_COHERE = Home(("cohere", "cohere_chat"), ("api.cohere.com", "api.cohere.ai"))
_AMAZON = Home(("bedrock", "bedrock_converse", "sagemaker", "sagemaker_chat"), (".amazonaws.com",))
BELONGS: Mapping[str, Home] = {
    "OPENAI_API_KEY": Home(("openai", "text-completion-openai"), ("api.openai.com",)),
    "ANTHROPIC_API_KEY": Home(("anthropic",), ("api.anthropic.com",)),
    "AZURE_API_KEY": _AZURE,
    "AZURE_OPENAI_API_KEY": _AZURE,
    "GEMINI_API_KEY": _GOOGLE,
    "GOOGLE_API_KEY": _GOOGLE,
    "MISTRAL_API_KEY": Home(("mistral", "codestral"), ("api.mistral.ai", "codestral.mistral.ai")),
    "GROQ_API_KEY": Home(("groq",), ("api.groq.com",)),
    "XAI_API_KEY": Home(("xai",), ("api.x.ai",)),
    "DEEPSEEK_API_KEY": Home(("deepseek",), ("api.deepseek.com",)),
    "OPENROUTER_API_KEY": Home(("openrouter",), ("openrouter.ai",)),
    "CEREBRAS_API_KEY": Home(("cerebras",), ("api.cerebras.ai",)),
    "TOGETHER_API_KEY": _TOGETHER,
    "TOGETHERAI_API_KEY": _TOGETHER,
    "FIREWORKS_API_KEY": _FIREWORKS,
    "FIREWORKS_AI_API_KEY": _FIREWORKS,
    "COHERE_API_KEY": _COHERE,
    "CO_API_KEY": _COHERE,
    "PERPLEXITY_API_KEY": _PERPLEXITY,
    "PERPLEXITYAI_API_KEY": _PERPLEXITY,
    "NVIDIA_API_KEY": _NVIDIA,
    "NVIDIA_NIM_API_KEY": _NVIDIA,
    "HF_TOKEN": _HUGGING,
    "HUGGINGFACE_API_KEY": _HUGGING,
    "AWS_ACCESS_KEY_ID": _AMAZON,
    "AWS_SECRET_ACCESS_KEY": _AMAZON,
    "AWS_SESSION_TOKEN": _AMAZON,
    "AWS_BEARER_TOKEN_BEDROCK": _AMAZON,
    "GITHUB_TOKEN": Home(("github",), ("models.github.ai", "models.inference.ai.azure.com")),
    "RAY_AUTH_TOKEN": Home((), ()),
}
"""Variable -> where its value belongs."""


def wrong_reaches(reaches: Mapping[str, Reach], allowed: Mapping[str, Sequence[str]]) -> list[tuple[str, str, str]]:
    """(model, setting, what is wrong with it) for every key that would go where it does not belong."""
    wrong = []
    for name, reach in reaches.items():
        text = _misplaced(reach, reaches.values(), allowed) or _readable(reach, allowed)
        if text:
            wrong.append((name, reach.setting, text))
    return wrong


def wrong_entries(allowed: Mapping[str, Sequence[str]], reaches: Iterable[Reach]) -> list[tuple[str, str]]:
    """(entry of `allow_hosts`, what is wrong with it): every entry is a host that a model of the config calls."""
    hosts = sorted({reach.host for reach in reaches if reach.url})
    return [
        (entry, f"no model of this config calls it; allowed: {', '.join(hosts) or 'none, for no model has a URL'}")
        for entry in allowed
        if _entry(entry) not in hosts
    ]


def is_provider_own(reach: Reach) -> bool:
    """The key goes where its provider wants it, or there is none."""
    return reach.variable is None or (reach.variable in BELONGS and _at_home(reach))


def is_loopback(host: str) -> bool:
    """This machine."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def is_private(host: str) -> bool:
    """An address of a network of its own, this machine left out; names are not looked up."""
    address = _address(host)
    return address is not None and address.is_private and not address.is_loopback


def _misplaced(reach: Reach, every: Iterable[Reach], allowed: Mapping[str, Sequence[str]]) -> str | None:
    if reach.variable is None or _allows(reach, allowed):
        return None
    remedy = f"name another key_env, or allow it: `allow_hosts: {{{reach.host}: [{reach.variable}]}}`"
    if reach.variable in BELONGS:
        if _at_home(reach):
            return None
        own = ", ".join(BELONGS[reach.variable].hosts) or "no model at all"
        return f"{reach.variable} belongs to {own}, and this would send it to {reach.host!r}; {remedy}"
    others = sorted({one.host for one in every if one.variable == reach.variable} - {reach.host})
    if others:
        return (
            f"{reach.variable} would go to {reach.host!r} and to {', '.join(map(repr, others))}, and a key belongs to "
            f"one host; {remedy}"
        )
    return None


def _readable(reach: Reach, allowed: Mapping[str, Sequence[str]]) -> str | None:
    if reach.variable is None or not reach.url or not reach.url.startswith(PLAIN) or is_loopback(reach.host):
        return None
    if reach.variable in allowed.get(PLAIN + reach.host, ()):
        return None
    return (
        f"would send {reach.variable} to {reach.host!r} over plain http, where everybody on the way can read it; "
        f"write https://, or allow it: `allow_hosts: {{'{PLAIN}{reach.host}': [{reach.variable}]}}`"
    )


def _allows(reach: Reach, allowed: Mapping[str, Sequence[str]]) -> bool:
    return any(_entry(entry) == reach.host and reach.variable in names for entry, names in allowed.items())


def _at_home(reach: Reach) -> bool:
    home = BELONGS[reach.variable or ""]
    if not reach.url:
        return reach.provider in home.providers
    return any(reach.host == host or reach.host.endswith(f".{host.lstrip('.')}") for host in home.hosts)


def _entry(entry: str) -> str:
    """The host that an entry of `allow_hosts` names: 'gateway.example.com', or 'http://10.0.0.5'."""
    return _host(entry if "://" in entry else f"https://{entry}")


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").rstrip(".")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
