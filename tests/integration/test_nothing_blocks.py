"""The gateway's own loop: no call in it may block, whatever is asked, and by whichever door."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import traceback
from typing import TYPE_CHECKING

import aiohttp
import pytest
from blockbuster import BlockingError, blockbuster_ctx

from gateway import app, settings
from gateway.cli.serve import bind
from tests.clients.mcp_client import call, over_http
from tests.gateway import Gateway, complete, text_of
from tests.integration.test_kernel_life import STUBBORN
from tests.lifecycle import kernels, until_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# whose calls are looked at, and what they call in turn; pytest's own may block
WATCHED = ["gateway", "aiohttp", "aiosqlite", "sqlalchemy", "zmq", "jupyter_client"]


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every blocking call so far, as a stack: also those whose error nobody saw."""
    stacks: list[str] = []

    class Noted(BlockingError):
        def __init__(self, func: str) -> None:
            super().__init__(func)
            stacks.append(func + "\n" + "".join(traceback.format_stack()[-9:-2]))

    monkeypatch.setattr("blockbuster.blockbuster.BlockingError", Noted)
    return stacks


@pytest.fixture
def _signals() -> Iterator[None]:
    """Put back the handlers that a gateway in this process replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
async def gateway(_signals: None, blocked: list[str]) -> AsyncIterator[Gateway]:
    """A gateway in this very loop, where every blocking call is an error, and its warden."""
    gateway = Gateway()
    try:
        # another's warden and keys, as after a restart
        await asyncio.to_thread(gateway.start)
        await asyncio.to_thread(gateway.key)
        await asyncio.to_thread(gateway.end, signal.SIGKILL)
        specs = gateway.state_dir / "specs"
        specs.mkdir()
        here = settings.load(
            state_dir=gateway.state_dir,
            server={"port": 0},
            kernels={"cull_interval_s": 0.2, "spec_dirs": [specs]},
        )
        listener = bind(here.server.host, 0)
        gateway.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with blockbuster_ctx(scanned_modules=WATCHED):
            serving = asyncio.create_task(app.serve(here, listener, keep=False))
            await until_up(gateway, serving)
            yield gateway
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(serving, 20)
    finally:
        await asyncio.to_thread(gateway.destroy)
    assert not blocked, "\n\n".join(blocked)


async def until_up(gateway: Gateway, serving: asyncio.Task[None]) -> None:
    """Wait until the gateway answers, or raise what it failed of."""
    timeout = aiohttp.ClientTimeout(total=1)
    while True:
        if serving.done():
            await serving
        with contextlib.suppress(OSError, TimeoutError):
            async with (
                aiohttp.ClientSession(gateway.url, timeout=timeout) as session,
                session.get("/healthz") as response,
            ):
                assert response.status == 200
                return
        await asyncio.sleep(0.05)


async def test_rest(gateway: Gateway) -> None:
    """A kernel's life over REST: start, run, time out both ways, interrupt, restart, die, be deleted."""
    async with gateway.client() as client:
        kernel_id = await client.start()
        assert await client.out(kernel_id, "print(1)") == "1\n"
        assert (await client.run(kernel_id, "import time; time.sleep(60)", timeout_s=0.5))[
            "status"
        ] == "timeout"
        assert (await client.run(kernel_id, STUBBORN, timeout_s=0.5))["reason"] == "timeout"
        task = asyncio.create_task(client.run(kernel_id, "import time; time.sleep(60)"))
        await until_state(client, kernel_id, "busy")
        await asyncio.sleep(0.5)
        await client.json("POST", f"/api/kernels/{kernel_id}/interrupt", status=204)
        assert (await task)["status"] in {"error", "interrupted"}
        await client.json("POST", f"/api/kernels/{kernel_id}/restart")
        assert (await client.run(kernel_id, "import os; os._exit(1)"))["status"] == "dead"
        await client.json("POST", f"/api/kernels/{kernel_id}/restart")
        await client.delete(kernel_id)
        await client.json("GET", f"/api/kernels/{kernel_id}", status=404)


async def test_everything_that_is_read(gateway: Gateway) -> None:
    """Version, status, identity, kernelspecs and their files, docs, metrics; good and bad credentials."""
    async with gateway.client(scopes="kernels,execute,admin") as client:
        for path in ("/api", "/api/status", "/api/me", "/api/kernels", "/api/sessions", "/api/openapi.json"):
            await client.json("GET", path)
        specs = (await client.json("GET", "/api/kernelspecs"))["kernelspecs"]
        resources = [path for spec in specs.values() for path in spec["resources"].values()]
        for path in ["/api/docs", "/metrics", "/api/kernelspecs/python3", *resources]:
            async with client.http.get(path) as response:
                assert response.status == 200, path
        for path in ("/nothing", "/kernelspecs/python3/none.png", "/api/kernelspecs/none"):
            async with client.http.get(path) as response:
                assert response.status == 404, path
        for token in ("nonsense", "cb_aaaaaaaaaaaa_" + "a" * 43):
            async with client.http.get(
                "/api/kernels", headers={"Authorization": f"token {token}"}
            ) as response:
                assert response.status == 401


