"""The channels of real kernels over WebSockets, in both framings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from gateway.kernels.lives import MAX_SHORT_LIVES
from gateway.protocol.messages import content, make
from gateway.protocol.websocket import V1
from gateway.sandbox.profile import shipped_dir
from tests.gateway import Client, complete, new_state_dir, running, text_of
from tests.lifecycle import until_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from gateway.models import Message
    from tests.gateway import Channels, Gateway

BOTH = pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])

STUBBORN = """
print("before", flush=True)
import time
while True:
    try:
        time.sleep(0.2)
    except BaseException:
        pass
"""


@contextlib.contextmanager
def much_text() -> Iterator[dict[str, str]]:
    """Give settings of a profile that lets programs have far more text than a page of JupyterLab can show."""
    directory, text = new_state_dir(), (shipped_dir() / "default.toml").read_text()
    text = re.sub(r"(?m)^relay_bytes = \S+", f"relay_bytes = {512 << 20}", text)
    (directory / "default.toml").write_text(text)
    yield {"CELLBLOCK_SANDBOX__PROFILE_DIRS": f'["{directory}"]'}
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def tight() -> Iterator[Gateway]:
    """A gateway with short deadlines, small frames and small queues."""
    env = {
        "CELLBLOCK_EXECUTIONS__MAX_TIMEOUT_S": "1.5",
        "CELLBLOCK_SERVER__MAX_FRAME_BYTES": str(1 << 20),
        "CELLBLOCK_SERVER__QUEUE_BYTES": str(1 << 20),
    }
    with much_text() as profiles, running("--no-keep", env=env | profiles) as gateway:
        yield gateway


@pytest.fixture
async def tight_client(tight: Gateway) -> AsyncIterator[Client]:
    """A client of the tight gateway."""
    async with tight.client() as client:
        yield client


@pytest.fixture
async def tight_kernel(tight_client: Client) -> AsyncIterator[str]:
    """A kernel of the tight gateway."""
    kernel_id = await tight_client.start()
    yield kernel_id
    await tight_client.delete(kernel_id)


@BOTH
async def test_an_execution_in_order(client: Client, kernel: str, v1: bool) -> None:
    """busy, input, streams, displays and result come in order, then reply and idle; all with their parent."""
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\ndisplay({'a': 1})\n6 * 7"
    async with client.channels(kernel, v1=v1) as channels:
        messages = await channels.until_done(await channels.execute(code))

    kinds = [m.msg_type for m in messages if m.channel == "iopub"]
    assert kinds == [
        "status",
        "execute_input",
        "stream",
        "stream",
        "display_data",
        "execute_result",
        "status",
    ]
    assert (text_of(messages), text_of(messages, "stderr")) == ("out\n", "err\n")
    assert the(messages, "execute_result")["data"]["text/plain"] == "42"
    assert the(messages, "execute_reply")["status"] == "ok"
    assert channels.socket.protocol == (V1 if v1 else None)


@BOTH
async def test_an_error(client: Client, kernel: str, v1: bool) -> None:
    """An exception is an error on iopub and in the reply, and what was queued behind it is aborted."""
    async with client.channels(kernel, v1=v1) as channels:
        first = await channels.execute("import time; time.sleep(0.5); {}['missing']", stop_on_error=True)
        second = await channels.execute("print('never')")
        messages, aborted = await answers(channels, first, second)

    assert the(messages, "error")["ename"] == "KeyError"
    assert the(messages, "execute_reply")["status"] == "error"
    assert the(aborted, "execute_reply")["status"] == "aborted"


@BOTH
async def test_input_is_asked_of_the_client(client: Client, kernel: str, v1: bool) -> None:
    """input() asks on stdin, an input_reply answers it, and the code goes on with what was said."""
    async with client.channels(kernel, v1=v1) as channels:
        asked = await channels.execute("said = input('who? ')\nprint('hello', said)", allow_stdin=True)
        request = await channels.until("input_request")
        assert (request.channel, request.parent_id) == ("stdin", asked)
        assert content(request)["prompt"] == "who? "

        await channels.put(make("stdin", "input_reply", {"value": "Ada"}, parent=request, session="test"))

        assert text_of(await channels.until_done(asked)) == "hello Ada\n"


@BOTH
async def test_comms_carry_buffers_both_ways(client: Client, kernel: str, v1: bool) -> None:
    """A comm's binary buffers arrive in the kernel and come back whole, empty ones included."""
    target = """
from comm import get_comm_manager
def echo(comm, opened):
    def answer(message):
        comm.send({"sizes": [len(b) for b in message["buffers"]]}, buffers=message["buffers"][::-1])
    comm.on_msg(answer)
get_comm_manager().register_target("echo", echo)
"""
    buffers = [bytes(range(256)) * 1000, b"", b"\x00\xff"]
    async with client.channels(kernel, v1=v1) as channels:
        await channels.until_done(await channels.execute(target))
        await channels.send("shell", "comm_open", {"comm_id": "c1", "target_name": "echo", "data": {}})
        message = make("shell", "comm_msg", {"comm_id": "c1", "data": {}}, parent=None, session="test")
        await channels.put(replace(message, buffers=buffers))

        answer = await channels.until("comm_msg")

    assert content(answer)["data"] == {"sizes": [256_000, 0, 2]}
    assert [bytes(buffer) for buffer in answer.buffers] == buffers[::-1]


