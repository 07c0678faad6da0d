"""Frames that are gathered arrive as they were given, in order, whether small, large or many."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer

from gateway.http.frames import TOGETHER, TOGETHER_BYTES, Frames

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp import ClientWebSocketResponse

    Says = Callable[[Frames, web.WebSocketResponse], Awaitable[None]]


class Counting:
    """A transport that counts what is written, for a protocol that nothing holds up."""

    writing_paused = False

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.transport = self

    def write(self, data: bytes) -> None:
        """Take bytes."""
        self.written.append(data)

    def is_closing(self) -> bool:
        """Stay open."""
        return False


class Open:
    """A socket that is open."""

    closed = False


class Door:
    """A server that has `says` talk to whoever connects."""

    def __init__(self) -> None:
        self.says: list[Says] = []
        self.failed: list[BaseException] = []

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Take a WebSocket and talk."""
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        try:
            await self.says[0](Frames(socket, request.protocol), socket)
        except ConnectionError as error:
            self.failed.append(error)
        return socket


@pytest.fixture
async def door() -> AsyncIterator[tuple[Door, ClientWebSocketResponse]]:
    """A server and the socket of a client that reads when the test does."""
    found, app = Door(), web.Application()
    app.router.add_get("/", found.serve)
    begun = asyncio.Event()

    async def wait(frames: Frames, socket: web.WebSocketResponse) -> None:
        await begun.wait()
        await found.says[1](frames, socket)

    found.says.append(wait)
    async with TestClient(TestServer(app)) as client:
        socket = await client.ws_connect("/", autoping=False, max_msg_size=0)
        found.begin = begun.set  # type: ignore[attr-defined]
        yield found, socket


SIZES = [0, 1, 125, 126, 127, 16 << 10, (16 << 10) + 1, 65_535, 65_536, 300_000]


async def test_frames_of_all_sizes_arrive_in_order(door: tuple[Door, ClientWebSocketResponse]) -> None:
    """Binary ones, texts and pings keep their kinds and their places."""
    server, client = door

    async def says(frames: Frames, _socket: web.WebSocketResponse) -> None:
        for size in SIZES:
            frames.add(b"x" * size)
            frames.ping(b"%d" % size)
            frames.add("\u00fc" * (size // 2))
        await frames.flush()

    server.says.append(says)
    server.begin()  # type: ignore[attr-defined]
    for size in SIZES:
        heard = [await client.receive(timeout=10) for _ in range(3)]
        assert [(one.type, one.data) for one in heard] == [
            (WSMsgType.BINARY, b"x" * size),
            (WSMsgType.PING, b"%d" % size),
            (WSMsgType.TEXT, "\u00fc" * (size // 2)),
        ]


async def test_a_client_that_does_not_read_is_waited_for(
    door: tuple[Door, ClientWebSocketResponse],
) -> None:
    """Only so much is written ahead, and all of it arrives when the client reads on."""
    server, client = door
    flushed: list[int] = []

    async def says(frames: Frames, _socket: web.WebSocketResponse) -> None:
        for number in range(600):
            frames.add(b"%06d" % number + b"x" * 50_000)
            await frames.flush()
            flushed.append(number)

    server.says.append(says)
    client._reader._protocol.pause_reading()  # type: ignore[attr-defined]
    server.begin()  # type: ignore[attr-defined]
    await asyncio.sleep(0.5)
    ahead = len(flushed)
    client._reader._protocol.resume_reading()  # type: ignore[attr-defined]
    heard = [int((await client.receive_bytes(timeout=10))[:6]) for _ in range(600)]

    assert ahead < 300
    assert heard == list(range(600))


async def test_nothing_is_written_after_the_close(door: tuple[Door, ClientWebSocketResponse]) -> None:
    """A socket that is closed takes no more frames: its client would find the line broken."""
    server, client = door

    async def says(frames: Frames, socket: web.WebSocketResponse) -> None:
        frames.add(b"before")
        await frames.flush()
        await socket.close()
        frames.add(b"after")
        await frames.flush()

    server.says.append(says)
    server.begin()  # type: ignore[attr-defined]
    assert await client.receive_bytes(timeout=10) == b"before"
    assert (await client.receive(timeout=10)).type is WSMsgType.CLOSE
    await client.close()
    async with asyncio.timeout(5):
        while not server.failed:
            await asyncio.sleep(0.01)


async def test_small_frames_are_written_at_once() -> None:
    """Many become one write, and a large payload is not copied to be with its head."""
    transport, large = Counting(), b"y" * 100_000
    frames = Frames(Open(), transport)  # type: ignore[arg-type]
    for _ in range(50):
        frames.add(b"x" * 100)
    await frames.flush()
    assert [len(data) for data in transport.written] == [50 * 102]

    frames.add(b"x")
    frames.add(large)
    await frames.flush()
    assert [len(data) for data in transport.written[1:]] == [3 + 10, 100_000]
    assert transport.written[-1] is large


def test_enough_is_enough() -> None:
    """So many frames, or so many bytes, are to be written before more is gathered."""
    many, much = (Frames(Open(), Counting()) for _ in range(2))  # type: ignore[arg-type]
    for _ in range(TOGETHER - 1):
        many.add(b"")
    assert not many.full
    many.add(b"")
    assert many.full
    much.add(b"x" * TOGETHER_BYTES)
    assert much.full
