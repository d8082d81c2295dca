"""Everything evocluster raises on purpose, as one tree; `exit_code` is what the CLI leaves with.

    EvoclusterError                 1
    +-- ConfigError                 2   a config, dataset or option is wrong: nothing was spent
    |   +-- DataError               2   a dataset file: names file and line
    |   +-- PriceError              2   a model's price is unknown
    |   +-- MissingModel            2   embedded weights or a key are missing: says how to get them
    +-- RunExists                   3   the run folder exists: resume it or choose another
    +-- RunDamaged                  4   a run folder cannot be read whole: refused, never restarted silently
    +-- BudgetSpent                 5   a budget ended the run before it had a front
    +-- StoreError                  6   disk full, unwritable, or not ours
    |   +-- LedgerConflict          6   somebody else changed a deployment first (asking again may help)
    +-- ModelError                  7   a call to a model failed
    |   +-- Unreachable             7   no connection (retryable)
    |   +-- RateLimited             7   429 (retryable; carries retry_after_s)
    |   +-- Overloaded              7   5xx (retryable)
    |   +-- DeadlinePassed          7   no complete answer in time (retryable)
    |   +-- BadReply                7   an answer that cannot be used: HTML, empty choices, no usage
    |   +-- Refused                 7   key, model name or endpoint is wrong (401, 403, 404...); never retried
    +-- BelowBar                    8   a measured figure is below what was asked for
    +-- RunHeld                     9   another process writes this run folder: this one leaves
    +-- JobError                   10   the job server of a cluster cannot be reached, refuses, or does not know the job
    |   +-- JobServerAway           10   no answer from it just now (asking again may help)
    +-- OperatorFailed              1   an operator made no child: becomes its trial's error
    +-- TooManyCalls                1   a pipeline asked more often than it said: becomes its evaluation's error
    +-- Interrupted               130   Ctrl-C: everything finished was saved

Messages name the value with !r, what was allowed, and the remedy. All of them survive pickling (one text argument).
"""

from __future__ import annotations

from typing import Any


class EvoclusterError(Exception):
    """Root of the tree."""

    exit_code = 1


class ConfigError(EvoclusterError):
    """A config, dataset or option is wrong; nothing was spent."""

    exit_code = 2


class DataError(ConfigError):
    """A dataset file is wrong; the message starts with `file:line:`."""


class PriceError(ConfigError):
    """A model's price is unknown; unknown is never taken for zero."""


class MissingModel(ConfigError):
    """Weights or a key are not there; the message says how to get them."""


class RunExists(EvoclusterError):
    """The run folder is already there."""

    exit_code = 3


class RunDamaged(EvoclusterError):
    """A run folder cannot be read whole, or does not fit the config it is resumed with."""

    exit_code = 4


class BudgetSpent(EvoclusterError):
    """A budget ended the run before it had a front."""

    exit_code = 5


class StoreError(EvoclusterError):
    """Disk full, not writable, or written by something else."""

    exit_code = 6


class LedgerConflict(StoreError):
    """Somebody else changed what serves in between; read the pointer again, and decide again."""


class ModelError(EvoclusterError):
    """A call to a model failed."""

    exit_code = 7
    retryable = False
    billable = False
    """The endpoint may have answered, and charged for it, although nothing usable came back."""
    used: Any = None
    """records.Usage: what the failed call may have cost, as llm.charged reckons it; None where it cost nothing."""
    billed: int = 0
    """How many of its requests the endpoint may have charged for."""


class Unreachable(ModelError):
    """No connection to the endpoint."""

    retryable = True


class RateLimited(ModelError):
    """429; `retry_after_s` is what the endpoint asked for, if it did."""

    retryable = True

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class Overloaded(ModelError):
    """5xx."""

    retryable = True


class DeadlinePassed(ModelError):
    """No complete answer before the deadline."""

    retryable = True
    billable = True


class BadReply(ModelError):
    """An answer arrived that cannot be used."""

    billable = True


class Refused(ModelError):
    """4xx: asking again will not help."""


class BelowBar(EvoclusterError):
    """A figure that was measured is below the least that was asked for; the report was printed before it."""

    exit_code = 8


class RunHeld(EvoclusterError):
    """Another process writes the run folder, or took it over while this one gave no sign of life."""

    exit_code = 9


class JobError(EvoclusterError):
    """The job server of a Ray cluster refuses what it is asked, or knows no such job; the run itself is not touched."""

    exit_code = 10


class JobServerAway(JobError):
    """The job server does not answer just now: asking again may help."""


class OperatorFailed(EvoclusterError):
    """No child could be made; the text becomes the trial's error and costs the operator credit."""


class TooManyCalls(EvoclusterError):
    """A user's pipeline called models more often than `executor.calls` allows, by which budgets reckon."""


class Interrupted(EvoclusterError):
    """The user asked to stop; everything finished was saved."""

    exit_code = 130


FATAL: tuple[type[EvoclusterError], ...] = (ConfigError, StoreError, Refused)
"""What no other example can be better off with: it ends the run instead of becoming a record."""
