"""Output that survives: who comes back to a real kernel gets what it missed, in order, once, or a mark."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import aiohttp
import pytest

from gateway.client import Client as TypedClient
from gateway.http.progress import TOGETHER
from gateway.models import Message
from gateway.protocol.messages import content, make
from tests.conftest import ROOM
from tests.gateway import Channels, Client, complete, running, text_of
from tests.integration.test_kernel_life import STUBBORN
from tests.machine import PROC

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.gateway import Gateway

COUNT = "import time\nfor n in range({n}):\n    print(n, flush=True)\n    time.sleep({s})"
SMALL = 256 << 10
LOST = re.compile(r"\[cellblock\] (\d+) bytes of output were lost while this client was not connected\.\n")


@pytest.fixture(scope="module")
def small() -> Iterator[Gateway]:
    """A gateway that keeps little, and queues little for a slow client."""
    env = {
        "CELLBLOCK_KERNELS__REPLAY_BYTES": str(SMALL),
        "CELLBLOCK_EXECUTIONS__MAX_TIMEOUT_S": "20",
    }
    with running("--no-keep", env={**ROOM, **env}) as gateway:
        yield gateway


class Line:
    """A connection to a gateway that can be cut: nothing passes any more, and then it breaks."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Let nothing more through, and break both sides."""
        self._cut = True
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()

    def silence(self) -> None:
        """Let nothing more through, and tell nobody."""
        self._cut = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pass(source, sink))
            self._tasks.add(task)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if self._cut:
                    continue
                sink.write(data)
                await sink.drain()
            sink.close()


@contextlib.asynccontextmanager
async def through(line: Line, gateway: Gateway, kernel: str, session_id: str) -> AsyncIterator[Channels]:
    """Open a WebSocket over a line that may be cut."""
    headers = {"Authorization": f"token {gateway.key()}"}
    async with (
        aiohttp.ClientSession(line.url, headers=headers) as session,
        Client(session).channels(kernel, session_id=session_id) as channels,
    ):
        yield channels


async def received(channels: Channels, into: list[Message]) -> None:
    """Collect what comes until the connection ends."""
    with contextlib.suppress(AssertionError, ConnectionError):
        while True:
            into.append(await channels.receive(60))


async def silent(channels: Channels, for_s: float = 0.4) -> None:
    """Assert that nothing comes."""
    with pytest.raises(TimeoutError):
        await channels.receive(for_s)


def numbers(messages: list[Message]) -> list[int]:
    """Return the numbers that the code printed."""
    return [int(line) for line in text_of(messages).split()]


async def idle(client: Client, kernel: str) -> None:
    """Wait until a kernel has done its work."""
    while (await client.kernel(kernel))["execution_state"] != "idle":
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("v1", [True, False])
async def test_the_same_page_gets_the_rest(client: Client, kernel: str, v1: bool) -> None:
    """A page goes in the middle of an execution and comes back after its end: the rest is there, once."""
    async with client.channels(kernel, session_id="page", v1=v1) as channels:
        asked = await channels.execute(COUNT.format(n=20, s=0.05))
        seen = [await channels.receive() for _ in range(6)]
    await idle(client, kernel)

    async with client.channels(kernel, session_id="page", v1=v1) as channels:
        rest = await channels.until_done(asked)
        await silent(channels)

    assert numbers(seen + rest) == list(range(20))
    assert complete(rest, asked)
    ids = [message.msg_id for message in seen + rest]
    assert len(ids) == len(set(ids))
    async with client.channels(kernel, session_id="page", v1=v1) as channels:
        await silent(channels)


def once(messages: list[Message]) -> list[Message]:
    """Leave out what came a second time: the same messages, told by their ids."""
    return list({message.msg_id: message for message in messages}.values())


