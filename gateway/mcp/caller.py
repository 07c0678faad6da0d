"""Who makes an MCP request: what the gateway's guard has found out, carried through the SDK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.models import Origin, Principal

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext

KEY = "caller"


@dataclass(frozen=True, slots=True)
class Caller:
    """A principal, where its request came from, and by which session of MCP's, if it names one."""

    principal: Principal
    origin: Origin
    session: str = ""

    def call(self, request_id: int | str | None) -> tuple[str, str, str] | None:
        """Return what names one of the caller's requests, and no other's; None where nothing does."""
        return (self.principal.key_id, self.session, str(request_id)) if self.session else None


def caller_of(ctx: ServerRequestContext[Any, Any]) -> Caller:
    """Return who makes the request that a handler serves. Raises KeyError where nobody was put there."""
    assert ctx.request is not None  # noqa: S101 - every request comes by HTTP
    caller: Caller = ctx.request.scope["state"][KEY]
    return caller
