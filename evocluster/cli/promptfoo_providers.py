"""Providers of a promptfoo config as our models: `kind: auto` for what litellm or the OpenAI protocol reaches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from evocluster.cli.imported import HIDDEN, Cursor, Folder, NotTaken, Report
from evocluster.records import Json

Settings = dict[str, Json]

LITELLM: Mapping[str, str] = {
    "anthropic": "anthropic",
    "mistral": "mistral",
    "google": "gemini",
    "palm": "gemini",
    "vertex": "vertex_ai",
    "bedrock": "bedrock",
    "openrouter": "openrouter",
    "groq": "groq",
    "cohere": "cohere_chat",
    "deepseek": "deepseek",
    "perplexity": "perplexity",
    "xai": "xai",
    "togetherai": "together_ai",
    "fireworks": "fireworks_ai",
    "cerebras": "cerebras",
    "deepinfra": "deepinfra",
    "replicate": "replicate",
    "ai21": "ai21",
    "databricks": "databricks",
    "github": "github",
    "watsonx": "watsonx",
    "huggingface": "huggingface",
}
"""promptfoo's provider -> litellm's."""
_FORMS = {
    *("chat", "messages", "completion", "responses", "converse", "text-generation", "chat-completion"),
    *("text-completion",),
}
"""What may stand between provider and model."""
_NOT_TEXT = {
    "embedding",
    "embeddings",
    "image",
    "moderation",
    "realtime",
    "assistant",
    "audio",
    "video",
    "transcription",
}
LOCAL: Mapping[str, str] = {
    "ollama": "http://127.0.0.1:11434/v1",
    "localai": "http://127.0.0.1:8080/v1",
    "llama": "http://127.0.0.1:8080/v1",
    "litellm": "http://127.0.0.1:4000",
}
"""promptfoo's provider -> where its OpenAI-compatible endpoint is unless it says otherwise."""
MAX_TOKENS = 1024
"""promptfoo's own limit where a provider names none; its temperature is then 0."""
FREE = {"prompt_usd_per_mtok": 0, "completion_usd_per_mtok": 0}
_BODY = ("top_p", "top_k", "frequency_penalty", "presence_penalty", "stop", "reasoning_effort", "response_format")
"""Settings that go into the request as they are."""
_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxTokens", "maxOutputTokens", "num_predict")
_URL = ("apiBaseUrl", "apiHost", "basePath", "baseUrl")
_ASIDE = ("temperature", "apiKey", "apiKeyEnvar", "cost", "inputCost", "outputCost", "seed", *_URL, *_TOKENS, *_BODY)
_ENV = re.compile(r"\{\{\s*env\.(\w+)\s*\}\}")


class Provider(NamedTuple):
    """One provider, as far as it could be taken."""

    name: str
    settings: Settings
    temperature: float = 0.0
    max_tokens: int = MAX_TOKENS


