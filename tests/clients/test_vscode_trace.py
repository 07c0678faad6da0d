"""VS Code's Jupyter extension on an "existing Jupyter server", replayed: it cannot be installed for tests.

The extension has @jupyterlab/services below it, in Node: so the requests are that library's (a cache-buster
behind each GET, `Authorization: token`, the v1 subprotocol and the token in the WebSocket's address), in the
extension's order. The library itself is driven in tests/browser/test_direct.py.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import pytest

from gateway.protocol.messages import content
from gateway.protocol.websocket import V1
from tests.gateway import Channels, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Gateway


@pytest.fixture
async def code(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client with the headers of the extension's."""
    headers = {
        "Authorization": f"token {gateway.key()}",
        "Cache-Control": "no-store",
        "User-Agent": "node-fetch",
    }
    async with aiohttp.ClientSession(gateway.url, headers=headers) as session:
        yield session


async def asked(code: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Make a request as the library does; return status and JSON."""
    if method == "GET":
        path = f"{path}?{time.time_ns() // 1_000_000}"
    async with code.request(method, path, json=body) as response:
        return response.status, await response.json() if await response.text() else None


async def test_the_server_is_looked_at(code: aiohttp.ClientSession) -> None:
    """Entering the address: version, kernelspecs, kernels and sessions are there, as they are validated."""
    status, version = await asked(code, "GET", "/api")
    assert (status, set(version)) == (200, {"version"})

    status, specs = await asked(code, "GET", "/api/kernelspecs")
    assert status == 200
    spec = specs["kernelspecs"][specs["default"]]
    assert {"name", "resources"} <= set(spec)
    assert {"language", "display_name", "argv"} <= set(spec["spec"])
    for path in ("/api/kernels", "/api/sessions"):
        status, models = await asked(code, "GET", path)
        assert status == 200
        assert isinstance(models, list)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/contents"),
        ("GET", "/api/contents/analysis.ipynb"),
        ("DELETE", "/api/contents/Untitled.ipynb"),
        ("GET", "/api/terminals"),
        ("GET", "/lab/api/settings/"),
        ("GET", "/login"),
    ],
)
async def test_what_a_gateway_has_not(code: aiohttp.ClientSession, method: str, path: str) -> None:
    """Contents, terminals, settings and the login page are refused as JSON with a message, and no crash."""
    status, refusal = await asked(code, method, path, {"type": "notebook"} if method == "POST" else None)

    assert status == 404
    assert refusal["message"]


async def test_a_notebook(code: aiohttp.ClientSession, gateway: Gateway) -> None:
    """A session without a file gets its kernel; cells run; at its end it takes the kernel with it."""
    status, specs = await asked(code, "GET", "/api/kernelspecs")
    path = f"analysis-jvsc-{uuid4()}.ipynb"
    wanted = {
        "path": path,
        "name": "analysis.ipynb",
        "type": "notebook",
        "kernel": {"name": specs["default"]},
    }
    status, session = await asked(code, "POST", "/api/sessions", wanted)
    assert status == 201
    assert session["path"] == path
    kernel = session["kernel"]["id"]

    address = f"/api/kernels/{kernel}/channels?session_id={uuid4()}&token={gateway.key()}"
    async with code.ws_connect(address, protocols=(V1,), max_msg_size=0) as socket:
        assert socket.protocol == V1
        channels = Channels(socket, V1)
        await channels.send("shell", "kernel_info_request", {})
        info = content(await channels.until("kernel_info_reply"))
        assert info["language_info"]["name"] == "python"

        messages = await channels.until_done(await channels.execute("print(6 * 7)", allow_stdin=True))
        assert text_of(messages) == "42\n"
        running = await channels.execute("import time; print('on', flush=True); time.sleep(60)")
        await channels.until("stream")
        assert (await asked(code, "POST", f"/api/kernels/{kernel}/interrupt"))[0] == 204
        messages = await channels.until_done(running)
        assert [content(m)["ename"] for m in messages if m.msg_type == "error"] == ["KeyboardInterrupt"]

    assert (await asked(code, "POST", f"/api/kernels/{kernel}/restart"))[0] == 200
    assert (await asked(code, "GET", f"/api/sessions/{session['id']}"))[1]["kernel"]["id"] == kernel
    assert (await asked(code, "DELETE", f"/api/sessions/{session['id']}"))[0] == 204
    assert (await asked(code, "GET", f"/api/kernels/{kernel}"))[0] == 404
