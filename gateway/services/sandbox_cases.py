"""The use cases of sandboxes together, built over the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.services.sandbox_code import SandboxCode
from gateway.services.sandbox_commands import SandboxCommands
from gateway.services.sandboxes import SandboxService

if TYPE_CHECKING:
    from gateway.ports import Audit, Authenticator, Clock, KernelHost, Store
    from gateway.ports.sandboxes import SandboxTokens
    from gateway.services.use_cases import UseCases
    from gateway.settings import Settings


@dataclass(frozen=True)
class SandboxCases:
    """Sandboxes, code in them, and commands in them."""

    sandboxes: SandboxService
    code: SandboxCode
    commands: SandboxCommands

    @classmethod
    def over(
        cls,
        use_cases: UseCases,
        host: KernelHost,
        store: Store,
        *,
        clock: Clock,
        settings: Settings,
        audit: Audit,
        authenticator: Authenticator,
        tokens: SandboxTokens,
    ) -> SandboxCases:
        """Build them. Sandboxes have to be loaded, and looked after (`SandboxService.run`)."""
        sandboxes = SandboxService(
            host=host,
            kernels=use_cases.kernels,
            workspaces=use_cases.workspaces,
            store=store,
            clock=clock,
            settings=settings,
            audit=audit,
            authenticator=authenticator,
            tokens=tokens,
        )
        return cls(
            sandboxes=sandboxes,
            code=SandboxCode(sandboxes, use_cases.kernels, use_cases.executions),
            commands=SandboxCommands(use_cases.kernels, use_cases.processes),
        )
