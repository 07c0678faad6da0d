"""Code in sandboxes: their contexts, made, restarted and ended, and what runs in them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.errors import BadRequest, GatewayError, NotFound
from gateway.models import ExecuteRequest, ExecutionState, ExecutionStatus, Scope
from gateway.models.sandboxes import SandboxContext
from gateway.services.preludes import Surroundings, prelude

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.models import ExecutionResult, Message, Origin, Principal
    from gateway.ports import KernelHandle
    from gateway.services.executions import ExecutionService
    from gateway.services.kernels import KernelService
    from gateway.services.sandbox_book import Sandbox
    from gateway.services.sandboxes import SandboxService

# Setting variables and a directory takes milliseconds; a kernel that takes so long over it is stuck.
PRELUDE_S = 20.0


class SandboxCode:
    """The contexts of sandboxes: kernels that share a home, each with a language and a directory."""

    def __init__(
        self, sandboxes: SandboxService, kernels: KernelService, executions: ExecutionService
    ) -> None:
        self._sandboxes = sandboxes
        self._kernels = kernels
        self._executions = executions
        self._around: set[asyncio.Task[ExecutionResult]] = set()
        # the start of its kernel since which a context knows its lasting variables and directory
        self._prepared: dict[str, int] = {}

    async def create(
        self, principal: Principal, sandbox: Sandbox, *, language: str | None, cwd: str
    ) -> SandboxContext:
        """Start a kernel as a further context.

        Raises Forbidden, BadRequest (language, directory), and what starting a kernel raises.
        """
        return await self._create(principal, sandbox, language, cwd, own=False)

    async def restart(self, principal: Principal, sandbox: Sandbox, context_id: str) -> None:
        """Start a context afresh. Raises Forbidden, NotFound, LimitReached, and what a restart raises."""
        await self._kernels.restart(principal, self.find(sandbox, context_id).id)

    async def remove(self, principal: Principal, sandbox: Sandbox, context_id: str) -> None:
        """End a context and its kernel. Raises Forbidden, NotFound, BadRequest (the sandbox's first)."""
        context = self.find(sandbox, context_id)
        if context.id == sandbox.record.contexts[0].id:
            raise BadRequest("The first context lives as long as its sandbox: kill that.", reason="context")
        await self._sandboxes.change_contexts(sandbox, without=context.id)
        with suppress(NotFound):
            await self._kernels.delete(principal, context.id)

    def find(self, sandbox: Sandbox, context_id: str) -> SandboxContext:
        """Return a context of a sandbox's. Raises NotFound."""
        for context in self.contexts(sandbox):
            if context.id == context_id:
                return context
        raise NotFound(f"Context {context_id[:64]} was not found.")

    def contexts(self, sandbox: Sandbox) -> list[SandboxContext]:
        """Return the contexts whose kernels are there."""
        return [context for context in sandbox.record.contexts if self._sandboxes.kernel(context.id)]

    async def choose(
        self,
        principal: Principal,
        sandbox: Sandbox,
        *,
        context_id: str | None,
        language: str | None,
    ) -> SandboxContext:
        """Return the context that code shall run in: the named one, or the language's own, made at first use.

        Raises BadRequest (both are named, or no such language), NotFound, and what starting a kernel raises.
        """
        if context_id and language:
            raise BadRequest("Only one of context_id or language can be provided.", reason="context_id")
        if context_id:
            return self.find(sandbox, context_id)
        if not language:
            return sandbox.record.contexts[0]
        async with sandbox.lock:
            wanted = language.lower()
            for context in self.contexts(sandbox):
                if context.own and context.language == wanted:
                    return context
            return await self._create(principal, sandbox, language, "", own=True)

    async def run(
        self,
        principal: Principal,
        sandbox: Sandbox,
        context: SandboxContext,
        code: str,
        *,
        env: Mapping[str, str],
        origin: Origin,
        on_message: Callable[[Message], None],
    ) -> ExecutionResult:
        """Run code in a context, with variables that hold for it alone; a context that has died begins anew.

        A caller that is cancelled has it interrupted. Raises what `ExecutionService.run` raises, and
        BadRequest when the language cannot have variables set.
        """
        handle = await self.revived(principal, context.id, Scope.EXECUTE)
        fresh = self._prepared.get(context.id) != handle.generation
        around = Surroundings(sandbox.record.env, context.cwd, env, fresh)
        snippets = prelude(context.language, around)
        # The kernel takes its requests in order, and none of anybody's comes in between: each of these tasks
        # sends its own before it waits for anything.
        before = self._silently(principal, handle, snippets.before(around)) if snippets else None
        request = ExecuteRequest(code=code, timeout_s=handle.limits.max_timeout_s, stop_on_error=False)
        main = asyncio.create_task(
            self._executions.run(principal, handle.id, request, origin=origin, on_message=on_message)
        )
        if snippets and env:
            self._silently(principal, handle, snippets.after(env))
        self._prepared[context.id] = handle.generation
        try:
            if before is not None:
                check_prelude(await asyncio.shield(before))
            return await main
        finally:
            main.cancel()

    async def revived(self, principal: Principal, kernel_id: str, scope: Scope) -> KernelHandle:
        """Return a kernel of a sandbox's, started afresh where it has died; `scope` is what it is wanted for.

        Raises Forbidden, NotFound, and what a restart raises.
        """
        handle = self._kernels.get(principal, kernel_id, scope=scope)
        self._prepared = {k: g for k, g in self._prepared.items() if self._sandboxes.kernel(k)}
        if handle.state is ExecutionState.DEAD:
            await self._kernels.restart(principal, kernel_id)
        return handle

    async def _create(
        self,
        principal: Principal,
        sandbox: Sandbox,
        language: str | None,
        cwd: str,
        *,
        own: bool,
    ) -> SandboxContext:
        spec = await self._sandboxes.spec_for(sandbox, language)
        around = Surroundings(sandbox.record.env, cwd, {}, fresh=True)
        snippets = prelude(spec.language, around)
        handle = await self._kernels.create(
            principal, name=spec.name, workspace=self._sandboxes.home(principal, sandbox.record.workspace)
        )
        context = SandboxContext(id=handle.id, language=spec.language.lower(), cwd=cwd, own=own)
        try:
            if snippets:
                check_prelude(await self._silently(principal, handle, snippets.before(around)))
            await self._sandboxes.change_contexts(sandbox, new=context)
            self._prepared[context.id] = handle.generation
        except BaseException:
            with suppress(GatewayError):
                await self._kernels.delete(principal, handle.id)
            raise
        return context

    def _silently(
        self, principal: Principal, handle: KernelHandle, code: str
    ) -> asyncio.Task[ExecutionResult]:
        request = ExecuteRequest(
            code=code, silent=True, store_history=False, stop_on_error=False, timeout_s=PRELUDE_S
        )
        task = asyncio.create_task(self._executions.run(principal, handle.id, request, own=True))
        self._around.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[ExecutionResult]) -> None:
        self._around.discard(task)
        if not task.cancelled():
            # whoever waits for it has it raised there; the code itself says why nothing runs any more
            task.exception()


def check_prelude(result: ExecutionResult) -> None:
    """Refuse surroundings that could not be had. Raises BadRequest."""
    if result.status is ExecutionStatus.ERROR:
        why = f"{result.error.ename}: {result.error.evalue}" if result.error else "the kernel refuses"
        raise BadRequest(f"The directory or the variables cannot be set: {why[:300]}.", reason="surroundings")