async def test_no_gap_where_the_past_meets_the_present(client: Client, kernel: str) -> None:
    """A page that comes and goes again and again while the kernel prints has every line, in order."""
    seen: list[Message] = []
    asked, goings = "", 0
    while not complete(seen, asked):
        goings += 1
        async with client.channels(kernel, session_id="page") as channels:
            asked = asked or await channels.execute(COUNT.format(n=300, s=0.005))
            for _ in range(random.randint(1, 40)):
                seen.append(await channels.receive())
                if complete(seen, asked):
                    break
        await asyncio.sleep(random.choice([0, 0.05]))

    assert numbers(once(seen)) == list(range(300))
    # of messages that are written in one go, fewer than eight have no ping of their own
    assert len(seen) - len(once(seen)) < TOGETHER * goings


async def test_a_connection_that_breaks(gateway: Gateway, client: Client, kernel: str) -> None:
    """A line is cut at any moment: what had not arrived comes over the next one, in order, with no gap."""
    seen: list[Message] = []
    asked = ""
    for _ in range(6):
        async with Line(gateway.url) as line, through(line, gateway, kernel, "page") as channels:
            asked = asked or await channels.execute(COUNT.format(n=150, s=0.02))
            reading = asyncio.create_task(received(channels, seen))
            await asyncio.sleep(random.uniform(0.2, 0.5))
            line.cut()
            await reading
    async with client.channels(kernel, session_id="page") as channels:
        while not complete(seen, asked):
            seen.append(await channels.receive())

    # what arrived in the last moment of a line, and its pong did not, comes again: the same message
    assert numbers(once(seen)) == list(range(150))
    assert len(seen) - len(once(seen)) <= 6


async def test_a_silent_line_is_replaced(gateway: Gateway, client: Client, kernel: str) -> None:
    """A network that swallows everything, before anybody notices: the page comes anew and misses nothing."""
    seen: list[Message] = []
    async with Line(gateway.url) as line, through(line, gateway, kernel, "page") as channels:
        asked = await channels.execute(COUNT.format(n=40, s=0.05))
        reading = asyncio.create_task(received(channels, seen))
        await asyncio.sleep(0.6)
        line.silence()
        await asyncio.sleep(0.6)
        async with client.channels(kernel, session_id="page") as again:
            while not complete(seen, asked):
                seen.append(await again.receive())
        line.cut()
        await reading

    assert numbers(once(seen)) == list(range(40))
    assert len(seen) - len(once(seen)) <= 1


async def test_another_page_takes_over(client: Client, kernel: str) -> None:
    """A reload: the new page, which has another session_id, gets what the old one missed, and the replies."""
    async with client.channels(kernel, session_id="before") as channels:
        asked = await channels.execute(COUNT.format(n=20, s=0.05))
        seen = [await channels.receive() for _ in range(6)]

    async with client.channels(kernel, session_id="after") as channels:
        rest = await channels.until_done(asked)

    assert numbers(seen + rest) == list(range(20))
    async with client.channels(kernel, session_id="before") as channels:
        again = await channels.until_done(asked)
    assert numbers(seen + again) == list(range(20)), "the old page has missed the same"


async def test_two_pages_that_stay_get_nothing_twice(client: Client, kernel: str) -> None:
    """One of three pages goes and comes: it has everything once, and those that stayed have nothing twice."""
    async with (
        client.channels(kernel, session_id="one") as one,
        client.channels(kernel, session_id="two") as two,
    ):
        async with client.channels(kernel, session_id="gone") as gone:
            asked = await gone.execute(COUNT.format(n=20, s=0.05))
            seen = [await gone.receive() for _ in range(6)]
        await idle(client, kernel)
        async with client.channels(kernel, session_id="new") as new:
            await silent(new)
        async with client.channels(kernel, session_id="gone") as gone:
            rest = await gone.until_done(asked)
            await silent(gone)
        for tab in (one, two):
            all_of_it: list[Message] = []
            while not any(m.msg_type == "status" and b"idle" in m.content for m in all_of_it):
                all_of_it.append(await tab.receive())
            assert numbers(all_of_it) == list(range(20))
            await silent(tab)

    assert numbers(seen + rest) == list(range(20))


