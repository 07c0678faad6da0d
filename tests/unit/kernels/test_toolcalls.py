"""Calls of tools from code to a desk and back, with the real attendant and the real module of the cell."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import Forbidden
from gateway.kernels.toolcalls import Desks
from tests.attendants import RealAttendant, attending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path
    from types import ModuleType


class Desk:
    """Knows a few tools, and notes what becomes of them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.most = self.now = 0

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Answer."""
        self.asked.append(name)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            match name:
                case "add":
                    await asyncio.sleep(0.02)
                    return arguments["a"] + arguments["b"]
                case "echo":
                    return dict(arguments)
                case "large":
                    return "ä" * arguments["size"]
                case "refuse":
                    raise Forbidden("You may not.")
                case "fail":
                    raise ZeroDivisionError
                case "odd":
                    return object()
                case _:
                    await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        finally:
            self.now -= 1


@pytest.fixture
def attendant(tmp_path: Path) -> Iterator[RealAttendant]:
    """A real attendant."""
    with attending(tmp_path) as found:
        yield found


@pytest.fixture
def desks() -> Desks:
    """Nobody at first."""
    return Desks()


@pytest.fixture
async def desk(attendant: RealAttendant, desks: Desks) -> AsyncIterator[Desk]:
    """A desk that answers calls."""
    found, processes = Desk(), attendant.processes(desks=desks)
    await processes.open()
    with desks.with_one(found):
        yield found
        processes.tools.withdraw(found)
    processes.close()


@pytest.fixture
def cellblock(attendant: RealAttendant) -> ModuleType:
    """The module that code in a cell imports."""
    return attendant.guest()


async def aside(work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Do what blocks in a thread, for ten seconds at most."""
    async with asyncio.timeout(10):
        return await asyncio.to_thread(work, *arguments, **named)


async def test_a_call_is_answered(desk: Desk, cellblock: ModuleType) -> None:
    """By name, by attribute, and awaited; arguments and results are JSON as they are."""
    assert await aside(cellblock.call, "add", a=1, b=2) == 3
    assert await aside(cellblock.tools.echo, text="ü\n", deep={"list": [1, None, 2.5]}) == {
        "text": "ü\n",
        "deep": {"list": [1, None, 2.5]},
    }
    assert await cellblock.acall("add", a=3, b=4) == 7
    assert await aside(cellblock.call, "echo") == {}
    assert "Call the tool 'add'" in cellblock.tools.add.__doc__


@pytest.mark.parametrize(
    ("name", "code"),
    [("refuse", "forbidden"), ("fail", "internal_error"), ("odd", "internal_error"), ("", "bad_request")],
)
async def test_errors_are_exceptions(desk: Desk, cellblock: ModuleType, name: str, code: str) -> None:
    """What a tool answers instead of a result has a code; of what failed inside nothing more is told."""
    with pytest.raises(cellblock.ToolError) as raised:
        await aside(cellblock.call, name)
    assert raised.value.code == code
    assert "ZeroDivision" not in str(raised.value)


async def test_arguments_that_are_no_json_do_not_leave(desk: Desk, cellblock: ModuleType) -> None:
    """They are refused where they are."""
    for value in (object(), float("nan"), {1, 2}):
        with pytest.raises(cellblock.ToolError) as raised:
            await aside(cellblock.call, "echo", value=value)
        assert raised.value.code == "bad_request"
    assert desk.asked == []


async def test_many_calls_at_a_time(desk: Desk, cellblock: ModuleType) -> None:
    """From tasks and from threads; each gets its own answer, more than are worked on at a time as well."""
    async with asyncio.timeout(10):
        sums = await asyncio.gather(*(cellblock.acall("add", a=n, b=n) for n in range(100)))
        threads = await asyncio.gather(
            *(asyncio.to_thread(cellblock.call, "add", a=n, b=1) for n in range(20))
        )
    assert sums == [2 * n for n in range(100)]
    assert threads == [n + 1 for n in range(20)]
    assert 2 <= desk.most <= 16


async def test_large_calls_and_results(desk: Desk, cellblock: ModuleType) -> None:
    """Up to a MiB there and four back; more is an error, and the next call is answered."""
    text = "x" * 1_000_000
    assert await aside(cellblock.call, "echo", text=text) == {"text": text}
    assert len(await aside(cellblock.call, "large", size=1_900_000)) == 1_900_000
    for name, arguments in (("echo", {"text": "x" * (2 << 20)}), ("large", {"size": 3 << 20})):
        with pytest.raises(cellblock.ToolError) as raised:
            await aside(cellblock.call, name, **arguments)
        assert raised.value.code in {"payload_too_large", "no_answer"}
    assert await aside(cellblock.call, "add", a=1, b=1) == 2


