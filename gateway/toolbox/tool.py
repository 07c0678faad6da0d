"""One tool: its name, what goes in and comes out, what it takes, and what does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from gateway.models import Origin, Principal, Scope
from gateway.toolbox.schemas import input_schema, output_schema

if TYPE_CHECKING:
    from gateway.toolbox.schemas import Schema

Report = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls a tool, and whence. `report` takes the output so far, where the caller wants to be told."""

    principal: Principal
    origin: Origin
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class Hints:
    """What a host may tell its user before a call; nothing here reaches out of a cell."""

    read_only: bool = False
    destructive: bool = False
    idempotent: bool = False


@dataclass(frozen=True)
class Tool:
    """A tool. `scopes` are what a credential needs; `extended` ones are offered where somebody asks."""

    name: str
    title: str
    description: str
    takes: type[BaseModel]
    gives: type[BaseModel]
    run: Callable[[Call, Any], Awaitable[BaseModel]]
    scopes: frozenset[Scope]
    hints: Hints = field(default_factory=Hints)
    extended: bool = False

    def allowed(self, principal: Principal) -> bool:
        """Tell whether a credential has all that the tool needs."""
        return all(principal.has(scope) for scope in self.scopes)

    @cached_property
    def input_schema(self) -> Schema:
        """The JSON Schema of what goes in, which nobody changes."""
        return input_schema(self.takes)

    @cached_property
    def output_schema(self) -> Schema:
        """The JSON Schema of what comes out, which nobody changes."""
        return output_schema(self.gives)


SEES = Hints(read_only=True, idempotent=True)
ADDS = Hints()
RUNS = Hints(destructive=True)
ENDS = Hints(destructive=True, idempotent=True)
EXECUTE = frozenset({Scope.EXECUTE})
KERNELS = frozenset({Scope.KERNELS})
FILES = frozenset({Scope.FILES})
