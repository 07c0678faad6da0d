"""ZMTP 3: messages within the bounds are read as they were sent, others left out; the rest is refused."""

from __future__ import annotations

import random
import time
import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.zmtp import MAX_PARTS, Handshake, MessageReader, NotZmtp, framed

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
MAX_BYTES, MAX_PARTS_HERE = 1000, 8


def frame(body: bytes, *, more: bool = False, long: bool = False, command: bool = False) -> bytes:
    """Return one frame on the wire."""
    flags = more | (2 if long or len(body) > 255 else 0) | (4 if command else 0)
    return bytes([flags]) + len(body).to_bytes(8 if flags & 2 else 1, "big") + body


def multipart(parts: list[bytes], *, long: bool = False) -> bytes:
    """Return one message on the wire."""
    last = len(parts) - 1
    return b"".join(frame(part, more=index < last, long=long) for index, part in enumerate(parts))


def reading(max_bytes: int = MAX_BYTES) -> MessageReader:
    """Return a reader of what follows a handshake."""
    return MessageReader(max_bytes=max_bytes, max_parts=MAX_PARTS_HERE)


def taken(reader: MessageReader) -> list[list[bytes]]:
    """Take out every message that is whole."""
    found = []
    while (parts := reader.take()) is not None:
        if parts:
            found.append(parts)
    return found


READY = frame(b"\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB", command=True)
SUBSCRIBES = [frame(b"\x01"), frame(b"\x09SUBSCRIBE", command=True)]


@dataclass
class Sent:
    """A message, its bytes, and whether it is within the bounds."""

    parts: list[bytes]
    wire: bytes
    fits: bool


@st.composite
def messages(draw: st.DrawFn) -> Sent:
    """Messages of all sizes around the bounds."""
    sizes = draw(
        st.lists(st.sampled_from([0, 1, 2, 200, 255, 256, 499, 500, 501, 1000, 1001, 3000]), min_size=1)
    )
    parts = [bytes([index % 256]) * size for index, size in enumerate(sizes)]
    fits = sum(sizes) <= MAX_BYTES and len(sizes) <= MAX_PARTS_HERE
    return Sent(parts, multipart(parts, long=draw(st.booleans())), fits)


COMMANDS = st.sampled_from([READY, frame(b"\x04PONG", command=True), frame(b"x" * 3000, command=True)])


@given(
    st.lists(st.one_of(messages(), COMMANDS.map(lambda wire: Sent([], wire, fits=False))), max_size=8),
    st.randoms(),
)
def test_what_fits_is_read_whatever_the_pieces(sent: list[Sent], chance: random.Random) -> None:
    """However the bytes are cut, the messages within the bounds come out as they were, and no other."""
    wire, reader, out = b"".join(one.wire for one in sent), reading(), []
    while wire:
        size = chance.choice([1, 2, 9, 100, 5000])
        reader.feed(wire[:size])
        out += taken(reader)
        wire = wire[size:]

    assert out == [one.parts for one in sent if one.fits]
    assert reader.dropped == sum(bool(one.parts) and not one.fits for one in sent)


@given(st.lists(st.sampled_from([0, 1, 255, 256, 70_000]), min_size=1, max_size=MAX_PARTS_HERE))
def test_what_is_written_is_read_again(sizes: list[int]) -> None:
    """A message is framed as its reader expects it, its parts short, long and empty."""
    parts = [bytes([index]) * size for index, size in enumerate(sizes)]
    reader = reading(1 << 20)
    reader.feed(framed(parts))

    assert framed(parts) == multipart(parts)
    assert taken(reader) == [parts]


@pytest.mark.parametrize("step", [1, 1000])
def test_a_ping_is_answered_with_its_context(step: int) -> None:
    """A PONG brings 16 bytes of the context back at most; no ping is taken for a message."""
    reader, wire = reading(), frame(b"\x04PING\x00\x0a" + b"c" * 40, command=True) + frame(b"after")
    out = []
    for at in range(0, len(wire), step):
        reader.feed(wire[at : at + step])
        out += taken(reader)

    assert out == [[b"after"]]
    assert reader.answers == [frame(b"\x04PONG" + b"c" * 16, command=True)]


