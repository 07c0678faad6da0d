"""What a method of JSON-RPC is, and what its handler is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import BaseModel, Field, model_validator

from gateway.models.base import Frozen
from gateway.models.jobs import ContextName

if TYPE_CHECKING:
    from gateway.http.context import Context
    from gateway.http.rpc.protocol import Id
    from gateway.models import Origin, Principal

ExecutionId = Annotated[str, Field(max_length=64, description="An execution.")]


class Peer(Protocol):
    """The client at the other end of a connection."""

    async def notify(self, method: str, params: bytes) -> None:
        """Send a notification, once the client has read enough of what came before."""
        ...

    async def call_tool(self, execution_id: str, call_id: str, params: bytes) -> None:
        """Send a request `tool.call`, whose answer goes to that call."""
        ...

    def withdraw(self, execution_id: str, call_id: str | None = None) -> None:
        """Forget a call that is answered otherwise, or all of an execution."""
        ...

    def subscribe(self, execution_id: str, feed: Callable[[], Awaitable[None]]) -> None:
        """Run a feed beside the requests, in the place of one on the same execution. Raises LimitReached."""
        ...

    def unsubscribe(self, execution_id: str) -> None:
        """End the feed on an execution, if there is one."""
        ...


@dataclass(frozen=True)
class Call:
    """One request of one client, as a handler sees it."""

    ctx: Context
    principal: Principal
    origin: Origin
    peer: Peer
    id: Id | None


@dataclass(frozen=True)
class Method:
    """A method: what goes in and what comes out as models (None: `null`), and whether it changes anything."""

    name: str
    handler: Callable[[Call, Any], Awaitable[BaseModel | None]]
    params: type[BaseModel]
    result: type[BaseModel] | None
    summary: str
    changes: bool = True


class Nothing(Frozen):
    """No parameters."""


class Place(Frozen):
    """Whose files or processes are meant: those of a kernel, or of a context that is there."""

    kernel_id: str | None = Field(None, max_length=64, description="A kernel.")
    context: ContextName | None = Field(None, description="A context, instead of a kernel.")

    @model_validator(mode="after")
    def _named_once(self) -> Place:
        if (self.kernel_id is None) == (self.context is None):
            raise ValueError("give either kernel_id or context")
        return self


async def kernel_of(call: Call, place: Place) -> str:
    """Return the kernel that a place names. Raises NotFound (no such context)."""
    if place.context is not None:
        return (await call.ctx.contexts.get(call.principal, place.context)).kernel_id
    return place.kernel_id or ""
