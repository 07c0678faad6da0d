"""A slow reader's queue is bounded, cut with a mark, and never loses what tells a client where it stands."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from gateway.http.authored import CUT
from gateway.http.outbox import Close, Outbox
from gateway.models import DeathReason, Message
from gateway.protocol.messages import content, make
from gateway.telemetry import Metrics

REQUEST = make("shell", "execute_request", {"code": "1"}, parent=None, session="s")
OTHER = make("shell", "execute_request", {"code": "2"}, parent=None, session="s")


def outbox(max_messages: int = 10, max_bytes: int = 1 << 20) -> Outbox:
    """Return an empty outbox."""
    return Outbox(max_bytes=max_bytes, max_messages=max_messages, metrics=Metrics())


def kernels(kind: str, body: dict[str, str], parent: Message) -> Message:
    """Return an iopub message that a kernel made."""
    return replace(make("iopub", kind, body, parent=parent, session="k"), authored=False)


def stream(text: str, parent: Message = REQUEST) -> Message:
    """Return output of a request's."""
    return kernels("stream", {"name": "stdout", "text": text}, parent)


def status(state: str = "idle") -> Message:
    """Return a status message."""
    return kernels("status", {"execution_state": state}, REQUEST)


async def drained(box: Outbox) -> list[str]:
    """Take everything out; say the texts of streams and the types of the rest."""
    taken = [await box.next() for _ in range(len(box))]
    return [content(m).get("text", m.msg_type) for m in taken if m is not None]


async def test_order_is_kept():
    """What fits comes out as it went in."""
    box = outbox()
    for message in (status("busy"), stream("a"), stream("b"), status()):
        box.deliver(message)

    assert await drained(box) == ["status", "a", "b", "status"]


async def test_output_past_the_bound_is_cut_with_one_mark_in_place():
    """Output that does not fit is left out; one mark per request stands there, and states come through."""
    box = outbox(max_messages=4)
    for text in "abcdefgh":
        box.deliver(stream(text))
    box.deliver(stream("x", OTHER))
    box.deliver(status())
    marks = list(box._queue)[4:6]

    assert [mark.parent_id for mark in marks] == [REQUEST.msg_id, OTHER.msg_id]
    assert await drained(box) == ["a", "b", "c", "d", CUT, CUT, "status"]


async def test_output_goes_on_when_half_is_read():
    """Output is taken again once half of the queue is free, and a new cut gets a new mark."""
    box = outbox(max_messages=4)
    for text in "abcdef":
        box.deliver(stream(text))
    await box.next()
    box.deliver(stream("still cut"))
    for _ in range(3):
        await box.next()
    box.deliver(stream("again"))

    assert await drained(box) == [CUT, "again"]


async def test_bytes_are_bounded():
    """Few large messages fill the queue as many small ones do; a lone one is always taken."""
    box = outbox(max_messages=100, max_bytes=10_000)
    box.deliver(stream("L" * 20_000))
    box.deliver(stream("b"))

    assert await drained(box) == ["L" * 20_000, CUT]


async def test_what_may_not_be_cut_has_a_bound_of_its_own():
    """Replies and states are never left out, however much output waits; past their own bound it is 1013."""
    box = outbox(max_messages=4)
    for text in "abcd":
        box.deliver(stream(text))
    for _ in range(4):
        box.deliver(status())
    assert (len(box), box.closing) == (8, None)

    box.deliver(status())

    assert box.closing is not None
    assert box.closing.code == 1013
    assert await box.next() is None


async def test_marks_are_bounded_too():
    """A kernel that invents a parent for every message cannot fill the queue with marks."""
    box = outbox(max_messages=4)
    for _ in range(100):
        box.deliver(stream("x", make("shell", "execute_request", {}, parent=None, session="s")))

    assert len(box) <= 8


async def test_the_end_comes_after_what_is_queued():
    """A kernel's end lets the queue drain first; 1000 is for what was ended on purpose."""
    box = outbox()
    box.deliver(stream("last"))
    box.ended(DeathReason.SHUTDOWN)
    box.deliver(stream("too late"))

    assert await drained(box) == ["last"]
    assert await box.next() is None
    assert box.closing is not None
    assert box.closing.code == 1000

    crashed = outbox()
    crashed.ended(DeathReason.CRASHED)
    assert crashed.closing is not None
    assert crashed.closing.code == 1011


async def test_a_waiting_reader_is_woken():
    """A reader that waits gets the next message, and learns of the end."""
    box = outbox()
    waiting = asyncio.create_task(box.next())
    await asyncio.sleep(0)
    box.deliver(status())
    assert (await waiting) is not None

    waiting = asyncio.create_task(box.next())
    await asyncio.sleep(0)
    box.finish(Close(1008, "revoked"))
    assert (await waiting) is None
