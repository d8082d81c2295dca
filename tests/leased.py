"""Leases for tests: one endpoint, its keeper in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from evocluster.llm.leases import Lease, Leases, OwnKeeper, Renewing
from evocluster.llm.quota import Terms


@asynccontextmanager
async def leased(
    terms: Terms | None = None, keeper: Renewing | None = None, holder: str = "one"
) -> AsyncIterator[Lease]:
    """The lease of an endpoint, kept fresh while the block lasts."""
    leases = Leases(keeper or OwnKeeper(), holder)
    lease = leases.of("m", terms or Terms())
    await leases.open()
    try:
        yield lease
    finally:
        await leases.close()
