"""A kernel that lies over its own sockets: the gateway stays up, others do not notice, nobody is told of others' work."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway import Client, Gateway, running, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# What hostile code finds in its own kernel: the session that signs, the sockets, and a way to send raw frames.
PRELUDE = """
import json, zmq
kernel = get_ipython().kernel
session, parent = kernel.session, kernel.get_parent()
pub = kernel.iopub_thread
header = parent['header']
def part(value): return value if isinstance(value, bytes) else json.dumps(value).encode()
def signed(kind, content, of=None, own=None, metadata=None):
    fields = own if own is not None else session.msg_header(kind)
    parts = [part(json.loads(json.dumps(fields, default=str))) if not isinstance(fields, bytes) else fields,
             part(json.loads(json.dumps(header if of is None else of, default=str))), part(metadata or {}), part(content)]
    return [b'<IDS|MSG>', session.sign(parts), *parts]
def publish(frames, topic=b'x'): pub.send_multipart([topic, *frames])
def reply(frames):
    "Answer on the shell channel as if the kernel did."
    import functools
    stream = kernel.shell_stream
    ident = kernel.get_parent_ident() if hasattr(kernel, 'get_parent_ident') else None
    ident = ident or kernel._shell_parent_ident.get() if hasattr(kernel, '_shell_parent_ident') else ident
    idents = ident if isinstance(ident, list) else [ident]
    stream.send_multipart([*idents, *frames])
"""
FORGED_REPLY = "{'status': 'ok', 'execution_count': 777, 'user_expressions': {}, 'payload': []}"
ATTACKS = {
    "wrong signature": "f = signed('stream', {'name': 'stdout', 'text': 'FORGED'}); f[1] = b'0' * 64; publish(f)",
    "no signature": "f = signed('stream', {'name': 'stdout', 'text': 'FORGED'}); f[1] = b''; publish(f)",
    "another's parent": (
        "publish(signed('stream', {'name': 'stdout', 'text': 'FORGED'}, of={'msg_id': 'someone-elses'}))\n"
        "publish(signed('status', {'execution_state': 'idle'}, of={'msg_id': 'someone-elses'}))"
    ),
    "no parent": "publish(signed('stream', {'name': 'stdout', 'text': 'FORGED'}, of={}))",
    "strange parents": (
        "for of in ([], 'x', 7, None, {'msg_id': 7}, {'msg_id': None}, {'msg_id': 'x' * 10**6}, b'{', b''):\n"
        "    publish(signed('stream', {'name': 'stdout', 'text': 'FORGED'}, of=of if of is not None else b'null'))"
    ),
    "strange headers": (
        "for own in (b'{}', b'[]', b'null', b'7', b'', b'{', b'\\xff', b'{\"msg_id\": 1, \"msg_type\": []}'):\n"
        "    publish(signed('stream', {'name': 'stdout', 'text': 'FORGED'}, own=own))"
    ),
    "contents that are none": (
        "for kind in ('stream', 'display_data', 'execute_result', 'error', 'status', 'update_display_data'):\n"
        "    for c in (b'[]', b'null', b'7', b'\"x\"', b'{', b'', b'\\xff\\xfe', b'{\"data\": 7, \"name\": [], \"text\": {}}'):\n"
        "        publish(signed(kind, c))"
    ),
    "not numbers": "publish(signed('display_data', b'{\"data\": {\"application/json\": [NaN, Infinity, -Infinity]}}'))",
    "long numbers": "publish(signed('display_data', b'{\"data\": {\"application/json\": ' + b'9' * 100000 + b'}}'))",
    "deep nesting": "publish(signed('display_data', b'{\"data\": {\"application/json\": ' + b'[' * 100000 + b']' * 100000 + b'}}'))",
    "deep nesting, open": "publish(signed('display_data', b'{\"a\":' * 100000))",
    "many frames": "publish([*signed('stream', {'name': 'stdout', 'text': 'x'}), *[b'f'] * 50_000])",
    "no delimiter": "publish([b'a'] * 40)",
    "empty frames": "publish([b''] * 7)\npub.send_multipart([b'<IDS|MSG>'])",
    "same message a thousand times": "f = signed('stream', {'name': 'stdout', 'text': ''})\nfor _ in range(1000): publish(f)",
    "early idle": "publish(signed('status', {'execution_state': 'idle'}))",
    "unknown kinds": (
        "for kind in ('shutdown_reply', 'input_request', 'iopub_welcome', 'x' * 200, 'execute_reply', 'comm_msg'):\n"
        "    publish(signed(kind, {'status': 'ok', 'restart': True, 'prompt': 'p', 'execution_state': 'dead'}))"
    ),
    "dead status": "publish(signed('status', {'execution_state': 'dead'}))\npublish(signed('status', {'execution_state': 'restarting'}))",
}


@pytest.fixture(scope="module")
def hostile() -> Iterator[Gateway]:
    """A gateway of one's own, to see how it fares."""
    with running("--no-keep") as gateway:
        yield gateway


