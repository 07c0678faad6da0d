"""The client against a real server that speaks the contract."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.client import Client, ConnectionLost, GatewayUnreachable
from gateway.errors import BadRequest, GatewayError, NotFound, Unauthorized, UnknownKernelSpec
from gateway.models import DeathReason, ExecutionStatus
from gateway.protocol.messages import content
from tests.fake_gateway import PICTURE, TOKEN, FakeGateway
from tests.unit.http.conftest import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.models import Message


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    """A running server."""
    fake = FakeGateway()
    async with fake.server:
        yield fake


@pytest.fixture
async def client(gateway: FakeGateway) -> AsyncIterator[Client]:
    """A client with the right key."""
    async with Client(gateway.url, TOKEN) as client:
        yield client


async def test_a_kernel_lives_and_ends(gateway: FakeGateway, client: Client) -> None:
    """Every REST verb does its work, and fields of a newer gateway are ignored."""
    kernel = await client.kernels.create("bash", env={"KERNEL_X": "1"})

    assert kernel.name == "bash"
    assert [found.id for found in await client.kernels.list()] == [kernel.id]
    assert (await client.kernels.get(kernel.id)).limits.pids == kernel.limits.pids
    assert (await client.kernels.restart(kernel.id)).id == kernel.id
    await client.kernels.interrupt(kernel.id)
    assert gateway.kernels[kernel.id].interrupted.is_set()
    await client.kernels.delete(kernel.id)
    assert await client.kernels.list() == []


async def test_kernelspecs(client: Client) -> None:
    """Kernelspecs come with their languages and the default's name."""
    specs = await client.kernelspecs.list()

    assert specs.default == "python3"
    assert specs.kernelspecs["bash"].spec.language == "bash"


async def test_execute_over_rest(gateway: FakeGateway, client: Client) -> None:
    """The result of a REST execution is parsed whole; the code's failure is a status."""
    kernel = gateway.add()

    good = await client.kernels.execute(kernel.id, "print hi\n42")
    bad = await client.kernels.execute(kernel.id, "raise ValueError", timeout_s=5)

    assert (good.status, good.stdout, good.execution_count) == (ExecutionStatus.OK, "hi\n", 1)
    assert good.outputs[-1]["data"] == {"text/plain": "42"}
    assert bad.status is ExecutionStatus.ERROR
    assert bad.error is not None
    assert bad.error.ename == "ValueError"


async def test_errors_are_raised_again_by_code(client: Client) -> None:
    """A gateway's error comes out as the class of its code, with message and reason."""
    with pytest.raises(UnknownKernelSpec, match="No kernelspec") as caught:
        await client.kernels.create("cobol")
    assert caught.value.reason == "cobol"
    with pytest.raises(NotFound, match="does not exist"):
        await client.kernels.get("0-0-0-0-0")


async def test_an_unknown_code_is_a_general_error(client: Client) -> None:
    """A code of a newer gateway keeps its words, code and status in a plain GatewayError."""
    with pytest.raises(GatewayError, match="Short and stout") as caught:
        await client.kernels.create("teapot")

    assert type(caught.value) is GatewayError
    assert (caught.value.code, caught.value.status, caught.value.reason) == ("teapot", 418, "tea")


async def test_a_body_that_is_no_gateways(client: Client) -> None:
    """A proxy's HTML page becomes one clear sentence with the status."""
    with pytest.raises(GatewayError, match="The gateway answered 502 Bad Gateway") as caught:
        await client.kernels.create("proxy")

    assert caught.value.status == 502


async def test_a_wrong_key(gateway: FakeGateway) -> None:
    """A wrong key is Unauthorized, over REST and over the WebSocket."""
    kernel = gateway.add()
    async with Client(gateway.url, "wrong") as client:
        with pytest.raises(Unauthorized):
            await client.kernels.list()
        with pytest.raises(Unauthorized):
            async with client.kernels.session(kernel.id):
                pass


