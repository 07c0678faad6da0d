"""One client's socket on one kernel: frames in, messages to the kernel, and the same way back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from aiohttp import WSMsgType, web

from gateway.errors import BadRequest, GatewayError
from gateway.http.authored import NOT_SHOWN, hollow, note, refusal
from gateway.http.frames import Frames
from gateway.http.outbox import INTERNAL_ERROR, Close, Outbox
from gateway.http.progress import Progress
from gateway.http.witness import Witness
from gateway.protocol.messages import REQUESTS, MalformedMessage, split_stream, wanted_timeout
from gateway.protocol.websocket import UnknownChannel

if TYPE_CHECKING:
    from gateway.models import Message, Origin, Principal
    from gateway.ports import Audit, Clock, KernelHandle
    from gateway.protocol.websocket import Framing
    from gateway.telemetry import Metrics

INVALID_PAYLOAD = 1007
EXPIRED = Close(1008, "The credential has expired or was revoked.")
MAX_REASON_BYTES = 120  # RFC 6455 allows 123
GRACE_S = 2.0  # for a client to take part in the closing
# jupyter_server as a gateway's client dies of a binary frame and drops frames above tornado's 10 MiB.
TEXT_ONLY_BYTES = (10 << 20) - (64 << 10)

log = structlog.get_logger(__name__)


class Connection:
    """Moves messages between an upgraded WebSocket and a kernel until one of them ends."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        frames: Frames,
        transport: asyncio.Transport,
        *,
        principal: Principal,
        origin: Origin,
        handle: KernelHandle,
        outbox: Outbox,
        framing: Framing,
        text_only: bool,
        metrics: Metrics,
        audit: Audit,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._audit = audit
        self._metrics = metrics
        self._requests = metrics.door_requests.labels("websocket")
        self._witness = Witness(audit, clock, handle.id)
        self._socket = socket
        self._frames = frames
        self._transport = transport
        self._origin = origin
        self._handle = handle
        self._outbox = outbox
        self._framing = framing
        self._text_only = text_only
        self._noted = False
        self._reader: asyncio.Task[None] | None = None
        self._progress = Progress(frames, lambda offset: handle.confirm(outbox, offset))
        self._dropped = metrics.dropped_messages
        self.principal = principal

    async def run(self) -> None:
        """Serve the socket until either side closes it."""
        timer = self._until_expiry()
        self._witness.opened()
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write())
                asker = tasks.create_task(self._progress.ask())
                self._reader = tasks.create_task(self._read())
                await asyncio.wait({self._reader})
                if self._outbox.closing is not None:
                    await asyncio.wait({writer}, timeout=GRACE_S)
                writer.cancel()
                asker.cancel()
        except* Exception:
            log.exception("socket_crashed", kernel=self._handle.id)
            self._abort_soon()
            await self._socket.close(code=INTERNAL_ERROR, message=b"The gateway failed; its log says more.")
        finally:
            if timer is not None:
                timer.cancel()
            self._abort_soon()
            ours = self._outbox.closing
            code = self._socket.close_code if ours is None else ours.code
            self._witness.closed(code)
            log.info("socket_closed", kernel=self._handle.id, close_code=code, by_gateway=ours is not None)

    def close(self, close: Close, *, flush: bool = False) -> None:
        """Close the socket, after what is queued or at once; a client that does not help is cut off then."""
        self._outbox.finish(close, flush=flush)
        if not flush:
            self._abort_soon()

    def _until_expiry(self) -> asyncio.TimerHandle | None:
        ends = self.principal.expires_at
        if ends is None:
            return None
        left_s = max(0.0, (ends - self._clock.now()).total_seconds())
        return asyncio.get_running_loop().call_later(left_s, self.close, EXPIRED)

    def _has_expired(self) -> bool:
        # looked at for each message: the timer's clock does not move with the wall's
        ends = self.principal.expires_at
        return ends is not None and self._clock.now() >= ends

    async def _read(self) -> None:
        while True:
            frame = await self._socket.receive()
            if frame.type is WSMsgType.PING:
                await self._socket.pong(frame.data)
                continue
            if frame.type is WSMsgType.PONG:
                self._progress.pong(frame.data)
                continue
            if frame.type not in {WSMsgType.TEXT, WSMsgType.BINARY}:
                return
            if self._outbox.closing is not None:
                continue
            if self._has_expired():
                self.close(EXPIRED)
                continue
            try:
                message = self._framing.decode(frame.data)
            except UnknownChannel as error:
                self._drop("not_allowed", error=str(error))
                self._witness.dropped("not_allowed")
                continue
            except MalformedMessage as error:
                self._drop("malformed", error=str(error))
                self._witness.dropped("malformed")
                self.close(Close(INVALID_PAYLOAD, str(error)))
                continue
            self._forward(message)

    def _forward(self, message: Message) -> None:
        if message.channel == "iopub" or message.msg_type not in REQUESTS:
            self._drop("not_allowed", channel=message.channel, msg_type=message.msg_type)
            self._witness.dropped("not_allowed", message.msg_type)
            return
        self._requests.inc()
        try:
            with self._witness.asked(message):
                self._send(message)
        except GatewayError as error:
            self._metrics.refused(error)
            for answer in refusal(message, error):
                self._outbox.deliver(answer)

    def _send(self, message: Message) -> None:
        try:
            self._handle.send(message, self._outbox, timeout_s=wanted_timeout(message), origin=self._origin)
        except MalformedMessage as error:
            raise BadRequest(str(error)) from error

    async def _write(self) -> None:
        with suppress(ConnectionError):
            while (message := await self._outbox.next()) is not None:
                if tells_of_end(message):
                    await self._frames.flush()
                    if not await self._recorded():
                        continue
                self._progress.before(message, last=not self._outbox, missed=self._outbox.behind)
                for piece in split_stream(message):
                    frame = self._encode(piece)
                    if frame is not None:
                        self._frames.add(frame)
                    self._witness.sent(piece.size)
                    if self._frames.full:
                        await self._frames.flush()
                        # others have their turn
                        await asyncio.sleep(0)
                if not self._outbox:
                    await self._frames.flush()
                if not self._frames:
                    self._progress.wrote(message)
            close = self._outbox.closing
            if close is not None and self._reader is not None:
                # while another reads, aiohttp cuts the line at once, and a client that still answers a ping
                # which came before the closing finds it broken
                self._reader.cancel()
                await asyncio.wait({self._reader})
                await self._socket.close(code=close.code, message=close.reason.encode()[:MAX_REASON_BYTES])

    async def _recorded(self) -> bool:
        """Wait until what has ended has its record; close the socket where that cannot be kept."""
        try:
            await self._audit.written()
        except GatewayError as error:
            self.close(Close(INTERNAL_ERROR, error.message))
            return False
        return True

    def _encode(self, message: Message) -> bytes | str | None:
        """Return a message's frame, or that of what stands for it; None when it was said before."""
        if self._text_only and (message.buffers or message.size > TEXT_ONLY_BYTES):
            self._drop("not_encodable", msg_type=message.msg_type, bytes=message.size)
        else:
            try:
                return self._framing.encode(message)
            except MalformedMessage as error:
                self._drop("not_encodable", msg_type=message.msg_type, error=str(error))
        if message.channel != "iopub":
            return self._framing.encode(hollow(message))
        if self._noted:
            return None
        self._noted = True
        return self._framing.encode(note(message, NOT_SHOWN))

    def _drop(self, reason: str, **facts: object) -> None:
        self._dropped.labels(reason).inc()
        log.warning("message_dropped", reason=reason, kernel=self._handle.id, **facts)

    def _abort_soon(self) -> None:
        asyncio.get_running_loop().call_later(GRACE_S, self._transport.abort)


def tells_of_end(message: Message) -> bool:
    """Tell whether a client may learn from a message that something has ended."""
    if message.channel == "iopub":
        return message.msg_type == "status" and b"idle" in message.content
    return message.msg_type == "execute_reply" or message.channel == "control"
