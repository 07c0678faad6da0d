"""A kernel in a cell starts with less than ipykernel alone does, and its clients have all that they had."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.machine import PROC, name_of, processes, read

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gateway import Channels, Client, Gateway

# what ipykernel 7.4 takes by itself is 34 MB, and what a process of the boot step's took once was 6
KERNEL_MB, ATTENDANT_MB = 27, 4.5
LARGE = ("debugpy", "ssl", "dateutil.tz", "jupyter_client.manager", "importlib.metadata", "tornado.log")


def own_mb(process: Path) -> float:
    """Return what of a process's memory no file could give back."""
    lines = read(process / "smaps_rollup").decode().splitlines()
    return int(next(line for line in lines if line.startswith("Anonymous:")).split()[1]) / 1024


def parent(process: Path) -> str:
    """Return a process's parent."""
    return read(process / "stat").rpartition(b")")[2].split()[1].decode()


async def asked(channels: Channels, channel: str, kind: str, **content: Any) -> dict[str, Any]:
    """Ask a kernel for something and return its reply."""
    msg_id = await channels.send(channel, kind, content)
    while True:
        message = await channels.receive()
        if message.parent_id == msg_id and message.channel == channel:
            reply: dict[str, Any] = json.loads(message.content)
            return reply


async def debugged(channels: Channels, number: int, command: str, **arguments: Any) -> dict[str, Any]:
    """Ask a kernel's debugger for something and return its answer's body."""
    request = {"type": "request", "seq": number, "command": command, "arguments": arguments}
    reply = await asked(channels, "control", "debug_request", **request)
    assert reply["success"] is True, reply
    body: dict[str, Any] = reply["body"]
    return body


async def test_an_idle_cell_takes_little_memory(gateway: Gateway, client: Client, kernel: str) -> None:
    """The kernel has not loaded what few use, nor does the attendant hold what only the kernel needs."""
    look = f"import sys; print([name for name in {LARGE!r} if name in sys.modules])"
    assert await client.out(kernel, look) == "[]\n"

    pid = gateway.kernel_pids()[-1]
    init = parent(PROC / str(pid))
    (attendant,) = [each for each in processes() if name_of(each) == "attendant" and parent(each) == init]
    assert own_mb(PROC / str(pid)) < KERNEL_MB
    assert own_mb(attendant) < ATTENDANT_MB


async def test_the_debugger_is_there_when_a_client_asks_for_it(client: Client, kernel: str) -> None:
    """It is announced and not loaded; a client that asks sees variables, again and again."""
    loaded = "import sys; print('debugpy' in sys.modules)"
    async with client.channels(kernel) as channels:
        info = await asked(channels, "shell", "kernel_info_request")
        assert "debugger" in info["supported_features"]
        assert await client.out(kernel, f"x = 41\n{loaded}") == "False\n"
        for number in (1, 3):
            body = await debugged(channels, number, "debugInfo")
            assert (body["isStarted"], body["richRendering"]) == (False, True)
            body = await debugged(channels, number + 1, "inspectVariables")
            assert ("x", "41") in {(each["name"], each["value"]) for each in body["variables"]}
        rich = await debugged(channels, 5, "richInspectVariables", variableName="x")
        assert rich["data"] == {"text/plain": "41"}
        assert await client.out(kernel, loaded) == "True\n"


async def test_clients_have_what_they_had(client: Client, kernel: str) -> None:
    """History, completion, inspection, usage, comms and subshells are as they are without a cell."""
    code = "import os\ndef twice(number):\n    'Double it.'\n    return 2 * number"
    async with client.channels(kernel) as channels:
        await channels.until_done(await channels.execute(code))
        tail = await asked(
            channels, "shell", "history_request", hist_access_type="tail", n=5, raw=True, output=False
        )
        assert tail["history"] == [[1, 1, code]]
        found = await asked(channels, "shell", "complete_request", code="os.path.joi", cursor_pos=11)
        assert found["matches"] == ["join"]
        shown = await asked(channels, "shell", "inspect_request", code="twice", cursor_pos=5, detail_level=0)
        assert "Double it." in shown["data"]["text/plain"]
        assert (await asked(channels, "shell", "is_complete_request", code="for i in x:"))["indent"] == "    "
        assert (await asked(channels, "shell", "comm_info_request"))["comms"] == {}
        assert (await asked(channels, "control", "usage_request"))["kernel_memory"] > 0
        assert (await asked(channels, "control", "create_subshell_request"))["status"] == "ok"


async def test_a_users_code_has_the_modules_themselves(client: Client, kernel: str) -> None:
    """What had a stand-in is imported as anywhere: asyncio's TLS, time zones, and Jupyter's own client."""
    code = (
        "import asyncio, ssl, types, dateutil.tz, jupyter_client, pdb\n"
        "print(type(ssl) is types.ModuleType, asyncio.base_events.ssl.SSLContext is ssl.SSLContext)\n"
        "print(asyncio.sslproto.SSLProtocol.__name__, dateutil.tz.tzutc().utcoffset(None))\n"
        "print(jupyter_client.KernelManager.__name__, pdb.Pdb.__module__)"
    )
    said = "True True\nSSLProtocol 0:00:00\nKernelManager IPython.core.debugger\n"
    assert await client.out(kernel, code) == said
