"""The logger, in one place. Spans and counters join it here where OpenTelemetry is installed."""

from __future__ import annotations

import logging

from evocluster.redaction import redacted

log = logging.getLogger("evocluster")
"""Library rule: we log, the application chooses handlers. Never a prompt, an output or a key in a message."""
log.addHandler(logging.NullHandler())


class Hiding(logging.Filter):
    """Takes keys out of a record, its traceback included, before any handler sees it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True."""
        record.msg, record.args = redacted(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True


log.addFilter(Hiding())