class Providers:
    """The models of an import: each once, with the genes that promptfoo keeps in its providers."""

    def __init__(self, folder: Folder, report: Report) -> None:
        self._folder, self._report = folder, report
        self.models: dict[str, Settings] = {}
        self.temperatures: list[float] = []
        self.max_tokens: list[int] = []

    def read(self, cursor: Cursor) -> list[str]:
        """Take the providers in a section; the names of their models."""
        names = []
        for entry in cursor:
            try:
                for each in self._entries(entry):
                    provider = self._provider(each)
                    names.append(self._add(provider))
                    self.temperatures.append(provider.temperature)
                    self.max_tokens.append(provider.max_tokens)
            except NotTaken as problem:
                self._report.leave(entry.where, f"provider {_identity(entry)}", problem.why, problem.do)
        return list(dict.fromkeys(names))

    def grader(self, cursor: Cursor) -> str:
        """The model that one provider is as a judge; its temperature is no gene. Raises: NotTaken."""
        if isinstance(cursor.value, Mapping) and "id" not in cursor.value and "text" in cursor.value:
            cursor = cursor.get("text")
        provider = self._provider(cursor)
        same = [name for name, settings in self.models.items() if settings == provider.settings]
        return same[0] if same else self._add(provider._replace(name=f"judge-{provider.name}"))

    def _add(self, provider: Provider) -> str:
        """Its name among the models; another provider of the same name gets a number."""
        name, number = provider.name, 2
        while name in self.models and self.models[name] != provider.settings:
            name, number = f"{provider.name}-{number}", number + 1
        self.models[name] = provider.settings
        return name

    def _entries(self, entry: Cursor) -> list[Cursor]:
        value = entry.value
        if isinstance(value, str) and value.startswith("file://"):
            loaded = [self._folder.load(path) for path in self._folder.paths(value) if _is_data(path.suffix)]
            return [each for one in loaded for each in one]
        if isinstance(value, Mapping) and "id" not in value:
            named = [(name, inner, inner.value or {}) for name, inner in entry.items()]
            return [
                Cursor({"id": name, **options}, inner.file, inner.keys)
                for name, inner, options in named
                if isinstance(options, Mapping)
            ]
        return [entry]

    def _provider(self, cursor: Cursor) -> Provider:
        identity = _identity(cursor)
        config = cursor.get("config", {}) if isinstance(cursor.value, Mapping) else Cursor({}, cursor.file, cursor.keys)
        options: Mapping[str, Json] = config.value if isinstance(config.value, Mapping) else {}
        settings = _model(identity, options)
        self._set_key(settings, options, config)
        self._set_price(settings, options, identity)
        extra = {name: options[name] for name in _BODY if name in options}
        if extra:
            settings["extra"] = extra
        self._leave_rest(cursor, config)
        label = cursor.value.get("label") if isinstance(cursor.value, Mapping) else None
        tokens = next((options[name] for name in _TOKENS if isinstance(options.get(name), int)), MAX_TOKENS)
        return Provider(_slug(str(label or settings["model"]).split("/")[-1]), settings, _temperature(options), tokens)

    def _set_key(self, settings: Settings, options: Mapping[str, Json], config: Cursor) -> None:
        key = options.get("apiKey")
        named = _ENV.fullmatch(key.strip()) if isinstance(key, str) else None
        variable = options.get("apiKeyEnvar") or (named[1] if named else None)
        if variable:
            settings["key_env"] = variable
            settings.pop("no_key", None)
        elif key not in (None, HIDDEN):
            self._report.leave(
                config.get("apiKey").where,
                "an API key",
                "keys are never copied",
                "put it into an environment variable and name that as `key_env` of the model",
            )

    def _set_price(self, settings: Settings, options: Mapping[str, Json], identity: str) -> None:
        prompt = options.get("inputCost", options.get("cost"))
        completion = options.get("outputCost", options.get("cost"))
        if isinstance(prompt, int | float) and isinstance(completion, int | float):
            per_million = {"prompt_usd_per_mtok": prompt * 1e6, "completion_usd_per_mtok": completion * 1e6}
            settings["price"] = {name: round(value, 9) for name, value in per_million.items()}
        elif "price" in settings:
            why = "it was written as free, because it runs on a machine of yours"
            self._report.need(f"the price of {identity}", why, "correct `price` of the model if it costs you something")
        elif "base_url" in settings or "api_base" in settings:
            self._report.need(
                f"the price of {identity}",
                "nobody lists what this endpoint costs, and unknown is not zero",
                "write price: {prompt_usd_per_mtok: ..., completion_usd_per_mtok: ...} under the model",
            )

    def _leave_rest(self, cursor: Cursor, config: Cursor) -> None:
        for name, setting in config.items():
            if name not in _ASIDE:
                why = "models have no such setting here"
                self._report.leave(
                    setting.where, f"{name} of a provider", why, "put it under `extra` of the model if its API takes it"
                )
            elif name == "seed":
                self._report.change(setting.where, "seed of a provider", "every request gets a seed of its own here")
        for name, setting in cursor.items():
            if name not in ("id", "label", "config"):
                self._report.leave(setting.where, f"{name} of a provider", *_OTHER.get(name, _UNKNOWN))


