"""`cellblock jobs`, `contexts` and `files` against a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from gateway.client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.gateway import Gateway


class Command:
    """Runs `cellblock` in a directory, as alice."""

    def __init__(self, gateway: Gateway, directory: Path) -> None:
        self._gateway = gateway
        self._directory = directory
        self._env = {
            **os.environ,
            "CELLBLOCK_URL": gateway.url,
            "CELLBLOCK_KEY": gateway.key(),
            "NO_COLOR": "1",
        }

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start the command."""
        return await asyncio.create_subprocess_exec(
            *self._gateway.command(*arguments),
            cwd=self._directory,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def __call__(self, *arguments: str) -> tuple[int | None, str, str]:
        """Run the command; return its exit code, stdout and stderr."""
        process = await self.start(*arguments)
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        # one of its own; the code's are of the cell's files
        assert b"gateway/cli" not in err, err.decode()
        return process.returncode, out.decode(), err.decode()


@pytest.fixture
def cellblock(gateway: Gateway, tmp_path: Path) -> Command:
    """The command."""
    return Command(gateway, tmp_path)


@pytest.fixture
async def alice(gateway: Gateway) -> AsyncIterator[Client]:
    """Alice's client."""
    async with Client(gateway.url, gateway.key()) as client:
        yield client


async def test_jobs(alice: Client, kernel: str, cellblock: Command) -> None:
    """An execution is listed, shown with its outputs, followed, cancelled; exit codes tell how it ended."""
    good = await alice.executions.start("print('one')\n6 * 7", kernel_id=kernel, wait_s=20)
    bad = await alice.executions.start(
        "import sys\nprint('two', file=sys.stderr)\n1 / 0", kernel_id=kernel, wait_s=20
    )
    late = await alice.executions.start("import time; time.sleep(60)", kernel_id=kernel, timeout_s=0.5)

    code, out, err = await cellblock("jobs", "follow", late.id)
    assert (code, err.splitlines()[-1]) == (124, "cellblock: timeout (timeout)")
    code, out, _ = await cellblock("jobs", "ls")
    assert code == 0
    assert out.splitlines()[0].split()[:2] == ["ID", "STATUS"]
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [
        [late.id, "timeout"],
        [bad.id, "error"],
        [good.id, "ok"],
    ]
    assert await cellblock("jobs", "show", good.id) == (0, "one\n42\n", "cellblock: ok\n")
    code, out, err = await cellblock("jobs", "show", bad.id)
    assert (code, out) == (1, "")
    assert err.startswith("two\n")
    assert "ZeroDivisionError" in err
    code, out, _ = await cellblock("jobs", "show", good.id, "--json")
    assert json.loads(out)["result"]["stdout"] == "one\n"
    assert await cellblock("jobs", "follow", good.id) == (0, "one\n42\n", "cellblock: ok\n")
    code, out, _ = await cellblock("jobs", "follow", good.id, "--json", "--cursor", "1")
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["seq"] for event in events] == list(range(2, 2 + len(events)))
    assert events[-1]["type"] == "ended"

    assert await cellblock("jobs", "cancel", good.id, bad.id) == (
        0,
        f"{good.id} cancelled\n{bad.id} cancelled\n",
        "",
    )
    code, out, err = await cellblock("jobs", "cancel", good.id, late.id)
    assert (code, out) == (2, f"{late.id} cancelled\n")
    assert err == f"cellblock: Execution does not exist: {good.id}\n"


async def test_ctrl_c_leaves_a_job_running(alice: Client, kernel: str, cellblock: Command) -> None:
    """Who follows a job and leaves does not end it."""
    job = await alice.executions.start(
        "print('begun', flush=True)\nimport time\ntime.sleep(2)\nprint('end')", kernel_id=kernel
    )
    process = await cellblock.start("jobs", "follow", job.id)
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()

    assert process.returncode == 130, err.decode()
    assert err == b""
    done = await alice.executions.wait(job.id, within_s=20)
    assert done.result is not None
    assert done.result.stdout == "begun\nend\n"


async def test_contexts(alice: Client, cellblock: Command) -> None:
    """Contexts are listed and closed."""
    opened = await alice.contexts.open("cli-test")
    code, out, _ = await cellblock("contexts", "ls")
    line = next(line for line in out.splitlines() if line.startswith("cli-test "))
    assert (code, opened.kernel_id in line) == (0, True)
    _, out, _ = await cellblock("contexts", "ls", "--json")
    assert opened.kernel_id in [context["kernel_id"] for context in json.loads(out)]

    assert await cellblock("contexts", "close", "cli-test") == (0, "cli-test closed\n", "")
    code, _, err = await cellblock("contexts", "close", "cli-test")
    assert code == 2
    assert err.startswith("cellblock: ")


async def test_files(alice: Client, kernel: str, cellblock: Command, tmp_path: Path) -> None:
    """A file goes there and back; listings show hostile names harmlessly; what is missing is a sentence."""
    (tmp_path / "a.txt").write_text("hello")
    assert await cellblock("files", "put", kernel, "a.txt") == (0, "a.txt 5 bytes\n", "")
    assert await cellblock("files", "put", kernel, "a.txt", "deep/b.txt") == (0, "deep/b.txt 5 bytes\n", "")
    await alice.kernels.execute(kernel, "open('evil\\x1b[2J', 'w')")

    code, out, _ = await cellblock("files", "ls", kernel, "--recursive")
    assert code == 0
    assert {line.split()[-1] for line in out.splitlines()} >= {"a.txt", "deep/b.txt", "evil\\x1b[2J"}
    assert "\x1b" not in out
    _, out, _ = await cellblock("files", "ls", kernel, "deep", "--json")
    assert [file["path"] for file in json.loads(out)["files"]] == ["deep/b.txt"]

    assert await cellblock("files", "get", kernel, "deep/b.txt") == (0, "b.txt 5 bytes\n", "")
    assert (tmp_path / "b.txt").read_text() == "hello"
    (tmp_path / "in").mkdir()
    assert (await cellblock("files", "get", kernel, "deep/b.txt", "in"))[0] == 0
    assert (tmp_path / "in" / "b.txt").read_text() == "hello"

    code, _, err = await cellblock("files", "put", kernel, "missing.txt")
    assert (code, err) == (
        2,
        "cellblock: The local file missing.txt is not to be had: No such file or directory.\n",
    )
    assert (await cellblock("files", "get", kernel, "missing.txt"))[0] == 2
    assert (await cellblock("files", "rm", kernel, "deep"))[0] == 2
    assert await cellblock("files", "rm", kernel, "-r", "deep", "a.txt") == (
        0,
        "deep removed\na.txt removed\n",
        "",
    )
