"""The command line called in this process: its exit code and what it printed."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import NamedTuple
from unittest import mock

from evocluster.cli.main import main

TERMINAL = ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE", "EVOCLUSTER_TRACEBACK", "UNSET_KEY")
"""Variables that change what is printed; a test sets those it means."""


class Outcome(NamedTuple):
    """What one call left behind."""

    code: int
    out: str
    err: str


def environment(columns: int | None = None) -> dict[str, str]:
    """This process's environment as it is off a terminal, of this width if one is given."""
    kept = {name: value for name, value in os.environ.items() if name not in TERMINAL}
    return kept if columns is None else {**kept, "COLUMNS": str(columns)}


def call(*words: object, columns: int | None = None) -> Outcome:
    """`evocluster WORDS`; an exception that is none of ours passes through and fails the test."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["evocluster", *(str(word) for word in words)]),
        mock.patch.dict(os.environ, environment(columns), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
    return Outcome(code, out.getvalue(), err.getvalue())
