"""What the tools that run code take and give."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gateway.models import Frozen, Model
from gateway.models.jobs import ToolOffer
from gateway.toolbox.handles import SessionId

ExecutionId = Field(
    min_length=1, max_length=128, description="The execution, as the tool that began it said."
)


class Run(Frozen):
    """What code to run, and where."""

    code: str = Field(max_length=8 << 20, description="The code.")
    session_id: SessionId | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="The session to run in, whose variables and files stay. Without one the code runs in a "
        "fresh kernel that ends with it.",
    )
    timeout_s: float | None = Field(
        None, gt=0, description="Seconds until it is interrupted; what it printed until then is kept."
    )


class RunAnywhere(Run):
    """The same, with a kernel's choice where there is no session."""

    kernel: str | None = Field(
        None, max_length=128, description="Without a session: the kernelspec; the default one if left out."
    )


class RunWithTools(RunAnywhere):
    """The same, with tools for the code."""

    tools: list[ToolOffer] = Field(
        default_factory=list,
        max_length=64,
        description="Tools of yours that the code may call as cellblock.call(name, **arguments). The status "
        "is then tool_call_required until answer_tool_calls has answered.",
    )


class Started(Model):
    """An execution that goes on by itself."""

    execution_id: str
    session_id: str | None = None
    status: str


class Look(Frozen):
    """Which execution to look at, and what of it."""

    execution_id: str = ExecutionId
    wait_s: float = Field(0.0, ge=0, le=30, description="Seconds to wait for something new.")
    cursor: int | None = Field(
        None, ge=0, description="While it runs: only what came after this; from an earlier answer."
    )
    what: Literal["stdout", "stderr", "error", "result"] = Field(
        "stdout", description="Which full text `offset` is of."
    )
    offset: int | None = Field(
        None, ge=0, description="Return that full text too, from this character on; it begins at 0."
    )


class Which(Frozen):
    """An execution."""

    execution_id: str = ExecutionId


class Answer(Frozen):
    """The answer to one call: its result, or an error that the code gets to see."""

    call_id: str = Field(min_length=1, max_length=64)
    result: Any = Field(None, description="Any JSON value.")
    error: str | None = Field(None, max_length=64 << 10)


class Answers(Frozen):
    """Answers to calls of an execution's code."""

    execution_id: str = ExecutionId
    answers: list[Answer] = Field(min_length=1, max_length=64)
