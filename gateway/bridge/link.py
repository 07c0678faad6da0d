"""The far side: one kernel of a gateway, and the WebSocket to it, opened again whenever it breaks."""

from __future__ import annotations

import asyncio
import random
import uuid
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Protocol

import aiohttp

from gateway.client import Client
from gateway.client.failures import GatewayUnreachable, why_closed
from gateway.errors import Conflict, GatewayError, Gone, NotFound
from gateway.models import ExecutionState
from gateway.protocol.messages import MalformedMessage
from gateway.protocol.websocket import framing

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.models import Kernel, Message

DIAL_S = 10.0
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
PATIENCE_S = 60.0  # how long requests wait for a gateway that is away: it keeps its kernels about as long
SHORT_WAIT_S = 5.0  # a refusal that says so is worth waiting for
TRIES = 3
FAIR_FRAMES = 32  # passed on in one go, before others have their turn


class KernelGone(Gone):
    """The kernel that was there is there no more: deleted, culled, or ended with its gateway."""


class Listener(Protocol):
    """What a link tells of."""

    async def received(self, message: Message) -> None:
        """Take a message of the kernel's."""
        ...

    async def connected(self, kernel: Kernel | None) -> None:
        """Take the news that requests reach the kernel; `kernel` says how it was found again."""
        ...

    async def disconnected(self, why: str) -> None:
        """Take the news that they do not, for now."""
        ...

    async def failed(self, failure: GatewayError) -> None:
        """Take the news that there is no kernel, or no way to it."""
        ...


