"""JSON-RPC against real kernels: who may do what, what is recorded, and what is left of a connection."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import pytest

from tests.clients.rpc import RpcError, connected, opened
from tests.gateway import Client, running
from tests.integration.test_ownership import authorized, command
from tests.lifecycle import eventually, until_state

if TYPE_CHECKING:
    from tests.gateway import Gateway

SLEEP = "print('begun', flush=True)\nimport time; time.sleep(60)"


def trail(gateway: Gateway) -> list[dict[str, Any]]:
    """Return what is in the audit trail's files now."""
    files = sorted((gateway.state_dir / "gateway" / "audit").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


async def test_scopes(gateway: Gateway, kernel_id: str) -> None:
    """A key does by this door what it may do by REST, and nothing more."""
    wanted = {
        "kernels": {"kernels.list": {}, "control": {"action": "interrupt", "kernel_id": kernel_id}},
        "execute": {"execute": {"code": "1", "kernel_id": kernel_id}, "list": {}},
        "files": {"files.list": {"kernel_id": kernel_id}},
    }
    for scope in wanted:
        async with opened(gateway, "rpc-owner", scope) as rpc:
            for needed, calls in wanted.items():
                for method, params in calls.items():
                    if needed == scope:
                        await rpc.call(method, **params)
                        continue
                    with pytest.raises(RpcError) as refused:
                        await rpc.call(method, **params)
                    assert (refused.value.number, refused.value.reason) == (-32003, "missing_scope"), method


async def test_everything_of_anothers_is_not_there(gateway: Gateway, owner: Client, kernel_id: str) -> None:
    """Every method that names a kernel, context or execution says the same of another's as of none."""
    nowhere = str(uuid4())
    async with connected(owner) as rpc, opened(gateway, "rpc-stranger") as stranger:
        await rpc.call("contexts.open", name="theirs")
        described = (await rpc.call("describe"))["methods"]
        tried = 0
        for method in described:
            names = method["params"].get("properties", {})
            if "kernel_id" not in names and "name" not in names:
                continue
            if method["name"] in {"kernels.create", "contexts.open"}:
                continue
            answers = []
            for kernel, context in ((kernel_id, "theirs"), (nowhere, "nobodys")):
                given = {"kernel_id": kernel} if "kernel_id" in names else {"name": context}
                with pytest.raises(RpcError) as refused:
                    await stranger.call(method["name"], **given, **MORE.get(method["name"], {}))
                assert refused.value.code == "not_found", method["name"]
                answers.append(repr(refused.value.args).replace(kernel, "ID").replace(context, "ID"))
            assert answers[0] == answers[1], method["name"]
            tried += 1
        await rpc.call("contexts.close", name="theirs")
    assert tried >= 15


MORE: dict[str, dict[str, Any]] = {
    "execute": {"code": "1"},
    "start": {"code": "1"},
    "control": {"action": "interrupt"},
    "command.run": {"command": "id"},
    "process.start": {"command": "id"},
    "process.input": {"process_id": "p", "text": "x"},
    "process.read": {"process_id": "p"},
    "process.signal": {"process_id": "p", "signal": "INT"},
    "process.remove": {"process_id": "p"},
    "system.kill": {"pid": 1},
    "files.stat": {"path": "a"},
    "files.read": {"path": "a"},
    "files.write": {"path": "a", "text": "x"},
    "files.append": {"path": "a", "text": "x"},
    "files.edit": {"path": "a", "old": "a", "new": "b"},
    "files.mkdir": {"path": "a"},
    "files.move": {"path": "a", "to": "b"},
    "files.delete": {"path": "a"},
}


async def test_what_is_done_is_recorded(gateway: Gateway, owner: Client, kernel_id: str) -> None:
    """A connection's begin and end, what it did, and what was refused stand in the trail, by this door."""
    async with connected(owner) as rpc:
        await rpc.call("files.write", kernel_id=kernel_id, path="told", text="x")
        await rpc.call("execute", code="1", kernel_id=kernel_id)
        with pytest.raises(RpcError):
            await rpc.call("kernels.delete", kernel_id=str(uuid4()))

    def mine() -> list[dict[str, Any]]:
        found = [r for r in trail(gateway) if r.get("who") == "rpc-owner" and r["door"] == "rpc"]
        opened = max(n for n, r in enumerate(found) if r["action"] == "channels.open")
        # the connection of the test before may still be closing
        return [r for r in found[opened:] if r["request_id"].startswith(found[opened]["request_id"])]

    assert await eventually(lambda: mine()[-1]["action"] == "channels.close")
    records = mine()
    assert [r["action"] for r in records] == [
        "channels.open",
        "file.write",
        "job.create",
        "execution.end",
        "access.refused",
        "channels.close",
    ]
    assert records[0]["target"] == records[-1]["target"] == "rpc"
    assert records[4]["target"] == "GET /api/rpc kernels.delete"
    assert records[-1]["extra"] == {"requests": 3, "refused": 1}
    # each request has a name of its own below the connection's
    names = [r["request_id"] for r in records]
    assert len({names[0], names[1], names[2], names[4]}) == 4


async def test_a_key_that_has_ended(gateway: Gateway) -> None:
    """When its key is revoked, a connection is closed with 1008, and what hangs on it is interrupted."""
    token = await command(gateway, "create", "rpc-late")
    async with authorized(gateway, token) as late, connected(late) as rpc:
        answer = await rpc.ask("execute", code=SLEEP)
        await rpc.until("execution.output")
        await command(gateway, "revoke", "rpc-late")

        assert await eventually(lambda: rpc.socket.closed)
        assert rpc.socket.close_code == 1008
        with pytest.raises(ConnectionError):
            await answer
    async with gateway.client("rpc-late") as again:
        assert await none_left(again)


async def none_left(client: Client) -> bool:
    """Tell whether an owner's kernels come to an end by themselves."""
    async with asyncio.timeout(15):
        while await client.json("GET", "/api/kernels"):
            await asyncio.sleep(0.1)
    return True


async def test_sockets_are_counted() -> None:
    """An owner has as many connections as the quota says, those to kernels included."""
    with running("--no-keep", env={"CELLBLOCK_QUOTAS__SOCKETS": "1"}) as few:
        async with few.client() as alice, connected(alice):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await alice.http.ws_connect("/api/rpc")
            assert refused.value.status == 429
        async with few.client() as alice, connected(alice) as rpc:
            assert await rpc.call("ping")


async def test_a_gateway_that_ends(owner: Client) -> None:
    """A gateway that is told to end closes the connection with 1012, and interrupts what hangs on it."""
    with running("--no-keep") as ending:
        async with ending.client() as alice, connected(alice) as rpc:
            answer = await rpc.ask("execute", code=SLEEP)
            await rpc.until("execution.output")
            await asyncio.to_thread(ending.end)
            assert await eventually(lambda: rpc.socket.closed)
            assert rpc.socket.close_code == 1012
            with pytest.raises(ConnectionError):
                await answer


async def test_a_slow_reader_holds_nobody_up(gateway: Gateway, owner: Client, kernel_id: str) -> None:
    """A client that does not read is waited for alone: others are served, and its own gets all in the end."""
    flood = "for n in range(30_000): print('x' * 200)"
    async with connected(owner) as other, owner.http.ws_connect("/api/rpc", max_msg_size=0) as slow:
        body = {"jsonrpc": "2.0", "id": 1, "method": "execute"}
        await slow.send_json(body | {"params": {"code": flood, "kernel_id": kernel_id, "text_chars": 200}})
        await until_state(owner, kernel_id, "busy")
        await until_state(owner, kernel_id, "idle", 30)
        assert (await asyncio.wait_for(other.call("ping"), 5))["principal"] == "rpc-owner"
        last: dict[str, Any] = {}
        async with asyncio.timeout(30):
            while "result" not in last:
                last = await slow.receive_json()
    assert last["result"]["status"] == "ok"


async def test_a_connection_that_drops_at_once(gateway: Gateway) -> None:
    """Whenever a connection drops, before, while or after its kernel starts, its code does not go on."""
    async with gateway.client("rpc-dropper") as dropper:
        for wait_s in (0.0, 0.01, 0.05, 0.3, 0.6):
            async with connected(dropper) as rpc:
                await rpc.ask("execute", code=SLEEP)
                await asyncio.sleep(wait_s)
                await rpc.socket.close()
        assert await none_left(dropper)
        assert not [job for job in await dropper.json("GET", "/api/executions") if job["ended_at"] is None]
