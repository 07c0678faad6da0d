"""The gate between a kernel's socket and libzmq: open to honest peers, shut to others."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from gateway.kernels.gate import BURST_BYTES, BYTES_PER_S, CHUNK_BYTES, Gate, Pace
from gateway.protocol.zmtp import MessageFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_BYTES = 1 << 20


class Ends:
    """A ROUTER in the kernel's place and a DEALER in the gateway's, with a gate between them."""

    def __init__(self, directory: Path) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.context.setsockopt(zmq.LINGER, 0)
        self.kernel, self.gateway = self.context.socket(zmq.ROUTER), self.context.socket(zmq.DEALER)
        self.gateway.setsockopt(zmq.IDENTITY, b"me")
        self.gateway.setsockopt(zmq.RCVHWM, 2)
        self.door = str(directory / "door")
        self.dropped = 0
        self.closed: list[str] = []
        self.gate = Gate(
            MessageFilter(max_bytes=MAX_BYTES, max_parts=8),
            Pace(asyncio.get_running_loop().time),
            memoryview(bytearray(CHUNK_BYTES)),
            on_dropped=self._drop,
            on_closed=self.closed.append,
        )

    async def open(self) -> None:
        """Bind, connect, and say hello: a ROUTER drops what is for somebody unknown."""
        self.kernel.set_hwm(0)
        self.kernel.bind(f"ipc://{self.door}")
        await self.gate.open(self.door, self.gateway)
        self.gateway.send(b"hello")
        await self.receive(self.kernel)

    async def receive(self, end: zmq.Socket[Any]) -> list[bytes]:
        """Return the next message of one end."""
        parts: list[bytes] = []

        def came() -> bool:
            try:
                parts.extend(end.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return False
            return True

        await until(came)
        if end is self.gateway:
            self.gate.taken()
        return parts

    def close(self) -> None:
        """Close everything."""
        self.gate.close()
        self.context.destroy()

    def _drop(self) -> None:
        self.dropped += 1


async def until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.fixture
async def ends(tmp_path: Path) -> Iterator[Ends]:
    """Connected ends."""
    found = Ends(tmp_path)
    await found.open()
    yield found
    found.close()


async def test_messages_pass_both_ways_unchanged(ends: Ends) -> None:
    """Every part arrives as it was sent, empty and large ones too."""
    parts = [b"", b"x" * 255, b"y" * 256, os.urandom(300_000), b""]
    ends.gateway.send_multipart(parts)
    assert await ends.receive(ends.kernel) == [b"me", *parts]
    ends.kernel.send_multipart([b"me", *parts])
    assert await ends.receive(ends.gateway) == parts


async def test_many_messages_keep_their_order(ends: Ends) -> None:
    """None is lost and none overtakes another, whether few or many are on their way."""
    for number in range(3000):
        ends.kernel.send_multipart([b"me", str(number).encode(), b"x" * (number % 700)])
    got = [int((await ends.receive(ends.gateway))[0]) for _ in range(3000)]
    assert got == list(range(3000))


async def test_too_large_a_message_is_dropped_alone(ends: Ends) -> None:
    """What comes before and after it arrives, and it is told of once."""
    for part in (b"before", b"x" * (MAX_BYTES + 1), b"after"):
        ends.kernel.send_multipart([b"me", part])
    assert [await ends.receive(ends.gateway) for _ in range(2)] == [[b"before"], [b"after"]]
    assert ends.dropped == 1


async def test_the_end_of_the_kernel_is_told_once(ends: Ends) -> None:
    """A closed connection is news, and the gate has let go of both its sides."""
    ends.kernel.close(0)
    await until(lambda: bool(ends.closed))
    await asyncio.sleep(0.05)
    assert ends.closed == ["The connection was closed."]


async def test_closing_tells_nobody_and_leaves_no_descriptor(tmp_path: Path) -> None:
    """Who closes knows it; every descriptor is given back."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = Ends(tmp_path)
    await found.open()
    found.close()
    await until(lambda: len(list(Path("/proc/self/fd").iterdir())) == before)
    assert found.closed == []


async def test_what_does_not_speak_zmtp_never_reaches_libzmq(tmp_path: Path) -> None:
    """The connection is closed with the reason, before a byte is passed on."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "door"))
        listener.listen()
        found = Ends(tmp_path)
        await found.gate.open(found.door, found.gateway)
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            await until(lambda: bool(found.closed))
        assert found.closed == ["It does not greet as ZMTP does."]
        found.close()


async def test_a_missing_socket_is_an_error(tmp_path: Path) -> None:
    """There is nothing to connect to: that is said, and nothing stays open."""
    found = Ends(tmp_path)
    with pytest.raises(FileNotFoundError):
        await found.gate.open(found.door, found.gateway)
    found.close()


async def test_what_is_not_taken_out_waits_with_the_kernel(ends: Ends) -> None:
    """Large messages come one by one: the next is read when the last was taken."""
    for _ in range(20):
        ends.kernel.send_multipart([b"me", b"x" * MAX_BYTES])
    await asyncio.sleep(0.3)
    assert ends.gate._filter.passed <= 2
    for _ in range(20):
        await ends.receive(ends.gateway)


def test_the_pace_holds_in_the_long_run() -> None:
    """After a burst, no more is read than the rate allows; what was quiet may burst again."""
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.spend(BURST_BYTES) == 0
    assert pace.spend(BYTES_PER_S) == pytest.approx(1.0)
    now[0] += 1.0
    assert pace.spend(0) == pytest.approx(0.0)
    now[0] += BURST_BYTES / BYTES_PER_S
    assert pace.spend(BURST_BYTES) == 0
