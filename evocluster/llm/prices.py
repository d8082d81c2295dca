"""What tokens cost: declared in the config, or a published list price; unknown is an error, not zero."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from evocluster.errors import MissingModel, PriceError
from evocluster.parts import Part

Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(Part):
    """US dollars for a million tokens."""

    prompt_usd_per_mtok: Usd
    """US dollars for a million tokens that are sent."""
    completion_usd_per_mtok: Usd
    """US dollars for a million tokens that come back."""
    cached_prompt_usd_per_mtok: Usd | None = None
    """Of prompt tokens that the provider had cached; None: the same as any prompt token."""

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_prompt_tokens: int = 0) -> float:
        """US dollars of one call; `cached_prompt_tokens` of them were cached at the provider."""
        cached_rate = self.cached_prompt_usd_per_mtok
        if cached_rate is None:
            cached_rate = self.prompt_usd_per_mtok
        cached = min(max(cached_prompt_tokens, 0), prompt_tokens)
        return (
            (prompt_tokens - cached) * self.prompt_usd_per_mtok
            + cached * cached_rate
            + completion_tokens * self.completion_usd_per_mtok
        ) / 1e6


def required(price: Price | None, model: str) -> Price:
    """The price, or the error that says what to write. Raises: errors.PriceError."""
    if price is not None:
        return price
    raise PriceError(
        f"the price of model {model!r} is unknown, and unknown is not zero; write what a million tokens "
        "costs you under this model in `models:` (zeros if it is free), for example\n"
        "    price:\n"
        "      prompt_usd_per_mtok: 0.15\n"
        "      completion_usd_per_mtok: 0.60"
    )


def list_price(model: str) -> Price | None:
    """The list price in the installed litellm, None when it has none; reads a file and imports nothing.

    Raises: errors.MissingModel: litellm is not installed.
    """
    found = importlib.util.find_spec("litellm")
    if found is None or found.origin is None:
        raise MissingModel("litellm is not installed, so there are no list prices; run: pip install litellm")
    path = Path(found.origin).with_name("model_prices_and_context_window_backup.json")
    entries = json.loads(path.read_text(encoding="utf-8"))
    provider, _, name = model.partition("/")
    entry = entries.get(model)
    if entry is None and str(entries.get(name, {}).get("litellm_provider", "")).startswith(provider):
        entry = entries.get(name)
    return None if entry is None else _listed(entry)


def _listed(entry: Mapping[str, Any]) -> Price | None:
    prompt, completion = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    # Zeros in the list stand for "not charged by token" as often as for "free".
    if prompt is None or completion is None or not (prompt or completion):
        return None
    cached = entry.get("cache_read_input_token_cost")
    return Price(
        prompt_usd_per_mtok=round(float(prompt) * 1e6, 9),
        completion_usd_per_mtok=round(float(completion) * 1e6, 9),
        cached_prompt_usd_per_mtok=None if cached is None else round(float(cached) * 1e6, 9),
    )
