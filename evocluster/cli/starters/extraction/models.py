"""What a booking is: answers that do not fit are asked for again, with what is wrong."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Booking(BaseModel):
    """A table in the restaurant."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="who books, as it is written")
    party_size: int = Field(ge=1, le=20, description="how many guests")
    day: Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    time: str = Field(pattern=r"^\d{2}:\d{2}$", description="24 hours, e.g. 19:30")
