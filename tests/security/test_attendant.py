"""The attendant as a target and as a weapon of its cell: it may be lost, and nothing is won by it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOM
from tests.gateway import Client, Gateway, running
from tests.machine import processes_named
from tests.security.flooding import flooded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

FIND = """
import os
(attendant,) = [int(p) for p in os.listdir("/proc") if p.isdigit()
                and open(f"/proc/{p}/comm").read() == "attendant\\n"]
"""
GRAB = """
import ctypes, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
found = {}
def attempt(name, work):
    try:
        found[name] = repr(work())
    except OSError as error:
        found[name] = type(error).__name__
def call(number, *arguments):
    if libc.syscall(number, *map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), "refused")
attempt("fd", lambda: os.listdir(f"/proc/{attendant}/fd"))
attempt("its maker's fd", lambda: os.open("/proc/1/fd/0", os.O_RDWR))
attempt("fd 3", lambda: os.open(f"/proc/{attendant}/fd/3", os.O_RDWR))
attempt("read mem", lambda: open(f"/proc/{attendant}/mem", "rb"))
attempt("write mem", lambda: open(f"/proc/{attendant}/mem", "r+b"))
attempt("environ", lambda: open(f"/proc/{attendant}/environ", "rb").read())
attempt("ptrace", lambda: call(101, 16, attendant, 0, 0))
pidfd = os.pidfd_open(attendant)
attempt("pidfd_getfd", lambda: call(438, pidfd, 3, 0))
def own(fd):
    try:
        return socket.socket(fileno=os.dup(fd)).type
    except OSError:
        return None
found["own"] = [int(fd) for fd in os.listdir("/proc/self/fd") if own(int(fd)) == socket.SOCK_SEQPACKET]
squat = socket.socket(socket.AF_UNIX)
attempt("squat", lambda: squat.bind("\\0cellblock"))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def own() -> Iterator[Gateway]:
    """A gateway of this file's."""
    with running("--no-keep", env=ROOM) as gateway:
        yield gateway


@pytest.fixture
async def alice(own: Gateway) -> AsyncIterator[Client]:
    """A client of alice's."""
    async with own.client() as client:
        yield client


@pytest.fixture
async def kernel_id(alice: Client) -> AsyncIterator[str]:
    """A kernel of hers."""
    kernel_id = await alice.start()
    yield kernel_id
    await alice.delete(kernel_id)


async def command(client: Client, kernel_id: str, line: str, *, status: int = 200, **body: Any) -> Any:
    """Run a line of bash."""
    return await client.json(
        "POST", f"/api/kernels/{kernel_id}/commands", {"command": line, **body}, status=status
    )


async def test_its_socket_is_out_of_reach(alice: Client, kernel_id: str) -> None:
    """The kernel has no end of it, and can take none: not by /proc, ptrace or pidfd_getfd; nor its door."""
    found = json.loads(await alice.out(kernel_id, FIND + GRAB))

    assert found.pop("own") == []
    assert found.pop("squat") == "OSError"
    assert set(found.values()) == {"PermissionError"}, found


async def test_who_kills_it_loses_commands_and_nothing_else(alice: Client, kernel_id: str) -> None:
    """Commands are refused as `attendant_gone`; the kernel goes on; a restart brings another."""
    process = await alice.json(
        "POST", f"/api/kernels/{kernel_id}/processes", {"argv": ["sleep", "4711"]}, status=201
    )
    await alice.run(kernel_id, FIND + "os.kill(attendant, 9)")
    for _ in range(2):
        assert (await command(alice, kernel_id, "true", status=503))["reason"] == "attendant_gone"
    (model,) = await alice.json("GET", f"/api/kernels/{kernel_id}/processes")
    assert (model["id"], model["state"], model["exit_code"]) == (process["id"], "ended", None)
    look = f"print(os.path.exists('/proc/{process['pid']}'))"
    assert await alice.out(kernel_id, look) == "False\n"
    assert (await alice.kernel(kernel_id))["execution_state"] == "idle"

    await alice.json("POST", f"/api/kernels/{kernel_id}/restart")
    assert (await command(alice, kernel_id, "echo on"))["stdout"] == "on\n"


async def test_who_stops_it_holds_up_nobody_else(alice: Client, kernel_id: str) -> None:
    """Requests end as `attendant_silent`; the gateway and the kernel serve on; it may go on later."""
    await command(alice, kernel_id, "true")
    await alice.run(kernel_id, FIND + "os.kill(attendant, 19)")
    asked = asyncio.create_task(command(alice, kernel_id, "true", status=503))
    begun = time.monotonic()
    await asyncio.sleep(0.5)
    assert await alice.out(kernel_id, "print(6 * 7)") == "42\n"
    assert time.monotonic() - begun < 5
    assert (await asyncio.wait_for(asked, 20))["reason"] == "attendant_silent"
    await alice.run(kernel_id, "os.kill(attendant, 18)")
    assert (await command(alice, kernel_id, "pgrep -c attendant"))["stdout"] == "1\n"


