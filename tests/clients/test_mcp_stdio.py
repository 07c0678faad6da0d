"""`cellblock mcp`: the same tools over stdin and stdout, for hosts that start their servers themselves."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from mcp.shared.exceptions import MCPError

from tests.clients.mcp_client import Refusal, call, over_http, over_stdio
from tests.lifecycle import until_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.gateway import Client, Gateway

SLEEP = "print('begun', flush=True)\nimport time; time.sleep(60)"


class Process:
    """A `cellblock mcp` process that is spoken to by hand."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []

    @classmethod
    async def start(cls, gateway: Gateway, *extra: str, **env: str) -> Process:
        """Start one."""
        process = await asyncio.create_subprocess_exec(
            *gateway.command("mcp", *(extra or ("--url", gateway.url))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"HOME": str(gateway.state_dir), "CELLBLOCK_KEY": gateway.key(), **env},
            limit=32 << 20,
        )
        return cls(process)

    def tell(self, **message: Any) -> None:
        """Send a message."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def answer(self, request_id: int) -> dict[str, Any]:
        """Return the answer to a request; every line before it must be a message of MCP's."""
        assert self.process.stdout is not None
        while True:
            line = await asyncio.wait_for(self.process.stdout.readline(), 30)
            assert line, "the process has ended"
            message: dict[str, Any] = json.loads(line)
            assert message["jsonrpc"] == "2.0"
            if message.get("id") == request_id:
                return message

    async def open(self) -> None:
        """Shake hands."""
        params = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "0"},
        }
        self.tell(id=1, method="initialize", params=params)
        assert (await self.answer(1))["result"]["serverInfo"]["name"] == "cellblock"
        self.tell(method="notifications/initialized")

    async def ended(self, within_s: float = 15.0) -> tuple[int | None, bytes, bytes]:
        """Wait for its end; return the exit code, and what it wrote to stdout and stderr."""
        out, err = await asyncio.wait_for(self.process.communicate(), within_s)
        return self.process.returncode, out, err


@pytest.fixture
async def spoken(gateway: Gateway) -> AsyncIterator[Process]:
    """One that is open."""
    process = await Process.start(gateway)
    await process.open()
    yield process
    if process.process.returncode is None:
        process.process.kill()
        await process.process.wait()


async def test_the_same_as_over_http(gateway: Gateway) -> None:
    """Tools, their schemas and the instructions are those of the gateway, word for word."""
    async with over_http(gateway) as direct, over_stdio(gateway) as through:
        assert (await through.list_tools()).tools == (await direct.list_tools()).tools
        assert through.instructions == direct.instructions
        assert through.server_info == direct.server_info
        mine = (await through.list_resource_templates()).resource_templates
        assert mine == (await direct.list_resource_templates()).resource_templates


async def test_scopes_and_errors(gateway: Gateway) -> None:
    """What the gateway refuses is refused here in the same form."""
    async with over_stdio(gateway, scopes="kernels") as mcp:
        assert "execute_code" not in [tool.name for tool in (await mcp.list_tools()).tools]
        with pytest.raises(Refusal, match="missing_scope"):
            await call(mcp, "execute_code", code="1")
        with pytest.raises(MCPError):
            await mcp.call_tool("no_such_tool", {})
        with pytest.raises(MCPError, match="no such session"):
            await mcp.read_resource("cellblock://sessions/x/files/y")


async def sleeping(spoken: Process, client: Client) -> str:
    """Have a session's code sleep, by the request 9; return its kernel."""
    spoken.tell(id=2, method="tools/call", params={"name": "create_session", "arguments": {}})
    made = (await spoken.answer(2))["result"]["structuredContent"]
    arguments = {"code": SLEEP, "session_id": made["session_id"]}
    params = {"name": "execute_code", "arguments": arguments}
    spoken.tell(id=9, method="tools/call", params=params)
    kernel = str((await client.json("GET", f"/api/contexts/{made['session_id']}"))["kernel_id"])
    async with asyncio.timeout(20):
        while [e["state"] for e in await client.json("GET", f"/api/kernels/{kernel}/executions")] != [
            "running"
        ]:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    return kernel


async def test_a_call_is_taken_back(spoken: Process, client: Client) -> None:
    """notifications/cancelled goes all the way to the kernel, and the process serves on."""
    kernel = await sleeping(spoken, client)

    spoken.tell(method="notifications/cancelled", params={"requestId": 9})

    await until_state(client, kernel, "idle", 5)
    spoken.tell(id=10, method="tools/list")
    assert (await spoken.answer(10))["result"]["tools"]


@pytest.mark.parametrize("end", ["eof", "kill"])
async def test_the_host_goes_away(spoken: Process, client: Client, end: str) -> None:
    """A host that closes stdin, or is killed with its server, leaves no code running behind it."""
    kernel = await sleeping(spoken, client)

    if end == "eof":
        assert spoken.process.stdin is not None
        spoken.process.stdin.close()
        code, _, err = await spoken.ended()
        assert (code, err) == (0, b"")
    else:
        spoken.process.send_signal(signal.SIGKILL)

    await until_state(client, kernel, "idle", 5)


async def test_rubbish_on_stdin(spoken: Process) -> None:
    """What is no message of MCP's does no harm."""
    assert spoken.process.stdin is not None
    spoken.process.stdin.write(b'\xff\xfe\n{"half": \n[]\n\n')
    spoken.tell(id=3, method="tools/list")

    assert (await spoken.answer(3))["result"]["tools"]


async def test_no_way_in(gateway: Gateway, tmp_path: Path) -> None:
    """What keeps it from serving is one sentence on stderr and exit code 2; stdout stays empty."""
    file = tmp_path / "key"
    file.write_text("cb_wrong")
    for arguments, env, sentence in (
        (("--url", gateway.url), {"CELLBLOCK_KEY": "cb_wrong"}, "refuses this API key"),
        (("--url", gateway.url, "--key-file", str(file)), {}, "refuses this API key"),
        (("--url", "http://127.0.0.1:1"), {}, "does not answer"),
    ):
        process = await Process.start(gateway, *arguments, **env)
        code, out, err = await process.ended()

        assert (code, out) == (2, b"")
        assert sentence in err.decode()
        assert err.count(b"\n") == 1
