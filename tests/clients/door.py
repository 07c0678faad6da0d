"""What a door is for the scenarios that every door must pass: a way to run code, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self
from uuid import uuid4

from gateway import errors

if TYPE_CHECKING:
    from tests.gateway import Client, Gateway


@dataclass(frozen=True)
class Failure:
    """An exception that the code raised."""

    ename: str
    evalue: str


@dataclass(frozen=True)
class Outcome:
    """What one execution gave, whatever the door calls it.

    `status` is one of ok, error, timeout, interrupted, cancelled and dead, `reason` why the kernel died, and
    `results` the mime bundles of displays and results. `truncated` is what the door says of itself.
    """

    status: str
    stdout: str = ""
    stderr: str = ""
    results: tuple[Mapping[str, Any], ...] = ()
    error: Failure | None = None
    truncated: bool = False
    reason: str | None = None


class Refused(Exception):
    """The gateway refused, in the door's own form; `reason` is None where that form has no place for one."""

    def __init__(self, code: str, reason: str | None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Running(Protocol):
    """An execution that was begun."""

    async def cancel(self) -> None:
        """End it by the door's own means."""
        ...

    async def disconnect(self) -> None:
        """Go away without a word, as a client does that dies."""
        ...

    async def outcome(self) -> Outcome:
        """Wait for its end."""
        ...


class Door:
    """One way in, open for one principal, with one kernel. Use as an async context manager.

    `without` says of scenarios that the door cannot have why that is so; the page for agent builders must
    say it in the same words. A subclass enters what it needs into `self.held` in `opened`.
    """

    name: ClassVar[str]
    without: ClassVar[Mapping[str, str]] = {}

    def __init__(self, gateway: Gateway, principal: str) -> None:
        self.gateway = gateway
        self.principal = principal
        self.held = AsyncExitStack()
        self._kernel_id: str | None = None

    async def __aenter__(self) -> Self:
        # the way to look from the side, and to start a kernel where the door has no way of its own
        self.side: Client = await self.held.enter_async_context(self.gateway.client(self.principal))
        await self.opened()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.held.aclose()

    async def opened(self) -> None:
        """Open what the door needs."""

    async def kernel_id(self) -> str:
        """Return the kernel that the door runs code in, started at first use."""
        if self._kernel_id is None:
            self._kernel_id = await self.side.start()
        return self._kernel_id

    async def run(self, code: str, *, timeout_s: float | None = None) -> Outcome:
        """Run code to its end. Raises Refused."""
        return await (await self.start(code, timeout_s=timeout_s)).outcome()

    async def start(self, code: str, *, timeout_s: float | None = None) -> Running:
        """Begin to run code."""
        raise NotImplementedError

    async def handle(self) -> str:
        """Return the id by which a caller reaches its own here: of a kernel, an execution, a session."""
        return await self.kernel_id()

    def nowhere(self) -> str:
        """Return an id of the same form that nothing has."""
        return str(uuid4())

    async def foreign(self, handle: str) -> object:
        """Return all that the door says to somebody who uses an id that is not theirs."""
        raise NotImplementedError


def from_result(result: Mapping[str, Any], *, status: str | None = None) -> Outcome:
    """Return the outcome in an ExecutionResult as JSON; a job's own status where that is given."""
    error = result.get("error")
    shown = [each["data"] for each in result["outputs"] if "data" in each]
    return Outcome(
        status or result["status"],
        result["stdout"],
        result["stderr"],
        tuple(shown),
        Failure(error["ename"], error["evalue"]) if error else None,
        result["truncated"],
        result.get("reason"),
    )


def refused_by_name(ename: str) -> Refused | None:
    """Return the refusal behind an error's name, where a door shows refusals as errors of the code."""
    kind = getattr(errors, ename, None)
    if isinstance(kind, type) and issubclass(kind, errors.GatewayError):
        return Refused(kind.code, None)
    return None
