"""`jupyter lab --gateway-url`: the server part of JupyterLab, with its kernels from the gateway."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from gateway.protocol.messages import content
from tests.gateway import Client, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Gateway

SERVER = Path(sys.executable).with_name("jupyter-server")
TOKEN = "the-lab-users-own"


@pytest.fixture(scope="module")
async def lab(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A client of a Jupyter server that has its kernels from the gateway."""
    home = tmp_path_factory.mktemp("lab")
    env = {
        **os.environ,
        "HOME": str(home),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_GATEWAY_AUTH_TOKEN": gateway.key(),
    }
    options = (f"--gateway-url={gateway.url}", f"--IdentityProvider.token={TOKEN}", "--ServerApp.port=0")
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(SERVER), "--allow-root", "--no-browser", f"--ServerApp.root_dir={home}", *options],
            env=env,
            cwd=home,
            stdout=log,
            stderr=log,
        )
    try:
        url = await served(process, home)
        async with aiohttp.ClientSession(url, headers={"Authorization": f"token {TOKEN}"}) as session:
            yield Client(session)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)


async def served(process: subprocess.Popen[bytes], home: Path) -> str:
    """Wait until the server has written where it listens, and return that."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for file in (home / "runtime").glob("jpserver-*.json"):
            return f"http://127.0.0.1:{json.loads(file.read_text())['port']}"
        assert process.poll() is None, (home / "log").read_text()
        await asyncio.sleep(0.1)
    raise AssertionError((home / "log").read_text())


async def test_kernelspecs_and_their_logos(lab: Client) -> None:
    """The server shows the gateway's kernelspecs, and hands its logos through."""
    specs = await lab.json("GET", "/api/kernelspecs")

    assert specs["default"] == "python3"
    assert {"python3", "python3-scientific"} <= set(specs["kernelspecs"])
    async with lab.http.get(specs["kernelspecs"]["python3"]["resources"]["logo-64x64"]) as response:
        assert response.status == 200
        assert (await response.read()).startswith(b"\x89PNG")


async def test_a_kernels_life(lab: Client, client: Client) -> None:
    """Start, list, run, interrupt, restart and end a kernel through the server's REST and WebSocket."""
    kernel = await lab.start("python3")
    assert kernel in {model["id"] for model in await client.json("GET", "/api/kernels")}
    assert kernel in {model["id"] for model in await lab.json("GET", "/api/kernels")}

    async with lab.channels(kernel, v1=False) as channels:
        assert text_of(await channels.until_done(await channels.execute("x = 1\nprint('hi')"))) == "hi\n"
        asked = await channels.execute("print('on', flush=True); import time; time.sleep(60)")
        await channels.until("stream")
        await asyncio.sleep(0.3)
        await lab.json("POST", f"/api/kernels/{kernel}/interrupt", status=204)
        messages = await channels.until_done(asked)
        assert [content(m)["ename"] for m in messages if m.msg_type == "error"] == ["KeyboardInterrupt"]

        await lab.json("POST", f"/api/kernels/{kernel}/restart")
    async with lab.channels(kernel, v1=False) as channels:
        messages = await channels.until_done(await channels.execute("x"))
        assert [content(m)["ename"] for m in messages if m.msg_type == "error"] == ["NameError"]

    await lab.delete(kernel)
    assert kernel not in {model["id"] for model in await client.json("GET", "/api/kernels")}


async def test_a_session(lab: Client) -> None:
    """A notebook's session, kept by the server, has its kernel from the gateway."""
    wanted = {"path": "a.ipynb", "type": "notebook", "name": "a.ipynb", "kernel": {"name": "python3"}}
    session = await lab.json("POST", "/api/sessions", wanted, status=201)

    async with lab.channels(session["kernel"]["id"], v1=False) as channels:
        assert text_of(await channels.until_done(await channels.execute("print(6 * 7)"))) == "42\n"
    await lab.json("DELETE", f"/api/sessions/{session['id']}", status=204)


async def test_what_used_to_end_the_connection(lab: Client) -> None:
    """Binary comm messages and messages over 10 MiB, which that server cannot take, do not end its socket."""
    kernel = await lab.start("python3")
    widget = (
        "from comm import create_comm\n"
        "c = create_comm(target_name='t', data={}, buffers=[b'\\x00\\xff' * 10])\n"
        "print('binary sent')"
    )
    async with lab.channels(kernel, v1=False) as channels:
        assert "binary sent" in text_of(await channels.until_done(await channels.execute(widget)))
        big = "from IPython.display import HTML\nHTML('x' * (11 << 20))"
        messages = await channels.until_done(await channels.execute(big))
        assert any(m.msg_type == "execute_reply" for m in messages)
        plenty = await channels.until_done(await channels.execute("print('y' * (12 << 20))"))
        assert 3 << 20 < len(text_of(plenty)) < 5 << 20
        assert "bytes of output were cut here" in text_of(plenty, "stderr")
        assert text_of(await channels.until_done(await channels.execute("print('alive')"))) == "alive\n"
    await lab.delete(kernel)


async def test_a_kernel_that_dies(lab: Client) -> None:
    """A kernel that dies says why through the server, too, and starts afresh as a local one would."""
    kernel = await lab.start("python3")
    async with lab.channels(kernel, v1=False) as channels:
        messages = await channels.until_done(await channels.execute("import os; os._exit(1)"), timeout=10)
        assert [content(m)["ename"] for m in messages if m.msg_type == "error"] == ["KernelCrashed"]
    async with lab.channels(kernel, v1=False) as channels:
        again = await channels.until_done(await channels.execute("print(6 * 7)"))
        assert text_of(again) == "42\n"
    await lab.delete(kernel)


async def test_an_unknown_kernelspec(lab: Client) -> None:
    """A refusal of the gateway's reaches the server's client with its status, as an error of the gateway."""
    async with lab.http.post("/api/kernels", json={"name": "ruby"}) as response:
        assert response.status == 404
        assert "Error from Gateway" in (await response.text())
