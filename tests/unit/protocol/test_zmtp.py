"""The filter of ZMTP messages: those within the bounds pass byte for byte, the others are left out."""

from __future__ import annotations

import random
import time
import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.zmtp import MAX_PARTS, MessageFilter, NotZmtp

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


def filtering(max_bytes: int = MAX_BYTES) -> MessageFilter:
    """Return a filter that has seen the greeting."""
    found = MessageFilter(max_bytes=max_bytes, max_parts=MAX_PARTS_HERE)
    assert b"".join(found.feed(GREETING)) == GREETING
    return found


READY = frame(b"\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB", command=True)


@dataclass
class Sent:
    """A message, and whether it is within the bounds."""

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
    return Sent(multipart(parts, long=draw(st.booleans())), fits)


@given(st.lists(st.one_of(messages(), st.just(Sent(READY, fits=True))), max_size=8), st.randoms())
def test_what_fits_passes_whatever_the_pieces(sent: list[Sent], chance: random.Random) -> None:
    """However the bytes are cut, those of the messages within the bounds come out, and no other."""
    wire, found, out = b"".join(one.wire for one in sent), filtering(), []
    while wire:
        size = chance.choice([1, 2, 9, 100, 5000])
        out += found.feed(wire[:size])
        wire = wire[size:]

    assert b"".join(out) == b"".join(one.wire for one in sent if one.fits)
    assert found.dropped == sum(not one.fits for one in sent)


def test_the_greeting_passes_piece_by_piece() -> None:
    """Peers answer each other's pieces, so none is held back."""
    found = MessageFilter(max_bytes=MAX_BYTES, max_parts=MAX_PARTS_HERE)
    for piece in (GREETING[:10], GREETING[10:11], GREETING[11:] + READY):
        assert b"".join(found.feed(piece)) == piece


def test_a_last_part_is_not_held() -> None:
    """Once the last part's size is known, the message passes as it comes."""
    found = filtering()
    assert found.feed(frame(b"id", more=True)) == []
    wire = frame(b"x" * 900)
    assert b"".join(found.feed(wire[:10])) == frame(b"id", more=True) + wire[:10]
    assert b"".join(found.feed(wire[10:])) == wire[10:]


@pytest.mark.parametrize(
    "wire",
    [
        b"\x00\x00\x00\x05hello",
        b"\xff" + bytes(8) + b"\x7e",
        b"\xff" + bytes(8) + b"\x7f\x01",
        b"\xff" + bytes(8) + b"\x7f\x02",
        b"\xff" + bytes(8) + b"\x7f\x04",
        GREETING + b"\x08\x01x",
        GREETING + b"\xff" * 9,
        GREETING + frame(b"PING", command=True, more=True),
        GREETING + frame(b"x" * 5000, command=True),
        GREETING + frame(b"x", more=True) + frame(b"PING", command=True),
        GREETING + frame(b"", more=True) * (MAX_PARTS + 1),
    ],
)
def test_what_is_no_zmtp_3_is_refused(wire: bytes) -> None:
    """Older versions are framed otherwise, so libzmq must never come to speak them."""
    found = MessageFilter(max_bytes=MAX_BYTES, max_parts=MAX_PARTS_HERE)
    with pytest.raises(NotZmtp):
        found.feed(wire)


@pytest.mark.parametrize("size", [1, 100, 65_536])
@pytest.mark.parametrize(
    "wire", [frame(b"x" * 4000, more=True), frame(b"x" * 200, more=True), multipart([b"x" * (2 << 20)])]
)
def test_endless_messages_take_no_memory(size: int, wire: bytes) -> None:
    """No more than the bound is ever held, even of what comes byte by byte."""
    found = filtering(64 << 10)
    stream = wire * (1 + (40 * size) // len(wire))
    tracemalloc.start()
    for at in range(0, len(stream), size):
        found.feed(stream[at : at + size])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 512 << 10


def test_a_flood_of_tiny_parts_costs_little_at_once() -> None:
    """What one read brings is looked at in well under a tenth of a second, and its cost is told."""
    found = filtering()
    before, begun = found.cost, time.monotonic()
    found.feed(frame(b"", more=True) * 32_768)
    assert time.monotonic() - begun < 0.1
    assert found.cost - before > 2 << 20
