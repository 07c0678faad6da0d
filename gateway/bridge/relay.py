"""The bridge itself: what local clients ask goes to the kernel, what it says comes back to them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gateway.bridge import answers
from gateway.bridge.link import is_dead
from gateway.bridge.routes import Asked, Routes
from gateway.client.transport import MAX_FRAME_BYTES
from gateway.errors import GatewayError, LimitReached, PayloadTooLarge
from gateway.protocol.messages import REQUESTS, MalformedMessage, content, make

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from gateway.bridge.link import Link
    from gateway.bridge.sockets import Incoming, LocalSockets
    from gateway.models import Channel, Kernel, Message

MAX_WAITING = 100
INTERRUPT_S = 5.0
FAREWELL_S = 1.0  # for a client to read why its kernel died, before its process is seen to be gone
LATE_S = 1.0  # how long what is said on another channel may be late
DIED = 1  # the exit code by which Jupyter knows a kernel that died
NOT_SPOKEN = answers.error("BadRequest", "No kernel of a gateway takes messages of this type.")


class Bridge:
    """Relays between local sockets and a link until the kernel, or the wish for it, has ended: a `Listener`.

    Every request is answered, by the kernel or in its place.
    """

    def __init__(
        self, sockets: LocalSockets, link: Link, *, language: str, log: Callable[[str], None]
    ) -> None:
        self._sockets = sockets
        self._link = link
        self._language = language
        self._log = log
        self._routes = Routes()
        self._control: asyncio.Queue[Incoming] = asyncio.Queue(MAX_WAITING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._probe: Message | None = None
        self._found_dead = False
        self._shutdown: Incoming | None = None
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self, end_kernel: Callable[[], Coroutine[Any, Any, None]]) -> int:
        """Relay until the end, end the kernel then, and return the exit code."""
        link = self._spawn(self._link.run(self))
        for channel in ("shell", "stdin"):
            self._spawn(self._take(channel))
        self._spawn(self._take_control())
        self._spawn(self._pass_on_control())
        try:
            code = await self._ended
            await end_kernel()
            # what was asked and is not answered is answered now that the kernel is gone
            await asyncio.wait({link}, timeout=LATE_S)
            await self._say_goodbye()
            return code
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._link.close()

    def end(self, code: int = 0) -> None:
        """Come to an end with this exit code, unless it has come already."""
        if not self._ended.done():
            self._ended.set_result(code)

    def interrupt(self) -> None:
        """Interrupt what the kernel runs: the process was sent a SIGINT."""
        self._spawn(self._interrupt())

    # -- from local clients -------------------------------------------------------------------------------

    async def _take(self, channel: Channel) -> None:
        while True:
            incoming = await self._sockets.receive(channel)
            if incoming.message.msg_type == "shutdown_request":
                self._shut_down(incoming)
            else:
                await self._pass_on(incoming)

    async def _take_control(self) -> None:
        """Take what must not wait for the gateway, and put aside what may."""
        while True:
            incoming = await self._sockets.receive("control")
            request = incoming.message
            if request.msg_type == "shutdown_request":
                self._shut_down(incoming)
            elif request.msg_type == "interrupt_request":
                await self._sockets.reply(incoming.identity, answers.reply(request, await self._interrupt()))
            elif self._control.full():
                await self._refuse(incoming, answers.error("LimitReached", "Too many requests are waiting."))
            else:
                self._control.put_nowait(incoming)

    async def _pass_on_control(self) -> None:
        while True:
            await self._pass_on(await self._control.get())

    async def _pass_on(self, incoming: Incoming) -> None:
        """Send a message to the kernel when there is a way, or answer it when there is none."""
        request = incoming.message
        if request.msg_type not in REQUESTS:
            await self._refuse(incoming, NOT_SPOKEN)
            return
        if request.size > MAX_FRAME_BYTES:
            too_large = PayloadTooLarge(f"The message is larger than {MAX_FRAME_BYTES >> 20} MiB.")
            await self._refuse(incoming, answers.error_of(too_large))
            return
        while True:
            await self._link.settled()
            if self._link.failure is not None and request.msg_type == "execute_request":
                await self._link.try_again()
            if self._link.failure is not None:
                await self._refuse(incoming, answers.error_of(self._link.failure))
                return
            asked = None
            try:
                if request.channel != "stdin":
                    asked = self._routes.add(incoming, self._link.connection)
                if await self._link.send(request):
                    return
            except LimitReached as error:
                await self._refuse(incoming, answers.error_of(error))
                return
            if asked is not None:
                self._routes.forget(asked)

    async def _refuse(self, incoming: Incoming, why: dict[str, Any]) -> None:
        request = incoming.message
        if request.channel == "stdin":
            return
        if request.msg_type == "kernel_info_request" and self._link.failure is not None:
            said = answers.kernel_info(request, self._language, why["evalue"])
        else:
            said = answers.refusal(request, why)
        await self._say(incoming.identity, said)

    async def _interrupt(self) -> dict[str, Any]:
        """Interrupt what the kernel runs; return what the reply has to say."""
        try:
            async with asyncio.timeout(INTERRUPT_S):
                await self._link.interrupt()
        except TimeoutError:
            return {"status": "error", **answers.error("GatewayUnreachable", "The gateway does not answer.")}
        except GatewayError as error:
            self._log(f"the interrupt failed: {error.message}")
            return {"status": "error", **answers.error_of(error)}
        return {"status": "ok"}

    def _shut_down(self, incoming: Incoming) -> None:
        self._shutdown = self._shutdown or incoming
        self.end()

    async def _say_goodbye(self) -> None:
        """Answer the shutdown_request, if it was one: to who asked, and to all."""
        if self._shutdown is None:
            return
        request = self._shutdown.message
        try:
            restart = content(request).get("restart") is True
        except MalformedMessage:
            restart = False
        body = {"status": "ok", "restart": restart}
        await self._sockets.reply(self._shutdown.identity, answers.reply(request, body))
        await self._sockets.publish(make("iopub", "shutdown_reply", body, parent=request, session=""))

    # -- from the gateway ---------------------------------------------------------------------------------

    async def received(self, message: Message) -> None:
        """Give what the kernel says to who asked, and what it shows to all."""
        if self._probe is not None and message.parent_id == self._probe.msg_id:
            if message.channel == "shell":
                self._spawn(self._answer_lost(message, self._link.connection))
            return
        if message.msg_type == "status" and b'"dead"' in message.content:
            self._spawn(self._mourn())
            return
        asked = self._routes.note(message)
        if message.channel == "iopub":
            await self._sockets.publish(message)
        elif asked is not None:
            await self._sockets.reply(asked.identity, message)
        if asked is not None and asked.idle and not asked.over and asked.connection < self._link.connection:
            self._spawn(self._answer_for(asked))

    async def connected(self, kernel: Kernel | None) -> None:
        """Ask a kernel that was found again something: when it answers, it has done with what came before."""
        if kernel is None:
            return
        self._log("connected to the gateway again")
        await self._tell_executions("Connected again. Output may be missing above.")
        self._found_dead = is_dead(kernel)
        self._probe = make("shell", "kernel_info_request", {}, parent=None, session="")
        await self._link.send(self._probe)

    async def disconnected(self, why: str) -> None:
        """Tell those who wait that the connection is lost."""
        if self._ended.done():
            return
        self._log(f"the connection to the gateway was lost: {why}")
        await self._tell_executions(f"The connection to the gateway was lost ({why}): trying again.")

    async def failed(self, failure: GatewayError) -> None:
        """Answer everything that waits, and tell the others."""
        why = answers.error_of(failure)
        if not self._ended.done():
            self._log(failure.message)
        if not self._routes and not self._ended.done():
            await self._sockets.publish(answers.notice(why["evalue"], None))
        for asked in self._routes:
            await self._finish(asked, why)

    async def _mourn(self) -> None:
        """End with a kernel that died, as its process would. One that is gone is the link's to tell."""
        try:
            kernel = await self._link.kernel()
        except GatewayError:
            return
        if is_dead(kernel):
            self._log(f"the kernel died ({kernel.reason})")
            await asyncio.sleep(FAREWELL_S)
            self.end(DIED)

    async def _answer_lost(self, reply: Message, connection: int) -> None:
        """Answer what was asked in earlier connections: the kernel has done with it, and will say no more."""
        await asyncio.sleep(LATE_S)
        lost = "The connection to the gateway was lost meanwhile: whether this ran to its end is not known."
        why = answers.said_by(reply) or answers.error("ConnectionLost", lost)
        for asked in self._routes.older_than(connection):
            await self._finish(asked, why)
        if self._found_dead:
            await self._mourn()

    async def _answer_for(self, asked: Asked) -> None:
        """Reply in the kernel's place to what it has done, when its reply went to an earlier gateway."""
        await asyncio.sleep(LATE_S)
        lost = "The reply was lost with the connection to the gateway."
        if self._routes.get(asked.request.msg_id) is asked:
            await self._finish(asked, answers.error("ConnectionLost", lost))

    async def _finish(self, asked: Asked, why: dict[str, Any]) -> None:
        self._routes.forget(asked)
        await self._say(asked.identity, answers.rest_of(asked, why))

    async def _tell_executions(self, text: str) -> None:
        for asked in self._routes:
            if asked.executes and not asked.over:
                await self._sockets.publish(answers.notice(text, asked.request))

    async def _say(self, identity: list[bytes], said: list[Message]) -> None:
        for message in said:
            if message.channel == "iopub":
                await self._sockets.publish(message)
            else:
                await self._sockets.reply(identity, message)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # a part that fails takes the whole along: Jupyter sees a kernel that died, not one that is mute
            self._log(f"failed: {type(error).__name__}: {error}")
            self.end(DIED)
