"""What Open WebUI, AutoGen, smolagents and Enterprise Gateway's own client send, byte for byte as they do.

The frames are written down from the sources of these projects and sent with the `websockets` library, whose
default limit of 1 MiB for a message is theirs too.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.gateway import Gateway

    Run = Callable[[ClientConnection, str], Awaitable["Said"]]

ASKED = {"silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}


class Said:
    """What a client gathered of one execution."""

    def __init__(self) -> None:
        self.stdout = ""
        self.stderr = ""
        self.results: list[dict[str, Any]] = []
        self.error: dict[str, Any] | None = None

    def take(self, frame: dict[str, Any]) -> bool:
        """Take a frame as these clients do, by its `msg_type` on top; tell whether it says idle."""
        kind, content = frame["msg_type"], frame["content"]
        if kind == "stream":
            setattr(self, content["name"], getattr(self, content["name"]) + content["text"])
        elif kind in {"execute_result", "display_data"}:
            self.results.append(content["data"])
        elif kind == "error":
            self.error = content
        return kind == "status" and content["execution_state"] == "idle"


async def gathered(socket: ClientConnection, msg_id: str) -> Said:
    """Read until the idle status of a request, as all of them do; a text frame each."""
    said = Said()
    while True:
        message = await socket.recv()
        assert isinstance(message, str)
        frame = json.loads(message)
        if frame.get("parent_header", {}).get("msg_id") == msg_id and said.take(frame):
            return said


async def open_webui(socket: ClientConnection, code: str) -> Said:
    """Run code as Open WebUI does: an empty date, no buffers, a session of its own for each message."""
    msg_id = uuid4().hex
    header = {
        "msg_id": msg_id,
        "msg_type": "execute_request",
        "username": "user",
        "session": uuid4().hex,
        "date": "",
        "version": "5.3",
    }
    content = {"code": code, **ASKED, "stop_on_error": True}
    frame = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    await socket.send(json.dumps(frame))
    return await gathered(socket, msg_id)


async def autogen(socket: ClientConnection, code: str) -> Said:
    """Run code as AutoGen does: ready after a kernel_info_reply, buffers that are an object, a local date."""
    session = uuid4().hex

    async def send(kind: str, content: dict[str, Any]) -> str:
        msg_id = uuid4().hex
        header = {
            "username": "autogen",
            "version": "5.0",
            "session": session,
            "msg_id": msg_id,
            "msg_type": kind,
            "date": dt.datetime.now().isoformat(),  # noqa: DTZ005 - as they do
        }
        frame = {"header": header, "parent_header": {}, "channel": "shell", "content": content}
        await socket.send(json.dumps(frame | {"metadata": {}, "buffers": {}}))
        return msg_id

    asked = await send("kernel_info_request", {})
    while True:
        frame = json.loads(await socket.recv())
        if frame["parent_header"].get("msg_id") == asked and frame["msg_type"] == "kernel_info_reply":
            break
    return await gathered(
        socket, await send("execute_request", {"code": code, **ASKED, "stop_on_error": True})
    )


async def smolagents(socket: ClientConnection, code: str) -> Said:
    """Run code as smolagents does: no channel, no date, no stop_on_error, and no timeout on reading."""
    msg_id = str(uuid4())
    header = {
        "msg_id": msg_id,
        "username": "anonymous",
        "session": str(uuid4()),
        "msg_type": "execute_request",
        "version": "5.0",
    }
    frame = {"header": header, "parent_header": {}, "metadata": {}, "content": {"code": code, **ASKED}}
    await socket.send(json.dumps(frame))
    return await gathered(socket, msg_id)


CLIENTS = pytest.mark.parametrize("run", [open_webui, autogen, smolagents], ids=lambda run: run.__name__)


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP session, without credentials."""
    async with aiohttp.ClientSession(gateway.url) as session:
        yield session


@pytest.fixture
async def started(gateway: Gateway, http: aiohttp.ClientSession) -> AsyncIterator[str]:
    """A kernel as Open WebUI and smolagents start it: the token in the query, and no body."""
    token = {"token": gateway.key()}
    async with http.post("/api/kernels", params=token) as response:
        assert response.status == 201
        kernel_id = (await response.json())["id"]
        assert response.headers["Location"] == f"/api/kernels/{kernel_id}"
    yield kernel_id
    async with http.delete(f"/api/kernels/{kernel_id}", params=token) as response:
        assert response.status == 204
        assert await response.read() == b""


def address(gateway: Gateway, kernel_id: str, *, query: bool = True) -> str:
    """Return a kernel's WebSocket URL: no session_id, the token in the query."""
    url = f"{gateway.url.replace('http', 'ws', 1)}/api/kernels/{kernel_id}/channels"
    return f"{url}?token={gateway.key()}" if query else url


