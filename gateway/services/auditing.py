"""Records what use cases do, and how it went."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.errors import GatewayError
from gateway.models import AuditAction, AuditEvent, AuditOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.models import Principal
    from gateway.ports import Audit

# Refusals: the doors record these, with those that never come as far as a use case.
REFUSALS = frozenset({401, 403, 404, 413, 429, 431})


@contextmanager
def recorded(
    audit: Audit,
    action: AuditAction,
    principal: Principal,
    *,
    kernel_id: str | None = None,
    target: str | None = None,
    extra: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Record an action when the body ends: done, or failed and why."""
    event = AuditEvent(
        action=action,
        who=principal.name,
        key_id=principal.key_id or None,
        kernel_id=kernel_id,
        target=target,
        extra=extra or {},
    )
    try:
        yield
    except BaseException as error:
        if not isinstance(error, GatewayError) or error.status not in REFUSALS:
            reason = error.code if isinstance(error, GatewayError) else type(error).__name__
            audit.record(event.model_copy(update={"outcome": AuditOutcome.ERROR, "reason": reason}))
        raise
    audit.record(event)
