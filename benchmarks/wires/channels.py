"""A WebSocket to a kernel's channels, in either framing: the same client for every server."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import aiohttp

from benchmarks.framing import execute_content, is_idle, is_reply, outcome_of, request
from benchmarks.outcome import Answer
from benchmarks.wires.wire import TIMEOUT_S, new_id

if TYPE_CHECKING:
    from benchmarks.framing import Framing

# no message that ends an execution is larger, so a larger one is only kept while the clock runs
SMALL = 4096


class Channels:
    """An open WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, framing: Framing, session: str) -> None:
        self._socket = socket
        self._framing = framing
        self._session = session

    async def execute(self, code: str, timeout_s: float = TIMEOUT_S) -> Answer:
        """Run code until its reply and its idle status have come."""
        msg_id = new_id()
        header = request("execute_request", msg_id, self._session)
        frames: list[bytes | str] = []
        begun = time.perf_counter()
        frame = self._framing.encode(header, execute_content(code))
        async with asyncio.timeout(timeout_s):
            if isinstance(frame, bytes):
                await self._socket.send_bytes(frame)
            else:
                await self._socket.send_str(frame)
            await self._collect(msg_id, frames)
        took_s = time.perf_counter() - begun
        return Answer(took_s, lambda: outcome_of(map(self._framing.decode, frames), msg_id))

    async def _collect(self, msg_id: str, frames: list[bytes | str]) -> None:
        replied = idle = False
        while not (replied and idle):
            received = await self._socket.receive()
            if received.type not in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
                raise ConnectionError(f"the server closed the socket: {self._socket.close_code} {received}")
            frames.append(received.data)
            if len(received.data) <= SMALL:
                said = self._framing.decode(received.data)
                replied = replied or is_reply(said, msg_id)
                idle = idle or is_idle(said, msg_id)