async def test_a_question_waits_for_who_comes(client: Client, kernel: str) -> None:
    """A page that asked for input is reloaded: the new one is asked again, and its answer is taken."""
    async with client.channels(kernel, session_id="before") as channels:
        asked = await channels.execute("print('hello ' + input('who? '))", allow_stdin=True)
        question = await channels.until("input_request")

    async with client.channels(kernel, session_id="after") as channels:
        again = await channels.until("input_request")
        assert again.msg_id == question.msg_id
        reply = make("stdin", "input_reply", {"value": "world"}, parent=again, session="after")
        await channels.put(reply)
        said = await channels.until_done(asked)

    assert "hello world" in text_of(said)


async def test_a_question_asked_of_nobody(client: Client, kernel: str) -> None:
    """The kernel asks when its page is not there: the page finds the question when it comes back."""
    async with client.channels(kernel, session_id="page") as channels:
        code = "import time; time.sleep(0.5); print('hello ' + input('who? '))"
        asked = await channels.execute(code, allow_stdin=True)
        await channels.until("execute_input")
    await asyncio.sleep(1)

    async with client.channels(kernel, session_id="page") as channels:
        question = await channels.until("input_request")
        await channels.put(make("stdin", "input_reply", {"value": "you"}, parent=question, session="page"))
        said = await channels.until_done(asked)
        await silent(channels)

    assert "hello you" in text_of(said)


async def test_who_comes_late_may_have_it_from_the_start(
    gateway: Gateway, client: Client, kernel: str
) -> None:
    """`?replay=current` gives what runs now from its start; without it a late page gets what comes."""
    async with client.channels(kernel, session_id="first") as first:
        await first.until_done(await first.execute("print('earlier')"))
        asked = await first.execute(COUNT.format(n=30, s=0.05))
        await asyncio.sleep(0.7)
        async with (
            client.channels(kernel, session_id="late", query="&replay=current") as late,
            client.channels(kernel, session_id="plain") as plain,
        ):
            own = await first.until_done(asked)
            from_start = [await late.receive() for _ in own[:-1]]
            later = await plain.until("stream")
            assert numbers(own) == list(range(30))
            # all but the reply, which is for who asked
            assert [m.msg_id for m in from_start] == [m.msg_id for m in own if m.channel == "iopub"]
            assert numbers([later])[0] > 5
        async with client.channels(kernel, session_id="too late", query="&replay=current") as late:
            await silent(late)

    running_code = asyncio.create_task(client.run(kernel, COUNT.format(n=10, s=0.1)))
    await asyncio.sleep(0.6)
    seen = []
    async with (
        TypedClient(gateway.url, gateway.key()) as typed,
        typed.kernels.session(kernel, current=True) as session,
    ):
        async for message in session.messages():
            seen.append(message)
            if message.msg_type == "status" and b"idle" in message.content:
                break
    assert numbers(seen) == list(range(10)), "an execution over REST as well"
    assert (await running_code)["status"] == "ok"
    await client.json("GET", f"/api/kernels/{kernel}/channels?replay=all", status=400)


async def test_what_does_not_fit_is_marked_to_the_byte(small: Gateway) -> None:
    """More output than is kept: the mark, the last of it, and then states and the reply, which always fit."""
    async with small.client() as client:
        kernel = await client.start()
        async with client.channels(kernel, session_id="page") as channels:
            asked = await channels.execute(
                "import time; time.sleep(0.5)\nfor n in range(370): print('x' * 9999)"
            )
            await channels.until("execute_input")
            await silent(channels, 0.1)
        await idle(client, kernel)

        async with client.channels(kernel, session_id="page") as channels:
            seen = await channels.until_done(asked)

    (told,) = LOST.findall(text_of(seen, "stderr"))
    streams = [m for m in seen if m.msg_type == "stream" and "cellblock" not in content(m)["text"]]
    kept = sum(len(content(message)["text"]) for message in streams)
    assert 0 < kept < SMALL
    overhead = int(told) + kept - 370 * 10_000
    assert 0 < overhead < 370 * 10_000 * 0.2, "headers count as well"
    assert complete(seen, asked)
    mark = next(message for message in seen if message.msg_type == "stream")
    assert LOST.search(text_of([mark], "stderr")), "it stands before what is left of the output"
    assert b'"truncated":true' in mark.metadata
    assert mark.parent_id == asked