async def test_nobody_listens() -> None:
    """A refused connection says so in one sentence, on REST and on the WebSocket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with Client(f"http://127.0.0.1:{port}", TOKEN) as client:
        with pytest.raises(
            GatewayUnreachable, match=f"127.0.0.1:{port}/? cannot be reached: connection refused"
        ):
            await client.kernels.list()
        with pytest.raises(GatewayUnreachable, match="connection refused"):
            async with client.kernels.session("0-0-0-0-0"):
                pass


async def test_something_else_listens() -> None:
    """A server that is no gateway, and one that redirects, are errors; the key does not follow a redirect."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == "/api/kernels":
            return web.json_response({"hello": "world"})
        raise web.HTTPFound("/elsewhere")

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    async with TestServer(app) as server, Client(str(server.make_url("/")), TOKEN) as client:
        with pytest.raises(GatewayError, match="is not a Cellblock gateway"):
            await client.kernels.list()
        with pytest.raises(GatewayError, match="answered 302"):
            await client.kernelspecs.list()
    assert asked == ["/api/kernels", "/api/kernelspecs"]


@pytest.mark.parametrize(
    "url",
    # pragma: allowlist nextline secret
    ["", "localhost:8888", "ftp://x", "http://", "http://u:p@h", "http://h/?q=1", "http://h:99999"],
)
def test_urls_that_are_none(url: str) -> None:
    """What is not a gateway's URL is refused at once, and never repeated: it may hold a password."""
    with pytest.raises(BadRequest, match="must look like") as caught:
        Client(url, TOKEN)
    assert "u:p" not in caught.value.message


async def test_a_kernel_id_does_not_lead_elsewhere(client: Client) -> None:
    """An id with slashes or dots is no kernel, and no request is made of it."""
    for kernel_id in ("..", "a/../b", "", "x?y"):
        with pytest.raises(NotFound):
            await client.kernels.delete(kernel_id)


async def test_run_streams(gateway: FakeGateway, client: Client) -> None:
    """Messages come one by one as they are sent, only this execution's, and the result has them all."""
    kernel = gateway.add()
    seen: list[Message] = []
    first = asyncio.Event()

    def take(message: Message) -> None:
        seen.append(message)
        if message.msg_type == "stream":
            first.set()

    async with client.kernels.session(kernel.id) as connection:
        running = asyncio.create_task(connection.run("print one\nsleep 0.3\nshow", on_message=take))
        await asyncio.wait_for(first.wait(), 5)
        assert not running.done()
        result = await running
        again = await connection.run("2")

    assert (result.status, result.stdout, result.execution_count) == (ExecutionStatus.OK, "one\n", 1)
    assert result.outputs[1]["data"]["image/png"] == PICTURE
    assert [content(message)["text"] for message in seen if message.msg_type == "stream"] == ["one\n"]
    assert again.execution_count == 2


async def test_runs_of_one_connection_wait_for_each_other(gateway: FakeGateway, client: Client) -> None:
    """Two runs at once on one connection both end, with their own outputs."""
    async with client.kernels.session(gateway.add().id) as connection:
        results = await asyncio.gather(*(connection.run(f"sleep 0.05\nprint {n}") for n in range(3)))

    assert [result.stdout for result in results] == ["0\n", "1\n", "2\n"]


async def test_interrupt(gateway: FakeGateway, client: Client) -> None:
    """An interrupt ends what runs; the result says interrupted and keeps what was printed."""
    async with client.kernels.session(gateway.add().id) as connection:
        running = asyncio.create_task(connection.run("print a\nsleep 30\nprint b"))
        await asyncio.sleep(0.2)
        await connection.interrupt()
        result = await asyncio.wait_for(running, 5)

    assert (result.status, result.stdout) == (ExecutionStatus.INTERRUPTED, "a\n")


