"""Records what use cases do, and how it went."""

from __future__ import annotations

from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from gateway.errors import GatewayError
from gateway.models import AuditAction, AuditEvent, AuditOutcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping

    from gateway.models import Principal
    from gateway.ports import Audit

P = ParamSpec("P")
T = TypeVar("T")

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
) -> Iterator[dict[str, str]]:
    """Record an action when the body ends: done, or failed and why; give room for what it learns by then."""
    learned: dict[str, str] = {}
    event = AuditEvent(
        action=action,
        who=principal.name,
        key_id=principal.key_id or None,
        kernel_id=kernel_id,
        target=target,
        extra=extra or {},
    )
    try:
        yield learned
    except BaseException as error:
        if not isinstance(error, GatewayError) or error.status not in REFUSALS:
            reason = error.code if isinstance(error, GatewayError) else type(error).__name__
            audit.record(event.model_copy(update={"outcome": AuditOutcome.ERROR, "reason": reason}))
            if isinstance(error, GatewayError):
                error.recorded = True
        raise
    audit.record(event.model_copy(update={"extra": {**event.extra, **learned}}) if learned else event)


def touches_files(
    action: AuditAction,
) -> Callable[
    [Callable[Concatenate[Any, Principal, str, str, P], Awaitable[T]]],
    Callable[Concatenate[Any, Principal, str, str, P], Coroutine[Any, Any, T]],
]:
    """Record what a method does at a path of a kernel's home; its object has the trail as `audit`.

    What it returns of a home is only returned once that is recorded.
    """

    def decorate(
        method: Callable[Concatenate[Any, Principal, str, str, P], Awaitable[T]],
    ) -> Callable[Concatenate[Any, Principal, str, str, P], Coroutine[Any, Any, T]]:
        @wraps(method)
        async def noted(
            self: Any, principal: Principal, kernel_id: str, path: str, /, *args: P.args, **kwargs: P.kwargs
        ) -> T:
            self.audit.admit()
            extra = {"how": method.__name__}
            with recorded(self.audit, action, principal, kernel_id=kernel_id, target=path, extra=extra):
                result = await method(self, principal, kernel_id, path, *args, **kwargs)
            await self.audit.written()
            return result

        return noted

    return decorate