async def test_a_bomb_in_a_command_stays_within_the_cells_processes(alice: Client, own: Gateway) -> None:
    """A fork bomb meets the cell's limit; another kernel does not notice, and all of it dies with its own."""
    async with own.client("bob") as bob:
        bombed, other = await alice.start(), await bob.start()
        bomb = asyncio.create_task(
            command(alice, bombed, "f() { sleep 4712 & f | f & }; f; sleep 60", timeout_s=4)
        )
        await asyncio.sleep(2)
        assert len(processes_named("4712")) > 50
        begun = time.monotonic()
        assert await bob.out(other, "print(1)") == "1\n"
        assert time.monotonic() - begun < 3
        assert (await alice.json("GET", f"/api/kernels/{bombed}/usage"))["pids"] <= 128
        with contextlib.suppress(AssertionError):
            # whether there is room for its answer is the cell's own business
            await bomb
        await alice.delete(bombed)
        assert not processes_named("4712")
        await bob.delete(other)


async def test_a_full_cell_starts_no_command(alice: Client, kernel_id: str) -> None:
    """Where the cell's processes are used up a command is 429, and is run again once there is room."""
    code = (
        "import subprocess\nmany = []\ntry:\n    while True: many.append(subprocess.Popen(['sleep', '99']))\n"
        "except OSError: pass"
    )
    await command(alice, kernel_id, "true")
    await alice.run(kernel_id, code)
    error = await command(alice, kernel_id, "true", status=429)
    assert error["reason"] == "no_room"
    await alice.run(kernel_id, "for each in many: each.kill(); each.wait()")
    assert (await command(alice, kernel_id, "echo room"))["stdout"] == "room\n"


async def test_nothing_outlives_the_kernel(alice: Client) -> None:
    """What has left its group, session and parents behind dies with the cell all the same."""
    kernel_id = await alice.start()
    line = (
        "setsid nohup bash -c 'trap \"\" TERM HUP INT; (setsid sleep 4713 &) ; sleep 4713' >/dev/null 2>&1 &"
    )
    await command(alice, kernel_id, line)
    await asyncio.sleep(0.3)
    assert len(processes_named("4713")) >= 2
    await alice.delete(kernel_id)
    assert processes_named("4713") == []


@pytest.mark.parametrize(
    "line",
    [
        "yes",
        "yes >&2 & yes",
        "cat /dev/urandom",
        # a write for each byte, the streams in turn
        'python3 -c \'import os\nwhile True: os.write(1, b"x"); os.write(2, b"y")\'',
    ],
)
async def test_a_command_that_floods(line: str, record_property: Callable[[str, object], None]) -> None:
    """It ends in time with a mark; the gateway stays small, and another's kernel is served as before."""
    async with flooded() as pair, pair.watched() as seen:
        result = await command(pair.alice, pair.flooding, line, timeout_s=4, output_bytes=4096)
    pair.check(seen, record_property)
    assert result["status"] == "timeout"
    assert "[cellblock: " in result["stdout"]
    assert len(json.dumps(result)) < 200_000


async def test_a_storm_of_calls(record_property: Callable[[str, object], None]) -> None:
    """Code that calls tools without end, though there are none, slows nobody else down."""
    async with flooded() as pair:
        await command(pair.alice, pair.flooding, "true")
        code = (
            "import cellblock, threading, time\nuntil, calls = time.time() + 4, []\n"
            "def storm():\n    while time.time() < until:\n"
            "        try: cellblock.call('x', text='y' * 100000)\n"
            "        except cellblock.ToolError as error: calls.append(error.code)\n"
            "threads = [threading.Thread(target=storm) for _ in range(80)]\n"
            "for each in threads: each.start()\nfor each in threads: each.join()\n"
            "print(len(calls) > 50, set(calls))"
        )
        async with pair.watched() as seen:
            assert await pair.alice.out(pair.flooding, code, timeout_s=20) == "True {'no_tools'}\n"
        pair.check(seen, record_property)


async def test_what_a_gateway_knows_is_not_told_to_commands(
    alice: Client, own: Gateway, kernel_id: str
) -> None:
    """Neither keys nor peppers nor paths of the gateway's are in a command's environment or reach."""
    key = own.key()
    line = f"env; cat /proc/*/environ; ls -la {own.state_dir} /run/cellblock"
    result = await command(alice, kernel_id, line)
    said = result["stdout"] + result["stderr"]
    for secret in (key, key.split("_")[-1], "CELLBLOCK_", "warden.sock", "cellblock.db"):
        assert secret not in said