async def test_timeout(gateway: FakeGateway, client: Client) -> None:
    """The gateway is told the deadline and keeps it: the status is timeout and partial output is kept."""
    async with client.kernels.session(gateway.add().id) as connection:
        result = await asyncio.wait_for(connection.run("print a\nsleep 30", timeout_s=0.2), 5)
        after = await connection.run("print fine")

    assert (result.status, result.stdout) == (ExecutionStatus.TIMEOUT, "a\n")
    assert (after.status, after.stdout) == (ExecutionStatus.OK, "fine\n")


async def test_timeout_of_code_that_ignores_interrupts(
    gateway: FakeGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that does not keep the deadline is not waited for beyond the slack and the grace."""
    monkeypatch.setattr("gateway.client.connection.DEADLINE_SLACK_S", 0.1)
    monkeypatch.setattr("gateway.client.connection.INTERRUPT_GRACE_S", 0.1)
    async with client.kernels.session(gateway.add().id) as connection:
        result = await asyncio.wait_for(connection.run("print a\nstubborn 30", timeout_s=0.1), 5)

    assert (result.status, result.stdout) == (ExecutionStatus.TIMEOUT, "a\n")


async def test_death_has_a_reason(gateway: FakeGateway, client: Client) -> None:
    """A kernel's death is a result with the gateway's reason."""
    async with client.kernels.session(gateway.add().id) as connection:
        result = await connection.run("print a\ndie oom")

    assert (result.status, result.reason, result.stdout) == (ExecutionStatus.DEAD, DeathReason.OOM, "a\n")


async def test_a_socket_closed_in_the_middle(gateway: FakeGateway, client: Client) -> None:
    """A server that closes mid-execution ends the run with its reason, and what had come is not lost."""
    async with client.kernels.session(gateway.add().id) as connection:
        with pytest.raises(ConnectionLost, match=r"closed the connection: draining \(1012\)") as caught:
            await asyncio.wait_for(connection.run("print a\nclose 1012 draining"), 5)
        assert caught.value.result.stdout == "a\n"
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(connection.run("print b"), 5)


async def test_no_socket_for_an_unknown_kernel(client: Client) -> None:
    """Opening a socket to a kernel that is not there is NotFound."""
    with pytest.raises(NotFound, match="does not exist"):
        async with client.kernels.session("0-0-0-0-0"):
            pass


async def test_code_that_is_not_text(gateway: FakeGateway, client: Client) -> None:
    """A lone surrogate cannot be sent; it is said so before anything is."""
    async with client.kernels.session(gateway.add().id) as connection:
        with pytest.raises(BadRequest):
            await connection.run("\ud800")


async def test_the_gateways_own_door() -> None:
    """Client and gateway speak the same contract: every verb, both ways of executing, and the refusals."""
    async with opened() as door, Client(str(door.client.make_url("")), door.tokens["alice"]) as client:
        assert (await client.kernelspecs.list()).default in (await client.kernelspecs.list()).kernelspecs
        kernel = await client.kernels.create()
        async with client.kernels.session(kernel.id) as connection:
            printed = await connection.run("print a")
            failed = await connection.run("raise X")
            late = await connection.run("wait", timeout_s=0.1)
        rested = await client.kernels.execute(kernel.id, "print b", timeout_s=5)
        assert [found.id for found in await client.kernels.list()] == [kernel.id]
        assert (await client.kernels.restart(kernel.id)).id == kernel.id
        with pytest.raises(UnknownKernelSpec):
            await client.kernels.create("cobol")
        async with Client(str(door.client.make_url("")), door.tokens["bob"]) as other:
            with pytest.raises(NotFound):
                async with other.kernels.session(kernel.id):
                    pass
        await client.kernels.delete(kernel.id)
        with pytest.raises(NotFound):
            await client.kernels.get(kernel.id)

    assert (printed.status, printed.stdout.strip()) == (ExecutionStatus.OK, "a")
    assert failed.status is ExecutionStatus.ERROR
    assert late.status is ExecutionStatus.TIMEOUT
    assert (rested.status, rested.stdout.strip()) == (ExecutionStatus.OK, "b")
