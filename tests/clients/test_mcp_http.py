"""MCP's wire: who is let in, how a client learns of that, what is refused, and what is on record."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from mcp.shared.exceptions import MCPError

from tests.clients.mcp_client import Refusal, call, over_http
from tests.conftest import ROOM
from tests.docs.markdown import blocks, page
from tests.gateway import running
from tests.lifecycle import eventually, until_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.gateway import Client, Gateway

ISSUER = "https://login.example"
MODERN, OLD = "2026-07-28", "2025-06-18"
ACCEPT = {"Accept": "application/json, text/event-stream"}
SLEEP = "import time; print('begun', flush=True); time.sleep(60)"


@pytest.fixture(scope="module")
def strict() -> Iterator[Gateway]:
    """A gateway with an issuer, a page of ours that may call it, and small bodies."""
    env = {
        "CELLBLOCK_AUTH__OIDC__ISSUER": ISSUER,
        "CELLBLOCK_AUTH__OIDC__AUDIENCE": "cellblock",
        "CELLBLOCK_SERVER__ALLOW_ORIGINS": '["https://ours.example"]',
        "CELLBLOCK_SERVER__MAX_BODY_BYTES": "200000",
    }
    with running("--no-keep", env={**ROOM, **env}) as gateway:
        yield gateway
        assert "Traceback" not in gateway.log_path.read_text()


@pytest.fixture(scope="module")
async def alice(strict: Gateway) -> AsyncIterator[Client]:
    """Alice's plain HTTP client."""
    async with strict.client() as client:
        yield client


def request(method: str, request_id: Any = 1, **params: Any) -> dict[str, Any]:
    """Return a request of JSON-RPC's."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def modern(method: str, name: str | None = None) -> dict[str, str]:
    """Return the headers that the current revision wants."""
    headers = {**ACCEPT, "MCP-Protocol-Version": MODERN, "Mcp-Method": method}
    return headers | ({"Mcp-Name": name} if name else {})


META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "0"},
}


async def answer(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the last message of an answer, whether it came as JSON or as a stream of events."""
    if response.content_type == "application/json":
        return dict(await response.json())
    lines = (await response.text()).splitlines()
    return dict(json.loads([line[5:] for line in lines if line.startswith("data:")][-1]))


async def test_without_a_credential(strict: Gateway) -> None:
    """401 says where to learn how to get one, and for what; the metadata needs no credential."""
    async with aiohttp.ClientSession(strict.url) as nobody:
        for headers in ({}, {"Authorization": "Bearer cb_wrong"}):
            async with nobody.post("/mcp", json=request("ping"), headers=headers) as response:
                assert response.status == 401
                challenge = response.headers["WWW-Authenticate"]
        where = f'resource_metadata="{strict.url}/.well-known/oauth-protected-resource/mcp"'
        assert challenge.startswith("Bearer ")
        assert where in challenge
        assert 'scope="cellblock:execute cellblock:files cellblock:kernels"' in challenge

        found = []
        for path in ("/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-protected-resource"):
            async with nobody.get(path) as response:
                assert response.status == 200
                found.append(await response.json())
        async with nobody.get("/api/kernels") as response:
            assert response.headers["WWW-Authenticate"] == "Bearer"
    assert found[0] == found[1]
    assert found[0]["resource"] == f"{strict.url}/mcp"
    assert found[0]["authorization_servers"] == [ISSUER]
    assert found[0]["bearer_methods_supported"] == ["header"]
    assert "cellblock:execute" in found[0]["scopes_supported"]


async def test_an_odd_host(strict: Gateway) -> None:
    """What a client calls this host is said back only where it is a name."""
    async with aiohttp.ClientSession(strict.url) as nobody:
        for host in ('[::1]"x', "[::1], scope=y", "[::1]:1"):
            async with nobody.post("/mcp", json=request("ping"), headers={"Host": host}) as response:
                assert response.status == 401
                told = response.headers["WWW-Authenticate"]
                assert f"http://{host if host == '[::1]:1' else 'localhost'}/.well-known" in told
            async with nobody.get(
                "/.well-known/oauth-protected-resource", headers={"Host": host}
            ) as response:
                assert response.status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
