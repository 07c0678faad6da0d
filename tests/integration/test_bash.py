"""The shipped kernelspec `bash`: bash_kernel in a cell. Its walls are in test_other_kernels.py.

What bash_kernel itself does not do: stderr is in stdout, since the shell writes both to one terminal; errors
have a number and no name; a question of `read` cannot be answered; only paths with a slash are completed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.gateway import text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Client, Gateway


@pytest.fixture
async def bash(client: Client) -> AsyncIterator[str]:
    """A fresh Bash kernel of alice's."""
    kernel_id = await client.start("bash")
    yield kernel_id
    await client.delete(kernel_id)


async def test_output(client: Client, bash: str) -> None:
    """Output comes as it was printed, errors among it; state is kept; a failure has its status."""
    said = await client.run(bash, "cd /tmp; kept=41\necho out; echo err >&2")
    assert (said["status"], said["stdout"], said["stderr"]) == ("ok", "out\nerr\n", "")
    assert await client.out(bash, "echo $((kept + 1)) $PWD") == "42 /tmp\n"

    failed = await client.run(bash, "no-such-command")
    assert failed["status"] == "error"
    assert "no-such-command: command not found" in failed["stdout"]
    assert failed["error"]["evalue"] == "127"

    flood = await client.out(bash, "head -c 500000 /dev/zero | tr '\\0' x | fold -w 100")
    assert flood.replace("\n", "") == "x" * 500_000


async def test_output_streams(client: Client, bash: str) -> None:
    """Lines arrive while the command still runs."""
    async with client.channels(bash) as channels:
        msg_id = await channels.execute("echo first; sleep 2; echo second")
        begun = time.monotonic()
        first = await channels.until("stream")
        assert "first" in text_of([first])
        assert time.monotonic() - begun < 1.5
        assert "second" in text_of(await channels.until_done(msg_id))


async def test_completion(client: Client, bash: str) -> None:
    """Commands and files are completed."""
    await client.run(bash, "touch some-long-name")
    async with client.channels(bash) as channels:
        for code, wanted in (("basena", "basename"), ("cat ./some-l", "./some-long-name")):
            await channels.send("shell", "complete_request", {"code": code, "cursor_pos": len(code)})
            reply = json.loads((await channels.until("complete_reply")).content)
            assert wanted in reply["matches"]


async def test_a_deadline(client: Client, bash: str) -> None:
    """A command beyond its time is interrupted, and the shell goes on with what it had."""
    await client.run(bash, "kept=here")
    begun = time.monotonic()
    late = await client.run(bash, "sleep 60", timeout_s=1)

    assert (late["status"], late["reason"]) == ("timeout", "timeout")
    assert "The time limit of 1 s is over" in late["stderr"]
    assert time.monotonic() - begun < 10
    assert await client.out(bash, "echo $kept") == "here\n"


async def test_a_question_does_not_hang_for_ever(client: Client, bash: str) -> None:
    """`read`, which nobody can answer, ends with its time limit."""
    late = await client.run(bash, "read -p 'who? ' name", timeout_s=1)

    assert late["status"] == "timeout"
    assert await client.out(bash, "echo on") == "on\n"


async def test_killed(gateway: Gateway, client: Client, bash: str) -> None:
    """A kernel that is killed mid-command is dead at once, says so, and can be restarted."""
    running = asyncio.create_task(client.run(bash, "sleep 60"))
    await asyncio.sleep(1)
    begun = time.monotonic()
    os.kill(gateway.kernel_pids()[-1], signal.SIGKILL)
    dead = await running

    assert (dead["status"], dead["reason"]) == ("dead", "killed")
    assert time.monotonic() - begun < 1
    await client.json("POST", f"/api/kernels/{bash}/restart")
    assert await client.out(bash, "echo again") == "again\n"
