"""The catalogue: every tool in its order, who is offered which, and how one is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from gateway.errors import BadRequest, GatewayError, NotFound
from gateway.models import AuditAction, AuditEvent, AuditOutcome
from gateway.services.auditing import REFUSALS, recorded
from gateway.services.kernels import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.models import Principal
    from gateway.ports import Audit
    from gateway.toolbox.tool import Call, Tool

# As the doors name refusals on the trail.
_REFUSED = {
    403: AuditAction.ACCESS_REFUSED,
    404: AuditAction.ACCESS_REFUSED,
    413: AuditAction.LIMIT_REFUSED,
    429: AuditAction.LIMIT_REFUSED,
}


class Catalogue:
    """The tools, each once, in one order for everybody."""

    def __init__(self, tools: Iterable[Tool], audit: Audit) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._audit = audit

    def tools(self) -> tuple[Tool, ...]:
        """Return every tool."""
        return tuple(self._tools.values())

    def offered(self, principal: Principal, *, extended: bool) -> tuple[Tool, ...]:
        """Return the tools that a credential may use; with `extended` all of those."""
        return tuple(
            tool
            for tool in self._tools.values()
            if tool.allowed(principal) and (extended or not tool.extended)
        )

    def find(self, name: str, *, extended: bool) -> Tool:
        """Return a tool. Raises NotFound."""
        tool = self._tools.get(name)
        if tool is None or (tool.extended and not extended):
            raise NotFound(f"There is no tool {name[:64]!r}.", reason="tool")
        return tool

    async def call(self, call: Call, tool: Tool, arguments: Mapping[str, Any]) -> BaseModel:
        """Call a tool and return what it gives, once that is recorded under the tool's name.

        An argument that is null counts as left out. Raises Forbidden (a scope), BadRequest (the arguments),
        and what the tool does.
        """
        # one moment's work that may fail is recorded like the tool's own
        try:
            with recorded(self._audit, AuditAction.AGENT_CALL, call.principal, target=tool.name):
                for scope in sorted(tool.scopes):
                    require(call.principal, scope)
                result = await tool.run(call, _checked(tool, arguments))
        except GatewayError as error:
            self._refused(call, tool, error)
            raise
        await self._audit.written()
        return result

    def _refused(self, call: Call, tool: Tool, error: GatewayError) -> None:
        # here, because not every door makes an answer of its own of it
        if error.recorded or error.status not in REFUSALS:
            return
        event = AuditEvent(
            action=_REFUSED.get(error.status, AuditAction.AGENT_CALL),
            outcome=AuditOutcome.REFUSED,
            who=call.principal.name,
            key_id=call.principal.key_id or None,
            target=f"tool {tool.name}",
            reason=error.reason or error.code,
        )
        self._audit.record(event)
        error.recorded = True


def _checked(tool: Tool, arguments: Mapping[str, Any]) -> BaseModel:
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return tool.takes.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "arguments"
        raise BadRequest(f"The argument {place} is wrong: {first['msg']}.", reason=place) from None