@CLIENTS
async def test_code_runs(gateway: Gateway, started: str, run: Run) -> None:
    """Prints, results, plots and errors come as these clients read them; a new socket has the same kernel."""
    async with asyncio.timeout(60), connect(address(gateway, started)) as socket:
        said = await run(
            socket, "kept = 20\nprint('out')\nimport sys; print('err', file=sys.stderr)\nkept + 1"
        )
        assert (said.stdout, said.stderr, said.error) == ("out\n", "err\n", None)
        assert said.results == [{"text/plain": "21"}]

        plot = await run(socket, "import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
        assert [sorted(data) for data in plot.results] == [["image/png", "text/plain"]]
        assert plot.stderr == ""

        failed = await run(socket, "1 / 0")
        assert failed.error is not None
        assert failed.error["ename"] == "ZeroDivisionError"
    async with asyncio.timeout(30), connect(address(gateway, started)) as socket:
        assert (await run(socket, "print(kept)")).stdout == "20\n"


@CLIENTS
async def test_two_megabytes_do_not_break_the_socket(gateway: Gateway, started: str, run: Run) -> None:
    """Output larger than these clients' 1 MiB comes in pieces that they take: no 1009, nothing missing."""
    async with asyncio.timeout(60), connect(address(gateway, started)) as socket:
        said = await run(socket, "print('x' * 2_000_000)")
        again = await run(socket, "print('still here')")

    assert said.stdout == "x" * 2_000_000 + "\n"
    assert again.stdout == "still here\n"


@CLIENTS
async def test_a_kernel_that_dies_does_not_hang_them(gateway: Gateway, started: str, run: Run) -> None:
    """These clients wait for idle, some without a timeout: a killed kernel gives them an error and idle."""
    async with asyncio.timeout(60), connect(address(gateway, started)) as socket:
        asking = asyncio.create_task(run(socket, "import time; time.sleep(600)"))
        await asyncio.sleep(1)
        os.kill(gateway.kernel_pids()[-1], signal.SIGKILL)

        async with asyncio.timeout(2):
            said = await asking

    assert said.error is not None
    assert said.error["ename"] == "KernelKilled"


async def test_autogens_rest(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    """AutoGen: the key in the Authorization header, kernelspecs first, a kernel by name, restart, delete."""
    headers = {"Authorization": f"token {gateway.key()}"}
    async with http.get("/api/kernelspecs", headers=headers) as response:
        specs = await response.json()
    assert "python3" in specs["kernelspecs"]
    async with http.post("/api/kernels", headers=headers, json={"name": specs["default"]}) as response:
        assert response.status == 201
        kernel_id = (await response.json())["id"]
    socket_address = address(gateway, kernel_id, query=False)
    async with asyncio.timeout(60), connect(socket_address, additional_headers=headers) as socket:
        assert (await autogen(socket, "print(1)")).stdout == "1\n"
    async with http.post(f"/api/kernels/{kernel_id}/restart", headers=headers) as response:
        response.raise_for_status()
    async with http.get("/api/kernels", headers=headers) as response:
        assert kernel_id in {model["id"] for model in await response.json()}
    async with http.delete(f"/api/kernels/{kernel_id}", headers=headers) as response:
        response.raise_for_status()


async def test_smolagents_checks(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    """The client of smolagents waits until the kernelspecs answer 200 to the token in the query."""
    async with http.get("/api/kernelspecs", params={"token": gateway.key()}) as response:
        assert response.status == 200


async def test_enterprise_gateways_client(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    """JSON as a bare string without a content type, and an empty session in the header, do as well."""
    headers = {"Authorization": f"token {gateway.key()}", "Content-Type": "text/plain"}
    body = '{"name": "python3", "env": {"KERNEL_USERNAME": "jo", "KERNEL_LAUNCH_TIMEOUT": "40"}}'
    async with http.post("/api/kernels", headers=headers, data=body) as response:
        assert response.status == 201
        kernel_id = (await response.json())["id"]
    header = {
        "username": "",
        "version": "5.0",
        "session": "",
        "msg_id": "a1",
        "msg_type": "execute_request",
    }
    content = {"code": "import os; print(os.environ['KERNEL_USERNAME'])", **ASKED}
    frame = {"header": header, "parent_header": {}, "channel": "shell", "content": content}
    frame |= {"metadata": {}, "buffers": {}}
    async with asyncio.timeout(60), connect(address(gateway, kernel_id)) as socket:
        await socket.send(json.dumps(frame))
        assert (await gathered(socket, "a1")).stdout == "jo\n"
    for verb, path, status in (("POST", "/interrupt", 204), ("POST", "/restart", 200), ("DELETE", "", 204)):
        async with http.request(verb, f"/api/kernels/{kernel_id}{path}", headers=headers) as response:
            assert response.status == status


@pytest.mark.parametrize("missing", ["date", "session", "username", "version"])
async def test_what_a_header_may_lack(gateway: Gateway, started: str, missing: str) -> None:
    """A header without one of its fields, or with it null, is completed for the kernel and answered."""
    for value in (None, 5):
        msg_id = uuid4().hex
        whole = {"date": "", "session": "s", "username": "u", "version": "5.3", "msg_type": "execute_request"}
        header = {**whole, "msg_id": msg_id, missing: value}
        if value is None:
            del header[missing]
        frame = {"header": header, "content": {"code": "print(3)", **ASKED}}
        async with asyncio.timeout(30), connect(address(gateway, started)) as socket:
            await socket.send(json.dumps(frame))
            assert (await gathered(socket, msg_id)).stdout == "3\n"
