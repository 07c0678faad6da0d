"""Tools that run code: now and waited for, or by and by."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Literal

from gateway.errors import BadRequest, GatewayError, NotFound
from gateway.models import Scope
from gateway.models.jobs import CallAnswer, JobRequest, JobView, ToolOffer
from gateway.toolbox.execution_views import Answers, Look, Run, RunAnywhere, RunWithTools, Started, Which
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


class ExecutionTools:
    """Runs code for agents."""

    def __init__(self, jobs: JobService, handles: Handles, settings: McpSettings) -> None:
        self._jobs = jobs
        self._handles = handles
        self._extended = settings.extended
        self._progress_s = settings.progress_s
        self._teller = Teller(settings.text_chars, settings.image_bytes)
        self._leaving: set[asyncio.Task[None]] = set()

    async def execute(self, call: Call, given: RunAnywhere) -> Outcome:
        """Run code and wait for its end; a caller that goes away has it interrupted."""
        offered = given.tools if isinstance(given, RunWithTools) else []
        job_id = await self._submit(call, given, "wait", offered, kernel=given.kernel)
        return await self._outcome(call, job_id, given.session_id, calls=bool(offered))

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
                RunWithTools if self._extended else RunAnywhere,
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