@BOTH
async def test_interrupt_by_the_control_channel(client: Client, kernel: str, v1: bool) -> None:
    """An interrupt_request on control is answered while shell is busy, and ends what runs."""
    async with client.channels(kernel, v1=v1) as channels:
        asked = await channels.execute("import time\nprint('on', flush=True)\ntime.sleep(60)")
        await channels.until("stream")
        await asyncio.sleep(0.3)  # until it sleeps: a signal just before that would not wake it

        await channels.send("control", "interrupt_request", {})
        messages = await channels.until_done(asked, timeout=10)

        assert the(messages, "error")["ename"] == "KeyboardInterrupt"
        assert text_of(await channels.until_done(await channels.execute("print(1)"))) == "1\n"


@BOTH
async def test_questions(client: Client, kernel: str, v1: bool) -> None:
    """kernel_info, complete, inspect, is_complete, history and comm_info are answered on their channel."""
    async with client.channels(kernel, v1=v1) as channels:
        await channels.until_done(await channels.execute("some_long_name = [1]"))

        async def ask(kind: str, body: dict[str, Any], channel: str = "shell") -> dict[str, Any]:
            asked = await channels.send(channel, f"{kind}_request", body)
            reply = await channels.until(f"{kind}_reply")
            assert (reply.parent_id, reply.channel) == (asked, channel)
            return content(reply)

        assert (await ask("kernel_info", {}))["language_info"]["name"] == "python"
        assert (await ask("kernel_info", {}, "control"))["implementation"] == "ipython"
        found = await ask("complete", {"code": "some_lo", "cursor_pos": 7})
        assert "some_long_name" in found["matches"]
        seen = await ask("inspect", {"code": "some_long_name", "cursor_pos": 3, "detail_level": 0})
        assert "list" in seen["data"]["text/plain"]
        assert (await ask("is_complete", {"code": "for x in y:"}))["status"] == "incomplete"
        history = await ask("history", {"hist_access_type": "tail", "n": 1, "output": False, "raw": True})
        assert history["history"][-1][2] == "some_long_name = [1]"
        assert (await ask("comm_info", {}))["comms"] == {}


async def test_deadline_with_an_interrupt(tight_client: Client, tight_kernel: str) -> None:
    """An execution that runs out of time says so and is interrupted; the kernel's state stays."""
    async with tight_client.channels(tight_kernel) as channels:
        await channels.until_done(await channels.execute("kept = 7"))
        messages = await channels.until_done(
            await channels.execute("import time; time.sleep(60)"), timeout=20
        )

        assert "time limit of 1.5 s" in text_of(messages, "stderr")
        said = (the(messages, "error"), the(messages, "execute_reply"))
        assert [one["ename"] for one in said] == ["KeyboardInterrupt"] * 2
        assert [one["evalue"] for one in said] == ["The time limit of 1.5 s is over."] * 2
        assert text_of(await channels.until_done(await channels.execute("print(kept)"))) == "7\n"


