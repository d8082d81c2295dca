"""A call that failed is not free: what it may have cost is told with its error.

An endpoint that answered what cannot be used, or too late, or broke off, has done the work and may charge for it.
What it would charge is unknown then, so it is reckoned at the most that was asked for: every token allowed. Refusals
(429, 5xx, 4xx) and connections that were never made cost nothing, and count as a call.
"""

from __future__ import annotations

from math import ceil

from evocluster.errors import ModelError
from evocluster.llm.client import Reply, Request
from evocluster.llm.prices import Price
from evocluster.records import Usage

CHARACTERS = 3
"""Characters of a token, on the low side (English has about 4), so that what is reckoned is rather too much."""
TURN_TOKENS = 4
"""What a chat template adds to a message."""


def charge(error: ModelError, request: Request, price: Price) -> Usage:
    """What an attempt that ended with this error may have cost."""
    if not error.billable:
        return Usage(calls=1)
    asked, allowed = prompt_tokens(request), request.max_tokens
    usd = price.cost(asked, allowed)
    return Usage(calls=1, prompt_tokens=asked, completion_tokens=allowed, usd=usd, paid_usd=usd)


def after(reply: Reply, lost_calls: int, lost_usd: float) -> Reply:
    """A reply that came after requests which failed and may be charged for."""
    more = {
        "extra_usd": reply.extra_usd + lost_usd,
        "lost_calls": reply.lost_calls + lost_calls,
        "lost_usd": reply.lost_usd + lost_usd,
    }
    return reply.model_copy(update=more)


def prompt_tokens(request: Request) -> int:
    """About how many tokens a request sends, rather too many than too few."""
    if request.prompt is not None:
        return ceil(len(request.prompt) / CHARACTERS)
    return sum(TURN_TOKENS + ceil(len(message.content) / CHARACTERS) for message in request.messages)
