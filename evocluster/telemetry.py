"""The logger, in one place. Spans and counters join it here where OpenTelemetry is installed."""

from __future__ import annotations

import logging

log = logging.getLogger("evocluster")
"""Library rule: we log, the application chooses handlers. Never a prompt, an output or a key in a message."""
log.addHandler(logging.NullHandler())
