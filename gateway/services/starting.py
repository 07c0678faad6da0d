"""Starting kernels for those who ask for one by the way: contexts and executions without a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.models import Principal
    from gateway.models.jobs import KernelOptions
    from gateway.ports import KernelHandle
    from gateway.services.kernels import KernelService
    from gateway.services.workspaces import WorkspaceService


class KernelStarter:
    """Turns options into a kernel."""

    def __init__(self, kernels: KernelService, workspaces: WorkspaceService) -> None:
        self._kernels = kernels
        self._workspaces = workspaces

    async def start(
        self, principal: Principal, options: KernelOptions, *, ttl_s: float | None = None
    ) -> KernelHandle:
        """Start a kernel; with `ttl_s` it ends after so many idle seconds.

        Raises what `KernelService.create` and `WorkspaceService.choose` raise.
        """
        workspace = None
        if options.workspace is not None:
            workspace = self._workspaces.choose(principal, options.workspace, shared=options.shared)
        limits = dict(options.limits)
        if ttl_s is not None:
            limits["idle_timeout_s"] = ttl_s
        return await self._kernels.create(
            principal, name=options.kernel, env=options.env, limits=limits, workspace=workspace
        )
