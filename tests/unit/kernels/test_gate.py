"""The gate to a kernel's socket: libzmq opens it and leaves, honest peers are heard, others are shut out."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from gateway.errors import LimitReached
from gateway.kernels.gate import CHUNK_BYTES, WAITING_BYTES, WAITING_MESSAGES, Gate
from gateway.kernels.pace import BURST_BYTES, Pace
from gateway.protocol.zmtp import MessageReader, framed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

MAX_BYTES = 1 << 20
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER"


class Ends:
    """A ROUTER in the kernel's place, and a gate to it."""

    def __init__(self, directory: Path, kind: int = zmq.ROUTER) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.context.setsockopt(zmq.LINGER, 0)
        self.kernel = self.context.socket(kind)
        self.door = str(directory / "door")
        self.messages: list[list[bytes]] = []
        self.dropped = 0
        self.closed: list[str] = []
        self.pace = Pace(asyncio.get_running_loop().time)
        self.gate = Gate(
            MessageReader(max_bytes=MAX_BYTES, max_parts=8),
            self.pace,
            memoryview(bytearray(CHUNK_BYTES)),
            on_message=self.messages.append,
            on_dropped=self._drop,
            on_closed=self.closed.append,
        )

    def dealer(self) -> zmq.Socket[Any]:
        """Return what makes the handshake."""
        behind: zmq.Socket[Any] = self.context.socket(zmq.DEALER)
        behind.setsockopt(zmq.IDENTITY, b"me")
        return behind

    def subscriber(self) -> zmq.Socket[Any]:
        """Return what makes a subscriber's handshake."""
        behind: zmq.Socket[Any] = self.context.socket(zmq.SUB)
        behind.subscribe(b"")
        return behind

    async def open(self) -> None:
        """Bind, connect, and say hello: a ROUTER drops what is for somebody unknown."""
        self.kernel.set_hwm(0)
        self.kernel.bind(f"ipc://{self.door}")
        await self.gate.open(self.door, self.dealer())
        self.gate.send([b"hello"])
        assert await self.heard() == [b"me", b"hello"]

    async def heard(self) -> list[bytes]:
        """Return the next message that the kernel hears."""
        parts: list[bytes] = []

        def came() -> bool:
            try:
                parts.extend(self.kernel.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return False
            return True

        await until(came)
        return parts

    async def come(self, count: int) -> list[list[bytes]]:
        """Return the messages that have come, once they are so many."""
        await until(lambda: len(self.messages) >= count)
        return self.messages

    def close(self) -> None:
        """Close everything."""
        self.gate.close()
        self.context.destroy()

    def _drop(self) -> None:
        self.dropped += 1


class Slow:
    """Takes messages, 0.2 ms each, and counts them."""

    def __init__(self, messages: list[list[bytes]]) -> None:
        self._messages = messages
        self.since = 0

    def __call__(self, parts: list[bytes]) -> None:
        """Take a message."""
        until_s = time.perf_counter() + 0.0002
        while time.perf_counter() < until_s:
            pass
        self._messages.append(parts)
        self.since += 1


class Frozen:
    """A listener in the place of a kernel that greets when the test says so."""

    def __init__(self, door: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(door)
        self.listener.listen()
        self.peer = self.listener

    def accept(self) -> None:
        """Take the connection."""
        self.peer, _ = self.listener.accept()
        self.peer.setblocking(False)

    async def hear(self) -> bytes:
        """Return what has come, once something has."""
        heard = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.peer, 1 << 20), 10)
        assert heard, "the gate has closed"
        return heard

    async def up_to(self, end: bytes, heard: bytes) -> bytes:
        """Hear on until this is the end of what has come."""
        async with asyncio.timeout(10):
            while not heard.endswith(end):
                heard += await self.hear()
        return heard

    async def greet(self, behind: bytes = b"") -> bytes:
        """Make the kernel's part of the handshake, with something right behind it; return the gate's part."""
        self.peer.sendall(GREETING + READY + behind)
        heard = b""
        async with asyncio.timeout(10):
            while b"READY" not in heard:
                heard += await self.hear()
        return heard

    def close(self) -> None:
        """Close everything."""
        self.peer.close()
        self.listener.close()


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Frozen]:
    """A kernel that does not greet by itself."""
    found = Frozen(str(tmp_path / "door"))
    yield found
    found.close()


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    """Ends that are not connected yet."""
    found = Ends(tmp_path)
    yield found
    found.close()


@pytest.fixture
async def connected(ends: Ends) -> Ends:
    """Connected ends."""
    await ends.open()
    return ends


