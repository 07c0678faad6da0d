"""The events of an execution as a stream that survives broken connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, get_args

import orjson
from pydantic import ValidationError

from gateway.client.failures import GatewayUnreachable
from gateway.client.paths import execution_path
from gateway.errors import GatewayError
from gateway.models.jobs import Event, EventType, JobView

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.client.transport import Transport

NDJSON = "application/x-ndjson"
MAX_LINE_BYTES = 64 << 20
TYPES = frozenset(get_args(EventType))


class Events:
    """Reads events from a cursor on; every connection goes on where the one before it broke."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def follow(self, execution_id: str, cursor: int) -> AsyncGenerator[Event]:
        """Yield the events after a cursor until the end. Raises GatewayError."""
        loop, retry = asyncio.get_running_loop(), self._transport.retry
        failed_at: float | None = None
        tried = 0
        while True:
            try:
                async for event in self._once(execution_id, cursor):
                    cursor = max(cursor, event.seq)
                    failed_at, tried = None, 0
                    yield event
                    if event.type == "ended":
                        return
                if await self._over(execution_id):
                    return
                raise GatewayUnreachable("The gateway closed the stream before the execution's end.")
            except GatewayError as error:
                failed_at = failed_at or loop.time()
                wait_s = retry.wait_s(tried, loop.time() - failed_at, error)
                if wait_s is None:
                    raise
            tried += 1
            await asyncio.sleep(wait_s)

    async def _once(self, execution_id: str, cursor: int) -> AsyncGenerator[Event]:
        """Yield what one connection brings."""
        path = execution_path(execution_id, "events")
        query, headers = {"cursor": cursor}, {"Accept": NDJSON}
        async with self._transport.open("GET", path, query=query, headers=headers) as response:
            line = bytearray()
            async for piece in response.content.iter_any():
                *whole, rest = piece.split(b"\n")
                for end in whole:
                    line += end
                    event = _event(bytes(line))
                    line.clear()
                    if event is not None:
                        yield event
                line += rest
                if len(line) > MAX_LINE_BYTES:
                    raise GatewayError(f"The gateway sent an event of more than {MAX_LINE_BYTES} bytes.")

    async def _over(self, execution_id: str) -> bool:
        """Tell whether an execution has ended: then nothing comes after its last event."""
        return (await self._transport.json(JobView, "GET", execution_path(execution_id))).status.ended


def _event(line: bytes) -> Event | None:
    """Return a line's event; None for an empty line, and for an event that only a newer gateway knows."""
    if not line.strip():
        return None
    try:
        fields = orjson.loads(line)
        if fields.get("type") not in TYPES:
            return None
        return Event.model_validate(fields, extra="ignore")
    except (AttributeError, ValueError, ValidationError) as error:
        raise GatewayError("The gateway sent a line that is no event.") from error
