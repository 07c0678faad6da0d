"""The client of a gateway: its nouns, over one connection pool with one key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import orjson

from gateway.client.contexts import Contexts
from gateway.client.executions import Executions
from gateway.client.files import Files
from gateway.client.history import History
from gateway.client.kernels import Kernels
from gateway.client.kernelspecs import Specs
from gateway.client.processes import Processes
from gateway.client.retry import Retry
from gateway.client.transport import Transport
from gateway.client.views import Health, Me, Ready, Status
from gateway.client.workspaces import Workspaces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType


class Client:
    """Talks to one gateway with one key. Use as an async context manager.

    Every method raises the GatewayError that the gateway answered with, or GatewayUnreachable; `within_s`
    bounds any call as a whole, repeats included, and ends it with NoAnswer. Requests that may be repeated are
    tried again `retries` times on 429, 502, 503 and broken connections, within `retry_budget_s` seconds.
    Fields that a newer gateway adds are ignored.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        retries: int = 4,
        retry_budget_s: float = 60.0,
        history: History | None = None,
    ) -> None:
        self._transport = Transport(url, token, Retry(retries, retry_budget_s))
        self.history = History() if history is None else history
        self.history.hide(token)
        self.kernels = Kernels(self._transport, self.history)
        self.kernelspecs = Specs(self._transport)
        self.executions = Executions(self._transport, self.history)
        self.contexts = Contexts(self._transport)
        self.files = Files(self._transport)
        self.processes = Processes(self._transport)
        self.workspaces = Workspaces(self._transport)

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def me(
        self, permissions: Mapping[str, Sequence[str]] | None = None, *, within_s: float | None = None
    ) -> Me:
        """Return who the key belongs to, and which of some permissions it has."""
        asked = None if permissions is None else orjson.dumps(dict(permissions)).decode()
        return await self._transport.json(
            Me, "GET", "api/me", query={"permissions": asked}, within_s=within_s
        )

    async def status(self, *, within_s: float | None = None) -> Status:
        """Return the caller's share of the gateway."""
        return await self._transport.json(Status, "GET", "api/status", within_s=within_s)

    async def health(self, *, within_s: float | None = None) -> Health:
        """Return that the gateway's process answers; it takes no key."""
        return await self._transport.json(Health, "GET", "healthz", within_s=within_s)

    async def ready(self, *, within_s: float | None = None) -> Ready:
        """Return that kernels can be had. Raises what stands against it; it is not asked again."""
        return await self._transport.json(Ready, "GET", "readyz", again=False, within_s=within_s)
