"""The example of a user's own loop really searches."""

from __future__ import annotations

import asyncio

from ask_tell import search


def test_the_example_finds_what_its_rule_asks_for() -> None:
    (recommended,) = [member for member in asyncio.run(search()) if member.recommended]
    assert recommended.validation["quality"].low >= 0.7
    assert recommended.genome["chunk"] < 512, "a cheaper one than the dearest surely reaches 0.7"
