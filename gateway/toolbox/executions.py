"""Tools that run code: now and waited for, or by and by."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gateway.errors import BadRequest, GatewayError, NotFound
from gateway.models import Frozen, Model, Scope
from gateway.models.jobs import CallAnswer, JobRequest, JobView, ToolOffer
from gateway.toolbox.handles import SessionId
from gateway.toolbox.outcomes import Outcome, Teller, TextPart
from gateway.toolbox.progress import reporting
from gateway.toolbox.tool import ENDS, EXECUTE, RUNS, SEES, Call, Tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.services.jobs import JobService
    from gateway.settings import McpSettings
    from gateway.toolbox.handles import Handles

WAIT_S = 30.0
# with a kernel of its own, or to find that of a session
BEGIN = frozenset({Scope.EXECUTE, Scope.KERNELS})
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


class RunWithKernel(Run):
    """The same, with the kernel and the tools of an execution."""

    kernel: str | None = Field(
        None, max_length=128, description="Without a session: the kernelspec; the default one if left out."
    )
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


class ExecutionTools:
    """Runs code for agents."""

    def __init__(self, jobs: JobService, handles: Handles, settings: McpSettings) -> None:
        self._jobs = jobs
        self._handles = handles
        self._progress_s = settings.progress_s
        self._teller = Teller(settings.text_chars, settings.image_bytes)
        self._leaving: set[asyncio.Task[None]] = set()

    async def execute(self, call: Call, given: RunWithKernel) -> Outcome:
        """Run code and wait for its end; a caller that goes away has it interrupted."""
        job_id = await self._submit(call, given, "wait", given.tools, kernel=given.kernel)
        return await self._outcome(call, job_id, given.session_id, calls=bool(given.tools))

    async def start(self, call: Call, given: Run) -> Started:
        """Begin an execution, which goes on whoever listens."""
        job_id = await self._submit(call, given, "job")
        view = await self._jobs.view(call.principal, job_id)
        return Started(execution_id=job_id, session_id=given.session_id, status=view.status)

    async def look(self, call: Call, given: Look) -> Outcome:
        """Tell of an execution."""
        view = await self._jobs.view(
            call.principal,
            given.execution_id,
            cursor=given.cursor or 0,
            wait_s=given.wait_s,
        )
        outcome = self._teller.tell(view, None)
        if given.offset is not None:
            outcome.text = await self._text(call, given.execution_id, given.what, given.offset)
        return outcome

    async def cancel(self, call: Call, given: Which) -> Started:
        """End an execution for real; one that has ended stays as it is."""
        view = await self._jobs.view(call.principal, given.execution_id)
        if not view.status.ended:
            await self._jobs.cancel(call.principal, given.execution_id)
            # gone already is as well
            with suppress(NotFound):
                view = await self._jobs.view(call.principal, given.execution_id)
        return Started(execution_id=view.id, session_id=view.context, status=view.status)

    async def answer(self, call: Call, given: Answers) -> Outcome:
        """Answer calls, and wait for the end or for more of them."""
        for each in given.answers:
            answer = CallAnswer(result=each.result, error=each.error)
            await self._jobs.answer(call.principal, given.execution_id, each.call_id, answer)
        return await self._outcome(call, given.execution_id, None, calls=True)

    async def _submit(
        self,
        call: Call,
        given: Run,
        mode: Literal["wait", "job"],
        tools: list[ToolOffer] | None = None,
        *,
        kernel: str | None = None,
    ) -> str:
        kernel_id = None
        if given.session_id is not None:
            if kernel is not None:
                raise BadRequest("Give session_id or kernel: a session has its kernel.", reason="kernel")
            kernel_id = (await self._handles.find(call.principal, given.session_id)).kernel_id
        request = JobRequest(
            code=given.code,
            kernel_id=kernel_id,
            kernel=kernel,
            timeout_s=given.timeout_s,
            mode=mode,
            artifacts=given.session_id is not None and call.principal.has(Scope.FILES),
            tools=tuple(tools or ()),
        )
        return await self._jobs.submit(call.principal, request, origin=call.origin)

    async def _outcome(self, call: Call, job_id: str, session_id: str | None, *, calls: bool) -> Outcome:
        async with self._reported(call, job_id):
            if calls:
                view = await self._until_called(call, job_id)
            else:
                view = await self._jobs.wait(call.principal, job_id)
        return self._teller.tell(view, session_id)

    async def _until_called(self, call: Call, job_id: str) -> JobView:
        """Return the execution once it has ended or waits for answers."""
        cursor = 0
        try:
            while True:
                view = await self._jobs.view(call.principal, job_id, cursor=cursor, wait_s=WAIT_S)
                if view.status.ended or view.pending_calls:
                    return await self._jobs.view(call.principal, job_id, cursor=0)
                cursor = view.cursor
        except asyncio.CancelledError:
            # in a task of its own: the caller's is on its way out
            leaving = asyncio.create_task(self._leave(call, job_id))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            raise

    async def _leave(self, call: Call, job_id: str) -> None:
        with suppress(GatewayError):
            await self._jobs.interrupt(call.principal, job_id)

    @asynccontextmanager
    async def _reported(self, call: Call, job_id: str) -> AsyncIterator[None]:
        """Report the output's end at intervals while the body runs."""
        async with reporting(call.report, self._progress_s) as tail:
            if call.report is None:
                yield
                return

            async def listen() -> None:
                with suppress(GatewayError):
                    async with aclosing(self._jobs.follow(call.principal, job_id)) as events:
                        async for event in events:
                            tail.add((event and event.text) or "")

            listening = asyncio.create_task(listen())
            try:
                yield
            finally:
                listening.cancel()
                await asyncio.wait({listening})

    async def _text(
        self, call: Call, job_id: str, what: Literal["stdout", "stderr", "error", "result"], offset: int
    ) -> TextPart:
        page = await self._jobs.text(
            call.principal, job_id, what, offset=offset, limit=self._teller.text_chars
        )
        return TextPart(what=what, **page.model_dump())

    def tools(self) -> tuple[Tool, ...]:
        """Return these tools."""
        return (
            Tool(
                "execute_code",
                "Run code",
                "Run code in a Jupyter kernel in a sandbox without network, and return what it printed, what "
                "it displayed (images too), its error if any, and the files that it made. In a session, "
                "variables and files stay between calls. Long texts are cut in the middle; get_execution has "
                "them in full. At timeout_s the code is interrupted and its output so far is returned.",
                RunWithKernel,
                Outcome,
                self.execute,
                BEGIN,
                RUNS,
            ),
            Tool(
                "start_execution",
                "Start code",
                "Start code that takes long, and return at once; it goes on by itself. Ask get_execution for "
                "its output and end, stop it with cancel_execution.",
                Run,
                Started,
                self.start,
                BEGIN,
                RUNS,
            ),
            Tool(
                "get_execution",
                "Look at an execution",
                "Return an execution's status, and its output: while it runs what came since cursor, at its "
                "end all, cut in the middle where it is long. With offset also a part of one full text.",
                Look,
                Outcome,
                self.look,
                EXECUTE,
                SEES,
            ),
            Tool(
                "cancel_execution",
                "Cancel an execution",
                "Stop an execution for good: by an interrupt, and where that does not help by a restart of "
                "its kernel, which loses the variables.",
                Which,
                Started,
                self.cancel,
                EXECUTE,
                ENDS,
            ),
        )

    def extended(self) -> tuple[Tool, ...]:
        """Return the tools that are offered where somebody asks."""
        return (
            Tool(
                "answer_tool_calls",
                "Answer the code's calls",
                "Answer calls of running code to the tools that execute_code was given, and wait for its end "
                "or for its next calls.",
                Answers,
                Outcome,
                self.answer,
                EXECUTE,
                RUNS,
                extended=True,
            ),
        )