async def test_foreign_pages(alice: Client, origin: str) -> None:
    """A page of another origin is refused even with a good key."""
    async with alice.http.post(
        "/mcp", json=request("ping"), headers={**ACCEPT, "Origin": origin}
    ) as response:
        assert (response.status, (await response.json())["reason"]) == (403, "origin")


async def test_pages_of_ours(alice: Client) -> None:
    """A page of an allowed origin may ask beforehand, send MCP's headers, and read the answer."""
    origin = {"Origin": "https://ours.example"}
    async with alice.http.options("/mcp", headers=origin) as response:
        assert {"mcp-protocol-version", "mcp-method", "mcp-name", "mcp-session-id"} <= set(
            response.headers["Access-Control-Allow-Headers"].replace(" ", "").split(",")
        )
    headers = {**modern("tools/list"), **origin}
    async with alice.http.post("/mcp", json=request("tools/list", _meta=META), headers=headers) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == origin["Origin"]
        assert (await response.json())["result"]["tools"]


async def test_other_methods(alice: Client) -> None:
    """There is no stream to open and no session to end: GET and DELETE are not there."""
    for method in ("GET", "DELETE"):
        async with alice.http.request(method, "/mcp", headers=ACCEPT) as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")


async def test_large_bodies(alice: Client) -> None:
    """A body past server.max_body_bytes is 413, and nothing of it is looked at."""
    body = request("tools/call", name="execute_code", arguments={"code": "#" * 300_000})
    async with alice.http.post("/mcp", json=body, headers=ACCEPT) as response:
        assert (response.status, (await response.json())["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", ACCEPT, 400, -32700),
        (b"{", modern("ping"), 400, -32700),
        (b"[" * 50_000, modern("ping"), 400, -32700),
        (b'"x"', ACCEPT, 400, -32602),
        (b"[]", modern("ping"), 400, -32600),
        (json.dumps(request("tools/list", _meta=META)).encode(), modern("ping"), 400, -32020),
        (json.dumps(request("no/such", _meta=META)).encode(), modern("no/such"), 404, -32601),
        (
            json.dumps(request("tools/list", _meta=META)).encode(),
            {**modern("tools/list"), "MCP-Protocol-Version": "2199-01-01"},
            400,
            -32020,
        ),
    ],
)
async def test_malformed_requests(
    alice: Client, body: bytes, headers: dict[str, str], status: int, code: int
) -> None:
    """What is no request of MCP's is answered in JSON-RPC's form, by the status that goes with it."""
    sent = {**headers, "Content-Type": "application/json"}
    async with alice.http.post("/mcp", data=body, headers=sent) as response:
        assert response.status == status, await response.text()
        assert (await response.json())["error"]["code"] == code


async def test_scopes(strict: Gateway) -> None:
    """A credential is offered what it may use, and refused the rest by name."""
    expected = {
        "kernels": {"create_session", "list_sessions", "close_session", "interrupt", "restart", "usage"},
        "execute": {"get_execution", "cancel_execution"},
        "files": set(),
    }
    for scope, tools in expected.items():
        async with over_http(strict, "alice", scopes=scope) as mcp:
            assert {tool.name for tool in (await mcp.list_tools()).tools} == tools
    async with over_http(strict, "alice", scopes="kernels") as mcp:
        session = (await call(mcp, "create_session"))["session_id"]
        for tool, arguments, missing in (
            ("execute_code", {"code": "1"}, "execute"),
            ("run_command", {"command": "id"}, "execute"),
            ("read_file", {"path": "x"}, "files"),
        ):
            with pytest.raises(Refusal, match=f"lacks the scope '{missing}'") as refused:
                await call(mcp, tool, session_id=session, **arguments)
            assert (refused.value.code, refused.value.reason) == ("forbidden", "missing_scope")


