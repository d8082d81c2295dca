"""A call that failed is not free: what it may have cost is told with its error.

An endpoint that answered what cannot be used, or too late, or broke off, has done the work and may charge for it.
What it would charge is unknown then, so it is reckoned at the most that was asked for: every token allowed. Refusals
(429, 5xx, 4xx) and connections that were never made cost nothing, and count as a call.
"""

from __future__ import annotations

from math import ceil

from evocluster.errors import ModelError
from evocluster.llm.client import LLM, Reply, Request
from evocluster.llm.prices import Price
from evocluster.records import Usage

CHARACTERS = 3
"""Characters of a token, on the low side (English has about 4), so that what is reckoned is rather too much."""
TURN_TOKENS = 4
"""What a chat template adds to a message."""


class Charged:
    """A model whose errors carry in `used` what the failed call may have cost."""

    def __init__(self, llm: LLM, price: Price) -> None:
        self._llm = llm
        self._price = price

    async def __call__(self, request: Request) -> Reply:
        """As the model behind. Raises: errors.ModelError, with `used`."""
        try:
            return await self._llm(request)
        except ModelError as error:
            if error.used is None:
                error.used = charge(request, self._price) if error.billable else Usage(calls=1)
            raise


def charge(request: Request, price: Price) -> Usage:
    """The most that one attempt at this request can cost, about."""
    asked, allowed = prompt_tokens(request), request.max_tokens
    usd = price.cost(asked, allowed)
    return Usage(calls=1, prompt_tokens=asked, completion_tokens=allowed, usd=usd, paid_usd=usd)


def prompt_tokens(request: Request) -> int:
    """About how many tokens a request sends, rather too many than too few."""
    if request.prompt is not None:
        return ceil(len(request.prompt) / CHARACTERS)
    return sum(TURN_TOKENS + ceil(len(message.content) / CHARACTERS) for message in request.messages)
