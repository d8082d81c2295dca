"""What goes on inside, for those who watch from outside: logs, counts, and OpenTelemetry's spans and metrics.

    log                     the logger; `tell(run)` writes it to the run folder's log.jsonl too
    counts                  what this process has done so far, by name: cheap enough to be counted always
    proposal(...), call(...)    spans around one proposal and one call of a model; nothing at all where nobody listens

Somebody listens where a tracer provider is set up (by an application around us), or OpenTelemetry's own variables ask
for one (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_EXPORTER...; the extra `otel` installs what that needs). Names are
those of its GenAI conventions. Never a prompt, an output or a key in a span, a count or a log.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from evocluster.redaction import redacted

log = logging.getLogger("evocluster")
"""Library rule: we log, the application chooses handlers. Never a prompt, an output or a key in a message."""
log.addHandler(logging.NullHandler())

counts: defaultdict[str, float] = defaultdict(float)
"""calls (HTTP requests, say), rate_limited, retries, hits, misses, joins and usd, since the process began."""

_where: ContextVar[Mapping[str, Any]] = ContextVar("evocluster_where", default={})  # noqa: B039 - never changed in place


def mark(**known: Any) -> Token[Mapping[str, Any]]:
    """What is logged from here on, in this task and those it begins, carries these: run, proposal, worker."""
    return _where.set({**_where.get(), **known})


@contextmanager
def within(**known: Any) -> Iterator[None]:
    """`mark`, until the block ends."""
    token = mark(**known)
    try:
        yield
    finally:
        _where.reset(token)


class Hiding(logging.Filter):
    """Takes keys out of a record, its traceback included, before any handler sees it, and notes where it was made."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True."""
        record.msg, record.args = redacted(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        record.where = _where.get()
        return True


log.addFilter(Hiding())


class JsonLines(logging.Handler):
    """A record as a line of JSON at the end of a file that other processes write to as well."""

    def __init__(self, path: Path) -> None:
        """Raises: OSError."""
        super().__init__()
        self.path = path
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)

    def emit(self, record: logging.LogRecord) -> None:
        """One write, so that lines of several processes never mix."""
        try:
            line = {
                "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
                "level": record.levelname,
                "message": record.getMessage(),
                **getattr(record, "where", {}),
                **({"traceback": record.exc_text} if record.exc_text else {}),
            }
            os.write(self._handle, json.dumps(line, ensure_ascii=False, default=str).encode() + b"\n")
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """May be called twice."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)
        super().close()


@dataclass(frozen=True)
class Run:
    """What every process that works for a run knows of it; picklable."""

    id: str = ""
    """16 hex digits, as in run.json."""
    log: str | None = None
    """The file that its processes log to, where its folder is on their machine."""
    level: int = logging.WARNING


def tell(run: Run) -> None:
    """Log to the run's file from now on, at its level and in its name; nothing where its folder is not on this machine.

    For processes that end with the run; others take `telling`.
    """
    if run.log is None or not Path(run.log).parent.is_dir():
        return
    mark(run=run.id)
    if any(one.path == Path(run.log) for one in _files()):
        return
    try:
        log.addHandler(JsonLines(Path(run.log)))
    except OSError as error:
        log.warning("%s cannot be written: %s", run.log, error.strerror)
    if log.getEffectiveLevel() != run.level:
        log.setLevel(run.level)


@contextmanager
def telling(run: Run) -> Iterator[None]:
    """What `tell` began in here ends with the block."""
    with within(run=run.id):
        try:
            yield
        finally:
            for handler in _files():
                if handler.path == Path(run.log or ""):
                    log.removeHandler(handler)
                    handler.close()


def _files() -> list[JsonLines]:
    return [one for one in log.handlers if isinstance(one, JsonLines)]


class Listening:
    """OpenTelemetry's instruments, made once somebody listens."""

    def __init__(self) -> None:
        from opentelemetry import metrics, trace

        self.trace, self.metrics = trace, metrics
        self.tracer: Any = trace.get_tracer("evocluster")
        if hasattr(self.tracer, "id_generator"):
            self.tracer.id_generator = _Derived(self.tracer.id_generator)
        meter = metrics.get_meter("evocluster")
        self.tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Tokens of one call",
            explicit_bucket_boundaries_advisory=[4.0**power for power in range(14)],
        )
        self.duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="Seconds of one call",
            explicit_bucket_boundaries_advisory=[0.01 * 2**power for power in range(14)],
        )


_trace_id: ContextVar[int | None] = ContextVar("evocluster_trace_id", default=None)


class _Derived:
    """Ids of spans: random as ever, but a trace that was named keeps its name."""

    def __init__(self, usual: Any) -> None:
        self._usual = usual

    def generate_span_id(self) -> int:
        """See opentelemetry.sdk.trace.IdGenerator."""
        return int(self._usual.generate_span_id())

    def generate_trace_id(self) -> int:
        """See opentelemetry.sdk.trace.IdGenerator."""
        named = _trace_id.get()
        return int(self._usual.generate_trace_id()) if named is None else named

    def is_trace_id_random(self) -> bool:
        """See opentelemetry.sdk.trace.IdGenerator."""
        return _trace_id.get() is None