async def test_a_large_past_does_not_overflow_the_pages_own_queue() -> None:
    """A queue of 1 MiB, and 3.5 MB missed: all of it comes, and what is said meanwhile comes behind it."""
    env = {"CELLBLOCK_SERVER__QUEUE_BYTES": str(1 << 20), "CELLBLOCK_SERVER__QUEUE_MESSAGES": "100"}
    with running("--no-keep", env=env) as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            async with client.channels(kernel, session_id="page") as channels:
                code = (
                    "import sys, time; time.sleep(0.5)\n"
                    "for n in range(350):\n"
                    "    print(n, 'x' * 9990, flush=True)\n"
                )
                asked = await channels.execute(code)
                await channels.until("execute_input")
            await idle(client, kernel)

            async with client.channels(kernel, session_id="page") as channels:
                after = await channels.execute("print('after')")
                await asyncio.sleep(0.5)
                seen: list[Message] = []
                while not complete([m for m in seen if m.parent_id == after], after):
                    seen.append(await channels.receive())

    lines = text_of([m for m in seen if m.parent_id == asked]).splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(350))
    assert "cut" not in text_of(seen, "stderr")
    assert text_of([m for m in seen if m.parent_id == after]) == "after\n"


async def test_what_is_kept_of_a_flood_is_bounded(small: Gateway) -> None:
    """200 MB said to nobody leave the gateway about as large as it was."""

    def resident() -> int:
        assert small.process is not None
        status = (PROC / str(small.process.pid) / "status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) << 10

    async with small.client() as client:
        kernel = await client.start()
        async with client.channels(kernel, session_id="page") as channels:
            await channels.until_done(await channels.execute("print('x' * 1_000_000)"))
            before = resident()
            await channels.execute("for n in range(20_000): print('x' * 10_000)")
        await idle(client, kernel)
        after = resident()
        await client.delete(kernel)

    assert after - before < 48 << 20


async def test_others_get_nothing_of_it(gateway: Gateway, client: Client, kernel: str) -> None:
    """What alice missed is alice's: bob finds no kernel, and an admin's page starts where it comes in."""
    async with client.channels(kernel, session_id="page") as channels:
        asked = await channels.execute("import time; time.sleep(0.4); print('for alice')")
        await channels.until("execute_input")
    await idle(client, kernel)

    async with gateway.client("bob") as bob:
        for query in ("?session_id=page", "?session_id=page&replay=current"):
            await bob.json("GET", f"/api/kernels/{kernel}/channels{query}", status=404)
    async with gateway.client("root", "admin") as root, root.channels(kernel, session_id="page") as channels:
        await silent(channels)

    async with client.channels(kernel, session_id="page") as channels:
        assert text_of(await channels.until_done(asked)) == "for alice\n"


async def test_a_kernel_that_dies_meanwhile_says_why(gateway: Gateway, client: Client, kernel: str) -> None:
    """Killed while nobody is there: the page finds its output, the error with the reason, and the reply."""
    async with client.channels(kernel, session_id="page") as channels:
        asked = await channels.execute(
            "import os, time; time.sleep(0.4); print(os.getpid(), flush=True); time.sleep(60)"
        )
        await channels.until("execute_input")
    await asyncio.sleep(1)
    os.kill(gateway.kernel_pids()[-1], signal.SIGKILL)
    while (await client.kernel(kernel))["execution_state"] != "dead":
        await asyncio.sleep(0.05)

    async with client.channels(kernel, session_id="page") as channels:
        seen = await channels.until_done(asked)

    assert len(numbers(seen)) == 1
    assert [content(m)["ename"] for m in seen if m.msg_type == "error"] == ["KernelKilled"]
    assert b'"reason":"killed"' in next(m for m in seen if m.msg_type == "execute_reply").metadata


async def test_a_deadline_that_passes_meanwhile_is_told(small: Gateway) -> None:
    """Code that swallows its interrupt is killed while nobody is there: output and reason are kept."""
    stubborn = (
        "import time\nprint('early', flush=True)\n"
        "while True:\n    try: time.sleep(0.2)\n    except BaseException: pass"
    )
    async with small.client() as client:
        kernel = await client.start()
        async with client.channels(kernel, session_id="page") as channels:
            request = make(
                "shell",
                "execute_request",
                {"code": stubborn, "silent": False},
                parent=None,
                session="page",
                metadata={"cellblock": {"timeout_s": 1}},
            )
            await channels.put(request)
        await asyncio.sleep(1)
        await idle(client, kernel)

        async with client.channels(kernel, session_id="page") as channels:
            seen = await channels.until_done(request.msg_id)

    assert text_of(seen) == "early\n"
    assert [content(m)["ename"] for m in seen if m.msg_type == "error"] == ["KernelTimeout"]


async def test_a_restart_that_was_asked_for_forgets_the_output(client: Client, kernel: str) -> None:
    """After a restart the old output is a mark; what was asked and never answered is answered still."""
    async with client.channels(kernel, session_id="page") as channels:
        asked = await channels.execute(
            "import time; time.sleep(0.3); print('old', flush=True); time.sleep(60)"
        )
        await channels.until("execute_input")
    await asyncio.sleep(0.8)
    await client.json("POST", f"/api/kernels/{kernel}/restart")

    async with client.channels(kernel, session_id="page") as channels:
        seen = await channels.until_done(asked)
        after = await channels.until_done(await channels.execute("print('new')"))

    assert text_of(seen) == ""
    assert LOST.search(text_of(seen, "stderr"))
    assert [content(m)["ename"] for m in seen if m.msg_type == "error"] == ["KernelKilled"]
    assert text_of(after) == "new\n"


async def test_output_outlives_the_gateway() -> None:
    """A gateway is killed while code runs: the next one gives the page the rest, and the reply."""
    with running() as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            async with client.channels(kernel, session_id="page") as channels:
                asked = await channels.execute(COUNT.format(n=60, s=0.1))
                seen = [await channels.receive() for _ in range(6)]
                gateway.end(signal.SIGKILL)
        gateway.start()
        await asyncio.sleep(1)
        async with gateway.client() as client, client.channels(kernel, session_id="page") as channels:
            rest = await channels.until_done(asked)
            async with client.channels(kernel, session_id="other page of before") as other:
                also = await other.until("stream")

    printed = numbers(rest)
    assert printed == list(range(printed[0], 60)), "from the adoption on there is no gap"
    assert "output in between may be missing" in text_of(rest, "stderr")
    assert seen
    assert complete(rest, asked)
    assert b"may be missing" in also.content


async def test_pings_of_the_clients_own_are_answered(client: Client, kernel: str) -> None:
    """A client may ping, and may send pongs that nobody asked for: those confirm nothing."""
    async with client.channels(kernel, session_id="page") as channels:
        await channels.socket.pong(b"999999999999")
        await channels.socket.pong(b"")
        await channels.until_done(await channels.execute("print(1)"))
        await channels.socket.ping(b"mine")
        said = await channels.until_done(await channels.execute("print(2)"))

    assert text_of(said) == "2\n"


async def test_a_restart_is_told_once(client: Client) -> None:
    """A page that connects anew because it was told of a restart is not told of that restart again."""
    kernel = await client.start()
    restarting = b'"restarting"'
    async with client.channels(kernel, session_id="page") as channels:
        await channels.execute(STUBBORN, timeout_s=0.5)
        while restarting not in (await channels.until("status")).content:
            pass
    told = []
    async with client.channels(kernel, session_id="page") as channels:
        # the restarted kernel's own
        while b'"idle"' not in (message := await channels.until("status")).content:
            told.append(message.content)
    assert not [content for content in told if restarting in content]
    await client.delete(kernel)