def descriptors() -> int:
    """Count this process's descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.005)


async def test_messages_pass_both_ways_unchanged(connected: Ends) -> None:
    """Every part arrives as it was sent, empty and large ones too."""
    parts = [b"", b"x" * 255, b"y" * 256, os.urandom(300_000), b""]
    connected.gate.send(parts)
    assert await connected.heard() == [b"me", *parts]
    connected.kernel.send_multipart([b"me", *parts])
    assert await connected.come(1) == [parts]


async def test_many_messages_keep_their_order(connected: Ends) -> None:
    """None is lost and none overtakes another, whether few or many are on their way."""
    for number in range(3000):
        connected.kernel.send_multipart([b"me", str(number).encode(), b"x" * (number % 700)])
    for number in range(WAITING_MESSAGES):
        connected.gate.send([str(number).encode(), b"x" * (number % 700)])
    assert [int(parts[0]) for parts in await connected.come(3000)] == list(range(3000))
    heard = [int((await connected.heard())[1]) for _ in range(WAITING_MESSAGES)]
    assert heard == list(range(WAITING_MESSAGES))


async def test_a_subscriber_misses_nothing_from_its_subscription_on(tmp_path: Path) -> None:
    """What a publisher says to a new subscriber at once is heard, and then all the rest."""
    found = Ends(tmp_path, zmq.XPUB)
    found.kernel.set_hwm(0)
    found.kernel.bind(f"ipc://{found.door}")
    await found.gate.open(found.door, found.subscriber())
    assert await found.heard() == [b"\x01"]
    for number in range(500):
        found.kernel.send_multipart([b"topic", str(number).encode()])

    assert await found.come(500) == [[b"topic", str(number).encode()] for number in range(500)]
    found.close()


async def test_one_descriptor_is_left_of_an_open_connection(ends: Ends) -> None:
    """Once the handshake is over, libzmq and its connection are gone."""
    ends.kernel.bind(f"ipc://{ends.door}")
    behind = ends.dealer()
    await ends.gate.open(ends.door, behind)
    await until(lambda: behind.closed)
    ends.gate.send([b"hello"])
    await ends.heard()
    before = descriptors()
    ends.gate.close()

    # the kernel's end closes as well
    await until(lambda: descriptors() == before - 2)


async def test_what_comes_right_behind_the_handshake_is_the_first_message(ends: Ends, frozen: Frozen) -> None:
    """It may come in the same piece as READY, before libzmq has said its part."""
    await ends.gate.open(ends.door, ends.dealer())
    frozen.accept()
    await frozen.greet(behind=framed([b"first"]) + framed([b"second"]))

    assert await ends.come(2) == [[b"first"], [b"second"]]


async def test_what_is_sent_before_a_kernel_greets_waits_for_it(ends: Ends, frozen: Frozen) -> None:
    """A kernel that is frozen is connected to all the same, and gets everything in order when it goes on."""
    await ends.gate.open(ends.door, ends.dealer())
    ends.gate.send([b"first"])
    ends.gate.send([b"second"])
    await asyncio.sleep(0.1)
    frozen.accept()
    heard = await frozen.up_to(framed([b"first"]) + framed([b"second"]), await frozen.greet())

    assert heard.count(b"first") == 1
    assert heard.index(b"READY") < heard.index(b"first")


async def test_a_kernel_that_does_not_read_is_sent_no_more(ends: Ends, frozen: Frozen) -> None:
    """So many requests wait for it and so many bytes of them; another one is refused, and none is lost."""
    await ends.gate.open(ends.door, ends.dealer())
    for number in range(WAITING_MESSAGES):
        ends.gate.send([b"%d" % number])
    with pytest.raises(LimitReached):
        ends.gate.send([b"one more"])
    frozen.accept()
    wanted = b"".join(framed([b"%d" % number]) for number in range(WAITING_MESSAGES))
    await frozen.up_to(wanted, await frozen.greet())
    half = b"x" * (WAITING_BYTES // 2)
    ends.gate.send([half])
    ends.gate.send([half])
    with pytest.raises(LimitReached):
        ends.gate.send([half])


async def test_too_large_a_message_is_dropped_alone(connected: Ends) -> None:
    """What comes before and after it arrives, and it is told of once."""
    for part in (b"before", b"x" * (MAX_BYTES + 1), b"after"):
        connected.kernel.send_multipart([b"me", part])
    assert await connected.come(2) == [[b"before"], [b"after"]]
    assert connected.dropped == 1


async def test_a_ping_is_answered(ends: Ends, frozen: Frozen) -> None:
    """A kernel whose library looks after its connections keeps this one."""
    await ends.gate.open(ends.door, ends.dealer())
    frozen.accept()
    heard = await frozen.greet(behind=b"\x04\x0b\x04PING\x00\x0amark" + framed([b"after"]))
    await frozen.up_to(b"\x04\x09\x04PONGmark", heard)

    assert await ends.come(1) == [[b"after"]]


async def test_pings_whose_answers_are_not_read_take_no_memory(ends: Ends, frozen: Frozen) -> None:
    """Only so many answers wait for a kernel that reads none."""
    await ends.gate.open(ends.door, ends.dealer())
    frozen.accept()
    await frozen.greet()
    loop, pings = asyncio.get_running_loop(), b"\x04\x17\x04PING\x00\x0a" + b"c" * 16
    for _ in range(100):
        await asyncio.wait_for(loop.sock_sendall(frozen.peer, pings * 2000), 10)
    await loop.sock_sendall(frozen.peer, framed([b"after"]))
    await ends.come(1)

    assert ends.gate._transport is not None
    assert ends.gate._transport.get_write_buffer_size() < 256 << 10


async def test_the_end_of_the_kernel_is_told_once(connected: Ends) -> None:
    """A closed connection is news."""
    connected.kernel.close(0)
    await until(lambda: bool(connected.closed))
    await asyncio.sleep(0.05)
    assert connected.closed == ["The connection was closed."]


async def test_closing_tells_nobody_and_leaves_no_descriptor(tmp_path: Path) -> None:
    """Who closes knows it; every descriptor is given back."""
    before = descriptors()
    found = Ends(tmp_path)
    await found.open()
    found.close()
    await until(lambda: descriptors() == before)
    assert found.closed == []


async def test_closing_while_it_opens_leaves_no_descriptor(ends: Ends, frozen: Frozen) -> None:
    """A kernel that never greets costs nothing once it is given up."""
    await ends.gate.open(ends.door, ends.dealer())
    before = descriptors()
    ends.gate.close()
    # the stream to libzmq with both its ends, libzmq's own, and the one to the kernel
    await until(lambda: descriptors() <= before - 4)
    assert ends.closed == []


async def test_what_does_not_speak_zmtp_never_reaches_libzmq(ends: Ends, frozen: Frozen) -> None:
    """The connection is closed with the reason, before a byte is passed on."""
    await ends.gate.open(ends.door, ends.dealer())
    frozen.accept()
    frozen.peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    await until(lambda: bool(ends.closed))
    assert ends.closed == ["It does not greet as ZMTP does."]


async def test_what_stops_speaking_zmtp_is_closed(ends: Ends, frozen: Frozen) -> None:
    """Good messages before it have arrived."""
    await ends.gate.open(ends.door, ends.dealer())
    frozen.accept()
    await frozen.greet(behind=framed([b"good"]) + b"\xff" * 9)
    await until(lambda: bool(ends.closed))
    assert (ends.messages, ends.closed) == ([[b"good"]], ["It sends a frame of no known kind."])


async def test_a_missing_socket_is_an_error(ends: Ends) -> None:
    """There is nothing to connect to: that is said, and nothing stays open."""
    behind = ends.dealer()
    with pytest.raises(FileNotFoundError):
        await ends.gate.open(ends.door, behind)
    assert behind.closed


async def test_who_has_brought_too_much_waits(connected: Ends) -> None:
    """While the pace holds nothing is read: the rest waits with the kernel, at its expense."""
    connected.pace.spend(BURST_BYTES)
    for _ in range(40):
        connected.kernel.send_multipart([b"me", b"x" * MAX_BYTES])
    await asyncio.sleep(0.3)
    assert 1 <= len(connected.messages) < 10
    await connected.come(12)


async def test_a_flood_leaves_time_to_others(connected: Ends) -> None:
    """Between two slices of a kernel's messages the loop does what else is due."""
    slow = connected.gate._on_message = Slow(connected.messages)
    for _ in range(400):
        connected.kernel.send_multipart([b"me", b"x"])
    most = 0
    async with asyncio.timeout(10):
        while len(connected.messages) < 400:
            await asyncio.sleep(0)
            most, slow.since = max(most, slow.since), 0
    assert 1 <= most <= 6


async def test_little_and_often_is_read_together(connected: Ends) -> None:
    """A flood of small messages costs far fewer reads than it has messages, and all come in order."""
    gate, reads = connected.gate, 0
    plain = gate.buffer_updated

    def counted(nbytes: int) -> None:
        nonlocal reads
        reads += 1
        plain(nbytes)

    def flood() -> None:
        for number in range(500):
            connected.kernel.send_multipart([b"me", str(number).encode()])
            time.sleep(0.0003)

    gate.buffer_updated = counted  # type: ignore[method-assign]
    await asyncio.to_thread(flood)

    assert await connected.come(500) == [[str(number).encode()] for number in range(500)]
    assert reads < 350


async def test_a_few_messages_are_not_kept_waiting(connected: Ends) -> None:
    """What an execution says is read as it comes, however soon after the last."""
    for number in range(10):
        connected.kernel.send_multipart([b"me", str(number).encode()])
        async with asyncio.timeout(10):
            while len(connected.messages) <= number:
                await asyncio.sleep(0)
        assert connected.gate._pause is None
