"""The conversation with an attendant that may be anybody: what it says is checked, bounded and paced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.errors import BadRequest, SandboxUnavailable
from gateway.kernels.processes import CellProcesses
from gateway.kernels.toolcalls import Desks
from gateway.models import Limits
from gateway.models.processes import Command
from gateway.settings import ProcessesSettings
from tests.doubles import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FDS = Path("/proc/self/fd")
NOTE = '{"id":"0123456789ab","argv":["x"],"started_at":"then"}'
KNOWN = {"p": 1, "note": NOTE, "pid": 7, "code": None, "sent": 0, "ended_at": 0.0}
TRUE = Command(argv=("true",))


class Impostor:
    """Whoever holds the other end of the socket."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.settimeout(5)
        self.processes = CellProcesses(
            self,  # type: ignore[arg-type]
            "0123456789ab",
            Limits(),
            settings=ProcessesSettings(),
            clock=ManualClock(),
            desks=Desks(),
            answer_s=0.5,
        )

    async def attend(self, _cell: str) -> int:
        """Hand the gateway's end out."""
        return os.dup(self._ours.fileno())

    def say(self, packet: bytes | dict[str, object], body: bytes = b"") -> None:
        """Send a packet."""
        head = packet if isinstance(packet, bytes) else json.dumps(packet).encode()
        self.theirs.send(head + b"\n" + body)

    async def hear(self) -> dict[str, object]:
        """Return the head of the next packet that the gateway sends."""
        packet = await asyncio.to_thread(self.theirs.recv, 1 << 17)
        found: dict[str, object] = json.loads(packet.partition(b"\n")[0])
        return found

    async def greeted(self, known: object = ()) -> None:
        """Be opened, and tell what is known."""
        opening = asyncio.create_task(self.processes.open())
        hello = await self.hear()
        body = json.dumps({"processes": list(known)}).encode()  # type: ignore[call-overload]
        self.say({"op": "hello", "epoch": hello["epoch"]}, body)
        await opening

    def close(self) -> None:
        """Let go of both ends."""
        self.processes.close()
        self.theirs.close()
        self._ours.close()


@pytest.fixture
async def impostor() -> AsyncIterator[Impostor]:
    """Somebody in the attendant's place."""
    found = Impostor()
    yield found
    found.close()


async def broken(impostor: Impostor) -> str | None:
    """Wait until the conversation is over, and return the reason."""
    async with asyncio.timeout(5):
        while True:
            try:
                await impostor.processes.open()
            except SandboxUnavailable as error:
                return error.reason
            await asyncio.sleep(0.01)


