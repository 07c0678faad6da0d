"""One client's socket: requests in, answers and notifications out, and everything that it runs meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

import structlog
from aiohttp import WSMsgType, web

from gateway.errors import BadRequest, GatewayError, LimitReached, NotFound, PayloadTooLarge
from gateway.http.bodies import parsed
from gateway.http.connection import EXPIRED, GRACE_S, MAX_REASON_BYTES
from gateway.http.outbox import INTERNAL_ERROR, Close
from gateway.http.rpc.calls import ToolCalls
from gateway.http.rpc.method import Call
from gateway.http.rpc.protocol import Answer, failure, id_of, notification, parse, request, result
from gateway.http.rpc.service import Requests
from gateway.models import AuditAction, AuditEvent
from gateway.models.jobs import CallAnswer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.http.context import Context
    from gateway.http.rpc.protocol import Id, Request
    from gateway.models import Origin, Principal

MAX_REQUESTS = 32
MAX_FEEDS = 32
FAIR_FRAMES = 64  # written in one go, before others have their turn

log = structlog.get_logger(__name__)


class RpcConnection:
    """Serves JSON-RPC on an upgraded WebSocket until one of the two ends.

    Nothing queues for a client that reads slowly: what would be sent waits where it comes from, a request for
    its answer to be taken, an execution's events in its journal, which tells of a gap once it is full.
    """

    def __init__(
        self,
        socket: web.WebSocketResponse,
        transport: asyncio.Transport,
        *,
        ctx: Context,
        principal: Principal,
        origin: Origin,
    ) -> None:
        self._socket = socket
        self._transport = transport
        self._ctx = ctx
        self._origin = origin
        self._requests = Requests(ctx)
        self._numbers = count(1)
        self._calls = ToolCalls(lambda: f"gateway-{next(self._numbers)}")
        self._running: dict[asyncio.Task[None], tuple[Id | None, int]] = {}
        self._feeds: dict[str, asyncio.Task[None]] = {}
        self._sending = asyncio.Lock()
        self._sent = 0
        self._frames = 0
        self._reader: asyncio.Task[None] | None = None
        self._closing: Close | None = None
        self.principal = principal

    async def run(self) -> None:
        """Serve the socket until either side closes it; what it runs is ended with it."""
        began, timer = self._ctx.clock.monotonic(), self._until_expiry()
        self._ctx.audit.record(AuditEvent(action=AuditAction.CHANNELS_OPEN, target="rpc"))
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._reader = tasks.create_task(self._read())
                await asyncio.wait({self._reader})
                for task in (*self._running, *self._feeds.values()):
                    task.cancel()
        except* Exception:
            log.exception("socket_crashed", door="rpc")
            self._closing = self._closing or Close(INTERNAL_ERROR, "The gateway failed; its log says more.")
        finally:
            if timer is not None:
                timer.cancel()
            self._abort_soon()
            if self._closing is not None:
                reason = self._closing.reason.encode()[:MAX_REASON_BYTES]
                await self._socket.close(code=self._closing.code, message=reason)
            code = self._socket.close_code
            self._ctx.audit.record(
                AuditEvent(
                    action=AuditAction.CHANNELS_CLOSE,
                    target="rpc",
                    reason=None if code is None else str(code),
                    duration_s=round(self._ctx.clock.monotonic() - began, 6),
                    output_bytes=self._sent,
                    extra=self._requests.told(),
                )
            )
            log.info("socket_closed", door="rpc", close_code=code, by_gateway=self._closing is not None)

    def close(self, close: Close, *, flush: bool = False) -> None:  # noqa: ARG002 - nothing is queued
        """Close the socket; what it runs is ended, and a client that does not help is cut off."""
        self._closing = self._closing or close
        if self._reader is not None:
            self._reader.cancel()
        self._abort_soon()

    async def notify(self, method: str, params: bytes) -> None:
        """Send a notification, once the client has read enough of what came before."""
        await self._send(notification(method, params))

    async def call_tool(self, execution_id: str, call_id: str, params: bytes) -> None:
        """Send a request `tool.call`, whose answer goes to that call."""
        await self._send(request(self._calls.put(execution_id, call_id), "tool.call", params))

    def withdraw(self, execution_id: str, call_id: str | None = None) -> None:
        """Forget a call that is answered otherwise, or all of an execution."""
        self._calls.withdraw(execution_id, call_id)

    def subscribe(self, execution_id: str, feed: Callable[[], Awaitable[None]]) -> None:
        """Run a feed beside the requests, in the place of one on the same execution. Raises LimitReached."""
        self.unsubscribe(execution_id)
        if len(self._feeds) >= MAX_FEEDS:
            raise LimitReached(
                f"This connection follows {MAX_FEEDS} executions, as many as it may.", reason="subscriptions"
            )
        task = self._tasks.create_task(self._fed(feed))
        self._feeds[execution_id] = task
        task.add_done_callback(lambda done: self._forget_feed(execution_id, done))

    def unsubscribe(self, execution_id: str) -> None:
        """End the feed on an execution, if there is one."""
        task = self._feeds.pop(execution_id, None)
        if task is not None:
            task.cancel()

    async def _read(self) -> None:
        while True:
            frame = await self._socket.receive()
            if frame.type not in {WSMsgType.TEXT, WSMsgType.BINARY}:
                return
            ends = self.principal.expires_at
            if ends is not None and self._ctx.clock.now() >= ends:
                # looked at for each frame: the timer's clock does not move with the wall's
                self._closing = EXPIRED
                return
            await self._take(frame.data)

    async def _take(self, frame: str | bytes) -> None:
        try:
            given = parse(frame)
            if isinstance(given, Answer):
                await self._answered(given)
                return
            self._check_room(given, len(frame))
        except GatewayError as error:
            self._requests.refused(self._call(None), error)
            # to be read before more is, or the errors themselves would pile up
            await self._send(failure(id_of(frame), error))
            return
        task = self._tasks.create_task(self._serve(given))
        self._running[task] = given.id, len(frame)
        task.add_done_callback(self._running.pop)

    def _check_room(self, given: Request, size: int) -> None:
        """Refuse a request for which there is no room. Raises LimitReached, NotARequest."""
        self._requests.check_id(given, {own for own, _ in self._running.values()})
        held = sum(bytes_ for _, bytes_ in self._running.values())
        full = held + size > self._ctx.settings.server.max_frame_bytes
        if len(self._running) >= MAX_REQUESTS or (self._running and full):
            raise LimitReached(
                f"This connection has {len(self._running)} requests under way, as many as it may.",
                reason="requests",
                retry_after_s=1,
            )

    async def _serve(self, given: Request) -> None:
        try:
            frame = await self._requests.serve(self._call(given.id), given)
            if given.id is not None:
                await self._send(result(given.id, frame))
        except GatewayError as error:
            if given.id is not None:
                await self._send(failure(given.id, error))

    async def _answered(self, answer: Answer) -> None:
        place = self._calls.take(answer.id)
        if place is None:
            return  # withdrawn meanwhile, or made up: nobody waits for it
        with suppress(NotFound):
            try:
                given = parsed(CallAnswer, {"result": answer.result, "error": answer.error})
                await self._ctx.jobs.answer(self.principal, *place, given)
            except (BadRequest, PayloadTooLarge) as error:
                # the code must not wait for another answer, which does not come
                await self._ctx.jobs.answer(self.principal, *place, CallAnswer(error=error.message))

    def _call(self, own_id: Id | None) -> Call:
        name = f"{self._origin.request_id}.{next(self._numbers)}"
        origin = self._origin.model_copy(update={"request_id": name})
        return Call(self._ctx, self.principal, origin, self, own_id)

    async def _fed(self, feed: Callable[[], Awaitable[None]]) -> None:
        try:
            await feed()
        except Exception:
            log.exception("feed_crashed", door="rpc")

    def _forget_feed(self, execution_id: str, done: asyncio.Task[None]) -> None:
        if self._feeds.get(execution_id) is done:
            del self._feeds[execution_id]

    async def _send(self, frame: str) -> None:
        with suppress(ConnectionError):
            async with self._sending:
                await self._socket.send_str(frame)
                self._sent += len(frame)
                self._frames = (self._frames + 1) % FAIR_FRAMES
            if not self._frames:
                await asyncio.sleep(0)

    def _until_expiry(self) -> asyncio.TimerHandle | None:
        ends = self.principal.expires_at
        if ends is None:
            return None
        left_s = max(0.0, (ends - self._ctx.clock.now()).total_seconds())
        return asyncio.get_running_loop().call_later(left_s, self.close, EXPIRED)

    def _abort_soon(self) -> None:
        asyncio.get_running_loop().call_later(GRACE_S, self._transport.abort)
