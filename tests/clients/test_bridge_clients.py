"""nbclient, papermill, jupyter-console and jupyter_kernel_test on an installed kernelspec, as they are."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import nbformat
import pexpect
import pytest

from gateway.protocol.messages import content
from tests.clients.bridged import NAME, Jupyter
from tests.gateway import Client, text_of
from tests.lifecycle import eventually, kernels
from tests.notebooks import EXAMPLES, check_executed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Gateway

BIN = Path(sys.executable).parent
CONFORMANCE = Path(__file__).with_name("conformance.py")
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
try:
    NotebookClient(notebook, timeout=100, kernel_name=sys.argv[3]).execute()
finally:
    nbformat.write(notebook, sys.argv[2])
"""
PROMPT = r"In \[\d+\]: "


@pytest.fixture
def jupyter(gateway: Gateway, tmp_path: Path) -> Jupyter:
    """A Jupyter that has the shared gateway's kernelspec."""
    jupyter = Jupyter(tmp_path)
    jupyter.install(gateway)
    return jupyter


async def program(jupyter: Jupyter, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of that Jupyter to its end."""
    return await asyncio.to_thread(
        subprocess.run,
        command,
        env=jupyter.env,
        cwd=jupyter.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def notebook_of(jupyter: Jupyter, *cells: str) -> Path:
    """Write a notebook of code cells."""
    path = jupyter.home / "made.ipynb"
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    made.metadata["kernelspec"] = {"name": NAME, "display_name": "Python 3 (Cellblock)", "language": "python"}
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, path)
    return path


async def none_left(client: Client, before: int) -> bool:
    """Wait until there are no more kernels than before."""
    for _ in range(100):
        if len(await client.json("GET", "/api/kernels")) <= before:
            return True
        await asyncio.sleep(0.05)
    return False


@pytest.mark.parametrize("notebook", EXAMPLES, ids=lambda path: path.stem)
async def test_nbclient(jupyter: Jupyter, client: Client, notebook: Path) -> None:
    """Every example notebook runs to its end, and its kernel is gone afterwards."""
    before = len(await client.json("GET", "/api/kernels"))
    target = jupyter.home / notebook.name
    done = await program(jupyter, sys.executable, "-c", EXECUTE, str(notebook), str(target), NAME)

    assert done.returncode == 0, done.stderr
    check_executed(target, notebook.stem)
    assert await none_left(client, before)


async def test_nbclient_and_a_kernel_that_is_killed(jupyter: Jupyter, client: Client) -> None:
    """The notebook's run ends with the reason, in the error and in the cell."""
    before = len(await client.json("GET", "/api/kernels"))
    source = notebook_of(jupyter, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "print('never')")
    target = jupyter.home / "target.ipynb"
    done = await program(jupyter, sys.executable, "-c", EXECUTE, str(source), str(target), NAME)

    assert done.returncode != 0
    assert "KernelKilled: The kernel was killed." in done.stderr
    first, second = nbformat.read(target, as_version=4).cells
    assert [output.ename for output in first.outputs if output.output_type == "error"] == ["KernelKilled"]
    assert second.outputs == []
    assert await none_left(client, before)


async def test_papermill(jupyter: Jupyter, client: Client) -> None:
    """It runs a notebook with parameters, widgets' progress bars and pictures in it."""
    before = len(await client.json("GET", "/api/kernels"))
    source = notebook_of(
        jupyter,
        "n = 1",
        "from tqdm.auto import tqdm\nfor _ in tqdm(range(n)): pass\nprint('n is', n)",
        "import matplotlib.pyplot as plt\nplt.plot(range(n))",
    )
    target = jupyter.home / "target.ipynb"
    done = await program(jupyter, str(BIN / "papermill"), str(source), str(target), "-p", "n", "7")

    assert done.returncode == 0, done.stderr
    cells = nbformat.read(target, as_version=4).cells
    assert "n is 7\n" in "".join(o.text for cell in cells for o in cell.outputs if o.output_type == "stream")
    assert any("image/png" in output.get("data", {}) for output in cells[-1].outputs)
    assert await none_left(client, before)


async def test_papermill_and_an_error(jupyter: Jupyter) -> None:
    """An exception ends papermill as it does with a local kernel."""
    source = notebook_of(jupyter, "n = 1", "1 / 0", "print('never')")
    done = await program(jupyter, str(BIN / "papermill"), str(source), str(jupyter.home / "target.ipynb"))

    assert done.returncode == 1
    assert "ZeroDivisionError: division by zero" in done.stderr


async def test_jupyter_console(jupyter: Jupyter, client: Client) -> None:
    """A person at jupyter-console runs code, is asked, interrupts, and leaves; the kernel goes with them."""
    before = len(await client.json("GET", "/api/kernels"))

    def talk() -> str:
        console = pexpect.spawn(
            str(BIN / "jupyter-console"),
            ["--kernel", NAME, "--simple-prompt"],
            env={**jupyter.env, "TERM": "dumb"},
            cwd=str(jupyter.home),
            encoding="utf-8",
            timeout=60,
            codec_errors="replace",
        )
        heard = []
        try:
            console.expect(PROMPT)
            for typed, expected in (
                ("print(6 * 7)", r"\n42\r"),
                ("name = input('who? ')", r"who\? "),
                ("ada", PROMPT),
                ("print('hello', name)", "hello ada"),
                ("1 / 0", "ZeroDivisionError"),
                ("print('on', flush=True); import time; time.sleep(100)", r"\non\r"),
            ):
                console.sendline(typed)
                console.expect(expected)
                heard.append(console.before + str(console.after))
            console.sendintr()
            console.expect("KeyboardInterrupt")
            console.sendline("print('still', 'here')")
            console.expect("still here")
            console.sendline("exit()")
            console.expect(pexpect.EOF)
        finally:
            console.close(force=True)
        return "".join(heard)

    heard = await asyncio.to_thread(talk)
    assert re.search(r"Traceback", heard)
    assert await none_left(client, before)


@pytest.fixture
async def server(jupyter: Jupyter) -> AsyncIterator[Client]:
    """A client of a plain Jupyter server, which knows nothing of a gateway."""
    log_path = jupyter.home / "server.log"
    options = ("--allow-root", "--no-browser", "--ServerApp.port=0", f"--ServerApp.root_dir={jupyter.home}")
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / "jupyter-server"), *options, "--IdentityProvider.token=own"],
            env=jupyter.env,
            cwd=jupyter.home,
            stdout=log,
            stderr=log,
        )
    try:
        await eventually(lambda: list((jupyter.home / "rt").glob("jpserver-*.json")), timeout=40)
        [file] = (jupyter.home / "rt").glob("jpserver-*.json")
        url = f"http://127.0.0.1:{json.loads(file.read_text())['port']}"
        async with aiohttp.ClientSession(url, headers={"Authorization": "token own"}) as session:
            yield Client(session)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)