@pytest.mark.parametrize("subscribe", SUBSCRIBES)
@pytest.mark.parametrize("step", [1, 10, 1000])
def test_a_handshake_passes_piece_by_piece_and_not_what_follows(step: int, subscribe: bytes) -> None:
    """Peers answer each other's pieces, so none is held back; what comes behind is told apart from them."""
    wire, rest = GREETING + READY + subscribe, frame(b"welcome", more=True)
    found, passed, kept = Handshake(more=1), b"", b""
    for at in range(0, len(wire), step):
        piece = wire[at : at + step] + (rest if at + step >= len(wire) else b"")
        on, more = found.feed(piece)
        assert on + more == piece
        passed, kept = passed + on, kept + more

    assert found.over
    assert (passed, kept) == (wire, rest)


def test_a_handshake_ends_with_ready() -> None:
    """Where nothing else is due, what follows READY is a message already."""
    found = Handshake()
    assert found.feed(GREETING) == (GREETING, b"")
    assert not found.over
    assert found.feed(READY + b"rest") == (READY, b"rest")
    assert found.over


@pytest.mark.parametrize(
    "wire",
    [
        b"\x00\x00\x00\x05hello",
        b"\xff" + bytes(8) + b"\x7e",
        b"\xff" + bytes(8) + b"\x7f\x01",
        b"\xff" + bytes(8) + b"\x7f\x02",
        b"\xff" + bytes(8) + b"\x7f\x04",
        GREETING + frame(b"\x05READY"),
        GREETING + frame(b"\x05READY", command=True, more=True),
        GREETING + frame(b"\x05ERROR\x00", command=True),
        GREETING + frame(b"\x05READY" + bytes(5000), command=True),
        GREETING + b"\x06" + b"\xff" * 8,
    ],
)
def test_what_does_not_greet_as_zmtp_3_does_is_refused(wire: bytes) -> None:
    """Older versions are framed otherwise, so libzmq must never come to speak them."""
    with pytest.raises(NotZmtp):
        Handshake().feed(wire)


@pytest.mark.parametrize(
    "wire",
    [
        b"\x08\x01x",
        b"\xff" * 9,
        frame(b"PING", command=True, more=True),
        frame(b"x" * 5000, command=True),
        frame(b"x", more=True) + frame(b"PING", command=True),
        frame(b"", more=True) * (MAX_PARTS + 1),
    ],
)
def test_what_is_no_zmtp_3_is_refused(wire: bytes) -> None:
    """Frames of no known kind, commands within messages, and messages without an end close a connection."""
    reader = reading()
    reader.feed(wire)
    with pytest.raises(NotZmtp):
        taken(reader)


@pytest.mark.parametrize("size", [1, 100, 65_536])
@pytest.mark.parametrize(
    "wire",
    [
        frame(b"x" * 4000, more=True),
        frame(b"x" * 200, more=True),
        frame(b"x" * 4000, command=True),
        multipart([b"x" * (256 << 10)]),
    ],
)
def test_endless_messages_take_no_memory(size: int, wire: bytes) -> None:
    """No more than the bound is ever held, even of what comes byte by byte."""
    reader = reading(64 << 10)
    stream = wire * (1 + (40 * size) // len(wire))
    tracemalloc.start()
    for at in range(0, len(stream), size):
        reader.feed(stream[at : at + size])
        taken(reader)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 512 << 10


@pytest.mark.parametrize("piece", [frame(b"", more=True), frame(b""), frame(b"\x04PING", command=True)])
def test_a_flood_of_tiny_parts_costs_little_at_once(piece: bytes) -> None:
    """The caller has its turn after at most a few hundred of them, and what was looked at is told."""
    reader = reading()
    reader.feed(piece * (65_536 // len(piece)))
    turns, longest, begun = 0, 0.0, time.process_time()
    while reader.take() is not None:
        now = time.process_time()
        turns, longest, begun = turns + 1, max(longest, now - begun), now

    assert turns >= 65_536 // len(piece) // 600
    assert longest < 0.02
    assert reader.cost > 64 * (65_536 // len(piece))
