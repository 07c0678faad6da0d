"""JSON-RPC over a WebSocket, against real kernels: its protocol, and executions."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import jsonschema
import pytest

from gateway.http.rpc.connection import MAX_FEEDS, MAX_REQUESTS
from tests.clients.rpc import RpcError, connected, opened
from tests.gateway import Client, running
from tests.lifecycle import eventually

if TYPE_CHECKING:
    from tests.clients.rpc import Rpc
    from tests.gateway import Gateway

SLEEP = "print('begun', flush=True)\nimport time; time.sleep(60)"


def text(events: list[dict[str, Any]]) -> str:
    """Join what events tell of stdout."""
    return "".join(event["text"] for event in events if event["type"] == "stdout")


# -- the protocol -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "number", "own"),
    [
        ("{", -32700, None),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), -32700, None),
        ("[]", -32600, None),
        ('[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', -32600, None),
        ("1", -32600, None),
        ('{"id": "a", "method": "ping"}', -32600, "a"),
        ('{"jsonrpc": "1.0", "id": "a", "method": "ping"}', -32600, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": 1}', -32600, "a"),
        ('{"jsonrpc": "2.0", "id": null, "method": "ping"}', -32600, None),
        ('{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', -32600, None),
        ('{"jsonrpc": "2.0", "id": true, "method": "ping"}', -32600, None),
        ('{"jsonrpc": "2.0", "id": {}, "method": "ping"}', -32600, None),
        (json.dumps({"jsonrpc": "2.0", "id": "x" * 129, "method": "ping"}), -32600, None),
        ('{"jsonrpc": "2.0", "id": "a"}', -32600, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "result": 1, "error": {}}', -32600, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": "no.such"}', -32601, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": "__class__"}', -32601, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": "ping", "params": [1]}', -32602, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": "ping", "params": {"more": 1}}', -32602, "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": "get", "params": {}}', -32602, "a"),
        (
            '{"jsonrpc": "2.0", "id": "a", "method": "execute", "params": {"code": "1", "mode": "wait"}}',
            -32602,
            "a",
        ),
        ('{"jsonrpc": "2.0", "id": "a", "method": "control", "params": {"action": "cancel"}}', -32602, "a"),
        ("[" * 5000, -32700, None),
    ],
)
async def test_what_is_no_good_request(rpc: Rpc, frame: str, number: int, own: str | None) -> None:
    """Each is answered with the standard's number and the id as far as it can be known; the socket stays."""
    answer = await rpc.raw(frame)

    assert (answer["id"], answer["error"]["code"]) == (own, number)
    assert set(answer["error"]["data"]) == {"code", "reason", "retry_after_s"}
    assert (await rpc.call("ping"))["principal"] == "rpc-owner"


async def test_a_notification_is_not_answered(rpc: Rpc, owner: Client) -> None:
    """A request without an id is carried out, or not, in silence."""
    await rpc.socket.send_json({"jsonrpc": "2.0", "method": "no.such"})
    await rpc.socket.send_json({"jsonrpc": "2.0", "method": "contexts.close", "params": {"name": "none"}})

    assert (await rpc.call("ping"))["principal"] == "rpc-owner"


async def test_an_answer_that_nobody_asked_for(rpc: Rpc) -> None:
    """An answer to no request of the gateway's does nothing."""
    await rpc.socket.send_json({"jsonrpc": "2.0", "id": "gateway-1", "result": 1})

    assert (await rpc.call("ping"))["principal"] == "rpc-owner"


async def test_describe(rpc: Rpc) -> None:
    """Every method is described with JSON Schemas that are schemas, and that its own result satisfies."""
    described = await rpc.call("describe")

    for method in described["methods"]:
        for schema in filter(None, (method["params"], method["result"])):
            jsonschema.Draft202012Validator.check_schema(schema)
    [own] = [method for method in described["methods"] if method["name"] == "describe"]
    jsonschema.validate(described, own["result"])
    [execute] = [method for method in described["methods"] if method["name"] == "execute"]
    assert {"code", "kernel_id", "detach", "tools"} <= set(execute["params"]["properties"])
    assert not {"mode", "wait_s"} & set(execute["params"]["properties"])


async def test_too_many_at_once(rpc: Rpc, kernel_id: str) -> None:
    """The request past the bound is refused, those before it go on, and afterwards there is room again."""
    slow = await rpc.call("start", code=SLEEP, kernel_id=kernel_id)
    waiting = [
        await rpc.ask("get", execution_id=slow["execution_id"], wait_s=30) for _ in range(MAX_REQUESTS)
    ]

    with pytest.raises(RpcError) as refused:
        await rpc.call("ping")

    assert (refused.value.number, refused.value.code, refused.value.reason) == (
        -32029,
        "limit_reached",
        "requests",
    )
    async with connected_like(rpc) as other:
        await other.call("control", action="cancel", execution_id=slow["execution_id"])
    views = await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert {view["status"] for view in views} == {"cancelled"}
    assert await rpc.call("ping")