WRONG = {
    "garbage": (b"\xff\xfe", b""),
    "no object": (b"[]", b""),
    "nothing": (b"{}", b""),
    "an answer to nobody": ({"re": 99}, b"{}"),
    "an answer before any question": ({"re": 0}, b"{}"),
    "a huge number": (b'{"re": ' + b"9" * 5000 + b"}", b"{}"),
    "a number as text": ({"op": "exit", "p": "1", "code": 0}, b""),
    "a deep head": (b"[" * 30_000, b""),
    "an unknown word": ({"op": "obey"}, b""),
    "a second hello": ({"op": "hello", "epoch": "x"}, b'{"processes": []}'),
    "an unknown field": ({"op": "exit", "p": 1, "code": 0, "and": 1}, b""),
    "a process that was never started": ({"op": "output", "p": 9, "fd": 1, "at": 0}, b"x"),
    "a process zero": ({"op": "exit", "p": 0, "code": 0}, b""),
    "an exit without a code": ({"op": "exit", "p": 1}, b""),
    "an exit code of no process": ({"op": "exit", "p": 1, "code": 1 << 40}, b""),
    "a third stream": ({"op": "output", "p": 1, "fd": 3, "at": 0}, b"x"),
    "no stream": ({"op": "output", "p": 1, "at": 0}, b"x"),
    "a packet too long": ({"op": "output", "p": 1, "fd": 1, "at": 0}, b"x" * (64 << 10)),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_no_attendant_says_ends_the_conversation(impostor: Impostor, what: str) -> None:
    """It is given up as `attendant_broken`, and stays so; the descriptor is let go of."""
    before = len(list(FDS.iterdir()))
    await impostor.greeted([KNOWN])
    impostor.say(*WRONG[what])

    assert await broken(impostor) == "attendant_broken"
    assert [each.state for each in await impostor.processes.listing()] == ["ended"]
    assert len(list(FDS.iterdir())) == before


async def test_output_that_goes_back_is_wrong(impostor: Impostor) -> None:
    """Positions only grow; a gap is told as lost."""
    await impostor.greeted([KNOWN])
    impostor.say({"op": "output", "p": 1, "fd": 1, "at": 0}, b"ab")
    impostor.say({"op": "output", "p": 1, "fd": 2, "at": (1 << 63) - 9}, b"z")
    output = await impostor.processes.read("0123456789ab", cursor=1, wait_s=5)
    while len(output.chunks) < 2:
        output = await impostor.processes.read("0123456789ab", cursor=1, wait_s=5)
    assert [chunk.text for chunk in output.chunks] == ["b", "z"]
    assert output.lost == (1 << 63) - 11
    impostor.say({"op": "output", "p": 1, "fd": 1, "at": 5}, b"ab")
    assert await broken(impostor) == "attendant_broken"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b'{"processes": 1}',
        json.dumps({"processes": [KNOWN] * 201}).encode(),
        json.dumps({"processes": [{**KNOWN, "note": "{}"}]}).encode(),
        json.dumps({"processes": [{**KNOWN, "pid": -1}]}).encode(),
        json.dumps({"processes": [{**KNOWN, "code": 1 << 70}]}).encode(),
        json.dumps({"processes": [{**KNOWN, "code": 1, "ended_at": 1e300}]}).encode(),
    ],
)
async def test_a_wrong_hello_is_no_beginning(impostor: Impostor, body: bytes) -> None:
    """What is said to be known is checked as everything else."""
    opening = asyncio.create_task(impostor.processes.listing())
    hello = await impostor.hear()
    impostor.say({"op": "hello", "epoch": hello["epoch"]}, body)
    with pytest.raises(SandboxUnavailable) as refused:
        await opening
    assert refused.value.reason == "attendant_broken"


async def test_what_was_meant_for_an_earlier_gateway_is_passed_over(impostor: Impostor) -> None:
    """Before the hello that answers this gateway's, nothing counts, however much it is."""
    opening = asyncio.create_task(impostor.processes.listing())
    hello = await impostor.hear()
    for packet in (
        {"re": 4},
        {"op": "output", "p": 5, "fd": 1, "at": 0},
        {"op": "hello", "epoch": "another"},
    ):
        impostor.say(packet, b"x")
    impostor.say({"op": "hello", "epoch": hello["epoch"]}, json.dumps({"processes": [KNOWN]}).encode())
    assert [each.pid for each in await opening] == [7]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "attendant_broken"),
        (b"[]", "attendant_broken"),
        (b'{"pid": "one"}', "attendant_broken"),
        (b'{"error": ["unheard of", "text"]}', "attendant_broken"),
        (b'{"error": {"code": 1}}', "attendant_broken"),
        (b"[" * 50_000, "attendant_broken"),
    ],
)
async def test_wrong_answers_are_errors(impostor: Impostor, answer: bytes, reason: str) -> None:
    """An answer that is none breaks the conversation, and the request with it."""
    await impostor.greeted()
    asking = asyncio.create_task(impostor.processes.start(TRUE, stdin=False))
    head = await impostor.hear()
    impostor.say({"re": head["id"]}, answer)
    with pytest.raises(SandboxUnavailable) as refused:
        await asking
    assert refused.value.reason == reason


async def test_a_refusal_has_a_bounded_text(impostor: Impostor) -> None:
    """What an attendant says against a request is shown, as far as it is short."""
    await impostor.greeted()
    asking = asyncio.create_task(impostor.processes.start(TRUE, stdin=False))
    head = await impostor.hear()
    impostor.say({"re": head["id"]}, json.dumps({"error": ["cannot_run", "y" * 50_000]}).encode())
    with pytest.raises(BadRequest) as refused:
        await asking
    assert len(refused.value.message) == 300
    assert await impostor.processes.listing() == []


async def test_a_message_has_bounds(impostor: Impostor) -> None:
    """Pieces without an end, and pieces of two messages at a time, are wrong."""
    await impostor.greeted()
    asking = asyncio.create_task(impostor.processes.tree())
    head = await impostor.hear()

    def endless() -> None:
        with contextlib.suppress(OSError):
            for _ in range(100):
                impostor.say({"re": head["id"], "more": True}, b" " * (60 << 10))

    await asyncio.to_thread(endless)
    with pytest.raises(SandboxUnavailable) as refused:
        await asking
    assert refused.value.reason == "attendant_broken"


