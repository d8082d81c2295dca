"""What an expense is: answers that do not fit are asked for again, with what is wrong."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Expense(BaseModel):
    """One line of an expense report."""

    model_config = ConfigDict(extra="forbid")

    category: Literal["travel", "meal", "lodging", "supplies"]
    amount: float = Field(gt=0, description="what was paid in all")
    currency: Literal["EUR", "USD", "GBP", "CHF"]
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$", description="year-month-day, e.g. 2025-03-04")