async def test_the_same_id_twice(rpc: Rpc, kernel_id: str) -> None:
    """A second request under an id that is under way is refused: its answers could not be told apart."""
    slow = await rpc.call("start", code=SLEEP, kernel_id=kernel_id)
    body = {"execution_id": slow["execution_id"], "wait_s": 30}
    await rpc.socket.send_json({"jsonrpc": "2.0", "id": "same", "method": "get", "params": body})

    answer = await rpc.raw('{"jsonrpc": "2.0", "id": "same", "method": "ping"}')

    assert (answer["error"]["code"], answer["error"]["data"]["reason"]) == (-32600, "id")
    first = rpc.expect()
    await rpc.call("control", action="cancel", execution_id=slow["execution_id"])
    assert (await first)["result"]["id"] == slow["execution_id"]


async def test_a_frame_that_is_too_large() -> None:
    """A frame past the bound closes the socket with 1009."""
    with running("--no-keep", env={"CELLBLOCK_SERVER__MAX_FRAME_BYTES": "65536"}) as small:
        async with opened(small) as rpc:
            await rpc.socket.send_str("x" * 70_000)
            assert await eventually(lambda: rpc.socket.closed)
            assert rpc.socket.close_code == 1009


async def test_a_page_of_another_site(gateway: Gateway) -> None:
    """A page of another site cannot use the cookie of a browser for a connection of its own."""
    key = gateway.key("rpc-owner")
    async with aiohttp.ClientSession(gateway.url, cookies={"cellblock_token": key}) as browser:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await browser.ws_connect("/api/rpc", origin="http://elsewhere.example")
        async with browser.ws_connect("/api/rpc", origin=gateway.url) as socket:
            assert not socket.closed
    assert refused.value.status == 403


async def test_without_an_upgrade(owner: Client) -> None:
    """A plain GET is told what this route speaks, and a handshake without a key is refused."""
    refused = await owner.json("GET", "/api/rpc", status=400)

    assert "WebSocket" in refused["message"]
    async with aiohttp.ClientSession(str(owner.http._base_url)) as nobody:
        with pytest.raises(aiohttp.WSServerHandshakeError) as handshake:
            await nobody.ws_connect("/api/rpc")
    assert handshake.value.status == 401


# -- executions ---------------------------------------------------------------------------------------------


async def test_what_is_told_meanwhile(rpc: Rpc, kernel_id: str) -> None:
    """The notifications of an execution come in order, numbered without gaps, and before its answer."""
    view = await rpc.call("execute", code="print('one')\n2", kernel_id=kernel_id)

    told = [(method, params) for method, params in rpc.told if params["execution_id"] == view["id"]]
    assert [method for method, _ in told] == [
        "execution.accepted",
        "execution.started",
        "execution.output",
        "execution.output",
        "execution.task_completed",
        "execution.completed",
    ]
    assert [params["cursor"] for _, params in told] == list(range(len(told)))
    assert told[0][1]["request_id"] in range(1, 100)
    assert told[2][1] | {"text": "one\n", "type": "stdout", "task": 0} == told[2][1]
    assert told[3][1]["data"]["text/plain"] == "2"
    assert (view["status"], view["result"]["stdout"], view["cursor"]) == (
        "ok",
        "one\n",
        told[-1][1]["cursor"],
    )


async def test_resume_after_a_drop(owner: Client, kernel_id: str) -> None:
    """Whoever comes back with the last cursor misses nothing and gets nothing twice."""
    count = "import time\nfor n in range(40): print(n, flush=True); time.sleep(.03)"
    seen: list[dict[str, Any]] = []
    async with connected(owner) as first:
        begun = (await first.call("start", code=count, kernel_id=kernel_id))["execution_id"]
        await first.call("subscribe", execution_id=begun)
        while len(seen) < 6:
            await asyncio.sleep(0.02)
            seen = first.events(begun)
        await first.socket.close()
    for _ in range(2):
        async with connected(owner) as again:
            await again.call("subscribe", execution_id=begun, cursor=seen[-1]["cursor"])
            if _ == 0:
                await again.until("execution.output")
            else:
                await again.until("execution.completed")
            await again.socket.close()
            seen += again.events(begun)

    assert [event["cursor"] for event in seen] == list(range(1, len(seen) + 1))
    assert text(seen) == "".join(f"{n}\n" for n in range(40))
    assert seen[-1]["status"] == "ok"


async def test_a_gap_is_told() -> None:
    """Where more was said than is kept, a late subscriber is told how much is missing, and gets the rest."""
    with running("--no-keep", env={"CELLBLOCK_EXECUTIONS__JOURNAL_BYTES": "65536"}) as small:
        async with opened(small) as rpc:
            flood = "for n in range(20_000): print(n, 'x' * 60)"
            view = await rpc.call("execute", code=flood, detach=True, text_chars=1000)
            await rpc.call("subscribe", execution_id=view["id"], cursor=0)
            gap = await rpc.until("execution.gap")
            done = await rpc.until("execution.completed", cursor=view["cursor"])

    assert gap["bytes"] > 100_000
    assert done["status"] == "ok"
    assert len(view["result"]["stdout"]) < 1100