@BOTH
async def test_deadline_with_a_kill(tight_client: Client, tight_kernel: str, v1: bool) -> None:
    """Code that ignores the interrupt is killed: error, reply and idle say why; the socket goes on."""
    async with tight_client.channels(tight_kernel, v1=v1) as channels:
        asked = await channels.execute(STUBBORN)
        waiting = await channels.execute("print('never')")
        messages, late = await answers(channels, asked, waiting)

        assert text_of(messages) == "before\n"
        assert the(messages, "error")["ename"] == "KernelTimeout"
        assert told(messages) == "timeout"
        assert the(late, "execute_reply")["status"] == "error"
        assert text_of(await channels.until_done(await channels.execute("print('anew')"))) == "anew\n"


@BOTH
async def test_kill_in_the_middle_is_answered_at_once(
    gateway: Gateway, client: Client, kernel: str, v1: bool
) -> None:
    """`kill -9` of a kernel at work: within a second its clients have error, reply and idle, and why."""
    async with client.channels(kernel, v1=v1) as channels:
        asked = await channels.execute("print('on', flush=True); import time; time.sleep(60)")
        queued = await channels.send("shell", "complete_request", {"code": "pri", "cursor_pos": 3})
        await channels.until("stream")
        begun = time.monotonic()
        os.kill(gateway.kernel_pids()[-1], signal.SIGKILL)

        messages = await channels.until_done(asked, timeout=5)

        assert time.monotonic() - begun < 1
        assert [m.msg_type for m in messages][-3:] == ["error", "execute_reply", "status"]
        assert told(messages) == "killed"
        assert the(messages, "error")["ename"] == "KernelKilled"
        reply = await channels.until("complete_reply", timeout=5)
        assert (reply.parent_id, content(reply)["status"]) == (queued, "error")
        # as Jupyter's kernels do, it starts afresh for who is there
        again = await channels.until_done(await channels.execute("print(6 * 7)"), timeout=20)
        assert text_of(again) == "42\n"
    model = await client.kernel(kernel)
    assert (model["execution_state"], model["reason"]) == ("idle", "killed")


async def test_what_dies_again_and_again_stays_dead(client: Client, kernel: str) -> None:
    """A kernel that never lives long is not started for ever; a restart that is asked for brings it back."""
    async with client.channels(kernel) as channels:
        for _ in range(MAX_SHORT_LIVES + 1):
            ended = await channels.until_done(await channels.execute("import os; os._exit(1)"), timeout=20)
            assert the(ended, "error")["ename"] == "KernelCrashed"
        await until_state(client, kernel, "dead")
        ended = await channels.until_done(await channels.execute("print(1)"), timeout=20)
        assert the(ended, "error")["ename"] == "KernelCrashed"
        await client.json("POST", f"/api/kernels/{kernel}/restart")
        assert text_of(await channels.until_done(await channels.execute("print(1)"))) == "1\n"


async def test_restart_with_an_open_socket(client: Client, kernel: str) -> None:
    """A restart answers what it cuts off, and the same socket serves the new kernel.

    `restarting` is not said: to JupyterLab that is a death, which it tells its user in a dialog.
    """
    async with client.channels(kernel) as channels:
        asked = await channels.execute("gone = 1; print('on', flush=True); import time; time.sleep(60)")
        await channels.until("stream")
        restarting = asyncio.create_task(client.json("POST", f"/api/kernels/{kernel}/restart"))

        messages = await channels.until_done(asked)
        assert the(messages, "execute_reply")["status"] == "error"
        assert (await restarting)["execution_state"] == "idle"
        assert (await client.kernel(kernel))["connections"] == 1
        states = [content(await channels.until("status"))["execution_state"]]
        while states[-1] != "idle":
            states.append(content(await channels.until("status"))["execution_state"])
        assert "restarting" not in states

        after = await channels.until_done(await channels.execute("gone"))
        assert the(after, "error")["ename"] == "NameError"