async def test_what_is_anothers(strict: Gateway) -> None:
    """Bob reaches neither alice's files nor her executions; to him they are not there."""
    async with over_http(strict, "alice") as mcp, over_http(strict, "bob") as theirs:
        session = (await call(mcp, "create_session"))["session_id"]
        written = await call(mcp, "write_file", session_id=session, path="secret", content="s")
        begun = await call(mcp, "start_execution", code="1", session_id=session)
        assert (await mcp.read_resource(written["uri"])).contents
        said = []
        output = f"cellblock://executions/{begun['execution_id']}/stdout"
        await mcp.read_resource(output)
        for uri in (
            *(written["uri"], written["uri"].replace(session, "s-nothing")),
            *(output, output.replace(begun["execution_id"], "0" * 32)),
        ):
            with pytest.raises(MCPError) as refused:
                await theirs.read_resource(uri)
            said.append(refused.value.error.message.replace(begun["execution_id"], "0" * 32))
        assert (said[0], said[2]) == (said[1], said[3])
        for uri in ("cellblock://sessions/x", "file:///etc/passwd", f"{output}/../stderr"):
            with pytest.raises(MCPError, match="no such resource"):
                await mcp.read_resource(uri)
        for tool in ("get_execution", "cancel_execution"):
            with pytest.raises(Refusal) as nothing:
                await call(theirs, tool, execution_id=begun["execution_id"])
            assert nothing.value.code == "not_found"


async def test_on_record(strict: Gateway, alice: Client) -> None:
    """A call is on the trail with the tool's name and the door; so are what it did, and who was refused."""
    async with over_http(strict, "alice") as mcp:
        session = (await call(mcp, "create_session"))["session_id"]
        await call(mcp, "execute_code", code="1", session_id=session)
        with pytest.raises(Refusal):
            await call(mcp, "usage", session_id="s-nothing")
        with pytest.raises(Refusal):
            await call(mcp, "restart", session_id=session, what="ever")

    def trail() -> list[dict[str, Any]]:
        files = sorted((strict.state_dir / "gateway" / "audit").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    by_mcp = [record for record in trail() if record.get("door") == "mcp" and record.get("who") == "alice"]
    done = {(record["action"], record.get("target")) for record in by_mcp if record["outcome"] == "ok"}
    assert {("agent.call", "create_session"), ("agent.call", "execute_code")} <= done
    assert {"kernel.create", "execution.end"} <= {action for action, _ in done}
    refused = [record for record in by_mcp if record["outcome"] == "refused"]
    assert ("access.refused", "tool usage") in [(each["action"], each["target"]) for each in refused]
    failed = [record for record in by_mcp if record["outcome"] == "error"]
    assert ("agent.call", "restart") in [(each["action"], each["target"]) for each in failed]
    assert all(record["key_id"] and record["address"] and record["request_id"] for record in by_mcp)


class OldClient:
    """A client of an older revision, by hand."""

    def __init__(self, alice: Client) -> None:
        self._http = alice.http
        self._headers = {**ACCEPT}

    async def open(self) -> None:
        """Shake hands."""
        hello = request(
            "initialize", protocolVersion=OLD, capabilities={}, clientInfo={"name": "old", "version": "0"}
        )
        async with self._http.post("/mcp", json=hello, headers=self._headers) as response:
            assert (await answer(response))["result"]["protocolVersion"] == OLD
            self._headers |= {
                "Mcp-Session-Id": response.headers["Mcp-Session-Id"],
                "MCP-Protocol-Version": OLD,
            }

    async def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer."""
        async with self._http.post("/mcp", json=body, headers=self._headers) as response:
            return await answer(response)

    async def tell(self, method: str, **params: Any) -> None:
        """Send a notification."""
        body = {"jsonrpc": "2.0", "method": method, "params": params}
        async with self._http.post("/mcp", json=body, headers=self._headers) as response:
            assert response.status == 202

    async def sleep(self, session: str) -> dict[str, Any]:
        """Have a session sleep, by the request 7."""
        arguments = {"session_id": session, "code": SLEEP}
        return await self.ask(request("tools/call", 7, name="execute_code", arguments=arguments))


async def begun(alice: Client, kernel: str) -> None:
    """Wait until a kernel's code is well under way."""
    async with asyncio.timeout(20):
        while [each["state"] for each in await alice.json("GET", f"/api/kernels/{kernel}/executions")] != [
            "running"
        ]:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)