async def test_detached(owner: Client, kernel_id: str) -> None:
    """An execution that was asked to goes on after its connection has dropped."""
    async with connected(owner) as rpc:
        await rpc.ask(
            "execute", code="import time; time.sleep(1); print('done')", kernel_id=kernel_id, detach=True
        )
        begun = (await rpc.until("execution.started"))["execution_id"]
    async with connected(owner) as rpc:
        view = await rpc.call("get", execution_id=begun, wait_s=20)

    assert (view["status"], view["result"]["stdout"]) == ("ok", "done\n")


async def test_the_same_key_begins_nothing_new(rpc: Rpc, kernel_id: str) -> None:
    """A request that is sent again under its key, by a client that saw no answer, is the same execution."""
    key = uuid4().hex
    once = await rpc.call("execute", code="print('once')", kernel_id=kernel_id, idempotency_key=key)
    twice = await rpc.call("execute", code="print('once')", kernel_id=kernel_id, idempotency_key=key)

    assert once["id"] == twice["id"]
    with pytest.raises(RpcError) as other:
        await rpc.call("start", code="print('other')", kernel_id=kernel_id, idempotency_key=key)
    assert (other.value.number, other.value.code) == (-32009, "conflict")


async def test_pause_and_resume(rpc: Rpc, kernel_id: str, owner: Client) -> None:
    """A paused execution does not run, and says so; resumed it goes on to its end."""
    count = "import time\nfor n in range(10): print(n, flush=True); time.sleep(.1)"
    answer = await rpc.ask("execute", code=count, kernel_id=kernel_id)
    begun = (await rpc.until("execution.output"))["execution_id"]

    await rpc.call("control", action="pause", execution_id=begun)
    await rpc.until("execution.paused", execution_id=begun)
    assert (await owner.kernel(kernel_id))["paused"]
    before = len(rpc.events(begun))
    await asyncio.sleep(0.5)
    assert len(rpc.events(begun)) <= before + 1
    await rpc.call("control", action="resume", execution_id=begun)
    await rpc.until("execution.resumed", execution_id=begun)

    view = await asyncio.wait_for(answer, 20)
    assert view["result"]["stdout"] == "".join(f"{n}\n" for n in range(10))


async def test_tasks_and_text(rpc: Rpc, kernel_id: str) -> None:
    """A list of tasks stops at the error, is told task by task, and its texts can be had in parts."""
    tasks = [{"code": "print('a' * 1000)"}, {"code": "1 / 0", "name": "wrong"}, {"code": "print('never')"}]
    view = await rpc.call("execute", tasks=tasks, kernel_id=kernel_id)

    assert [task["status"] for task in view["tasks"]] == ["ok", "error", "aborted"]
    ended = [params for method, params in rpc.told if method == "execution.task_completed"]
    assert [(each["task"], each["status"]) for each in ended] == [(0, "ok"), (1, "error")]
    part = await rpc.call("text", execution_id=view["id"], what="stdout", offset=990, limit=8)
    assert (part["text"], part["next_offset"], part["total"]) == ("a" * 8, 998, 1001)


async def test_control_of_a_kernel(rpc: Rpc, owner: Client, kernel_id: str) -> None:
    """A kernel can be interrupted and restarted by its own id."""
    answer = await rpc.ask("execute", code=SLEEP, kernel_id=kernel_id)
    await rpc.until("execution.output")
    await rpc.call("control", action="interrupt", kernel_id=kernel_id)
    assert (await asyncio.wait_for(answer, 20))["status"] == "interrupted"

    await rpc.call("execute", code="kept = 1", kernel_id=kernel_id)
    restarted = await rpc.call("control", action="restart", kernel_id=kernel_id)
    assert restarted["id"] == kernel_id
    view = await rpc.call("execute", code="kept", kernel_id=kernel_id)
    assert view["result"]["error"]["ename"] == "NameError"


async def test_too_many_subscriptions(rpc: Rpc, kernel_id: str) -> None:
    """Only so many executions are followed at a time; those that have ended take no place."""
    ended = await rpc.call("execute", code="1", kernel_id=kernel_id)
    for _ in range(MAX_FEEDS + 1):
        await rpc.call("subscribe", execution_id=ended["id"])
    going = await rpc.call("start", code=SLEEP, kernel_id=kernel_id)
    queued = [
        (await rpc.call("start", code="1", kernel_id=kernel_id))["execution_id"] for _ in range(MAX_FEEDS)
    ]
    for execution_id in (going["execution_id"], *queued[:-1]):
        await rpc.call("subscribe", execution_id=execution_id)
    with pytest.raises(RpcError) as refused:
        await rpc.call("subscribe", execution_id=queued[-1])
    assert (refused.value.code, refused.value.reason) == ("limit_reached", "subscriptions")

    await rpc.call("unsubscribe", execution_id=queued[0])
    await rpc.call("subscribe", execution_id=queued[-1])
    await rpc.call("control", action="cancel", execution_id=going["execution_id"])
    await rpc.until("execution.completed", execution_id=queued[-1])


def connected_like(rpc: Rpc) -> Any:
    """Open another connection of the same owner's."""
    session = rpc.socket._response._session
    assert session is not None
    from tests.gateway import Client

    return connected(Client(session))