@BOTH
async def test_delete_closes_the_sockets(client: Client, v1: bool) -> None:
    """Deleting a kernel answers what runs and closes its sockets with 1000: clients do not come back."""
    kernel = await client.start()
    async with client.channels(kernel, v1=v1) as channels:
        asked = await channels.execute("print('on', flush=True); import time; time.sleep(60)")
        await channels.until("stream")
        deleting = asyncio.create_task(client.delete(kernel))

        messages = await channels.until_done(asked)

        assert told(messages) == "shutdown"
        assert await channels.closing() == 1000
        await deleting


async def test_two_sockets_on_one_kernel(client: Client, kernel: str) -> None:
    """Both see what the kernel publishes, of either framing; only the asker sees its reply."""
    async with (
        client.channels(kernel, session_id="one") as asker,
        client.channels(kernel, session_id="two", v1=False) as watcher,
    ):
        assert (await client.kernel(kernel))["connections"] == 2
        asked = await asker.execute("print('for all')")
        await asker.until_done(asked)
        seen = await watched(watcher, asked)
        mine = await watcher.execute("print('mine')")
        messages = await watcher.until_done(mine)

    assert [m.msg_type for m in seen] == ["status", "execute_input", "stream", "status"]
    assert [m.parent_id for m in messages if m.channel == "shell"] == [mine]


async def test_the_same_session_replaces_its_socket(client: Client, kernel: str) -> None:
    """A client that comes back with its session_id takes over: its stale socket is closed with 1000."""
    async with (
        client.channels(kernel, session_id="same") as stale,
        client.channels(kernel, session_id="same") as fresh,
    ):
        assert await stale.closing() == 1000
        assert text_of(await fresh.until_done(await fresh.execute("print('here')"))) == "here\n"
        assert (await client.kernel(kernel))["connections"] == 1


async def test_a_slow_reader_hurts_nobody(tight: Gateway, tight_client: Client, tight_kernel: str) -> None:
    """One client stops reading: the other has all at once; the slow one has the head, a mark, and the end."""
    async with narrow_client(tight) as other, other.channels(tight_kernel, session_id="slow") as slow:
        async with tight_client.channels(tight_kernel) as quick:
            begun = time.monotonic()
            asked = await quick.execute("for n in range(200):\n    print(str(n % 10) * 100_000, flush=True)")
            messages = await quick.until_done(asked)
            took_s = time.monotonic() - begun
        late = await watched(slow, asked)

    assert took_s < 10
    assert len(text_of(messages)) == 200 * 100_001
    assert text_of(late).startswith("000")
    assert len(text_of(late)) < 200 * 100_001
    assert "output cut: this connection reads too slowly" in text_of(late, "stderr")


@BOTH
async def test_twenty_megabytes_arrive_whole(v1: bool) -> None:
    """One print of 20 MB comes complete, in order, and in frames that a 1 MiB client takes."""
    async with contextlib.AsyncExitStack() as stack:
        gateway = stack.enter_context(running(env=stack.enter_context(much_text())))
        client = await stack.enter_async_context(gateway.client())
        channels = await stack.enter_async_context(client.channels(await client.start(), v1=v1))
        asked = await channels.execute("print(''.join(f'{n:07d}\\n' for n in range(2_500_000)), end='')")
        messages, largest = [], 0
        while not complete(messages, asked):
            frame = await channels.socket.receive(60)
            assert frame.type in {WSMsgType.BINARY, WSMsgType.TEXT}, frame
            largest = max(largest, len(frame.data))
            message = channels._framing.decode(frame.data)
            if message.parent_id == asked:
                messages.append(message)

    text = text_of(messages)
    assert len(text) == 20_000_000
    assert text == "".join(f"{n:07d}\n" for n in range(2_500_000))
    assert largest <= 1 << 20


