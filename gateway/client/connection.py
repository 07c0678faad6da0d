"""A WebSocket to one kernel: code in, messages as they come, one result out."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from typing import TYPE_CHECKING, Self

import aiohttp

from gateway.client.failures import ConnectionLost, why_closed
from gateway.errors import BadRequest, GatewayError
from gateway.models import ExecutionResult, ExecutionStatus, Message
from gateway.protocol import messages, websocket
from gateway.protocol.outputs import Collector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

MAX_OUTPUT_BYTES = 64 << 20
INTERRUPT_GRACE_S = 10.0
DEADLINE_SLACK_S = 15.0


class KernelConnection:
    """A WebSocket to one kernel's channels, in the v1 framing. Use as an async context manager."""

    def __init__(
        self,
        connect: Callable[[str], Awaitable[aiohttp.ClientWebSocketResponse]],
        interrupt: Callable[[], Awaitable[None]],
        record: Callable[[str, ExecutionResult], None],
    ) -> None:
        self._connect = connect
        self._interrupt = interrupt
        self._record = record
        self._session_id = uuid.uuid4().hex
        self._one_at_a_time = asyncio.Lock()
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def __aenter__(self) -> Self:
        self._socket = await self._connect(self._session_id)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            await self._socket.close()
            self._socket = None

    async def interrupt(self) -> None:
        """Interrupt what the kernel runs."""
        await self._interrupt()

    async def run(
        self,
        code: str,
        *,
        timeout_s: float | None = None,
        on_message: Callable[[Message], None] | None = None,
    ) -> ExecutionResult:
        """Run code and return what it gave; `on_message` sees each message of it as it comes.

        After `timeout_s` seconds, or its own limit if that is less, the gateway interrupts the code or kills
        the kernel, and the result has the status `timeout`.

        Raises:
            ConnectionLost: the gateway closed the socket before the end; the error has the result so far.
            GatewayError: the interrupt failed, or a frame is not a Jupyter message.
        """
        async with self._one_at_a_time:
            request = _execute_request(code, self._session_id, timeout_s)
            collector = Collector(request.msg_id, max_bytes=MAX_OUTPUT_BYTES, started=time.monotonic())
            socket = self._open_socket()
            try:
                # the gateway keeps the deadline; a gateway that does not answer is given up a little later
                async with asyncio.timeout(None if timeout_s is None else timeout_s + DEADLINE_SLACK_S):
                    await _send(socket, request, collector)
                    await _follow(socket, request, collector, on_message)
            except TimeoutError:
                with contextlib.suppress(TimeoutError, GatewayError):
                    await self.interrupt()
                    async with asyncio.timeout(INTERRUPT_GRACE_S):
                        await _follow(socket, request, collector, on_message)
                collector.mark_timeout()
            result = collector.result(time.monotonic())
            self._record(code, result)
            return result

    async def messages(self) -> AsyncIterator[Message]:
        """Yield whatever the kernel says, as it comes, until the gateway closes the socket.

        Raises:
            GatewayError: a frame is not a Jupyter message.
        """
        async with self._one_at_a_time:
            socket = self._open_socket()
            framing = websocket.framing(socket.protocol)
            async for frame in socket:
                yield _decoded(framing, frame)

    def _open_socket(self) -> aiohttp.ClientWebSocketResponse:
        if self._socket is None:
            raise RuntimeError("use the connection as an async context manager")
        return self._socket


def _execute_request(code: str, session_id: str, timeout_s: float | None) -> Message:
    content = {
        "code": code,
        "silent": False,
        "store_history": True,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": True,
    }
    metadata = {} if timeout_s is None else {"cellblock": {"timeout_s": timeout_s}}
    try:
        return messages.make(
            "shell", "execute_request", content, parent=None, session=session_id, metadata=metadata
        )
    except messages.MalformedMessage as error:
        raise BadRequest("The code is not valid Unicode text.") from error


async def _send(socket: aiohttp.ClientWebSocketResponse, request: Message, collector: Collector) -> None:
    frame = websocket.framing(socket.protocol).encode(request)
    try:
        if isinstance(frame, str):
            await socket.send_str(frame)
        else:
            await socket.send_bytes(frame)
    except (ConnectionError, aiohttp.ClientError) as error:
        raise _lost(socket, collector) from error


async def _follow(
    socket: aiohttp.ClientWebSocketResponse,
    request: Message,
    collector: Collector,
    on_message: Callable[[Message], None] | None,
) -> None:
    """Feed the collector with the request's answers until the last one."""
    framing = websocket.framing(socket.protocol)
    while True:
        frame = await socket.receive()
        if frame.type not in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
            raise _lost(socket, collector, frame)
        message = _decoded(framing, frame)
        if message.parent_id != request.msg_id:
            continue
        if on_message is not None:
            on_message(message)
        # Here the gateway's messages cannot be told from the kernel's. One that lies about its own death
        # cheats its own user, and nobody else.
        if collector.feed(message, trusted=True):
            return


def _decoded(framing: websocket.Framing, frame: aiohttp.WSMessage) -> Message:
    try:
        return framing.decode(frame.data)
    except messages.MalformedMessage as error:
        raise GatewayError(f"The gateway sent a frame that is no Jupyter message: {error}") from error


def _lost(
    socket: aiohttp.ClientWebSocketResponse, collector: Collector, frame: aiohttp.WSMessage | None = None
) -> ConnectionLost:
    """Say why a socket closed, and what had come until then."""
    reason = why_closed(socket, frame)
    result = collector.result(time.monotonic()).model_copy(update={"status": ExecutionStatus.ABORTED})
    return ConnectionLost(
        f"The gateway closed the connection: {reason} ({socket.close_code or 1006}).", result
    )