class Link:
    """Gets one kernel from a gateway and keeps a WebSocket to it. Use as an async context manager.

    `failure` says why there is no kernel, or no way to it; `connection` counts the sockets so far. The
    credential is read anew for every attempt, so that one that was replaced is taken up.
    """

    def __init__(
        self,
        url: str,
        credential: Callable[[], str],
        kernel_name: str | None,
        kernel_id: str,
    ) -> None:
        self._url = url
        self._credential = credential
        self._kernel_name = kernel_name
        self._kernel_id = kernel_id
        self._session_id = uuid.uuid4().hex
        self._stack = AsyncExitStack()
        self._client: Client | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._settled = asyncio.Event()
        self._wanted = asyncio.Event()
        self._not_before = 0.0
        self._started = False
        self.connection = 0
        self.failure: GatewayError | None = None

    async def run(self, listener: Listener) -> None:
        """Get the kernel and keep the way to it open, until it is gone for good."""
        await self._start(listener)
        while (found := await self._dial(listener)) is not None:
            self._socket, kernel = found
            self.connection += 1
            self.failure = None
            await listener.connected(kernel)
            self._settled.set()
            why = await self._listen(self._socket, listener)
            self._socket = None
            self._settled.clear()
            await listener.disconnected(why)

    async def close(self) -> None:
        """Let go of the gateway."""
        await self._stack.aclose()

    async def settled(self) -> None:
        """Wait until requests reach the kernel, or `failure` says why they will not."""
        await self._settled.wait()

    async def try_again(self) -> None:
        """Ask once more for a kernel that was refused, unless it is too early for that."""
        if not self._started and asyncio.get_running_loop().time() >= self._not_before:
            self._settled.clear()
            self._wanted.set()
            await self._settled.wait()

    async def send(self, message: Message) -> bool:
        """Send a message to the kernel; False when there is no way to it and it was not sent."""
        socket = self._socket
        if socket is None:
            return False
        frame = framing(socket.protocol).encode(message)
        try:
            if isinstance(frame, str):
                await socket.send_str(frame)
            else:
                await socket.send_bytes(frame)
        except (ConnectionError, aiohttp.ClientError):
            # nothing of it was written: aiohttp says so before
            self._settled.clear()
            return False
        return True

    async def interrupt(self) -> None:
        """Interrupt what the kernel runs. Raises GatewayError."""
        if self._client is None:
            raise GatewayUnreachable("There is no kernel yet.")
        await self._client.kernels.interrupt(self._kernel_id)

    async def kernel(self) -> Kernel:
        """Return how the kernel is. Raises GatewayError."""
        if self._client is None:
            raise GatewayUnreachable("There is no kernel yet.")
        return await self._client.kernels.get(self._kernel_id)

    # -- getting the kernel -------------------------------------------------------------------------------

    async def _start(self, listener: Listener) -> None:
        tries = 0
        while True:
            tries += 1
            try:
                await self._create()
            except GatewayError as error:
                wait_s = error.retry_after_s or 0
                if 0 < wait_s <= SHORT_WAIT_S and tries < TRIES:
                    await asyncio.sleep(wait_s)
                    continue
                await self._refused(error, listener)
                tries = 0
            else:
                self._started = True
                return

    async def _create(self) -> None:
        client = await self._renewed()
        try:
            await client.kernels.create(self._kernel_name, kernel_id=self._kernel_id)
        except Conflict:
            # an earlier attempt came to something, and its answer got lost
            await client.kernels.get(self._kernel_id)

    async def _refused(self, error: GatewayError, listener: Listener) -> None:
        """Say why there is no kernel, and wait until one is wanted all the same."""
        self._not_before = asyncio.get_running_loop().time() + (error.retry_after_s or 0)
        self._wanted.clear()
        await self._fail(error, listener)
        await self._wanted.wait()

    async def _renewed(self) -> Client:
        """Return a new client with the credential as it is now."""
        key = await asyncio.to_thread(self._credential)
        await self._stack.aclose()
        self._client = await self._stack.enter_async_context(Client(self._url, key, retries=0))
        return self._client

    # -- the way to it ------------------------------------------------------------------------------------

    async def _dial(self, listener: Listener) -> tuple[aiohttp.ClientWebSocketResponse, Kernel | None] | None:
        """Open a socket, however long that takes, and say how the kernel was found; None when it is gone."""
        loop = asyncio.get_running_loop()
        fresh = self.connection == 0
        patience_s = 0.0 if fresh else PATIENCE_S
        wait_s, lost_at = FIRST_WAIT_S, loop.time()
        while True:
            try:
                async with asyncio.timeout(DIAL_S):
                    client = self._client if fresh and self._client else await self._renewed()
                    kernel = None if fresh else await client.kernels.get(self._kernel_id)
                    return await client.kernels.channels(self._kernel_id, self._session_id), kernel
            except NotFound as error:
                await self._fail(KernelGone(_gone(error)), listener)
                return None
            except (GatewayError, TimeoutError) as error:
                failure = error if isinstance(error, GatewayError) else _silent(self._url)
                out_of_patience = loop.time() - lost_at >= patience_s or not _passes(failure)
                if self.failure is None and out_of_patience:
                    await self._fail(failure, listener)
            fresh = False
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients, no secret
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _fail(self, failure: GatewayError, listener: Listener) -> None:
        self.failure = failure
        self._settled.set()
        await listener.failed(failure)

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse, listener: Listener) -> str:
        """Pass on what comes until the socket closes; return why it did."""
        coded = framing(socket.protocol)
        taken = 0
        while True:
            frame = await socket.receive()
            if frame.type not in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
                return why_closed(socket, frame)
            with suppress(MalformedMessage):
                await listener.received(coded.decode(frame.data))
            taken += 1
            if taken % FAIR_FRAMES == 0:
                await asyncio.sleep(0)


def is_dead(kernel: Kernel | None) -> bool:
    """Tell whether a kernel was found dead."""
    return kernel is not None and kernel.execution_state is ExecutionState.DEAD


def _passes(error: GatewayError) -> bool:
    """Tell whether an error may be over soon by itself."""
    return error.status >= 500 or error.status in {408, 429}


def _gone(error: NotFound) -> str:
    return (
        "The kernel is gone: it was deleted, culled, or ended with its gateway"
        f" ({error.message.rstrip('.')}). Restart the kernel for a new one; variables are lost."
    )


def _silent(url: str) -> GatewayError:
    return GatewayUnreachable(f"The gateway at {url} does not answer.")
