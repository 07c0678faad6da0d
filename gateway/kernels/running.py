"""One run of a kernel: its cell, its channels, and its end, seen by pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import zmq

from gateway.errors import GatewayError, KernelStartFailed, SandboxUnavailable
from gateway.kernels.channels import KernelChannels, OnDropped, OnMessage, bound, make_context
from gateway.kernels.gate import CHUNK_BYTES
from gateway.kernels.pace import Company
from gateway.kernels.processes import CellProcesses
from gateway.kernels.toolcalls import Desks
from gateway.models import CHANNELS, Channel, Limits, Message, Usage
from gateway.ports import Clock
from gateway.protocol.messages import make
from gateway.sandbox.link import WardenLink
from gateway.sandbox.wire import CellFacts, Ending, LaunchOrder
from gateway.settings import ProcessesSettings

POLL_S = 0.005
# own questions whose late answers are known as such
MOST_ASKED = 128
# how long a kernel's end takes to be noticed at most
NOTICE_S = 0.5
# how long a kernel without connections has to end by itself
LOST_S = 1.0
# a kernel without iopub_welcome (JEP 65) is asked until something has come back on iopub as well
ASK_AGAIN_S = 0.5
# what a dead kernel's sockets still hold is read for this long before its requests are answered for it
LAST_WORDS_S = 0.02
# what a kernel is told by that was started for nobody (boot.Pool), how long it may take to hear it, and how
# long to answer whether it is well
CLAIM, CLAIM_S, CHECK_S = "cellblock_claim_request", 2.0, 5.0


@dataclass(frozen=True, slots=True)
class Wiring:
    """What every run of a gateway's kernels shares."""

    link: WardenLink
    context: zmq.Context[Any]
    buffer: memoryview
    company: Company
    session: str
    max_message_bytes: int
    ready_timeout_s: float
    on_dropped: OnDropped
    processes: ProcessesSettings


def wire(
    link: WardenLink,
    *,
    session: str,
    kernels: int,
    max_message_bytes: int,
    ready_timeout_s: float,
    on_dropped: OnDropped,
    processes: ProcessesSettings | None = None,
) -> Wiring:
    """Return the wiring for at most `kernels` kernels."""
    context = make_context(kernels * len(CHANNELS) + 64)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    bounds = processes or ProcessesSettings()
    return Wiring(
        link, context, buffer, Company(), session, max_message_bytes, ready_timeout_s, on_dropped, bounds
    )


@dataclass(frozen=True, slots=True)
class Listener:
    """What is done with a run's news: a message, one dropped for its size, an exit, a broken connection."""

    on_message: OnMessage
    on_too_large: Callable[[Channel], None]
    on_exit: Callable[[RunningCell], None]
    on_lost: Callable[[RunningCell, str], None]
    desks: Desks


