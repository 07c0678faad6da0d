"""Workspaces: homes that outlive kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.client.paths import checked_name
from gateway.models import WorkspaceFacts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.client.transport import Transport


class Workspaces:
    """The caller's workspaces; a kernel that names a new one makes it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self, *, within_s: float | None = None) -> Sequence[WorkspaceFacts]:
        """Return the workspaces by name."""
        return await self._transport.json(list[WorkspaceFacts], "GET", "api/workspaces", within_s=within_s)

    async def delete(self, name: str, *, within_s: float | None = None) -> None:
        """Delete a workspace that no kernel has, and all that is in it."""
        path = f"api/workspaces/{checked_name(name, 'Workspace')}"
        await self._transport.request("DELETE", path, within_s=within_s)