async def test_a_child_may_call(desk: Desk, cellblock: ModuleType) -> None:
    """A forked process has the same tools."""

    def forked() -> int:
        pid = os.fork()
        if not pid:
            os._exit(cellblock.call("add", a=20, b=22))
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert await aside(forked) == 42


async def test_who_goes_away_takes_its_call_along(desk: Desk, attendant: RealAttendant) -> None:
    """A closed connection cancels the tool's work; one that is half closed still listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone:
        gone.connect(attendant.door)
        gone.sendall(b'{"name": "wait"}\n')
        async with asyncio.timeout(5):
            while not desk.asked:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        while not desk.cancelled:
            await asyncio.sleep(0.01)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as half:
        half.connect(attendant.door)
        half.sendall(b'{"name": "add", "arguments": {"a": 1, "b": 5}}\n')
        half.shutdown(socket.SHUT_WR)
        assert await aside(half.recv, 100) == b'{"result":6}\n'


@pytest.mark.parametrize(
    "line", [b"\n", b"x\n", b"[]\n", b'{"name": 1}\n', b'{"name": "x", "more": 1}\n', b"[" * 9000 + b"\n"]
)
async def test_a_wrong_line_is_answered(desk: Desk, attendant: RealAttendant, line: bytes) -> None:
    """What is no call is a `bad_request`; the conversation with the attendant goes on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(attendant.door)
        connection.sendall(line)
        answer = json.loads(await aside(connection.recv, 4096))
    assert answer["error"]["code"] == "bad_request"
    assert await attendant.guest().acall("add", a=1, b=1) == 2


async def test_connections_that_say_nothing_hold_up_a_bounded_number(
    desk: Desk, attendant: RealAttendant
) -> None:
    """At 64 the next ones wait at the door, and are served when one has gone."""
    with contextlib.ExitStack() as stack:
        silent = []
        for _ in range(64):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.connect(attendant.door)
            silent.append(connection)
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(attendant.guest().acall("add", a=1, b=1))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        silent[0].close()
        assert await asyncio.wait_for(waiting, 5) == 2


async def test_without_a_desk_there_are_no_tools(attendant: RealAttendant, desks: Desks) -> None:
    """Before any gateway has said hello, while nobody offers, and after the offer was taken back."""
    cellblock = attendant.guest()

    async def code_of(name: str) -> str:
        try:
            async with asyncio.timeout(5):
                await cellblock.acall(name)
        except cellblock.ToolError as error:
            return str(error.code)
        return "answered"

    assert await code_of("echo") == "no_tools"
    processes, desk = attendant.processes(desks=desks), Desk()
    await processes.open()
    assert await code_of("echo") == "no_tools"
    with desks.with_one(desk):
        assert await code_of("echo") == "answered"
        waiting = asyncio.create_task(code_of("wait"))
        await asyncio.sleep(0.1)
        processes.tools.withdraw(desk)
    assert await waiting == "no_tools"
    assert desk.cancelled == ["wait"]
    processes.close()


async def test_a_call_waits_for_the_gateway_that_is_about_to_offer(
    attendant: RealAttendant, desks: Desks
) -> None:
    """Code that is quicker than the beginning of the conversation is answered all the same."""
    call = asyncio.create_task(attendant.guest().acall("add", a=2, b=2))
    await asyncio.sleep(0.3)
    processes = attendant.processes(desks=desks)
    with desks.with_one(Desk()):
        await processes.open()
        assert await asyncio.wait_for(call, 5) == 4
    processes.close()


async def test_the_newest_desk_answers(attendant: RealAttendant, desks: Desks, desk: Desk) -> None:
    """Offers are stacked: with the newest gone, the one before it answers again."""
    newer = Desk()
    with desks.with_one(newer):
        await attendant.guest().acall("echo")
    await attendant.guest().acall("echo")
    assert (newer.asked, desk.asked) == (["echo"], ["echo"])


async def test_the_next_gateway_answers_for_the_last(attendant: RealAttendant, desks: Desks) -> None:
    """A call that a dead gateway was asked ends when the next one says hello."""
    cellblock, first = attendant.guest(), attendant.processes(desks=desks)
    await first.open()
    with desks.with_one(Desk()):
        call = asyncio.create_task(cellblock.acall("wait"))
        await asyncio.sleep(0.2)
    first.close()
    await asyncio.sleep(0.2)
    assert not call.done()
    second = attendant.processes()
    await second.open()
    with pytest.raises(cellblock.ToolError) as raised:
        await asyncio.wait_for(call, 5)
    assert raised.value.code == "no_tools"
    second.close()


def test_an_interrupt_ends_the_waiting(attendant: RealAttendant) -> None:
    """SIGINT in the thread that waits is a KeyboardInterrupt there, as for any code."""
    cellblock = attendant.guest()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        cellblock.call("wait")