async def test_a_jupyter_server(gateway: Gateway, jupyter: Jupyter, server: Client, client: Client) -> None:
    """Start, run, interrupt, restart; a kernel that is killed is restarted by Jupyter itself; end."""
    before, others = len(await client.json("GET", "/api/kernels")), set(kernels(gateway))
    specs = await server.json("GET", "/api/kernelspecs")
    async with server.http.get(specs["kernelspecs"][NAME]["resources"]["logo-64x64"]) as response:
        assert (await response.read()).startswith(b"\x89PNG")
    kernel = await server.start(NAME)
    async with server.channels(kernel) as channels:
        assert text_of(await channels.until_done(await channels.execute("x = 1\nprint('hi')"))) == "hi\n"
        asked = await channels.execute("print('on', flush=True); import time; time.sleep(60)")
        await channels.until("stream")
        await server.json("POST", f"/api/kernels/{kernel}/interrupt", status=204)
        messages = await channels.until_done(asked)
        assert [content(m)["ename"] for m in messages if m.msg_type == "error"] == ["KeyboardInterrupt"]
        await server.json("POST", f"/api/kernels/{kernel}/restart")
    async with server.channels(kernel) as channels:
        messages = await channels.until_done(await channels.execute("x"))
        assert [content(m)["ename"] for m in messages if m.msg_type == "error"] == ["NameError"]

        asked = await channels.execute("print('on', flush=True); import time; time.sleep(600)")
        await channels.until("stream")
        [pid] = set(kernels(gateway)) - others
        os.kill(pid, signal.SIGKILL)
        messages = await channels.until_done(asked, timeout=5)
        assert [content(m)["ename"] for m in messages if m.msg_type == "error"] == ["KernelKilled"]
        while content(status := await channels.until("status"))["execution_state"] != "restarting":
            assert status.parent_id != asked
    async with server.channels(kernel) as channels:
        assert text_of(await channels.until_done(await channels.execute("print('new')"))) == "new\n"
    await server.delete(kernel)
    assert await none_left(client, before)


async def test_conformance(jupyter: Jupyter) -> None:
    """jupyter_kernel_test finds nothing wrong, and skips only what ipykernel itself does not have."""
    done = await program(jupyter, sys.executable, str(CONFORMANCE), NAME)

    assert done.returncode == 0, done.stderr
    assert "OK (skipped=1)" in done.stderr
    assert "skipped 'History range not supported'" in done.stderr