async def test_a_revoked_key_closes_its_sockets(gateway: Gateway, client: Client) -> None:
    """Within two seconds of `keys revoke` the sockets of that key are closed with 1008, others are not."""
    async with gateway.client("leaver") as leaver:
        kernel, mine = await leaver.start(), await client.start()
        async with leaver.channels(kernel) as channels, client.channels(mine) as other:
            revoke = gateway.command("keys", "revoke", "leaver", "--state-dir", str(gateway.state_dir))
            await asyncio.to_thread(subprocess.run, revoke, check=True, capture_output=True)
            begun = time.monotonic()

            assert await channels.closing() == 1008
            assert time.monotonic() - begun < 2
            await leaver.json("GET", "/api/kernels", status=401)
            assert text_of(await other.until_done(await other.execute("print('still')"))) == "still\n"
    async with gateway.client("root", "admin") as admin:
        await admin.delete(kernel)
    await client.delete(mine)


@pytest.mark.parametrize(
    "frame",
    [
        "garbage",
        "[1, 2]",
        '{"header": 5}',
        b"",
        b"\xff" * 64,
        (2).to_bytes(4, "big") + (12).to_bytes(4, "big") + (1 << 31).to_bytes(4, "big") + b"{}",
    ],
)
@BOTH
async def test_garbage_closes_its_own_socket_alone(
    client: Client, kernel: str, v1: bool, frame: bytes | str
) -> None:
    """A frame that is no message closes that socket with 1007; the kernel and its other clients go on."""
    async with (
        client.channels(kernel, v1=v1, session_id="bad") as bad,
        client.channels(kernel, session_id="good") as good,
    ):
        await (bad.socket.send_bytes(frame) if isinstance(frame, bytes) else bad.socket.send_str(frame))
        assert await bad.closing() == 1007

        assert text_of(await good.until_done(await good.execute("print('fine')"))) == "fine\n"


async def test_an_unknown_channel_is_passed_over(client: Client, kernel: str) -> None:
    """As in every Jupyter server, a frame for no channel of a kernel's is dropped, and the socket goes on."""
    async with client.channels(kernel, v1=False) as channels:
        header = {"msg_id": "a", "msg_type": "execute_request"}
        await channels.socket.send_json({"channel": "shouting", "header": header})

        assert text_of(await channels.until_done(await channels.execute("print('fine')"))) == "fine\n"


async def test_lying_v1_offsets(client: Client, kernel: str) -> None:
    """Offsets that overlap, fall, or leave the frame are refused with 1007, and nothing is executed."""
    message = make("shell", "execute_request", {"code": "print('no')"}, parent=None, session="x")
    async with client.channels(kernel) as channels:
        honest = channels._framing.encode(message)
        assert isinstance(honest, bytes)
    for place in range(7):
        lie = bytearray(honest)
        lie[8 * place : 8 * place + 8] = (1 << 40).to_bytes(8, "little")
        async with client.channels(kernel, session_id=f"liar{place}") as channels:
            await channels.socket.send_bytes(bytes(lie))
            assert await channels.closing() == 1007, place

    model = await client.kernel(kernel)
    assert model["executions"] == 0


@BOTH
async def test_an_oversize_frame(tight_client: Client, tight_kernel: str, v1: bool) -> None:
    """A frame over server.max_frame_bytes closes its socket with 1009; the kernel is well."""
    async with tight_client.channels(tight_kernel, v1=v1) as channels:
        with contextlib.suppress(ConnectionError):
            await channels.execute("'" + "x" * (1 << 20) + "'")
        assert await channels.closing() == 1009

    assert await tight_client.out(tight_kernel, "print('well')") == "well\n"


