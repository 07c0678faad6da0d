"""Traces: what a request led to, and how long each part of it took."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Protocol

Fact = str | int | float | bool | None


class Span(Protocol):
    """A stretch of time with a name and facts. Neither code nor output may be among them."""

    @property
    def trace_id(self) -> str | None:
        """The trace that it belongs to, in hex; None where nothing is traced."""
        ...

    @property
    def traceparent(self) -> str | None:
        """The W3C header that makes something else its child; None where nothing is traced."""
        ...

    def note(self, facts: Mapping[str, Fact]) -> None:
        """Add facts; those that are None are left out."""
        ...

    def fail(self, why: str) -> None:
        """Mark it as failed, with a short reason."""
        ...


class Tracer(Protocol):
    """Somebody who keeps spans. No method blocks or raises."""

    def request(self, name: str, headers: Mapping[str, str]) -> AbstractContextManager[Span]:
        """Trace a request while the body runs, as a child of the `traceparent` among its headers."""
        ...

    def span(self, name: str, facts: Mapping[str, Fact]) -> AbstractContextManager[Span]:
        """Trace the body as a child of the span around it."""
        ...

    def past(
        self,
        name: str,
        facts: Mapping[str, Fact],
        *,
        parent: str | None,
        started_at: datetime,
        duration_s: float,
        failure: str | None = None,
    ) -> None:
        """Add what is over already, as a child of a `traceparent`."""
        ...


class NoSpan:
    """The span of what is not traced."""

    trace_id: str | None = None
    traceparent: str | None = None

    def note(self, facts: Mapping[str, Fact]) -> None:
        """Take facts and do nothing."""

    def fail(self, why: str) -> None:
        """Take a reason and do nothing."""


class NoTracer:
    """Traces nothing, at no cost."""

    def __init__(self) -> None:
        self._nothing: AbstractContextManager[Span] = nullcontext(NoSpan())

    def request(self, name: str, headers: Mapping[str, str]) -> AbstractContextManager[Span]:  # noqa: ARG002
        """Run the body."""
        return self._nothing

    def span(self, name: str, facts: Mapping[str, Fact]) -> AbstractContextManager[Span]:  # noqa: ARG002
        """Run the body."""
        return self._nothing

    def past(
        self,
        name: str,
        facts: Mapping[str, Fact],
        *,
        parent: str | None,
        started_at: datetime,
        duration_s: float,
        failure: str | None = None,
    ) -> None:
        """Take it and do nothing."""
