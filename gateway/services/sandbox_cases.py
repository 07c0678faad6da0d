"""The use cases of sandboxes together, built over the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.services.sandbox_book import SandboxBook
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
    """Sandboxes, code in them, and commands in them; the book ends them."""

    book: SandboxBook
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
        """Build them. The book has to be loaded, and at work (`SandboxBook.run`)."""
        book = SandboxBook(host, use_cases.kernels, store, clock, audit)
        sandboxes = SandboxService(
            book=book,
            kernels=use_cases.kernels,
            workspaces=use_cases.workspaces,
            clock=clock,
            settings=settings,
            audit=audit,
            authenticator=authenticator,
            tokens=tokens,
        )
        return cls(
            book=book,
            sandboxes=sandboxes,
            code=SandboxCode(sandboxes, use_cases.kernels, use_cases.executions),
            commands=SandboxCommands(use_cases.kernels, use_cases.processes),
        )