@pytest.fixture
async def mallory(hostile: Gateway) -> AsyncIterator[Client]:
    """The client of whoever attacks."""
    async with hostile.client("mallory") as client:
        yield client


@pytest.fixture
async def bob(hostile: Gateway) -> AsyncIterator[Client]:
    """The client of whoever works."""
    async with hostile.client("bob") as client:
        yield client


@pytest.fixture
async def bobs(bob: Client) -> AsyncIterator[str]:
    """A kernel of bob's."""
    kernel = await bob.start()
    yield kernel
    await bob.delete(kernel)


@pytest.fixture
async def mallorys(mallory: Client) -> AsyncIterator[str]:
    """A kernel of mallory's."""
    kernel = await mallory.start()
    yield kernel
    await mallory.delete(kernel)


def resident(gateway: Gateway) -> int:
    """Return the gateway's resident bytes."""
    assert gateway.process is not None
    return int(Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def attack(client: Client, kernel: str, code: str, *, timeout_s: float = 10) -> dict[str, Any]:
    """Run hostile code, with a mark before and after it; it must end by its deadline and the grace."""
    begun = time.monotonic()
    whole = f"{PRELUDE}\nprint('before')\n{code}\npub.flush()\nprint('after')\n"
    result = await client.run(kernel, whole, timeout_s=timeout_s)
    assert time.monotonic() - begun < timeout_s + 10
    return result


@pytest.mark.parametrize("name", ATTACKS)
async def test_garbage_on_iopub(
    hostile: Gateway, mallory: Client, mallorys: str, bob: Client, bobs: str, name: str
) -> None:
    """The execution ends with its own output, nothing forged is in it, and bob's kernel answers meanwhile."""
    work = asyncio.create_task(attack(mallory, mallorys, ATTACKS[name]))
    while not work.done():
        assert await bob.out(bobs, "print(6 * 7)") == "42\n"
        await asyncio.sleep(0.05)
    result = await work

    assert result["status"] == "ok", result
    assert "before\n" in result["stdout"]
    assert "FORGED" not in json.dumps(result)
    if name != "early idle":
        assert "after\n" in result["stdout"]
    assert await mallory.out(mallorys, "print('still here')") == "still here\n"
    assert (await mallory.kernel(mallorys))["execution_state"] == "idle"
    assert hostile.process is not None
    assert hostile.process.poll() is None


async def test_early_idle_loses_no_reply(mallory: Client, mallorys: str) -> None:
    """An idle that comes before the reply ends nothing; what is printed after it may count or not, in order."""
    result = await attack(mallory, mallorys, f"{ATTACKS['early idle']}\nimport time; time.sleep(0.5); 1 / 0")

    assert result["status"] == "error"
    assert result["error"]["ename"] == "ZeroDivisionError"


async def test_large_message(
    hostile: Gateway, mallory: Client, mallorys: str, bob: Client, bobs: str
) -> None:
    """A message of 64 MiB ends in a bounded way: the gateway does not grow by it, and the deadline holds."""
    before = resident(hostile)
    code = "publish(signed('stream', {'name': 'stdout', 'text': 'A' * (64 << 20)}))"
    work = asyncio.create_task(attack(mallory, mallorys, code, timeout_s=5))
    while not work.done():
        assert await bob.out(bobs, "print(6 * 7)") == "42\n"
        await asyncio.sleep(0.05)
    result = await work

    assert result["status"] in ("ok", "timeout", "dead"), result
    assert len(result["stdout"]) < 12 << 20
    assert resident(hostile) - before < 100 << 20
    # whatever it came to, the kernel is to be had again
    assert await mallory.out(mallorys, "print('again')", timeout_s=20) == "again\n"


async def test_flood_of_messages(
    hostile: Gateway, mallory: Client, mallorys: str, bob: Client, bobs: str
) -> None:
    """Fifty thousand messages are bounded in the result and do not hold up another's kernel."""
    before = resident(hostile)
    code = (
        "f = signed('display_data', {'data': {'text/plain': 'y' * 1000}, 'metadata': {}})\n"
        "for _ in range(50_000): publish(f)"
    )
    work = asyncio.create_task(attack(mallory, mallorys, code, timeout_s=30))
    slowest = 0.0
    while not work.done():
        begun = time.monotonic()
        assert await bob.out(bobs, "print(6 * 7)") == "42\n"
        slowest = max(slowest, time.monotonic() - begun)
        await asyncio.sleep(0.05)
    result = await work

    assert result["truncated"] or len(json.dumps(result)) < 64 << 20
    assert slowest < 3
    assert resident(hostile) - before < 256 << 20


async def test_forged_messages_reach_no_others_execution(mallory: Client, mallorys: str) -> None:
    """Two clients of one kernel: what is forged in the name of one's request is no part of the other's result."""
    async with mallory.channels(mallorys) as channels:
        waiting = await channels.execute("import time; time.sleep(1); print('mine')")
        forger = asyncio.create_task(
            attack(
                mallory,
                mallorys,
                f"publish(signed('stream', {{'name': 'stdout', 'text': 'FORGED'}}, of={{'msg_id': '{waiting}'}}))",
            )
        )
        seen = await channels.until_done(waiting)
        result = await forger

    assert text_of(seen) == "mine\n"
    assert result["stdout"] == "before\nafter\n"


async def test_identity_of_the_kernel_is_not_the_gateways(
    hostile: Gateway, mallory: Client, mallorys: str
) -> None:
    """What kernel_info says is the kernel's own affair: huge and strange fields stay in that kernel."""
    code = (
        "k = type(get_ipython().kernel); k.implementation = '../../etc/passwd'; k.banner = 'B' * (4 << 20)\n"
        "k.language_info = {'name': '../../x', 'file_extension': '/../../etc/cron.d/x', 'extra': ['y'] * 1000}\n"
    )
    await attack(mallory, mallorys, code)
    async with mallory.channels(mallorys) as channels:
        asked = await channels.send("shell", "kernel_info_request", {})
        message = await channels.receive()
        while message.parent_id != asked or message.channel != "shell":
            message = await channels.receive()

    model = await mallory.kernel(mallorys)
    assert model["name"] == "python3"
    assert len(json.dumps(model)) < 4096
    assert "etc" not in json.dumps(await mallory.json("GET", "/api/kernelspecs"))
    assert await mallory.out(mallorys, "print(1)") == "1\n"
    assert hostile.process is not None
    assert hostile.process.poll() is None


@pytest.mark.parametrize(
    "code",
    [
        "session.key = b'another key'",
        "session.send = lambda *a, **k: None",
        "kernel.do_execute = None; kernel.execute_request = None",
        "import zmq; kernel.iopub_socket.close() if hasattr(kernel.iopub_socket, 'close') else None",
        "import os\nfor f in range(3, 256):\n    try: os.close(f)\n    except OSError: pass",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import threading, time\nwhile True:\n    try: time.sleep(1)\n    except BaseException: pass",
    ],
    ids=["key", "send", "execute", "sockets", "descriptors", "stopped", "stubborn"],
)
async def test_kernel_that_says_no_more(
    mallory: Client, mallorys: str, bob: Client, bobs: str, code: str
) -> None:
    """A kernel that will not answer is timed out, and to be had again; the others work on."""
    result = await attack(mallory, mallorys, code, timeout_s=2)
    assert result["status"] in ("ok", "error", "timeout", "dead"), result
    assert await bob.out(bobs, "print(6 * 7)") == "42\n"

    # it may be that only the next execution finds out
    await mallory.run(mallorys, "print('again')", timeout_s=2)
    async with mallory.http.post(f"/api/kernels/{mallorys}/restart") as response:
        assert response.status == 200, await response.text()
    assert await mallory.out(mallorys, "print('again')") == "again\n"


async def test_garbage_on_the_other_channels(mallory: Client, mallorys: str, bob: Client, bobs: str) -> None:
    """Unasked-for replies, on shell, control and stdin, are nobody's; the execution has its own."""
    code = f"""
import zmq
ident = b'cellblock-' + kernel.parent.ip.split('/')[-3].encode()
for socket in (kernel.shell_stream, kernel.control_stream, kernel.stdin_socket):
    send = socket.send_multipart
    send([ident, *signed('execute_reply', {FORGED_REPLY}, of={{'msg_id': 'someone-elses'}})])
    f = signed('execute_reply', {FORGED_REPLY}); f[1] = b'0' * 64
    send([ident, *f])
    send([ident, b'garbage'])
    send([ident, *signed('input_request', {{'prompt': 'password:', 'password': True}})])
"""
    result = await attack(mallory, mallorys, code)

    assert "before\n" in result["stdout"]
    assert result["execution_count"] != 777
    assert await mallory.out(mallorys, "print('still here')") == "still here\n"
    assert await bob.out(bobs, "print(6 * 7)") == "42\n"
