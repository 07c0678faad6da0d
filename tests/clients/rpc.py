"""A small JSON-RPC client of the gateway's, written from the standard and not from the gateway's code."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Client, Gateway

Tool = Callable[..., Awaitable[Any]]


class RpcError(Exception):
    """What a request was answered with instead of a result."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error)
        self.number = error["code"]
        self.message = error["message"]
        self.code = error["data"]["code"]
        self.reason = error["data"]["reason"]
        self.retry_after_s = error["data"]["retry_after_s"]


class Rpc:
    """An open connection: requests, the notifications that have come, and tools that may be called."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, tools: dict[str, Tool]) -> None:
        self.socket = socket
        self.told: list[tuple[str, dict[str, Any]]] = []
        self._tools = tools
        self._ids = count(1)
        self._waiting: dict[Any, asyncio.Future[Any]] = {}
        self._news = asyncio.Condition()
        self._answering: set[asyncio.Task[None]] = set()

    async def call(self, method: str, **params: Any) -> Any:
        """Make a request and return its result. Raises RpcError."""
        return await asyncio.wait_for(await self.ask(method, **params), 60)

    async def ask(self, method: str, **params: Any) -> asyncio.Future[Any]:
        """Make a request, and return what will have its result."""
        own = next(self._ids)
        self._waiting[own] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"jsonrpc": "2.0", "id": own, "method": method, "params": params})
        return self._waiting[own]

    async def raw(self, text: str) -> dict[str, Any]:
        """Send a text as it is, and return the next answer that carries no id of ours."""
        answer = self.expect()
        await self.socket.send_str(text)
        return await answer

    def expect(self) -> Awaitable[dict[str, Any]]:
        """Return the next answer, from now on, that carries no id of ours."""
        self._waiting[None] = asyncio.get_running_loop().create_future()
        return asyncio.wait_for(self._waiting[None], 20)

    async def until(self, method: str, within_s: float = 20, **fields: Any) -> dict[str, Any]:
        """Return the first notification of a method with these parameters, once it has come."""

        def found() -> dict[str, Any] | None:
            return next(
                (p for m, p in self.told if m == method and fields.items() <= p.items()),
                None,
            )

        async with asyncio.timeout(within_s), self._news:
            await self._news.wait_for(found)
        params = found()
        assert params is not None
        return params

    def events(self, execution_id: str) -> list[dict[str, Any]]:
        """Return the events of an execution that have come."""
        return [p for _, p in self.told if p.get("execution_id") == execution_id and "type" in p]

    async def listen(self) -> None:
        """Take frames until the connection ends."""
        async for frame in self.socket:
            given = json.loads(frame.data)
            assert given.pop("jsonrpc") == "2.0"
            if "method" not in given:
                self._answered(given)
            elif "id" in given:
                task = asyncio.create_task(self._tool(given["id"], given["params"]))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            async with self._news:
                if "method" in given:
                    self.told.append((given["method"], given["params"]))
                self._news.notify_all()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError(self.socket.close_code))
                waiting.exception()  # perhaps nobody waits for it

    def _answered(self, given: dict[str, Any]) -> None:
        assert set(given) in ({"id", "result"}, {"id", "error"}), given
        own = given["id"]
        if own not in self._waiting or own is None:
            self._waiting.pop(None).set_result(given)
        elif "error" in given:
            self._waiting.pop(own).set_exception(RpcError(given["error"]))
        else:
            self._waiting.pop(own).set_result(given["result"])

    async def _tool(self, own: str, params: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": own}
        try:
            answer["result"] = await self._tools[params["name"]](**params["arguments"])
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is its answer
            answer["error"] = {"code": -32000, "message": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(ConnectionError):
            await self.socket.send_json(answer)


@contextlib.asynccontextmanager
async def connected(client: Client, tools: dict[str, Tool] | None = None) -> AsyncIterator[Rpc]:
    """Open a connection for a principal's client."""
    async with client.http.ws_connect("/api/rpc", max_msg_size=0) as socket:
        rpc = Rpc(socket, tools or {})
        listening = asyncio.create_task(rpc.listen())
        try:
            yield rpc
        finally:
            await socket.close()
            await listening


@contextlib.asynccontextmanager
async def opened(gateway: Gateway, name: str = "alice", scopes: str | None = None) -> AsyncIterator[Rpc]:
    """Open a connection for a principal."""
    async with gateway.client(name, scopes) as client, connected(client) as rpc:
        yield rpc
