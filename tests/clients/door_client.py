"""The door of the typed client."""

from __future__ import annotations

from gateway.client import Client
from gateway.errors import GatewayError
from tests.clients.door import Door, Outcome, Refused
from tests.clients.door_rest import Request, shown


class TypedClient(Door):
    """`Client.executions.run`."""

    name = "typed client"

    async def opened(self) -> None:
        """Open the client. It repeats nothing, so that a refusal is seen at once."""
        made = Client(self.gateway.url, self.gateway.key(self.principal), retries=0)
        self._client = await self.held.enter_async_context(made)

    async def start(self, code: str, *, timeout_s: float | None = None) -> Request:
        """Run code; whoever is cancelled has it interrupted."""
        kernel_id = await self.kernel_id()

        async def ask() -> Outcome:
            given = {"timeout_s": timeout_s} if timeout_s else {}
            try:
                view = await self._client.executions.run(code, kernel_id=kernel_id, **given)
            except GatewayError as error:
                raise Refused(error.code, error.reason) from error
            return shown(view.model_dump(mode="json"))

        async def cancel() -> None:
            await self._client.executions.cancel(await self.newest())

        return Request(ask(), cancel)

    async def newest(self) -> str:
        """Return the newest execution."""
        return (await self._client.executions.list())[0].id

    async def handle(self) -> str:
        """Return the newest execution."""
        await self.run("1")
        return await self.newest()

    def nowhere(self) -> str:
        """Return an id that no execution has."""
        return "0" * 32

    async def foreign(self, handle: str) -> object:
        """Look at it, interrupt it, cancel it, and run code in a kernel of that id."""
        said = []
        executions = self._client.executions
        for ask in (
            lambda: executions.get(handle),
            lambda: executions.interrupt(handle),
            lambda: executions.cancel(handle),
            lambda: executions.run("1", kernel_id=handle),
        ):
            try:
                said.append(repr(await ask()))
            except GatewayError as error:
                said.append(repr((type(error), error.body())))
        return said
