"""The conversation with a cell's attendant. All that comes from there may be an attacker's."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import secrets
import socket
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gateway.errors import BadRequest, Conflict, GatewayError, LimitReached, NotFound, SandboxUnavailable
from gateway.kernels.pace import Pace

# bytes of a message in one packet, of a packet that comes, of a message that comes, of what waits to be taken
PIECE, PACKET, MESSAGE, WAITING = 60 << 10, 64 << 10, 1100 << 10, 4 << 20
# of output that an earlier gateway has not read
EARLY = 1 << 20
# packets taken before other kernels get their turn, and what each costs beside its bytes
BATCH, PACKET_COST = 8, 1 << 10
ANSWER_S = 10.0

M = TypeVar("M", bound=BaseModel)
# output that was said before hello: of which process and stream, after how many bytes
Early = tuple[int, int, int, bytes]


class Head(BaseModel):
    """The head of a packet that comes: an answer to a request, or news."""

    model_config = ConfigDict(extra="forbid", strict=True)

    re: int | None = None
    op: str | None = Field(None, max_length=16)
    more: bool = False
    epoch: str | None = Field(None, max_length=64)
    p: int = Field(0, ge=0)
    c: int = Field(0, ge=0)
    fd: int = Field(0, ge=0, le=2)
    at: int = Field(0, ge=0)
    code: int | None = Field(None, ge=-128, le=255)


HEAD = TypeAdapter(Head)
REFUSALS: Mapping[str, type[GatewayError]] = {
    "cannot_run": BadRequest,
    "bad_signal": BadRequest,
    "no_room": LimitReached,
    "full": LimitReached,
    "closed": Conflict,
    "ended": Conflict,
    "not_permitted": Conflict,
    "gone": NotFound,
    "failed": Conflict,
}


class Broken(Exception):
    """What came is not what an attendant says."""


class Audience(Protocol):
    """Who hears what an attendant tells unasked. What is wrong in it is `Broken`."""

    def greeted(self, known: bytes, early: list[Early]) -> None:
        """Take what was started before, and its output that nobody has read; later news may be about it."""
        ...

    def output(self, number: int, stream: int, at: int, data: bytes) -> None:
        """Take output of a process, which has sent `at` bytes before."""
        ...

    def exited(self, number: int, code: int) -> None:
        """Take note of a process's end."""
        ...

    def called(self, number: int, request: bytes) -> None:
        """Take a call of a tool."""
        ...

    def hung_up(self, number: int) -> None:
        """Take note that a call's answer is awaited no more."""
        ...

    def left(self) -> None:
        """Take note that the conversation is over, once; `Attendant.failure` says why."""
        ...


