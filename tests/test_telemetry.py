"""Logs, counts and spans: what they say of a run, and what they must not say."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from servers import FaultServer
from small import LABELS, small_config

from evocluster import build, telemetry
from evocluster.errors import RateLimited
from evocluster.llm.client import Message, Reply, Request
from evocluster.llm.direct import Direct
from evocluster.llm.observed import Observed
from evocluster.llm.prices import Price
from evocluster.redaction import noted
from evocluster.telemetry import Run, counts, log, tell, telling, trace_id, within

KEY = "a-planted-key-0123456789"


@pytest.fixture(scope="module")
def providers() -> tuple[InMemorySpanExporter, InMemoryMetricReader]:
    """What an application around us sets up, once a process."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    return exporter, reader


@pytest.fixture
def spans(providers: tuple[InMemorySpanExporter, InMemoryMetricReader]) -> Iterator[InMemorySpanExporter]:
    providers[0].clear()
    assert telemetry.listen()
    yield providers[0]
    telemetry._listening = None


def text_of(span: ReadableSpan) -> str:
    """All that an exporter could send of it."""
    return str(span.to_json())


def test_a_run_is_a_trace_a_proposal_and_its_calls_are_in_it(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    result = build.run(build.plan(small_config(tmp_path, cache={"path": None})), tmp_path / "run")
    run = result.run["run_id"]
    done: Any = spans.get_finished_spans()
    proposals = [span for span in done if span.name.startswith("proposal ")]
    calls = [span for span in done if not span.name.startswith("proposal ")]
    assert result.run["calls"] - result.run["cached"] == len(calls) > 0
    by_id = {span.context.span_id: span for span in proposals}
    for span in proposals:
        assert span.parent is None
        assert span.context.trace_id == trace_id(run, span.attributes["evocluster.proposal"])
        assert span.attributes["evocluster.run.id"] == run
        assert span.attributes["evocluster.items"] >= span.attributes["evocluster.failed_items"] == 0
        assert span.name == f"proposal {span.attributes['evocluster.operator']}"
    assert len({span.context.trace_id for span in proposals}) == len(proposals)
    for span in calls:
        mother = by_id[span.parent.span_id]
        assert mother.context.trace_id == span.context.trace_id
        assert mother.start_time <= span.start_time <= span.end_time <= mother.end_time
        assert span.kind is trace.SpanKind.CLIENT
        assert span.attributes["gen_ai.operation.name"] in ("chat", "text_completion")
        assert span.attributes["gen_ai.provider.name"] == span.attributes["gen_ai.system"] == "scripted"
        assert span.attributes["gen_ai.request.model"] == span.attributes["evocluster.model"] == "fake"
        assert span.attributes["gen_ai.usage.input_tokens"] > 0
        assert span.attributes["gen_ai.usage.output_tokens"] >= 0
    said = "".join(map(text_of, done))
    assert "looks" not in said  # of every input
    assert "Which colour" not in said
    assert not any(f'"{label}"' in said for label in LABELS)


async def ask(model: Observed, text: str = "what a secret question") -> Reply:
    return await model(Request(model="house", messages=(Message(role="user", content=text),), max_tokens=5))


async def test_a_call_says_where_it_went_and_what_it_used(
    spans: InMemorySpanExporter,
    providers: tuple[InMemorySpanExporter, InMemoryMetricReader],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)
    price = Price(prompt_usd_per_mtok=1, completion_usd_per_mtok=1)
    async with FaultServer() as server:
        direct = Direct(base_url=server.url, model="tiny", key_env="PLANTED_KEY", price=price)
        model, before = Observed(direct, "house"), dict(counts)
        await direct.open()
        reply = await ask(model)
        server.mode = "error_429"
        with pytest.raises(RateLimited):
            await ask(model)
        await direct.close()
        port = int(server.url.split(":")[2].split("/")[0])
    good, bad = spans.get_finished_spans()
    assert good.name == "chat tiny"
    assert good.attributes is not None
    assert dict(good.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": reply.prompt_tokens,
        "gen_ai.usage.output_tokens": reply.completion_tokens,
        "server.address": "127.0.0.1",
        "server.port": port,
        "evocluster.model": "house",
        "evocluster.purpose": "evaluate",
        "evocluster.cost_usd": reply.usd,
    }
    assert bad.attributes is not None
    assert bad.attributes["error.type"] == "RateLimited"
    assert bad.status.status_code is trace.StatusCode.ERROR
    assert bad.status.description is None
    assert not bad.events
    for span in (good, bad):
        assert "secret question" not in text_of(span)
        assert KEY not in text_of(span)
        assert reply.text not in text_of(span)
    grown = {name: counts[name] - before.get(name, 0.0) for name in ("calls", "rate_limited", "usd")}
    assert grown == {"calls": 2, "rate_limited": 1, "usd": pytest.approx(reply.usd)}
    points = _points(providers[1])
    used = {
        point.attributes["gen_ai.token.type"]: point.sum
        for point in points["gen_ai.client.token.usage"]
        if point.attributes["gen_ai.request.model"] == "tiny"
    }
    assert used == {"input": reply.prompt_tokens, "output": reply.completion_tokens}
    took = {
        point.attributes.get("error.type"): point.count
        for point in points["gen_ai.client.operation.duration"]
        if point.attributes["gen_ai.request.model"] == "tiny"
    }
    assert took == {None: 1, "RateLimited": 1}


def _points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    found = reader.get_metrics_data()
    assert found is not None
    return {
        metric.name: list(metric.data.data_points)
        for resource in found.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_where_nobody_listens_there_is_no_span(providers: tuple[InMemorySpanExporter, Any]) -> None:
    providers[0].clear()
    telemetry._listening = None
    with telemetry.proposal("run", 1, {}) as span, telemetry.call("chat", "m", "p", {}) as answered:
        assert span is None
        assert answered is None
    assert not providers[0].get_finished_spans()


def test_a_trace_has_one_name_in_every_process() -> None:
    assert trace_id("run", 7) == trace_id("run", 7)
    ids = {trace_id(run, number) for run in ("a", "b") for number in range(100)}
    assert len(ids) == 200
    assert all(0 < one < 2**128 for one in ids)


SILENT = """
import sys
from evocluster import build, telemetry
telemetry.listen()
print(sorted(name for name in sys.modules if name.split(".")[0] == "opentelemetry"), telemetry.hears())
"""


def _child(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_nothing_of_opentelemetry_is_loaded_where_nobody_asks_for_it() -> None:
    assert _child(SILENT).stdout == "[] False\n"
    assert _child(SILENT, OTEL_TRACES_EXPORTER="console", OTEL_SDK_DISABLED="true").stdout == "[] False\n"


ASKED = """
import logging
logging.basicConfig()
from evocluster import telemetry
print("heard", telemetry.listen())
with telemetry.proposal("run", 3, {"evocluster.operator": "merge"}):
    pass
"""


def test_opentelemetrys_own_variables_choose_the_exporter() -> None:
    found = _child(ASKED, OTEL_TRACES_EXPORTER="console", OTEL_METRICS_EXPORTER="none")
    assert "heard True" in found.stdout
    assert f'"trace_id": "0x{trace_id("run", 3):032x}"' in found.stdout
    assert '"name": "proposal merge"' in found.stdout


def test_an_exporter_that_is_not_installed_is_named_and_the_run_goes_on() -> None:
    found = _child(ASKED, OTEL_TRACES_EXPORTER="none-of-this-name")
    assert "heard False" in found.stdout
    assert "install evocluster[otel]" in found.stderr


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_of_a_run_says_which_run_and_proposal(tmp_path: Path) -> None:
    run = Run("0123456789abcdef", str(tmp_path / "log.jsonl"), logging.INFO)
    before = log.level
    noted(KEY)
    try:
        with telling(run):
            tell(run)
            tell(run)
            log.info("begins with %s", KEY)
            with telemetry.proposal(run.id, 7, {}), within(worker="worker-1.0"):
                log.warning("a\nb")
            log.debug("not told")
        log.warning("after it")
    finally:
        log.setLevel(before)
    first, second = lines(tmp_path / "log.jsonl")
    assert set(first) == {"ts", "level", "message", "run"}
    assert first["message"] == "begins with [key]"
    assert {**second, "ts": ""} == {
        "ts": "",
        "level": "WARNING",
        "message": "a\nb",
        "run": run.id,
        "proposal": 7,
        "worker": "worker-1.0",
    }
    assert second["ts"].endswith("+00:00")


def test_a_run_logs_beside_its_trials(tmp_path: Path) -> None:
    before = log.level
    log.setLevel(logging.INFO)
    try:
        result = build.run(build.plan(small_config(tmp_path, budget={"generations": 1})), tmp_path / "run")
        build.resume(tmp_path / "run")
    finally:
        log.setLevel(before)
    told = lines(tmp_path / "run" / "log.jsonl")
    assert [line["message"] for line in told] == ["run begins", "run finished"]
    assert {line["run"] for line in told} == {result.run["run_id"]}
    assert len(result.run["run_id"]) == 16


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "elsewhere")
    tell(Run("x", str(tmp_path / "log.jsonl"), logging.WARNING))
    assert "cannot be written" in caplog.text
    assert not (tmp_path / "elsewhere").exists()
    tell(Run("x", str(tmp_path / "not here" / "log.jsonl")))
    assert not (tmp_path / "not here").exists()
