"""Methods on executions: run code, follow it, steer it, answer what it asks."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import orjson
from pydantic import Field, RootModel, model_validator
from pydantic.json_schema import SkipJsonSchema

from gateway.errors import Conflict
from gateway.http.rpc.feed import Feed
from gateway.http.rpc.method import Call, ExecutionId, Method
from gateway.http.rpc.protocol import of_code
from gateway.models import Kernel
from gateway.models.base import Frozen, Model
from gateway.models.jobs import CallAnswer, JobRequest, JobSummary, JobView, TextPage

TextChars = Annotated[
    int | None, Field(ge=200, le=8 << 20, description="Cut each text of the result to so many characters.")
]


class Work(JobRequest):
    """Parameters of `execute` and `start`: those of POST /api/executions, apart from how it is answered."""

    mode: SkipJsonSchema[Literal["job"]] = "job"
    wait_s: SkipJsonSchema[Annotated[float, Field(ge=0, le=0)]] = 0.0
    idempotency_key: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="The same one begins nothing new.",
    )

    def request(self) -> JobRequest:
        """Return what is asked of the service."""
        own = set(type(self).model_fields) - set(JobRequest.model_fields)
        return JobRequest.model_validate(self.model_dump(exclude=own, exclude_unset=True) | {"mode": "job"})


class Execute(Work):
    """Parameters of `execute`."""

    detach: bool = Field(False, description="Let it go on when the connection drops.")


class Begun(Model):
    """An execution that was begun."""

    execution_id: str
    cursor: int = 0


class Look(Frozen):
    """Parameters of `get`."""

    execution_id: ExecutionId
    cursor: int | None = Field(None, ge=0, description="Show the events after it, too.")
    wait_s: float = Field(0.0, ge=0, le=60, description="Seconds to wait for news.")
    text_chars: TextChars = None


class All(Frozen):
    """Parameters of `list`."""


class Summaries(RootModel[list[JobSummary]]):
    """Executions, the newest first."""


class TextPart(Frozen):
    """Parameters of `text`."""

    execution_id: ExecutionId
    what: Literal["stdout", "stderr", "error", "result"]
    task: int = Field(0, ge=0, le=256)
    offset: int = Field(0, ge=0)
    limit: int = Field(65_536, ge=1, le=1 << 20)


class Subscribe(Frozen):
    """Parameters of `subscribe`."""

    execution_id: ExecutionId
    cursor: int = Field(0, ge=0, description="The last one that was seen: what comes after it is told.")
    tools: bool = Field(False, description="Answer the code's tool calls: they come as requests `tool.call`.")


class Unsubscribe(Frozen):
    """Parameters of `unsubscribe`."""

    execution_id: ExecutionId


class Reply(CallAnswer):
    """Parameters of `answer`."""

    execution_id: ExecutionId
    call_id: str = Field(max_length=64)


class Control(Frozen):
    """Parameters of `control`: what to do, and to which execution, or kernel."""

    action: Literal["pause", "resume", "cancel", "interrupt", "restart"]
    execution_id: ExecutionId | None = None
    kernel_id: str | None = Field(None, max_length=64, description="A kernel, instead of an execution.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.execution_id is None) == (self.kernel_id is None):
            raise ValueError("give either execution_id or kernel_id")
        if self.action == "cancel" and self.execution_id is None:
            raise ValueError("cancel is for an execution")
        return self


async def execute(call: Call, wanted: Execute) -> JobView:
    """Run to the end, telling of it meanwhile; where the connection drops, it is interrupted."""
    execution_id = await _submitted(call, wanted)
    told = {"execution_id": execution_id, "cursor": 0, "request_id": call.id}
    try:
        await call.peer.notify("execution.accepted", orjson.dumps(told))
        await Feed(call, execution_id, tools=bool(wanted.tools)).run()
    except BaseException:
        # whatever it is that ends the telling: the connection most of all
        if not wanted.detach:
            call.ctx.jobs.leave(execution_id)
        raise
    view = await call.ctx.jobs.view(call.principal, execution_id, text_chars=wanted.text_chars)
    if view.failure is not None:
        raise of_code(view.failure.code, view.failure.message, view.failure.reason)
    return view


async def start(call: Call, wanted: Work) -> Begun:
    """Begin, and return at once."""
    return Begun(execution_id=await _submitted(call, wanted))


async def get(call: Call, wanted: Look) -> JobView:
    """Show an execution."""
    return await call.ctx.jobs.view(
        call.principal,
        wanted.execution_id,
        cursor=wanted.cursor,
        wait_s=wanted.wait_s,
        text_chars=wanted.text_chars,
    )


async def listing(call: Call, _: All) -> Summaries:
    """List the executions that are kept."""
    return Summaries(await call.ctx.jobs.list(call.principal))


async def text(call: Call, wanted: TextPart) -> TextPage:
    """Return a part of a text."""
    return await call.ctx.jobs.text(
        call.principal,
        wanted.execution_id,
        wanted.what,
        task=wanted.task,
        offset=wanted.offset,
        limit=wanted.limit,
    )


async def subscribe(call: Call, wanted: Subscribe) -> Begun:
    """Tell of an execution's events from a cursor on."""
    await call.ctx.jobs.view(call.principal, wanted.execution_id)
    feed = Feed(call, wanted.execution_id, tools=wanted.tools)
    call.peer.subscribe(wanted.execution_id, lambda: feed.told(wanted.cursor))
    return Begun(execution_id=wanted.execution_id, cursor=wanted.cursor)