async def test_kernelspecs_that_change(gateway: Gateway) -> None:
    """One that is put there while the gateway runs is listed and started, a broken one left out."""
    async with gateway.client() as client:
        async with client.http.get("/api/kernelspecs/python3") as response:
            spec = (await response.json())["spec"]
        body = {key: spec[key] for key in ("argv", "display_name", "language", "metadata")}
        for name, content in (("added", body), ("broken", body | {"metadata": {"cellblock": {"no": 1}}})):
            directory = gateway.state_dir / "specs" / name
            await asyncio.to_thread(directory.mkdir)
            await asyncio.to_thread((directory / "kernel.json").write_text, json.dumps(content))
        # the catalogue looks at when the directory above changed
        await asyncio.to_thread(os.utime, gateway.state_dir / "specs")
        listed = (await client.json("GET", "/api/kernelspecs"))["kernelspecs"]
        assert "added" in listed
        assert "broken" not in listed
        assert await client.out(await client.start("added"), "print(1)") == "1\n"


async def test_sessions(gateway: Gateway) -> None:
    """Sessions made, seen, moved, given another kernel, deleted."""
    async with gateway.client() as client:
        body = {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
        session = await client.json("POST", "/api/sessions", body, status=201)
        path = f"/api/sessions/{session['id']}"
        await client.json("GET", path)
        await client.json("PATCH", path, {"path": "b.ipynb"})
        await client.json("PATCH", path, {"kernel": {"name": "python3"}})
        assert len(await client.json("GET", "/api/sessions")) == 1
        await client.json("DELETE", path, status=204)


@pytest.mark.parametrize("v1", [True, False])
async def test_sockets(gateway: Gateway, v1: bool) -> None:
    """Both framings: executions, much output, an interrupt, garbage, a kernel that dies while one listens."""
    async with gateway.client() as client:
        kernel_id = await client.start()
        async with client.channels(kernel_id, v1=v1) as channels:
            messages = await channels.until_done(await channels.execute("print('a' * 2_000_000)"))
            assert len(text_of(messages)) == 2_000_001
            msg_id = await channels.execute("import time; time.sleep(60)")
            await until_state(client, kernel_id, "busy")
            await asyncio.sleep(0.5)
            await client.json("POST", f"/api/kernels/{kernel_id}/interrupt", status=204)
            assert complete(await channels.until_done(msg_id), msg_id)
            await channels.until_done(await channels.execute("import os; os._exit(1)"))
        async with client.channels(kernel_id, v1=v1) as channels:
            await channels.socket.send_str("garbage")
            assert await channels.closing() == 1007
        await client.delete(kernel_id)


async def test_agents(gateway: Gateway) -> None:
    """MCP in both eras, progress, files as resources, a call that is taken back; the same tools by HTTP."""
    heard = []

    async def told(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    for mode in ("auto", "legacy"):
        async with over_http(gateway, mode=mode) as mcp, gateway.client() as client:
            await mcp.list_tools()
            session = (await call(mcp, "create_session"))["session_id"]
            plot = "import matplotlib.pyplot as p; p.plot([1]); p.savefig('a.png'); p.show()"
            code = f"{plot}; import time; time.sleep(4)"
            await mcp.call_tool("execute_code", {"code": code, "session_id": session}, progress_callback=told)
            await mcp.read_resource(f"cellblock://sessions/{session}/files/a.png")
            sleep = {"code": "import time; time.sleep(60)", "session_id": session}
            running = asyncio.create_task(mcp.call_tool("execute_code", sleep))
            await asyncio.sleep(1)
            running.cancel()
            await asyncio.wait({running})
            await call(mcp, "run_command", command="echo 1", session_id=session)
            await call(mcp, "edit_file", session_id=session, path="a.png", old="PNG", new="GNP")
            for dialect in ("mcp", "openai", "anthropic"):
                await client.json("GET", f"/api/tools?format={dialect}&all=true")
            await client.json("POST", "/api/tools/list_packages", {"session_id": session})
            await client.json("POST", "/api/tools/close_session", {"session_id": session})
    assert len(heard) >= 2


async def test_deaths_of_kernel_and_warden(gateway: Gateway) -> None:
    """A kernel killed from outside, then the warden: seen, answered and recovered from without blocking."""
    async with gateway.client() as client:
        kernel_id = await client.start()
        (pid,) = await asyncio.to_thread(kernels, gateway)
        os.kill(pid, signal.SIGKILL)
        await until_state(client, kernel_id, "dead", 5)
        for pid in await asyncio.to_thread(gateway.warden_pids):
            os.kill(pid, signal.SIGKILL)
        async with client.http.post("/api/kernels", json={}) as response:
            assert response.status in {201, 503}
        await asyncio.sleep(2)
        await client.json("POST", f"/api/kernels/{kernel_id}/restart")
        assert await client.out(kernel_id, "print(1)") == "1\n"
