"""Traces: sent to a collector as OTLP, as children of what the client says; without an endpoint nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from gateway.errors import ConfigurationError, SandboxUnavailable
from gateway.models import ExecutionRecord, ExecutionStatus, Origin
from gateway.ports.tracing import NoTracer
from gateway.settings import TelemetrySettings, load
from gateway.telemetry import ExecutionSpans, tracing
from tests.collector import Collector, collecting, facts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-2] + "00"
ERROR = 2


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """A collector that listens."""
    async with collecting() as made:
        yield made


def settings(collector: Collector, **more: object) -> TelemetrySettings:
    """Return settings that send traces there."""
    return TelemetrySettings.model_validate({"otlp_endpoint": collector.url, **more})


async def test_spans_are_children_of_the_request(collector):
    """A request is the child of its traceparent, what happens in it is its child, all in one trace."""
    async with tracing(settings(collector, service_name="lab"), "1.2.3") as tracer:
        with tracer.request("GET /x", {"traceparent": PARENT, "Authorization": "secret"}) as request:
            request.note({"http.response.status_code": 200, "left_out": None})
            with tracer.span("kernel.start", {"cellblock.kernel_id": "k"}):
                pass

    outer, inner = collector.named("GET /x")[0], collector.named("kernel.start")[0]
    assert outer.trace_id.hex() == inner.trace_id.hex() == TRACE == request.trace_id
    assert outer.parent_span_id.hex() == "b7ad6b7169203331"
    assert inner.parent_span_id == outer.span_id
    assert request.traceparent == f"00-{TRACE}-{outer.span_id.hex()}-01"
    assert facts(outer) == {"http.response.status_code": 200}
    assert facts(inner) == {"cellblock.kernel_id": "k"}
    assert collector.resource["service.name"] == "lab"
    assert collector.resource["service.version"] == "1.2.3"


async def test_a_request_without_a_parent_begins_a_trace(collector):
    """What comes without a traceparent, or with a wrong one, has a trace of its own."""
    async with tracing(settings(collector), "1") as tracer:
        for headers in ({}, {"traceparent": "nonsense"}, {"traceparent": "00-" + "0" * 32 + "-1-01"}):
            with tracer.request("GET /x", headers):
                pass

    assert len({span.trace_id for span in collector.spans}) == 3
    assert all(span.parent_span_id == b"" for span in collector.spans)


async def test_what_failed_says_why_by_a_code(collector):
    """An error marks its span with its code; its message, which may be a kernel's own words, stays out."""
    async with tracing(settings(collector), "1") as tracer:
        with pytest.raises(SandboxUnavailable), tracer.request("GET /x", {}), tracer.span("inner", {}):
            raise SandboxUnavailable("the kernel's own words")

    for span in collector.spans:
        assert (span.status.code, span.status.message) == (ERROR, "sandbox_unavailable")
        assert "own words" not in str(span)


async def test_an_unsampled_request_is_not_sent(collector):
    """A client that asks not to be traced is not; of the others as many as the settings say."""
    async with tracing(settings(collector), "1") as tracer:
        with tracer.request("no", {"traceparent": UNSAMPLED}):
            pass
        with tracer.request("yes", {}):
            pass
    assert [span.name for span in collector.spans] == ["yes"]

    collector.spans.clear()
    async with tracing(settings(collector, sample_ratio=0.0), "1") as tracer:
        with tracer.request("none", {}):
            pass
        with tracer.request("asked for", {"traceparent": PARENT}):
            pass
    assert [span.name for span in collector.spans] == ["asked for"]


def record(status: ExecutionStatus, parent: str | None) -> ExecutionRecord:
    """Return the record of an execution that was asked for by a traced request."""
    return ExecutionRecord(
        id="e",
        kernel_id="k",
        owner="alice",
        origin=Origin(principal="alice", key_id="x", door="rest", traceparent=parent),
        code_sha256="00",
        code="print('my secret code')",
        status=status,
        reason=None,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        duration_s=2.5,
        output_bytes=7,
        queue_s=0.5,
    )


async def test_an_execution_joins_the_trace_when_it_has_ended(collector):
    """An execution becomes a child of its request with its real times, without its code."""
    async with tracing(settings(collector), "1") as tracer:
        spans = ExecutionSpans(tracer)
        spans.ended(record(ExecutionStatus.OK, PARENT))
        spans.ended(record(ExecutionStatus.TIMEOUT, None))

    good, late = collector.spans
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (TRACE, "b7ad6b7169203331")
    assert good.start_time_unix_nano == int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 10**9
    assert good.end_time_unix_nano - good.start_time_unix_nano == 2_500_000_000
    assert facts(good)["cellblock.queue_s"] == 0.5
    assert facts(good)["cellblock.status"] == "ok"
    assert good.status.code != ERROR
    assert (late.status.code, late.status.message, late.parent_span_id) == (ERROR, "timeout", b"")
    assert "secret" not in str(collector.spans)


async def test_a_collector_that_is_silent_or_gone_keeps_nobody(collector):
    """Tracing never waits, and the end of it takes a few seconds at most."""
    collector.delay_s = 30.0
    async with tracing(settings(collector), "1") as tracer:
        began = time.perf_counter()
        for _ in range(5000):
            with tracer.request("GET /x", {}):
                pass
        spent_s = time.perf_counter() - began
        began = time.perf_counter()
    assert spent_s < 4
    assert time.perf_counter() - began < 5


async def test_without_an_endpoint_nothing_is_traced():
    """Without an endpoint the tracer does nothing, and its spans have no name that logs could show."""
    async with tracing(TelemetrySettings(), "1") as tracer:
        assert isinstance(tracer, NoTracer)
        with tracer.request("x", {"traceparent": PARENT}) as span, tracer.span("y", {}) as inner:
            span.note({"a": 1})
            inner.fail("b")
            assert (span.trace_id, span.traceparent) == (None, None)


def python(code: str) -> str:
    """Run code in a process of its own and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_nothing_is_imported_without_an_endpoint():
    """A gateway without traces loads neither OpenTelemetry's SDK nor its exporter; MCP's SDK has the API."""
    code = """
import gateway.app, sys
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""

    assert python(code) == "[]"


def test_a_missing_extra_is_said_in_a_sentence():
    """An endpoint without OpenTelemetry is a wrong configuration, and says what to install."""
    code = """
import asyncio, sys
sys.modules["opentelemetry"] = None
from gateway.errors import ConfigurationError
from gateway.settings import TelemetrySettings
from gateway.telemetry import tracing

async def main():
    try:
        async with tracing(TelemetrySettings(otlp_endpoint="http://127.0.0.1:4318"), "1"):
            print("traced")
    except ConfigurationError as error:
        print(error.message)

asyncio.run(main())
"""
    assert "pip install 'cellblock[otel]'" in python(code)


@pytest.mark.parametrize(
    "given",
    [{"otlp_endpoint": "collector:4317"}, {"otlp_endpoint": "http://u@h/"}, {"sample_ratio": 2}],
)
def test_wrong_settings(given):
    """An endpoint that is no URL, and a ratio that is none, are refused by name."""
    with pytest.raises(ConfigurationError, match="telemetry"):
        load(telemetry=given)