class RunningCell:
    """A launched cell whose kernel this gateway talks to; owns its channels, processes and its pidfd."""

    def __init__(
        self,
        wiring: Wiring,
        facts: CellFacts,
        pidfd: int,
        listener: Listener,
        *,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.facts = facts
        self._clock = clock
        self._wiring = wiring
        self.processes = self._beside(limits, listener.desks)
        self._pidfd = pidfd
        self._listener = listener
        self._loss: asyncio.TimerHandle | None = None
        self._channels: KernelChannels | None = None
        self._loop = asyncio.get_running_loop()
        self._exited = asyncio.Event()
        self._heard: set[str] = set()
        self._asked: deque[str] = deque(maxlen=MOST_ASKED)
        self._awaited: dict[str, asyncio.Future[Message]] = {}
        self._news = asyncio.Event()
        self._loop.add_reader(pidfd, self._exit)

    @classmethod
    async def launch(
        cls, wiring: Wiring, order: LaunchOrder, listener: Listener, clock: Clock
    ) -> RunningCell:
        """Launch a cell. Raises SandboxUnavailable."""
        facts, pidfd = await wiring.link.launch(order)
        return cls(wiring, facts, pidfd, listener, limits=order.limits, clock=clock)

    async def ready(self) -> None:
        """Connect, wait until the kernel answers on shell and iopub, and seal its sockets.

        Raises:
            KernelStartFailed: it died, or did not answer in time.
        """
        try:
            async with asyncio.timeout(self._wiring.ready_timeout_s):
                while not bound(self.facts.connection.ip):
                    self._check_alive()
                    await asyncio.sleep(POLL_S)
                await self._converse()
        except TimeoutError:
            raise KernelStartFailed(
                f"The kernel did not answer within {self._wiring.ready_timeout_s:g} s.", reason="timeout"
            ) from None
        await self._wiring.link.seal(self.facts.cell)

    async def claim(self, order: LaunchOrder, env: Mapping[str, str], listener: Listener) -> None:
        """Become the cell of the kernel that an order is for: with its limits, and `env` beside its own.

        Raises:
            Conflict: its limits cannot be lowered so far.
            SandboxUnavailable, KernelStartFailed: it is of no use; end it.
        """
        self.facts = await self._wiring.link.claim(
            self.facts.cell, kernel_id=order.kernel_id, limits=order.limits, age_s=order.age_s
        )
        if env:
            await self._tell(env)
        self._check_alive()
        self._listener = listener
        self.processes.close()
        self.processes = self._beside(order.limits, listener.desks)

    async def _tell(self, env: Mapping[str, str]) -> None:
        """Have the kernel's boot step set variables; they are data in a message, never code."""
        said = await self._answer("control", CLAIM, {"env": dict(env)}, CLAIM_S)
        if said.msg_type != CLAIM.replace("request", "reply"):
            raise KernelStartFailed("The kernel did not take its environment.", reason="claim")

    @contextlib.asynccontextmanager
    async def or_end(self, secrets: Iterable[str] = ()) -> AsyncIterator[None]:
        """Have the cell ended where the body fails, and what its kernel said told, without the secrets."""
        try:
            yield
        except BaseException as error:
            ending = await self.end()
            if isinstance(error, KernelStartFailed) and ending.stderr:
                error.message += f" It said: {hidden(ending.stderr, secrets)[-500:]}"
            raise

    async def rehearse(self, code: str) -> None:
        """Run code that leaves nothing: the first of all takes a kernel longer. Raises KernelStartFailed."""
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}}
        await self._answer("shell", "execute_request", content, CHECK_S)

    async def check(self) -> None:
        """Ask the kernel whether it answers. Raises KernelStartFailed when it does not."""
        await self._answer("shell", "kernel_info_request", {}, CHECK_S)

    async def _answer(
        self, channel: Channel, msg_type: str, content: Mapping[str, Any], within_s: float
    ) -> Message:
        """Return the kernel's reply to a question of our own. Raises KernelStartFailed when none comes."""
        self._check_alive()
        request = make(channel, msg_type, content, parent=None, session=self._wiring.session)
        self._asked.append(request.msg_id)
        reply: asyncio.Future[Message] = self._loop.create_future()
        self._awaited[request.msg_id] = reply
        try:
            self.send(request)
            async with asyncio.timeout(within_s):
                return await reply
        except TimeoutError:
            raise KernelStartFailed(f"The kernel does not answer a {msg_type}.", reason="timeout") from None
        finally:
            del self._awaited[request.msg_id]

    async def reconnect(self, wait_s: float = 1.0) -> None:
        """Connect to an adopted kernel, whose sockets are sealed already; it may be busy and silent.

        Raises:
            KernelStartFailed: its sockets are not there.
        """
        if not bound(self.facts.connection.ip):
            raise KernelStartFailed("The kernel's sockets are gone.", reason="adoption")
        try:
            await self._connect()
        except KernelStartFailed:
            # who has died refuses; that is news of its own
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._exited.wait(), NOTICE_S)
            if self.alive:
                raise
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while "iopub" not in self._heard and self.alive:
                    await self._next_news()
        # its gateway may have died before it came to that
        await self._wiring.link.seal(self.facts.cell)

    @property
    def alive(self) -> bool:
        """Whether the kernel's process has not exited, as far as this side has noticed."""
        return not self._exited.is_set()

    def send(self, message: Message) -> None:
        """Send a message. Raises LimitReached when the kernel takes no more for now."""
        if self._channels:
            self._channels.send(message)

    async def interrupt(self) -> None:
        """Send SIGINT to the kernel."""
        await self._wiring.link.interrupt(self.facts.cell)

    async def pause(self) -> None:
        """Freeze every process of the cell."""
        self.processes.paused = True
        try:
            await self._wiring.link.pause(self.facts.cell)
        except BaseException:
            self.processes.paused = False
            raise

    async def resume(self) -> None:
        """Let the processes go on."""
        await self._wiring.link.resume(self.facts.cell)
        self.processes.paused = False

    async def usage(self) -> Usage:
        """Return what the cell uses."""
        return await self._wiring.link.usage(self.facts.cell)

    async def end(self) -> Ending:
        """Kill the cell as a whole, hear the kernel's last words, and let go of everything."""
        try:
            ending = await self._wiring.link.end(self.facts.cell)
        except GatewayError:
            # the warden is gone, and with it every cell; or it finds the order when it goes on
            ending = Ending(exit_code=None, oom=False, stderr="")
        if self._channels:
            await asyncio.sleep(LAST_WORDS_S)
        self.close()
        return ending

    def close(self) -> None:
        """Let go of channels, processes and pidfd, whatever the cell does. Closing twice is harmless."""
        self.processes.close()
        if self._loss:
            self._loss.cancel()
        if self._channels:
            self._channels.close()
            self._channels = None
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def _converse(self) -> None:
        await self._connect()
        self._ask()
        asked = self._loop.time()
        while not {"iopub", "shell"} <= self._heard:
            self._check_alive()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_AGAIN_S):
                    await self._next_news()
            if self._loop.time() - asked >= ASK_AGAIN_S:
                self._ask()
                asked = self._loop.time()

    async def _connect(self) -> None:
        channels = KernelChannels(
            self._wiring.context,
            self._wiring.buffer,
            self._wiring.company,
            self.facts.connection.model_dump(),
            on_message=self._hear,
            on_dropped=self._wiring.on_dropped,
            on_too_large=self._too_large,
            on_lost=self._lost,
            max_bytes=self._wiring.max_message_bytes,
        )
        try:
            await channels.open()
        except (OSError, zmq.ZMQError) as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise SandboxUnavailable(
                    "The gateway has no descriptors left.", reason="no_descriptors"
                ) from error
            raise KernelStartFailed(
                f"The kernel's sockets cannot be used: {error.strerror or 'no connection'}.", reason="sockets"
            ) from error
        self._channels = channels

    def _lost(self, channel: Channel, reason: str) -> None:
        """Give up a kernel that cannot be served on all channels, unless it is ending by itself."""
        if self._loss is None:
            reason = f"The connection of {channel} is gone: {reason}"
            self._loss = self._loop.call_later(LOST_S, self._tell_lost, reason)

    def _tell_lost(self, reason: str) -> None:
        self._listener.on_lost(self, reason)

    def _too_large(self, channel: Channel) -> None:
        self._listener.on_too_large(channel)

    def _beside(self, limits: Limits, desks: Desks) -> CellProcesses:
        link, settings = self._wiring.link, self._wiring.processes
        return CellProcesses(link, self.facts.cell, limits, settings=settings, clock=self._clock, desks=desks)

    def _ask(self) -> None:
        request = make("shell", "kernel_info_request", {}, parent=None, session=self._wiring.session)
        self._asked.append(request.msg_id)
        self.send(request)

    def _hear(self, message: Message) -> None:
        if message.channel not in self._heard:
            self._heard.add(message.channel)
            self._news.set()
        reply = self._awaited.get(message.parent_id) if message.channel != "iopub" else None
        if reply and not reply.done():
            reply.set_result(message)
        # the answers to our own questions are nobody else's
        if message.msg_type != "iopub_welcome" and message.parent_id not in self._asked:
            self._listener.on_message(message)

    async def _next_news(self) -> None:
        await self._news.wait()
        self._news.clear()

    def _check_alive(self) -> None:
        if not self.alive:
            raise KernelStartFailed("The kernel ended while it started.", reason="crashed")

    def _exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._exited.set()
        self._news.set()
        self._listener.on_exit(self)


def hidden(text: str, secrets: Iterable[str]) -> str:
    """Return what a kernel said without the secrets that it was given."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
