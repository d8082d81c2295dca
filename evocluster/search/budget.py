"""What a run may use, and the ledger that keeps it: nothing is handed out that its budget does not cover.

Calls and dollars are logical: an answer from the cache counts like the first time, at list price. So a run
ends at the same point with a cold cache, with a warm one, and after a resume.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, sqrt
from typing import Any

from pydantic import Field, model_validator

from evocluster.errors import ConfigError
from evocluster.parts import Part
from evocluster.records import Json, Lost, Usage

GENERATIONS = 30
"""The end of a run whose budget names none."""
DEARER = 1.25
"""What a request that failed is reckoned at, at most, in the mean price of a call: it may be charged all the tokens
that it allowed, but by that a few of them would end a run of short answers."""
CALM = 20
"""Calls without a loss that are added to those seen, before it is told how many are lost."""
TINY = 1e-12


class Budget(Part):
    """The first that is reached ends the search; calls and usd keep back what the final check will need."""

    calls: int | None = Field(default=None, ge=1)
    """LLM calls of the whole run, the final check on validation and test included; a request that failed and may be
    charged is one more."""
    usd: float | None = Field(default=None, gt=0)
    """US dollars of the whole run at list price."""
    minutes: float | None = Field(default=None, gt=0)
    """Wall time of the search; the caller holds the clock (`Optimizer.stop`)."""
    generations: int | None = Field(default=None, ge=1)
    """Populations' worth of children; 30 where neither calls, usd, minutes nor generations are given."""
    target: float | None = None
    """End when a member that was tried on two blocks or more reaches this."""
    target_objective: str = "quality"
    """Name of the objective that `target` speaks of."""
    stall: int | None = Field(default=None, ge=1)
    """End after this many generations without progress of the hypervolume."""

    @model_validator(mode="before")
    @classmethod
    def _ends(cls, given: Json) -> Json:
        if isinstance(given, dict) and not any(given.get(k) for k in ("calls", "usd", "minutes", "generations")):
            return {**given, "generations": GENERATIONS} if given.get("generations") is None else given
        return given


class Ledger:
    """Calls and dollars: reserved when a proposal is handed out, settled when its trial is committed.

    What second requests for late answers may cost is kept back as a share of everything, whether they are made or not,
    so that a run ends at the same point however late its answers were.
    The sum of what was spent and what is reserved never passes a limit; so what is spent passes it only if a
    trial takes more than was reserved for it. What requests that failed were charged besides counts as spent, and for
    what is still to come as much is kept back as was lost so far. Call order per number: reserve, settle.
    """

    def __init__(self, budget: Budget, twice: float = 0.0) -> None:
        """`twice`: second requests may cost this share of what the answers do."""
        self._budget = budget
        self._limit_usd = None if budget.usd is None else budget.usd / (1.0 + twice)
        self._reserved: dict[int, tuple[int, float]] = {}
        self.spent = Usage()
        """All trials committed so far."""
        self.items = 0
        """How many items they evaluated."""
        self._lost = Lost()
        self._taken: dict[str, tuple[int, int]] = {}
        """Genome id -> calls and items so far."""
        self.dearest_usd = 0.0
        """US dollars an item of the dearest trial so far: what an unknown child is reckoned at."""

    @property
    def calls(self) -> int:
        """Spent and reserved calls."""
        return self.spent.calls + sum(calls for calls, _ in self._reserved.values())

    @property
    def usd(self) -> float:
        """Spent and reserved US dollars."""
        return self.spent.usd + sum(usd for _, usd in self._reserved.values())

    @property
    def priceless(self) -> bool:
        """Dollars are limited, and nothing is known yet of what an item costs."""
        return self._budget.usd is not None and not self.items

    @property
    def mean_usd(self) -> float:
        """US dollars an item, over all trials so far."""
        return self.spent.usd / self.items if self.items else 0.0

    @property
    def mean_call_usd(self) -> float:
        """US dollars a call, over all trials so far."""
        return self.spent.usd / self.spent.calls if self.spent.calls else 0.0

    def lacks(self, calls: int, usd: float, over: int | None = None) -> str | None:
        """What this many more calls and US dollars would overdraw ('calls' or 'usd'); None when there is enough.

        For what is still to come requests are taken to fail as so far, and a little more, as chance has it. With
        `over` none of that: it is the last that is asked for, and so many calls lost may be beyond the limits.
        """
        wasted = self._wasted(calls) if over is None else 0.0
        lost_calls = max(0, self._lost.calls - (over or 0)) + ceil((self.calls + calls - self.spent.calls) * wasted)
        if self._budget.calls is not None and self.calls + calls + lost_calls > self._budget.calls:
            return "calls"
        if self._limit_usd is not None:
            dearer = min(DEARER, self._lost.usd / max(self._lost.calls * self.mean_call_usd, TINY))
            spent = self.usd + max(0, self._lost.calls - (over or 0)) * self.mean_call_usd * dearer
            coming = (self.usd + usd - self.spent.usd) * wasted * dearer
            if spent >= self._limit_usd or spent + usd + coming > self._limit_usd:
                return "usd"
        return None

    def _wasted(self, calls: int) -> float:
        """Requests lost for each call under way and to come, two standard deviations more than of the calls so far."""
        if not self._lost.calls:
            return 0.0
        share = self._lost.calls / (self.spent.calls + CALM)
        return share + 2 * sqrt(share * (1 + share) / max(1, self.calls + calls - self.spent.calls))

    def reserve(self, number: int, calls: int, usd: float) -> None:
        """Set aside what proposal `number` may take."""
        self._reserved[number] = (calls, usd)

    def settle(self, number: int, used: Usage, items: int, lost: Lost = Lost()) -> None:  # noqa: B008 - frozen
        """Put what it took in place of what was set aside; `lost`: what was charged besides."""
        self._reserved.pop(number, None)
        self._lost = Lost(self._lost.calls + lost.calls, self._lost.usd + lost.usd)
        self.spent = self.spent + used
        self.items += items
        if items:
            self.dearest_usd = max(self.dearest_usd, used.usd / items)

    def observe(self, genome: str, calls: int, items: int) -> None:
        """What evaluating so many items of a genome took."""
        before = self._taken.get(genome, (0, 0))
        self._taken[genome] = (before[0] + calls, before[1] + items)

    def dearest_calls(self, genomes: Iterable[str], unknown: float) -> float:
        """Calls an item of the dearest of these; `unknown` where none of them was evaluated."""
        taken = [self._taken[id] for id in genomes if id in self._taken]
        return max((calls / items for calls, items in taken if items), default=unknown)

    def refuse_if_too_small(self, needed: int, final: int, more: str = "") -> None:
        """Raises: ConfigError when the calls cannot pay for `needed`; `final` of those are the check; `more`: what
        else may be lowered.
        """
        if self._budget.calls is not None and self._budget.calls < needed:
            raise ConfigError(
                f"budget.calls={self._budget.calls!r} is too small: at least {needed} are needed, {final} of "
                "them to check the finalists and the start on validation and test; raise it, or lower "
                f"{more}search.finalists, search.block or the number of validation and test examples"
            )

    def limits(self) -> dict[str, Any]:
        """The limits, for progress."""
        limits = self._budget
        return {
            "calls": limits.calls,
            "usd": limits.usd,
            "minutes": limits.minutes,
            "generation": limits.generations,
        }
