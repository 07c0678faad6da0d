"""The catalogue: who is offered what, how arguments are checked, and what is put on record."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from gateway.errors import BadRequest, Conflict, Forbidden, GatewayError, NotFound
from gateway.models import AuditAction, AuditOutcome, Frozen, Origin, Scope
from gateway.toolbox.catalogue import Catalogue
from gateway.toolbox.tool import EXECUTE, FILES, Call, Tool
from tests.doubles import MemoryAudit, principal


class Given(Frozen):
    """What the tool takes."""

    number: int
    more: int = 2


class Sum(BaseModel):
    """What it gives."""

    sum: int


def catalogue(audit: MemoryAudit, error: Exception | None = None) -> Catalogue:
    """Return a catalogue of two tools."""

    async def add(call: Call, given: Given) -> Sum:
        if error is not None:
            raise error
        return Sum(sum=given.number + given.more)

    return Catalogue(
        (
            Tool("add", "Add", "Adds.", Given, Sum, add, EXECUTE),
            Tool("rest", "Rest", "Rests.", Given, Sum, add, EXECUTE | FILES, extended=True),
        ),
        audit,
    )


def caller(*scopes: Scope) -> Call:
    """Return who calls."""
    who = principal("alice", *scopes)
    return Call(who, Origin(principal="alice", key_id=who.key_id, door="mcp"))


def test_who_is_offered_what() -> None:
    """A credential sees what it may use; extended tools are there where they are asked for."""
    tools = catalogue(MemoryAudit())

    def names(*scopes: Scope, extended: bool) -> list[str]:
        return [tool.name for tool in tools.offered(principal("a", *scopes), extended=extended)]

    assert names(Scope.EXECUTE, extended=True) == ["add"]
    assert names(Scope.EXECUTE, Scope.FILES, extended=True) == ["add", "rest"]
    assert names(Scope.EXECUTE, Scope.FILES, extended=False) == ["add"]
    assert names(Scope.ADMIN, extended=True) == ["add", "rest"]
    assert names(Scope.KERNELS, extended=True) == []
    with pytest.raises(NotFound):
        tools.find("rest", extended=False)
    assert tools.find("rest", extended=True).name == "rest"


async def test_a_call() -> None:
    """Null counts as left out; the call is on record under the tool's name."""
    audit = MemoryAudit()
    tools = catalogue(audit)

    result = await tools.call(caller(), tools.find("add", extended=False), {"number": 1, "more": None})

    assert result == Sum(sum=3)
    [event] = audit.events
    assert (event.action, event.target, event.outcome) == (AuditAction.AGENT_CALL, "add", AuditOutcome.OK)


@pytest.mark.parametrize("arguments", [{}, {"number": "x"}, {"number": 1, "other": 1}, {"number": None}])
async def test_wrong_arguments(arguments: dict[str, object]) -> None:
    """What is wrong is named, and the attempt is on record."""
    audit = MemoryAudit()
    tools = catalogue(audit)

    with pytest.raises(BadRequest, match=r"The argument (number|other) is wrong"):
        await tools.call(caller(), tools.find("add", extended=False), arguments)
    assert [event.outcome for event in audit.events] == [AuditOutcome.ERROR]


@pytest.mark.parametrize(
    ("error", "action", "outcome"),
    [
        (NotFound("no"), AuditAction.ACCESS_REFUSED, AuditOutcome.REFUSED),
        (Forbidden("no"), AuditAction.ACCESS_REFUSED, AuditOutcome.REFUSED),
        (Conflict("no"), AuditAction.AGENT_CALL, AuditOutcome.ERROR),
        (ValueError("no"), AuditAction.AGENT_CALL, AuditOutcome.ERROR),
    ],
)
async def test_failures(error: Exception, action: AuditAction, outcome: AuditOutcome) -> None:
    """A refusal and a failure have one record each, whatever door makes something of it."""
    audit = MemoryAudit()
    tools = catalogue(audit, error)

    with pytest.raises(type(error)):
        await tools.call(caller(), tools.find("add", extended=False), {"number": 1})
    assert [(event.action, event.outcome) for event in audit.events] == [(action, outcome)]
    assert not isinstance(error, GatewayError) or error.recorded


async def test_a_missing_scope() -> None:
    """Without the scope nothing is done, and the refusal is on record."""
    audit = MemoryAudit()
    tools = catalogue(audit)

    with pytest.raises(Forbidden, match="lacks the scope 'execute'"):
        await tools.call(caller(Scope.KERNELS), tools.find("add", extended=False), {"number": 1})
    [event] = audit.events
    assert (event.action, event.reason) == (AuditAction.ACCESS_REFUSED, "missing_scope")
