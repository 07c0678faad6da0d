"""Who is behind what is being done: set by a door for the time of one request, read by the audit trail."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.models import Origin

_CURRENT: ContextVar[Origin | None] = ContextVar("origin", default=None)


@contextmanager
def acting(origin: Origin) -> Iterator[None]:
    """Act for an origin while the body runs, in this task and in those that it starts."""
    token = _CURRENT.set(origin)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> Origin | None:
    """Return whose request is being served, or None where the gateway acts by itself."""
    return _CURRENT.get()
