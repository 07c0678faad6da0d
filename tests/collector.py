"""An OpenTelemetry collector on loopback: takes OTLP over HTTP and keeps what it has decoded."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Collector:
    """Keeps spans by name, newest last."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Any] = []
        self.resource: dict[str, str] = {}
        self.delay_s = 0.0

    async def handle(self, request: web.Request) -> web.Response:
        """Take one batch."""
        assert request.path == "/v1/traces"
        sent = ExportTraceServiceRequest.FromString(await request.read())
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        for group in sent.resource_spans:
            self.resource = {pair.key: pair.value.string_value for pair in group.resource.attributes}
            for scope in group.scope_spans:
                self.spans.extend(scope.spans)
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")

    def named(self, name: str) -> list[Any]:
        """Return the spans of a name so far."""
        return [span for span in self.spans if span.name == name]

    async def until(self, ready: Callable[[], object], within_s: float = 5.0) -> None:
        """Wait until something holds."""
        async with asyncio.timeout(within_s):
            while not ready():
                await asyncio.sleep(0.02)


def facts(span: Any) -> dict[str, Any]:
    """Return the attributes of a span."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Give a collector that listens."""
    made = Collector()
    application = web.Application()
    application.router.add_post("/{rest:.*}", made.handle)
    async with TestServer(application) as server:
        made.url = str(server.make_url("/"))
        yield made
