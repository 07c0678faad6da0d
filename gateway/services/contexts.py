"""Contexts: a caller's own names for kernels, made on first use."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from gateway.errors import BadRequest, NotFound
from gateway.models import AuditAction, ExecutionState, Scope, timestamp
from gateway.models.jobs import ContextName, ContextView
from gateway.services.auditing import recorded
from gateway.services.kernels import require
from gateway.services.sessions import CONTEXT

if TYPE_CHECKING:
    from gateway.models import Principal, SessionRecord
    from gateway.models.jobs import KernelOptions
    from gateway.ports import Audit, Clock, KernelHandle
    from gateway.services.sessions import SessionService
    from gateway.services.starting import KernelStarter

# A context is a session of a type of its own: what binds a name to a kernel is there already.
PREFIX = "context/"
_NAME: TypeAdapter[str] = TypeAdapter(ContextName)


class ContextService:
    """The named contexts of every owner; another's name is another context.

    Every method raises Forbidden, StoreUnavailable.
    """

    def __init__(self, sessions: SessionService, starter: KernelStarter, clock: Clock, audit: Audit) -> None:
        self._audit = audit
        self._sessions = sessions
        self._starter = starter
        self._clock = clock

    async def open(
        self, principal: Principal, name: str, options: KernelOptions, *, ttl_s: float | None = None
    ) -> KernelHandle:
        """Return the kernel behind a name, started when there is none that lives; that one counts as used.

        Raises BadRequest, LimitReached, and what starting a kernel raises.
        """
        _, handle = await self._sessions.create(
            principal,
            path=_path(name),
            type=CONTEXT,
            name=name,
            start=lambda: self._starter.start(principal, options, ttl_s=ttl_s),
        )
        handle.touch()
        return handle

    async def get(self, principal: Principal, name: str) -> ContextView:
        """Return a context. Raises NotFound."""
        return self._view(*await self._find(principal, name))

    async def list(self, principal: Principal) -> list[ContextView]:
        """Return the principal's contexts, oldest first."""
        return [
            self._view(record, handle)
            for record, handle in await self._sessions.list(principal, type=CONTEXT)
            if record.owner == principal.name
        ]

    async def keep_alive(self, principal: Principal, name: str) -> ContextView:
        """Have a context's idle time begin anew. Raises NotFound."""
        record, handle = await self._find(principal, name)
        self._audit.admit()
        action = AuditAction.CONTEXT_KEEP
        with recorded(self._audit, action, principal, kernel_id=handle.id, target=name):
            handle.touch()
        return self._view(record, handle)

    async def close(self, principal: Principal, name: str) -> None:
        """End a context and its kernel. Raises NotFound."""
        record, _ = await self._find(principal, name)
        await self._sessions.delete(principal, record.id)

    async def _find(self, principal: Principal, name: str) -> tuple[SessionRecord, KernelHandle]:
        require(principal, Scope.KERNELS)
        found = await self._sessions.at(principal.name, _path(name))
        if found is None:
            raise NotFound(f"Context does not exist: {name}")
        return found

    def _view(self, record: SessionRecord, handle: KernelHandle) -> ContextView:
        model, ttl_s = handle.model(), handle.limits.idle_timeout_s
        ends = None
        if ttl_s is not None and handle.state is not ExecutionState.BUSY:
            ends = timestamp(self._clock.now() + timedelta(seconds=max(0.0, ttl_s - handle.idle_for_s())))
        return ContextView(
            name=record.name,
            kernel_id=handle.id,
            kernel=handle.spec_name,
            state=handle.state,
            reason=handle.death,
            created_at=timestamp(record.created_at),
            expires_at=ends,
            limits=handle.limits,
            workspace=model.workspace,
        )


def _path(name: str) -> str:
    try:
        return PREFIX + _NAME.validate_python(name)
    except ValidationError:
        raise BadRequest(
            "A context's name has up to 128 letters, digits and any of '.', '_', ':', '@', '-', and begins "
            "with a letter or digit.",
            reason="context",
        ) from None
