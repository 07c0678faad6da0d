"""The blocking client against a real gateway, from a thread and from a program that gets Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from gateway.client import SyncClient
from gateway.errors import NotFound
from gateway.models.jobs import JobStatus

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gateway import Gateway

CTRL_C = """
import sys
from gateway.client import SyncClient

with SyncClient(sys.argv[1], sys.argv[2]) as client:
    kernel = client.kernels.create()
    client.executions.run("x = 42", kernel_id=kernel.id)
    try:
        client.executions.run(
            "print('begun', flush=True)\\nimport time\\ntime.sleep(100)",
            kernel_id=kernel.id,
            on_event=lambda event: print(event.type, flush=True),
        )
    except KeyboardInterrupt:
        print("left", flush=True)
    print(client.executions.run("x", kernel_id=kernel.id).result.outputs[0]["data"]["text/plain"], flush=True)
    print(client.executions.list()[1].status, flush=True)
    client.kernels.delete(kernel.id)
"""


async def test_a_program_without_asyncio(gateway: Gateway, tmp_path: Path) -> None:
    """Kernels, executions, events, tools, files and processes, one call after the other."""

    def program() -> None:
        with SyncClient(gateway.url, gateway.key()) as client:
            kernel = client.kernels.create()
            view = client.executions.run(
                "import cellblock\nprint(cellblock.call('add', a=1, b=2))\n6 * 7",
                kernel_id=kernel.id,
                tools={"add": lambda a, b: a + b},
            )
            assert view.status is JobStatus.OK
            assert view.result is not None
            assert view.result.stdout == "3\n"
            job = client.executions.start("print('a'); print('b')", kernel_id=kernel.id)
            events = list(client.executions.follow(job.id))
            assert events[-1].type == "ended"
            assert client.executions.wait(job.id).status is JobStatus.OK
            client.files.write(kernel.id, "a.txt", "hello")
            assert client.files.download(kernel.id, "a.txt", tmp_path / "a.txt") == 5
            assert client.processes.run(kernel.id, "cat a.txt").stdout == "hello"
            started = client.processes.start(kernel.id, "echo one; echo two")
            outputs = list(client.processes.follow(kernel.id, started.id))
            assert "".join(chunk.text for output in outputs for chunk in output.chunks) == "one\ntwo\n"
            client.kernels.delete(kernel.id)
            with pytest.raises(NotFound):
                client.kernels.get(kernel.id)
            client.history.export(tmp_path / "history.ipynb")

    await asyncio.to_thread(program)
    assert "cellblock.call" in (tmp_path / "history.ipynb").read_text()


async def test_ctrl_c(gateway: Gateway) -> None:
    """Ctrl-C interrupts the code in the cell; kernel and client are good for the next."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CTRL_C,
        gateway.url,
        gateway.key(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    said = []
    try:
        async with asyncio.timeout(60):
            while (line := await process.stdout.readline()) not in {b"stdout\n", b""}:
                said.append(line)
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()

    assert said == [b"started\n"], err.decode()
    assert out.split() == [b"left", b"42", b"interrupted"], err.decode()
    assert process.returncode == 0
