"""Traces by OpenTelemetry's own SDK, sent to a collector by OTLP over HTTP from a thread of the SDK's."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from gateway.ports.tracing import Fact
    from gateway.settings import TelemetrySettings

QUEUED_SPANS = 2048
# for one try to send a batch, and for the last of all
SEND_S, CLOSE_S = 5.0, 3.0
PARENT = ("traceparent", "tracestate")
NANO = 1_000_000_000


class OtlpSpan:
    """A span of the SDK's as a `ports.tracing.Span`."""

    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    @property
    def trace_id(self) -> str | None:
        """The trace that it belongs to, in hex."""
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def traceparent(self) -> str | None:
        """The W3C header that makes something else its child."""
        own = self._span.get_span_context()
        return f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"

    def note(self, facts: Mapping[str, Fact]) -> None:
        """Add facts; those that are None are left out."""
        self._span.set_attributes(known(facts))

    def fail(self, why: str) -> None:
        """Mark it as failed."""
        self._span.set_status(Status(StatusCode.ERROR, why))


class OtlpTracer:
    """A `ports.tracing.Tracer`; owns the SDK's provider, its bounded queue and its thread.

    A collector that is not there costs spans, and nothing else.
    """

    def __init__(self, settings: TelemetrySettings, version: str) -> None:
        endpoint = f"{settings.otlp_endpoint}".rstrip("/") + "/v1/traces"
        self._propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": settings.service_name, "service.version": version}),
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
            shutdown_on_exit=False,
        )
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=SEND_S)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter, max_queue_size=QUEUED_SPANS))
        self._tracer = self._provider.get_tracer("cellblock", version)

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[OtlpSpan]:
        """Trace a request while the body runs, as a child of the `traceparent` among its headers."""
        with self._traced(name, {}, context=self._context(headers), kind=SpanKind.SERVER) as span:
            yield span

    @contextmanager
    def span(self, name: str, facts: Mapping[str, Fact]) -> Iterator[OtlpSpan]:
        """Trace the body as a child of the span around it."""
        with self._traced(name, facts, context=None, kind=SpanKind.INTERNAL) as span:
            yield span

    def past(
        self,
        name: str,
        facts: Mapping[str, Fact],
        *,
        parent: str | None,
        started_at: datetime,
        duration_s: float,
        failure: str | None = None,
    ) -> None:
        """Add what is over already, as a child of a `traceparent`."""
        began = int(started_at.timestamp() * NANO)
        span = self._tracer.start_span(
            name,
            context=self._context({PARENT[0]: parent} if parent else {}),
            attributes=known(facts),
            start_time=began,
        )
        if failure is not None:
            OtlpSpan(span).fail(failure)
        span.end(began + int(duration_s * NANO))

    def close(self) -> None:
        """Send what is left, and end the thread. Blocks, for some seconds at most."""
        # the SDK's own way takes half a minute where the collector does not answer
        last = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        last.start()
        last.join(CLOSE_S)
        if last.is_alive():
            self._exporter.shutdown()

    @contextmanager
    def _traced(
        self, name: str, facts: Mapping[str, Fact], *, context: Context | None, kind: SpanKind
    ) -> Iterator[OtlpSpan]:
        with self._tracer.start_as_current_span(
            name,
            context=context,
            kind=kind,
            attributes=known(facts),
            # what an exception says may be the kernel's own words
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            ours = OtlpSpan(span)
            try:
                yield ours
            except BaseException as error:
                ours.fail(getattr(error, "code", None) or type(error).__name__)
                raise

    def _context(self, headers: Mapping[str, str]) -> Context:
        given = {name: headers[name] for name in PARENT if name in headers}
        return self._propagator.extract(given, context=Context())


def known(facts: Mapping[str, Fact]) -> dict[str, str | int | float | bool]:
    """Return the facts that are not None."""
    return {name: fact for name, fact in facts.items() if fact is not None}
