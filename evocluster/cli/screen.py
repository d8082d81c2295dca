"""Where the verbs print: texts of models and files come out inert, and a pipe gets lines that can be read."""

from __future__ import annotations

import logging
import os
import re

from rich.console import Console
from rich.text import Text

PIPE_WIDTH = 100
"""Columns where there is no terminal that has a width and COLUMNS does not give one."""

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])|\x9b[0-?]*[ -/]*[@-~]")
"""Terminal sequences as ECMA-48 writes them: CSI, OSC and the two-character ones."""
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters except the line feed, and those that turn the direction of writing."""


def inert(text: object) -> str:
    """The text without anything a terminal would obey; lines stay."""
    return _CONTROL.sub("", _SEQUENCE.sub("", str(text).replace("\r\n", "\n").replace("\t", "    ")))


def plain(text: object, style: str = "") -> Text:
    """Text for rich that is neither markup nor a terminal command."""
    return Text(inert(text), style=style)


def console(stderr: bool = False) -> Console:
    """A console on standard output, or on standard error."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and not os.environ.get("COLUMNS"):
        made.width = PIPE_WIDTH
    return made


class Warnings(logging.Handler):
    """What is logged as a warning, as a line on standard error; errors are raised, and told by who catches them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises."""
        if record.levelno == logging.WARNING:
            console(stderr=True).print(plain(f"warning: {record.getMessage()}", "yellow"), soft_wrap=True)
