"""The door of JSON-RPC: `execute` on one connection, and `start` with `subscribe`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from tests.clients.door import Door, Outcome, Refused, from_result
from tests.clients.door_rest import fold
from tests.clients.rpc import RpcError, connected

if TYPE_CHECKING:
    from tests.clients.rpc import Rpc


class Executing:
    """An `execute` request under way."""

    def __init__(self, rpc: Rpc, execution_id: str, answer: asyncio.Future[Any]) -> None:
        self._rpc = rpc
        self._id = execution_id
        self._answer = answer

    async def cancel(self) -> None:
        """Cancel the execution."""
        await self._rpc.call("control", action="cancel", execution_id=self._id)

    async def disconnect(self) -> None:
        """Cut the connection."""
        await self._rpc.socket.close()

    async def outcome(self) -> Outcome:
        """Wait for the answer."""
        try:
            view = await self._answer
        except RpcError as error:
            raise Refused(error.code, error.reason) from error
        return from_result(view["result"], status=view["status"])


class Following(Executing):
    """An execution that was started, and is followed."""

    async def outcome(self) -> Outcome:
        """Fold its events."""
        await self._rpc.until("execution.completed", within_s=60, execution_id=self._id)
        return fold(self._rpc.events(self._id))


class JsonRpc(Door):
    """`execute`."""

    name = "JSON-RPC: execute"

    async def opened(self) -> None:
        """Connect when there is something to run."""
        self._connection = await self.held.enter_async_context(AsyncExitStack())
        self._rpc: Rpc | None = None

    async def connection(self) -> Rpc:
        """Return a connection that is open."""
        if self._rpc is None or self._rpc.socket.closed:
            await self._connection.aclose()
            self._rpc = await self._connection.enter_async_context(connected(self.side))
        return self._rpc

    async def start(self, code: str, *, timeout_s: float | None = None) -> Executing:
        """Ask for the code to be run."""
        rpc, before = await self.connection(), len((await self.connection()).told)
        params = {"code": code, "kernel_id": await self.kernel_id(), "timeout_s": timeout_s}
        answer = await rpc.ask("execute", **params)
        while not (ids := [p["execution_id"] for m, p in rpc.told[before:] if m == "execution.accepted"]):
            assert not answer.done(), answer
            await asyncio.sleep(0.01)
        return Executing(rpc, ids[0], answer)

    async def handle(self) -> str:
        """Return the newest execution."""
        await self.run("1")
        return str((await (await self.connection()).call("list"))[0]["id"])

    def nowhere(self) -> str:
        """Return an id that no execution has."""
        return "0" * 32

    async def foreign(self, handle: str) -> object:
        """Look at it, follow it, steer it, answer it, and run code in a kernel of that id."""
        rpc, said = await self.connection(), []
        for method, params in (
            ("get", {"execution_id": handle}),
            ("text", {"execution_id": handle, "what": "stdout"}),
            ("subscribe", {"execution_id": handle}),
            *(("control", {"action": action, "execution_id": handle}) for action in ACTIONS),
            ("answer", {"execution_id": handle, "call_id": "x", "result": 1}),
            ("execute", {"kernel_id": handle, "code": "1"}),
        ):
            try:
                said.append(await rpc.call(method, **params))
            except RpcError as error:
                said.append(error.args)
        return said


class JsonRpcStart(JsonRpc):
    """`start`, and `subscribe` to what it began."""

    name = "JSON-RPC: start, subscribe"
    without: ClassVar = {"disconnect": "what `start` began goes on; `subscribe` finds it again"}

    async def start(self, code: str, *, timeout_s: float | None = None) -> Executing:
        """Start the code, and follow it."""
        rpc, kernel_id = await self.connection(), await self.kernel_id()
        begun = await rpc.call("start", code=code, kernel_id=kernel_id, timeout_s=timeout_s)
        await rpc.call("subscribe", execution_id=begun["execution_id"])
        return Following(rpc, begun["execution_id"], asyncio.get_running_loop().create_future())


ACTIONS = ("pause", "resume", "cancel", "interrupt", "restart")
