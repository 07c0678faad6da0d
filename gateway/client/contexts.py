"""Contexts: the caller's own names for kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.client.paths import context_path
from gateway.models.jobs import ContextView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.client.transport import Transport


class Contexts:
    """The caller's named contexts; one that an execution names first is made then."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self, *, within_s: float | None = None) -> Sequence[ContextView]:
        """Return the contexts, oldest first."""
        return await self._transport.json(list[ContextView], "GET", "api/contexts", within_s=within_s)

    async def open(
        self,
        name: str,
        *,
        kernel: str | None = None,
        env: Mapping[str, str] | None = None,
        limits: Mapping[str, float] | None = None,
        workspace: str | None = None,
        ttl_s: float | None = None,
        within_s: float | None = None,
    ) -> ContextView:
        """Return a context, made as is said here if there is none of the name that lives."""
        body = {
            "kernel": kernel,
            "env": None if env is None else dict(env),
            "limits": None if limits is None else dict(limits),
            "workspace": workspace,
            "ttl_s": ttl_s,
        }
        body = {field: value for field, value in body.items() if value is not None}
        return await self._transport.json(ContextView, "PUT", context_path(name), body, within_s=within_s)

    async def get(self, name: str, *, within_s: float | None = None) -> ContextView:
        """Return one context."""
        return await self._transport.json(ContextView, "GET", context_path(name), within_s=within_s)

    async def keep_alive(self, name: str, *, within_s: float | None = None) -> ContextView:
        """Have a context's idle time begin anew, and return it."""
        path = context_path(name, "keepalive")
        return await self._transport.json(ContextView, "POST", path, again=True, within_s=within_s)

    async def close(self, name: str, *, within_s: float | None = None) -> None:
        """End a context and its kernel."""
        await self._transport.request("DELETE", context_path(name), within_s=within_s)
