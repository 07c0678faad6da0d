"""The blocking client: the same methods, iterators, and Ctrl-C."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from gateway.client import Client, SyncClient
from gateway.errors import NotFound
from tests.unit.client.conftest import TOKEN
from tests.unit.client.test_executions import ENDED, EVENTS, JOB, RUNNING, STARTED, ended, printed, stream

if TYPE_CHECKING:
    from tests.unit.client.conftest import Scripted

NOUNS = ("kernels", "kernelspecs", "executions", "contexts", "files", "processes", "workspaces")
# sockets are for asyncio alone
ONLY_ASYNC = {"kernels": {"session", "channels"}}

CTRL_C = """
import sys, threading, _thread
from gateway.client import SyncClient
with SyncClient(sys.argv[1], sys.argv[2]) as client:
    print("ready", flush=True)
    try:
        client.executions.run("while True: pass")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(client.health().status, flush=True)
"""


def names(thing: object) -> set[str]:
    """Return the public methods of a noun."""
    return {name for name in dir(thing) if not name.startswith("_") and callable(getattr(thing, name))}


def test_every_method_has_its_like() -> None:
    """The blocking client has every noun and method of the other, with its docstring, and no more."""
    there, here = Client("http://127.0.0.1:1", TOKEN), SyncClient("http://127.0.0.1:1", TOKEN)
    for noun in NOUNS:
        expected = names(getattr(there, noun)) - ONLY_ASYNC.get(noun, set())
        assert names(getattr(here, noun)) == expected, noun
        for name in expected:
            method = getattr(getattr(there, noun), name)
            assert getattr(getattr(here, noun), name).__doc__ == inspect.unwrap(method).__doc__
    assert names(here) == names(there)


async def test_calls_block_and_errors_come_through(scripted: Scripted) -> None:
    """Results and typed errors are those of the asyncio client, from any thread."""
    scripted.on("POST", "/api/executions", RUNNING)
    scripted.on("GET", JOB, ENDED)
    scripted.on("GET", EVENTS, stream(STARTED, printed(2), ended(3)))

    def use() -> None:
        with SyncClient(scripted.url, TOKEN) as client:
            assert client.executions.run("x").status == "ok"
            assert [event.seq for event in client.executions.follow("e1")] == [1, 2, 3]
            for event in client.executions.follow("e1"):
                assert event.seq == 1
                break
            with pytest.raises(NotFound):
                client.kernels.get("absent")
            assert len(client.history.entries) == 1
            results: list[str] = []
            threads = [
                threading.Thread(target=lambda: results.append(client.executions.get("e1").id))
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
            assert results == ["e1"] * 8

    await asyncio.to_thread(use)
    assert not [thread for thread in threading.enumerate() if thread.name == "cellblock-client"]


async def test_where_a_loop_runs_already() -> None:
    """In a notebook another event loop runs in the caller's thread: that is no obstacle."""
    with SyncClient("http://127.0.0.1:1", TOKEN) as client:
        assert client.history.entries == []
    with pytest.raises(RuntimeError, match="context manager"):
        client.health()


async def test_ctrl_c_interrupts_the_execution(scripted: Scripted) -> None:
    """Ctrl-C interrupts what runs, is raised where `run` was called, and the client stays usable."""
    waiting = asyncio.Event()

    async def patient(_: web.Request) -> web.Response:
        waiting.set()
        await asyncio.sleep(20)
        return web.json_response(RUNNING)

    scripted.on("POST", "/api/executions", RUNNING)
    scripted.on("GET", JOB, patient)
    scripted.on("POST", f"{JOB}/interrupt", web.Response(status=204))
    scripted.on("GET", "/healthz", {"status": "ok"})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CTRL_C, scripted.url, TOKEN, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(20):
            await waiting.wait()
            os.kill(process.pid, signal.SIGINT)
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()

    assert out.split() == [b"ready", b"interrupted", b"ok"], err.decode()
    assert len(scripted.asked_for("POST", f"{JOB}/interrupt")) == 1


def test_it_is_light() -> None:
    """Importing the client brings nothing of the gateway's server, nor nbformat."""
    heavy = "{'sqlalchemy', 'zmq', 'plumbum', 'prometheus_client', 'jupyter_client', 'nbformat', 'structlog'}"
    code = f"import sys, gateway.client; print({heavy} & set(sys.modules) or 'light')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "light\n"