async def test_pieces_of_two_messages_do_not_mix(impostor: Impostor) -> None:
    """Nothing comes between the pieces of a message."""
    await impostor.greeted()
    asking = asyncio.create_task(impostor.processes.tree())
    head = await impostor.hear()
    impostor.say({"re": head["id"], "more": True}, b"{")
    impostor.say({"op": "call", "c": 1, "more": True}, b"{")
    with pytest.raises(SandboxUnavailable) as refused:
        await asking
    assert refused.value.reason == "attendant_broken"


async def test_more_calls_than_there_can_be_are_wrong(impostor: Impostor) -> None:
    """An attendant has 64 calls open at most, each with a number of its own."""

    class Slow:
        async def call(self, _name: str, _arguments: object) -> None:
            await asyncio.sleep(60)

    await impostor.greeted()
    with impostor.processes.tools._desks.with_one(Slow()):
        for number in range(65):
            impostor.say({"op": "call", "c": number}, b'{"name": "x"}')
        assert await broken(impostor) == "attendant_broken"
    assert not impostor.processes.tools._calls


async def test_a_flood_of_packets_is_paced(impostor: Impostor) -> None:
    """Who sends without end waits himself: the loop stays quick, and what is kept is bounded."""
    await impostor.greeted([KNOWN])
    over = threading.Event()
    sent = 0

    def flood() -> None:
        nonlocal sent
        impostor.theirs.settimeout(0.2)
        while not over.is_set():
            try:
                impostor.say({"op": "output", "p": 1, "fd": 1, "at": sent}, b"x")
                sent += 1
            except TimeoutError:
                continue

    thread = threading.Thread(target=flood)
    thread.start()
    late: list[float] = []
    until = time.monotonic() + 4
    while time.monotonic() < until:
        begun = time.monotonic()
        await asyncio.sleep(0.002)
        late.append(time.monotonic() - begun)
    over.set()
    await asyncio.to_thread(thread.join)

    # 16 MiB at once and 6 MiB a second, at a KiB and some bytes for each
    assert 1000 < sent < 60_000
    late.sort()
    assert late[len(late) * 95 // 100] < 0.05
    assert (await impostor.processes.read("0123456789ab", cursor=0, wait_s=0)).cursor > 500


async def test_descriptors_that_it_sends_do_not_arrive(impostor: Impostor) -> None:
    """A packet with descriptors is a packet; they are not this process's."""
    await impostor.greeted([KNOWN])
    before = len(list(FDS.iterdir()))
    head = json.dumps({"op": "output", "p": 1, "fd": 1, "at": 0}).encode()
    socket.send_fds(impostor.theirs, [head + b"\nhi"], [0, 1, 2])
    output = await impostor.processes.read("0123456789ab", cursor=0, wait_s=5)
    assert output.chunks[0].text == "hi"
    assert len(list(FDS.iterdir())) == before


async def test_an_answer_that_comes_too_late_is_nobodys(impostor: Impostor) -> None:
    """A request that was given up may be answered later; the conversation goes on."""
    await impostor.greeted()
    with pytest.raises(SandboxUnavailable) as refused:
        await impostor.processes.tree()
    assert refused.value.reason == "attendant_silent"
    impostor.say({"re": (await impostor.hear())["id"]}, b'{"processes": []}')
    asking = asyncio.create_task(impostor.processes.tree())
    impostor.say({"re": (await impostor.hear())["id"]}, b'{"processes": []}')
    assert await asking == []


async def test_who_takes_nothing_is_told_no_more(impostor: Impostor) -> None:
    """What waits to be sent is bounded: past that requests fail at once."""
    await impostor.greeted([KNOWN])
    for _ in range(6):
        with pytest.raises(SandboxUnavailable):
            await impostor.processes.write("0123456789ab", b"x" * (1 << 20))
    begun = time.monotonic()
    with pytest.raises(SandboxUnavailable) as refused:
        await impostor.processes.write("0123456789ab", b"x")
    assert refused.value.reason == "attendant_silent"
    assert time.monotonic() - begun < 0.3
