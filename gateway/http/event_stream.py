"""Events of an execution as a stream: Server-Sent Events, or one JSON object a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
from aiohttp import hdrs, web

from gateway.errors import BadRequest

if TYPE_CHECKING:
    from gateway.models.jobs import Event

SSE, NDJSON = "text/event-stream", "application/x-ndjson"
FORMATS = (SSE, NDJSON)


@dataclass(frozen=True, slots=True)
class EventStream:
    """One of the two formats."""

    kind: str

    @classmethod
    def wanted(cls, request: web.Request) -> EventStream | None:
        """Return the format that a request's Accept names first, if it names one."""
        accept = request.headers.get(hdrs.ACCEPT, "")
        named = [part.split(";")[0].strip().lower() for part in accept.split(",")]
        return next((cls(kind) for kind in named if kind in FORMATS), None)

    def cursor(self, request: web.Request) -> int:
        """Return where a reader goes on: SSE's Last-Event-ID, or the query. Raises BadRequest."""
        given = request.headers.get("Last-Event-ID") or request.query.get("cursor") or "0"
        if not (given.isascii() and given.isdigit() and len(given) < 16):
            raise BadRequest("A cursor is the number of an event.", reason="cursor")
        return int(given)

    def response(self) -> web.StreamResponse:
        """Return the response that carries the stream, not yet begun."""
        response = web.StreamResponse()
        response.content_type = self.kind
        response.charset = "utf-8"
        # nginx would keep back what it is to pass on
        response.headers["X-Accel-Buffering"] = "no"
        return response

    def encode(self, event: Event) -> bytes:
        """Return an event's bytes."""
        data = orjson.dumps(event.wire())
        if self.kind == NDJSON:
            return data + b"\n"
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.type.encode(), data)

    def beat(self) -> bytes:
        """Return what keeps a quiet connection open."""
        return b'{"type":"keepalive"}\n' if self.kind == NDJSON else b": keepalive\n\n"