_listening: Listening | None = None
_WANTED = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")


def listen() -> bool:
    """Look whether somebody listens, and set up what OpenTelemetry's variables ask for; asked once a worker opens.

    Nothing of OpenTelemetry is imported where no variable asks for it and nobody else imported it.
    """
    global _listening
    asked = any(os.environ.get(name) for name in _WANTED) and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"
    if not asked and "opentelemetry.sdk.trace" not in sys.modules:
        _listening = None
        return False
    try:
        _listening = Listening() if _provided() or (asked and _configured()) else None
    except ImportError as missing:
        log.warning(
            "OpenTelemetry is asked for by its variables and is not there (%s): install evocluster[otel]", missing
        )
    return _listening is not None


def _provided() -> bool:
    """An application has set a provider."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    return isinstance(trace.get_tracer_provider(), TracerProvider)


def _configured() -> bool:
    """Set OpenTelemetry up as its variables say. Raises: ImportError: something that they ask for is not installed."""
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    os.environ.setdefault("OTEL_SERVICE_NAME", "evocluster")
    spans, numbers = _exporters("traces"), _exporters("metrics")
    provider = TracerProvider()
    for exporter in spans:
        provider.add_span_processor(BatchSpanProcessor(exporter()))
    trace.set_tracer_provider(provider)
    readers = [one() if issubclass(one, MetricReader) else PeriodicExportingMetricReader(one()) for one in numbers]
    metrics.set_meter_provider(MeterProvider(readers))
    return True


def _exporters(signal: str) -> list[Any]:
    """The classes that OTEL_TRACES_EXPORTER or OTEL_METRICS_EXPORTER name. Raises: ImportError."""
    found = []
    for name in os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp").split(","):
        if name.strip() == "none":
            continue
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        kind = {"otlp": "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"}.get(name.strip(), name.strip())
        known = list(entry_points(group=f"opentelemetry_{signal}_exporter", name=kind))
        if not known:
            raise ImportError(f"no exporter {kind!r} for {signal}")
        found.append(known[0].load())
    return found


def flush() -> None:
    """Send what was not sent yet, for at most three seconds; a worker may be ended right after."""
    if _listening is not None:
        for provider in (_listening.trace.get_tracer_provider(), _listening.metrics.get_meter_provider()):
            if hasattr(provider, "force_flush"):
                provider.force_flush(3000)


def trace_id(run: str, number: int) -> int:
    """The trace of a proposal, the same in whichever process of the run it is carried out, and after a resume."""
    return int.from_bytes(hashlib.sha256(f"{run}:{number}".encode()).digest()[:16], "big") or 1


def proposal(run: str, number: int, attributes: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Around the work on one proposal: what is logged names it, and a span where somebody listens.

    Gives the span, or None.
    """
    return within(run=run, proposal=number) if _listening is None else _proposal(_listening, run, number, attributes)


@contextmanager
def _proposal(listening: Listening, run: str, number: int, attributes: Mapping[str, Any]) -> Iterator[Any]:
    from opentelemetry.context import Context

    known = {"evocluster.run.id": run, "evocluster.proposal": number, **attributes}
    token = _trace_id.set(trace_id(run, number))
    try:
        span = listening.tracer.start_span(
            f"proposal {attributes.get('evocluster.operator', '')}", Context(), attributes=known
        )
    finally:
        _trace_id.reset(token)
    with within(run=run, proposal=number), listening.trace.use_span(span, True, False, False):
        try:
            yield span
        except BaseException as error:
            _failed(listening, span, error)
            raise


@contextmanager
def call(operation: str, model: str, provider: str, attributes: Mapping[str, Any]) -> Iterator[Any]:
    """Around one call of a model: a client span and its duration, as the GenAI conventions name them.

    Gives a function for the tokens (input, output) and what else is known of the answer; None where nobody listens.
    """
    listening = _listening
    if listening is None:
        yield None
        return
    told = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        **{name: value for name, value in attributes.items() if name.startswith("server.") and value is not None},
    }
    given = {**told, "gen_ai.system": provider, **{name: one for name, one in attributes.items() if one is not None}}
    span = listening.tracer.start_span(f"{operation} {model}", kind=listening.trace.SpanKind.CLIENT, attributes=given)
    started = time.perf_counter()

    def answered(tokens: tuple[int, int], more: Mapping[str, Any]) -> None:
        for kind, count in zip(("input", "output"), tokens, strict=True):
            span.set_attribute(f"gen_ai.usage.{kind}_tokens", count)
            listening.tokens.record(count, {**told, "gen_ai.token.type": kind})
        span.set_attributes(dict(more))

    with listening.trace.use_span(span, True, False, False):
        try:
            yield answered
        except BaseException as error:
            _failed(listening, span, error)
            told["error.type"] = type(error).__name__
            raise
        finally:
            listening.duration.record(time.perf_counter() - started, told)


def _failed(listening: Listening, span: Any, error: BaseException) -> None:
    """The kind of a failure; its text may quote what was said."""
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(listening.trace.StatusCode.ERROR)


def hears() -> bool:
    """Somebody listens."""
    return _listening is not None
