"""Floods of output over the WebSocket door, to readers that keep up and to one that reads nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import WSMsgType

from tests.gateway import Channels, complete, text_of
from tests.security.flooding import ENDS_S, TIMEOUT_S, Pair, flooded
from tests.security.floods import FLOODS, OWN_MESSAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.models import Message

STATUSES = """
kernel = get_ipython().kernel
while True:
    content = {'execution_state': 'busy', 'more': 'x' * 100_000}
    kernel.session.send(kernel.iopub_socket, 'status', content, parent=kernel.get_parent('shell'), ident=b's')
"""
# the answers that tell of an end are no larger
SMALL = 10_000
SHAPES = {name: FLOODS[name] for name in ("a million displays", "messages at the limit")}
SHAPES["statuses"] = STATUSES
SAYS = f"{OWN_MESSAGE}\nfor _ in range(100): say(1 << 20)"


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """The pair of one flood."""
    async with flooded() as found:
        yield found


async def end_of(channels: Channels, msg_id: str) -> str | int | None:
    """Read until the execution is done, or the socket is closed; return that, or the close code."""
    seen: list[Message] = []
    async with asyncio.timeout(ENDS_S):
        while not complete(seen, msg_id):
            frame = await channels.socket.receive()
            if frame.type is WSMsgType.CLOSE:
                return int(frame.data)
            message = channels.decode(frame.data)
            if (
                message.parent_id == msg_id
                and message.msg_type in {"status", "execute_reply"}
                and message.size < SMALL
            ):
                seen.append(message)
    return "done"


@pytest.mark.parametrize(
    ("flood", "v1"), [*((flood, True) for flood in SHAPES), ("messages at the limit", False)]
)
async def test_a_reader_that_keeps_up(
    pair: Pair, flood: str, v1: bool, record_property: Callable[[str, object], None]
) -> None:
    """It is told the end of its execution, or loses its socket; nobody else is troubled."""
    async with pair.watched() as seen, pair.alice.channels(pair.flooding, v1=v1) as channels:
        asked = await channels.execute(SHAPES[flood], timeout_s=TIMEOUT_S)
        end = await end_of(channels, asked)

    pair.check(seen, record_property)
    # states may not be left out: who is behind with those alone is sent away
    assert end == "done" or (flood, end) == ("statuses", 1013)


@pytest.mark.parametrize("flood", SHAPES)
async def test_a_reader_that_reads_nothing(
    pair: Pair, flood: str, record_property: Callable[[str, object], None]
) -> None:
    """What waits for it is bounded, and the kernel is there for others of its owner."""
    async with pair.watched() as seen, pair.alice.channels(pair.flooding) as channels:
        await channels.execute(SHAPES[flood], timeout_s=TIMEOUT_S)
        while (await pair.alice.kernel(pair.flooding))["execution_state"] != "idle":
            await asyncio.sleep(0.1)

    pair.check(seen, record_property)
    assert await pair.alice.out(pair.flooding, "print(6 * 7)") == "42\n"


async def test_what_a_slow_reader_lost_is_marked(pair: Pair) -> None:
    """Who reads on finds a mark where output is missing, and the end of the execution."""
    async with pair.alice.channels(pair.flooding) as channels:
        asked = await channels.execute(SAYS, timeout_s=30)
        await asyncio.sleep(4)
        messages = await channels.until_done(asked, 60)

    assert "[cellblock" in text_of(messages, "stderr")