class Attendant:
    """One end of the conversation; owns its socket. What goes wrong ends it, and never the kernel."""

    def __init__(self, descriptor: int, audience: Audience, *, answer_s: float = ANSWER_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._audience = audience
        self._answer_s = answer_s
        self._pace = Pace(self._loop.time, share=0.5)
        self._numbers = itertools.count(1)
        self._last = 0
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._epoch = secrets.token_hex(8)
        self._met = False
        self._early: list[Early] = []
        self._early_bytes = 0
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._room.set()
        self._partial: tuple[Head, bytearray] | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._over: tuple[str, str] | None = None
        # what comes belongs to no request, least of all to the one that happens to open this
        contextvars.Context().run(self._loop.add_reader, self._socket, self._readable)

    @property
    def failure(self) -> SandboxUnavailable | None:
        """Why the conversation is over, if it is."""
        # each time anew: an error that is raised takes notes of where, and of who has heard of it
        return SandboxUnavailable(self._over[0], reason=self._over[1]) if self._over else None

    async def greet(self) -> None:
        """Begin; what was said to an earlier gateway is passed over. Raises SandboxUnavailable."""
        self.tell({"op": "hello", "epoch": self._epoch})
        await self._wait(self._greeted)

    async def ask(self, head: Mapping[str, Any], body: bytes = b"") -> Any:
        """Ask for something and return the answer's JSON. Raises GatewayError."""
        number = self._last = next(self._numbers)
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._asked[number] = answer
        try:
            self.tell({**head, "id": number}, body)
            said = await self._wait(answer)
        finally:
            self._asked.pop(number, None)
        try:
            found = orjson.loads(said)
            refused = refusal(found["error"]) if isinstance(found, dict) and "error" in found else None
        except (orjson.JSONDecodeError, Broken):
            raise self.give_up() from None
        if refused:
            raise refused
        return found

    async def learn(self, model: type[M], head: Mapping[str, Any], body: bytes = b"") -> M:
        """Ask for something that is a model. Raises GatewayError."""
        found = await self.ask(head, body)
        try:
            return model.model_validate(found, strict=False)
        except ValidationError:
            raise self.give_up() from None

    def tell(self, head: Mapping[str, Any], body: bytes = b"") -> None:
        """Say something that is not answered. Raises SandboxUnavailable: it is over, or nothing is taken."""
        if failure := self.failure:
            raise failure
        if self._out_bytes > WAITING:
            raise self._silent()
        for start in range(0, max(1, len(body)), PIECE):
            more = {"more": True} if start + PIECE < len(body) else {}
            packet = orjson.dumps({**head, **more}) + b"\n" + body[start : start + PIECE]
            self._out.append(packet)
            self._out_bytes += len(packet)
        self._flush()

    async def deliver(self, head: Mapping[str, Any], body: bytes) -> None:
        """Say something large, once what was said before has been taken. Raises SandboxUnavailable."""
        async with self._turn:
            await self._room.wait()
            self.tell(head, body)

    def give_up(self) -> SandboxUnavailable:
        """End the conversation with who is no attendant, and return the error that says so."""
        text = "The cell's attendant said what none says: restart the kernel to have another."
        self._end(text, "attendant_broken")
        return SandboxUnavailable(text, reason="attendant_broken")

    def close(self) -> None:
        """End the conversation and tell nobody; the attendant goes on. Closing twice is harmless."""
        self._end("The conversation was closed.", "attendant_gone", tell=False)

    # -- what goes out ------------------------------------------------------------------------------------

    async def _wait(self, answer: asyncio.Future[Any]) -> Any:
        await asyncio.wait({answer}, timeout=self._answer_s)
        if not answer.done():
            raise self._silent()
        return answer.result()

    def _silent(self) -> SandboxUnavailable:
        return SandboxUnavailable(
            f"The cell's attendant did not answer within {self._answer_s:g} s.", reason="attendant_silent"
        )

    def _flush(self) -> None:
        if self._over:
            return
        try:
            while self._out:
                self._socket.send(self._out[0], socket.MSG_NOSIGNAL)
                self._out_bytes -= len(self._out.popleft())
        except BlockingIOError:
            self._room.clear()
            self._loop.add_writer(self._socket, self._flush)
            return
        except OSError:
            self._gone()
            return
        self._loop.remove_writer(self._socket)
        self._room.set()

    # -- what comes in ------------------------------------------------------------------------------------

    def _readable(self) -> None:
        begun, cost = self._loop.time(), 0
        try:
            for _ in range(BATCH):
                packet = self._socket.recv(PACKET + 1)
                if not packet:
                    self._gone()
                    return
                cost += len(packet) + PACKET_COST
                self._take(packet)
                if self._over:
                    return
        except BlockingIOError:
            pass
        except Broken:
            self.give_up()
            return
        except OSError:
            self._gone()
            return
        self._pace.worked(self._loop.time() - begun)
        if wait_s := self._pace.spend(cost):
            self._loop.remove_reader(self._socket)
            self._pause = self._loop.call_later(wait_s, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._readable)

    def _take(self, packet: bytes) -> None:
        text, _, piece = packet.partition(b"\n")
        if len(packet) > PACKET:
            raise Broken
        try:
            head = HEAD.validate_python(orjson.loads(text))
        except (orjson.JSONDecodeError, ValidationError):
            raise Broken from None
        if not self._met:
            if head.op != "hello" or head.epoch != self._epoch:
                self._keep(head, piece)
                return
            self._met = True
        if self._partial is None:
            if not head.more:
                self._heed(head, piece)
                return
            self._partial = (head, bytearray())
        first, body = self._partial
        if first != head.model_copy(update={"more": True}) or len(body) + len(piece) > MESSAGE:
            raise Broken
        body += piece
        if not head.more:
            self._partial = None
            self._heed(head, bytes(body))

    def _keep(self, head: Head, piece: bytes) -> None:
        """Keep output that came after an earlier gateway had gone, as much as a socket holds."""
        if head.op == "output" and head.fd and self._early_bytes < EARLY:
            self._early_bytes += len(piece) + PACKET_COST
            self._early.append((head.p, head.fd, head.at, piece))

    def _heed(self, head: Head, body: bytes) -> None:
        match head.op:
            case None:
                if head.re is None or not 0 < head.re <= self._last:
                    raise Broken
                # who asked may have given up
                if (answer := self._asked.get(head.re)) and not answer.done():
                    answer.set_result(body)
            case "hello" if not self._greeted.done():
                early, self._early = self._early, []
                self._audience.greeted(body, early)
                self._greeted.set_result(None)
            case "output" if head.fd:
                self._audience.output(head.p, head.fd, head.at, body)
            case "exit" if head.code is not None:
                self._audience.exited(head.p, head.code)
            case "call":
                self._audience.called(head.c, body)
            case "hangup":
                self._audience.hung_up(head.c)
            case _:
                raise Broken

    def _gone(self) -> None:
        self._end("The cell's attendant is gone: restart the kernel to have another.", "attendant_gone")

    def _end(self, message: str, reason: str, *, tell: bool = True) -> None:
        if self._over:
            return
        self._over = (message, reason)
        if self._pause:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._out.clear()
        self._room.set()
        waits: list[asyncio.Future[Any]] = [self._greeted, *self._asked.values()]
        for waiting in waits:
            if not waiting.done():
                waiting.set_exception(SandboxUnavailable(message, reason=reason))
                # who waited may be gone
                waiting.exception()
        if tell:
            self._audience.left()


def refusal(error: object) -> GatewayError:
    """Return the error that an attendant's answer tells of. Raises Broken."""
    match error:
        case [str(code), str(message)] if code in REFUSALS:
            kind = REFUSALS[code]
            if kind is LimitReached:
                return LimitReached(message[:300], reason=code, retry_after_s=1)
            return kind(message[:300], reason=code)
    raise Broken