async def unsubscribe(call: Call, wanted: Unsubscribe) -> None:
    """Tell no more of an execution."""
    call.peer.unsubscribe(wanted.execution_id)


async def answer(call: Call, wanted: Reply) -> None:
    """Answer a tool call."""
    given = CallAnswer(result=wanted.result, error=wanted.error)
    await call.ctx.jobs.answer(call.principal, wanted.execution_id, wanted.call_id, given)


async def control(call: Call, wanted: Control) -> Kernel | None:
    """Steer an execution, or the kernel that it runs in."""
    if wanted.execution_id is not None:
        return await _steer_execution(call, wanted.action, wanted.execution_id)
    who, kernels, kernel_id = call.principal, call.ctx.kernels, wanted.kernel_id or ""
    match wanted.action:
        case "pause":
            return (await kernels.pause(who, kernel_id)).model()
        case "resume":
            return (await kernels.resume(who, kernel_id)).model()
        case "restart":
            return (await kernels.restart(who, kernel_id)).model()
        case _:
            await kernels.interrupt(who, kernel_id)
            return None


async def _submitted(call: Call, wanted: Work) -> str:
    return await call.ctx.jobs.submit(
        call.principal, wanted.request(), origin=call.origin, idempotency_key=wanted.idempotency_key
    )


async def _steer_execution(call: Call, action: str, execution_id: str) -> Kernel | None:
    who, jobs = call.principal, call.ctx.jobs
    match action:
        case "pause":
            await jobs.pause(who, execution_id)
        case "resume":
            await jobs.resume(who, execution_id)
        case "cancel":
            await jobs.cancel(who, execution_id)
        case "interrupt":
            await jobs.interrupt(who, execution_id)
        case _:
            kernel_id = (await jobs.view(who, execution_id)).kernel_id
            if kernel_id is None:
                raise Conflict("The execution has no kernel yet.", reason="queued")
            return (await call.ctx.kernels.restart(who, kernel_id)).model()
    return None


METHODS: tuple[Method, ...] = (
    Method(
        "execute",
        execute,
        Execute,
        JobView,
        "Run code, tell of it meanwhile, and return what it gave.",
    ),
    Method(
        "start",
        start,
        Work,
        Begun,
        "Begin to run code, and return at once.",
    ),
    Method("get", get, Look, JobView, "Show an execution, with the events after a cursor.", changes=False),
    Method("list", listing, All, Summaries, "List the executions that are kept.", changes=False),
    Method("text", text, TextPart, TextPage, "Return a part of a text of a result.", changes=False),
    Method(
        "subscribe",
        subscribe,
        Subscribe,
        Begun,
        "Tell of an execution's events from a cursor on.",
        changes=False,
    ),
    Method("unsubscribe", unsubscribe, Unsubscribe, None, "Tell no more of an execution.", changes=False),
    Method("control", control, Control, Kernel, "Pause, resume, cancel, interrupt or restart."),
    Method("answer", answer, Reply, None, "Answer a tool call of the code's."),
)