async def test_an_older_client_takes_a_call_back(alice: Client) -> None:
    """notifications/cancelled interrupts the call of that client, and not another's by the same number."""
    one, other = OldClient(alice), OldClient(alice)
    await one.open()
    await other.open()
    made = await one.ask(request("tools/call", 2, name="create_session", arguments={}))
    session = made["result"]["structuredContent"]["session_id"]
    kernel = (await alice.json("GET", f"/api/contexts/{session}"))["kernel_id"]
    call_of_one = asyncio.create_task(one.sleep(session))
    await begun(alice, kernel)

    await other.tell("notifications/cancelled", requestId=7)
    await asyncio.sleep(1)
    assert not call_of_one.done()

    await one.tell("notifications/cancelled", requestId=7)
    assert (await asyncio.wait_for(call_of_one, 10))["error"]["code"] == -32800
    await until_state(alice, kernel, "idle", 5)


async def test_a_stop_of_the_gateway() -> None:
    """A gateway that is stopped while tools run ends in time, and leaves no trace of a crash."""
    with running("--no-keep", env={**ROOM, "CELLBLOCK_SERVER__DRAIN_S": "0.5"}) as gateway:
        async with gateway.client() as alice:
            old = OldClient(alice)
            await old.open()
            made = await old.ask(request("tools/call", 2, name="create_session", arguments={}))
            session = made["result"]["structuredContent"]["session_id"]
            asking = asyncio.create_task(old.sleep(session))
            body = request("tools/call", 8, _meta=META, name="execute_code", arguments={"code": SLEEP})
            headers = modern("tools/call", "execute_code")
            more = asyncio.create_task(alice.http.post("/mcp", json=body, headers=headers))
            assert await eventually(lambda: gateway.log_path.read_text().count("kernel ready") >= 2)
            await asyncio.sleep(0.5)

            assert await asyncio.to_thread(gateway.end) == 0

            await asyncio.wait({asking, more}, timeout=10)
            for task in (asking, more):
                task.cancel()
            await asyncio.gather(asking, more, return_exceptions=True)
        assert "Traceback" not in gateway.log_path.read_text(), gateway.log_path.read_text()[-4000:]


async def test_a_restart_of_the_gateway() -> None:
    """A session and what ran in it are there for the next gateway, by the same handles."""
    with running(env=ROOM) as gateway:
        async with over_http(gateway) as mcp:
            session = (await call(mcp, "create_session"))["session_id"]
            done = await call(mcp, "execute_code", code="x = 6; print(x)", session_id=session)
        assert await asyncio.to_thread(gateway.end) == 0
        await asyncio.to_thread(gateway.start)
        async with over_http(gateway) as mcp:
            assert (await call(mcp, "execute_code", code="print(x * 7)", session_id=session))[
                "stdout"
            ] == "42\n"
            told = await call(mcp, "get_execution", execution_id=done["execution_id"])
            assert (told["status"], told["stdout"]) == ("ok", "6\n")
            await call(mcp, "close_session", session_id=session)


async def test_the_example(gateway: Gateway) -> None:
    """The program that mcp.md shows runs as it stands."""
    [program] = blocks(page("mcp.md"), "python")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "CELLBLOCK_URL": gateway.url, "CELLBLOCK_KEY": gateway.key()},
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)

    assert (process.returncode, out) == (0, b"21\n"), err.decode()