_UNKNOWN = ("models have no such setting here", "check what it did there")
_OTHER: Mapping[str, tuple[str, str]] = {
    "prompts": ("every prompt is tried with every model here", "leave out of `space` what makes no sense"),
    "transform": ("outputs are not transformed", "read the output as it is, or use a pipeline (`executor`)"),
    "delay": ("calls are paced by `max_concurrency` and the provider's own limits", "nothing, mostly"),
    "env": ("values of the environment are never copied", "set them in your shell"),
}


def _model(identity: str, options: Mapping[str, Json]) -> Settings:
    """The settings of a provider's model. Raises: NotTaken."""
    provider, *rest = identity.split(":")
    if provider in ("http", "https", "webhook", "websocket", "ws", "wss", "exec", "python", "file", "browser", "mcp"):
        raise NotTaken(
            f"{provider} providers speak a protocol of their own",
            "call it from a pipeline (`executor: pipeline.py:answer`), or name an OpenAI-compatible endpoint",
        )
    forms = [word for word in rest[:1] if word in _FORMS | _NOT_TEXT]
    name = ":".join(rest[len(forms) :])
    if set(forms) & _NOT_TEXT or not name:
        raise NotTaken("it names no model that writes text", "name one, e.g. openai:chat:gpt-5-mini")
    url = next((options[key] for key in _URL if isinstance(options.get(key), str)), None)
    made = _KINDS.get(provider, _listed)(provider, name, url)
    if forms == ["completion"] and "base_url" in made:
        made["completion"] = True
    return made


def _openai(provider: str, name: str, url: str | None) -> Settings:
    if url:
        return {"kind": "auto", "model": name, "base_url": _address(url), "key_env": "OPENAI_API_KEY"}
    return {"kind": "auto", "model": f"openai/{name}"}


def _azure(provider: str, name: str, url: str | None) -> Settings:
    if not url:
        raise NotTaken("it does not say on which host (apiHost)", "add apiHost to its config and import again")
    return {"kind": "auto", "model": f"azure/{name}", "api_base": _address(url), "key_env": "AZURE_API_KEY"}


def _local(provider: str, name: str, url: str | None) -> Settings:
    settings: Settings = {"kind": "auto", "model": name, "base_url": _address(url or LOCAL[provider]), "no_key": True}
    return {**settings, "price": dict(FREE)}


def _listed(provider: str, name: str, url: str | None) -> Settings:
    if provider not in LITELLM:
        known = ", ".join(sorted({*LITELLM, *_KINDS}))
        raise NotTaken(f"provider {provider!r} is not known here; known: {known}", "write the model by hand")
    settings: Settings = {"kind": "auto", "model": f"{LITELLM[provider]}/{name}"}
    if url:
        settings |= {"api_base": _address(url), "key_env": f"{provider.upper()}_API_KEY"}
    return settings


_KINDS: Mapping[str, Callable[[str, str, str | None], Settings]] = {
    "openai": _openai,
    "azure": _azure,
    "azureopenai": _azure,
    **dict.fromkeys(LOCAL, _local),
}


def _address(url: str) -> str:
    return url.rstrip("/") if "://" in url else f"https://{url.rstrip('/')}"


def _identity(cursor: Cursor) -> str:
    value = cursor.value.get("id") if isinstance(cursor.value, Mapping) else cursor.value
    if not isinstance(value, str) or not value:
        return repr(value)[:60]
    return value


def _temperature(options: Mapping[str, Json]) -> float:
    value = options.get("temperature")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _is_data(suffix: str) -> bool:
    if suffix.lower() not in (".yaml", ".yml", ".json"):
        raise NotTaken(f"a {suffix!r} file holds no settings, and an import runs no program", "use a pipeline")
    return True


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "model"