async def test_what_no_client_may_send_is_not_passed_on(client: Client, kernel: str) -> None:
    """Unknown types and messages on iopub are left out, and the socket goes on."""
    async with client.channels(kernel) as channels:
        forged = await channels.send("iopub", "stream", {"name": "stdout", "text": "forged"})
        coffee = await channels.send("shell", "make_coffee_request", {})
        asked = await channels.execute("print('next')")
        seen = {(await channels.receive()).parent_id for _ in range(5)}

    assert asked in seen
    assert not {forged, coffee} & seen


async def test_a_burst_is_answered_in_order(client: Client, kernel: str) -> None:
    """500 executions sent without waiting are all answered, in the order in which they came."""
    async with client.channels(kernel) as channels:
        asked = [await channels.execute(f"print({n})") for n in range(500)]
        replies, texts = [], ""
        while len(replies) < 500:
            message = await channels.receive(60)
            if message.msg_type == "execute_reply":
                replies.append(message.parent_id)
                assert content(message)["status"] == "ok"
            elif message.msg_type == "stream":
                texts += content(message)["text"]
        while texts.count("\n") < 500:
            texts += content(await channels.until("stream"))["text"]

    assert replies == asked
    assert texts == "".join(f"{n}\n" for n in range(500))


async def test_more_than_may_wait_is_refused_in_full(client: Client, kernel: str) -> None:
    """Requests beyond kernels.max_pending are answered at once by error, reply and idle; the others run."""
    async with client.channels(kernel) as channels:
        await channels.execute("import time; time.sleep(1)")
        asked = [await channels.execute(f"{n}") for n in range(1005)]
        last = await channels.until_done(asked[-1], timeout=60)

        assert the(last, "error")["ename"] == "LimitReached"
        assert the(last, "execute_reply")["status"] == "error"


async def test_a_round_trip_is_no_nagle_wait(client: Client, kernel: str) -> None:
    """The median execution takes less than Nagle's algorithm and delayed ACKs alone would cost (40 ms)."""
    async with client.channels(kernel) as channels:
        times_s = []
        for _ in range(30):
            begun = time.perf_counter()
            await channels.execute("1")
            await channels.until("execute_reply")
            times_s.append(time.perf_counter() - begun)

    assert statistics.median(times_s) < 0.025


def the(messages: list[Message], msg_type: str) -> dict[str, Any]:
    """Return the content of the one message of a type."""
    (found,) = [m for m in messages if m.msg_type == msg_type]
    return content(found)


def told(messages: list[Message]) -> str:
    """Return the reason of a death that an execution's reply tells of."""
    (reply,) = [m for m in messages if m.msg_type == "execute_reply"]
    return str(json.loads(reply.metadata)["cellblock"]["reason"])


async def answers(channels: Channels, *asked: str) -> list[list[Message]]:
    """Collect the messages of several executions until each has its reply and its idle status."""
    seen: dict[str, list[Message]] = {msg_id: [] for msg_id in asked}
    async with asyncio.timeout(30):
        while not all(complete(messages, msg_id) for msg_id, messages in seen.items()):
            message = await channels.receive()
            if message.parent_id in seen:
                seen[message.parent_id].append(message)
    return list(seen.values())


@contextlib.asynccontextmanager
async def narrow_client(gateway: Gateway) -> AsyncIterator[Client]:
    """Give a client whose side of the network holds back little: what it does not read, the gateway keeps."""

    def small(address: tuple[Any, ...]) -> socket.socket:
        made = socket.socket(address[0], address[1], address[2])
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        return made

    headers = {"Authorization": f"token {gateway.key()}"}
    connector = aiohttp.TCPConnector(socket_factory=small)
    async with aiohttp.ClientSession(gateway.url, headers=headers, connector=connector) as session:
        yield Client(session)


async def watched(channels: Channels, asked: str) -> list[Message]:
    """Collect what a bystander sees of an execution, until its idle status."""
    seen: list[Message] = []
    while not seen or seen[-1].msg_type != "status" or b'"idle"' not in seen[-1].content:
        message = await channels.receive(60)
        if message.parent_id == asked:
            seen.append(message)
    return seen
