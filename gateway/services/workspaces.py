"""Workspaces: homes that their owner keeps between kernels."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.errors import BadRequest
from gateway.models import AuditAction, Scope, WorkspaceChoice
from gateway.services.auditing import recorded
from gateway.services.kernels import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.models import Principal, WorkspaceFacts
    from gateway.ports import Audit, KernelHost
    from gateway.services.quotas import Quotas
    from gateway.settings import Settings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class WorkspaceService:
    """The workspaces of every owner, each shown to its owner alone."""

    def __init__(self, host: KernelHost, settings: Settings, quotas: Quotas, audit: Audit) -> None:
        self._audit = audit
        self._host = host
        self._settings = settings.files
        self._quotas = quotas

    def choose(self, principal: Principal, name: str, *, shared: bool = False) -> WorkspaceChoice:
        """Return what a kernel of the principal's asks for as its home. Raises Forbidden, BadRequest."""
        require(principal, Scope.FILES)
        if not NAME.fullmatch(name):
            raise BadRequest(
                "A workspace's name has up to 64 letters, digits, '.', '_' and '-', and begins with a letter "
                "or digit.",
                reason="workspace",
            )
        return WorkspaceChoice(
            name=name,
            size_bytes=self._settings.workspace_bytes,
            inodes=self._settings.workspace_inodes,
            budget_bytes=self._quotas.bound(principal.name, "storage_bytes"),
            shared=shared,
        )

    async def list(self, principal: Principal) -> Sequence[WorkspaceFacts]:
        """Return the principal's workspaces by name. Raises Forbidden, SandboxUnavailable."""
        require(principal, Scope.FILES)
        return await self._host.workspaces(principal.name)

    async def delete(self, principal: Principal, name: str) -> None:
        """Delete a workspace of the principal's. Raises Forbidden, NotFound, Conflict (a kernel has it)."""
        chosen = self.choose(principal, name).name
        self._audit.admit()
        with recorded(self._audit, AuditAction.FILE_DELETE, principal, target=f"workspace {chosen}"):
            await self._host.delete_workspace(principal.name, chosen)
