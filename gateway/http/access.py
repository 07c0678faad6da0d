"""Who may use a route: each carries one of these rules, and the guard enforces it before the handler."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from gateway.errors import Forbidden
from gateway.http.context import context
from gateway.models import Principal, Scope
from gateway.services.kernels import require

if TYPE_CHECKING:
    from aiohttp import web


class Rule(StrEnum):
    """The kinds of rules."""

    PUBLIC = "public"
    PRINCIPAL = "principal"
    OWNER = "owner"
    ADMIN = "admin"


@dataclass(frozen=True)
class Access:
    """A rule, and for owners what is owned: the path parameter that names it and the scope that is needed."""

    rule: Rule
    parameter: str | None = None
    scope: Scope = Scope.KERNELS

    def check(self, request: web.Request, principal: Principal) -> None:
        """Refuse a principal that may not use the route. What is not its own does not exist for it.

        Raises Forbidden when the credential lacks the scope, NotFound when what the path names is another's.
        """
        if self.rule is Rule.ADMIN:
            require(principal, Scope.ADMIN)
        if self.rule is not Rule.OWNER:
            return
        match self.parameter:
            case "kernel_id":
                context(request).kernels.get(principal, request.match_info["kernel_id"], scope=self.scope)
            case "session_id":
                pass  # SessionService looks: a look here would forget a session that its handler is to repair
            case "execution_id":
                require(principal, self.scope)  # JobService looks, in memory and in the store
            case "sandbox_id":
                require(principal, self.scope)
                context(request).e2b.sandboxes.get(principal, request.match_info["sandbox_id"])
            case "E2b-Sandbox-Id":
                require(principal, self.scope)
                context(request).e2b.sandboxes.running(principal, request.headers.get(self.parameter, ""))
            case _:
                raise Forbidden("This route names nothing that could be owned.")


PUBLIC = Access(Rule.PUBLIC)
PRINCIPAL = Access(Rule.PRINCIPAL)
ADMIN = Access(Rule.ADMIN, scope=Scope.ADMIN)


def owner(parameter: str, scope: Scope = Scope.KERNELS) -> Access:
    """Return the rule that what a path parameter names must be the caller's, and the scope it takes."""
    return Access(Rule.OWNER, parameter, scope)
