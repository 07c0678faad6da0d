"""Tools on sessions: make, list, close; interrupt, restart, pause, resume; what they use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gateway.errors import BadRequest
from gateway.models import Frozen, Limits, Model, Usage
from gateway.models.jobs import ContextView, KernelOptions
from gateway.toolbox.handles import SessionId
from gateway.toolbox.tool import ADDS, ENDS, KERNELS, RUNS, SEES, Call, Hints, Tool

if TYPE_CHECKING:
    from gateway.services.quotas import Name
    from gateway.services.use_cases import UseCases
    from gateway.settings import McpSettings
    from gateway.toolbox.handles import Handles

COUNTED: tuple[Name, ...] = ("starts_per_minute", "executions_per_minute")


class NewSession(Frozen):
    """What a session shall be."""

    kernel: str | None = Field(
        None, max_length=128, description="Kernelspec, such as python3 or bash; the default one if left out."
    )
    ttl_s: float | None = Field(None, gt=0, description="Idle seconds after which it ends.")
    workspace: str | None = Field(
        None, max_length=64, description="Name of a workspace as its home, which outlives the session."
    )
    env: dict[str, str] = Field(
        default_factory=dict, max_length=64, description="KERNEL_* and other allowed variables."
    )


class Session(Model):
    """A session: a kernel in a sandbox of its own, and its home."""

    session_id: str
    kernel: str
    state: str
    reason: str | None = Field(None, description="Of what its kernel died, if it did.")
    created_at: str
    expires_at: str | None = Field(None, description="When it ends unless it is used.")
    workspace: str | None = None
    limits: Limits


class SessionList(Model):
    """Sessions, oldest first."""

    sessions: list[Session]


class InSession(Frozen):
    """A session."""

    session_id: SessionId


class Done(Model):
    """What was done is done."""

    session_id: str
    done: bool = True


class Whose(Frozen):
    """Of what: a session, or of the caller at all."""

    session_id: SessionId | None = Field(
        None, min_length=1, max_length=128, description="A session; left out, only your own quotas are told."
    )


class Quota(Model):
    """What is left of a quota, and the seconds that bring more."""

    limit: int
    remaining: int
    reset_s: float


class Used(Model):
    """What a session uses of its limits, and what is left of the caller's quotas."""

    session_id: str | None = None
    usage: Usage | None = None
    limits: Limits | None = None
    quotas: dict[str, Quota] = Field(default_factory=dict)


class Nothing(Frozen):
    """No arguments."""


class SessionTools:
    """Sessions for agents."""

    def __init__(self, use_cases: UseCases, handles: Handles, settings: McpSettings) -> None:
        self._contexts = use_cases.contexts
        self._kernels = use_cases.kernels
        self._quotas = use_cases.quotas
        self._handles = handles
        self._ttl_s = settings.session_ttl_s

    async def create(self, call: Call, given: NewSession) -> Session:
        """Make a session."""
        session_id = self._handles.new()
        options = KernelOptions(kernel=given.kernel, env=given.env, workspace=given.workspace)
        try:
            await self._contexts.open(call.principal, session_id, options, ttl_s=given.ttl_s or self._ttl_s)
        except BadRequest as error:
            # a profile may have its kernels end sooner than we would by default
            if given.ttl_s is not None or error.reason != "limits":
                raise
            await self._contexts.open(call.principal, session_id, options)
        return _shown(await self._contexts.get(call.principal, session_id))

    async def list(self, call: Call, _given: Nothing) -> SessionList:
        """List the caller's sessions."""
        return SessionList(sessions=[_shown(each) for each in await self._contexts.list(call.principal)])

    async def close(self, call: Call, given: InSession) -> Done:
        """End a session and its kernel."""
        session = await self._handles.find(call.principal, given.session_id)
        await self._contexts.close(call.principal, session.name)
        return Done(session_id=given.session_id)

    async def interrupt(self, call: Call, given: InSession) -> Done:
        """Interrupt what runs."""
        session = await self._handles.find(call.principal, given.session_id)
        await self._kernels.interrupt(call.principal, session.kernel_id)
        return Done(session_id=given.session_id)

    async def restart(self, call: Call, given: InSession) -> Session:
        """Start the kernel afresh."""
        session = await self._handles.find(call.principal, given.session_id)
        await self._kernels.restart(call.principal, session.kernel_id)
        return _shown(await self._contexts.get(call.principal, session.name))

    async def pause(self, call: Call, given: InSession) -> Done:
        """Freeze a session."""
        session = await self._handles.find(call.principal, given.session_id)
        await self._kernels.pause(call.principal, session.kernel_id)
        return Done(session_id=given.session_id)

    async def resume(self, call: Call, given: InSession) -> Done:
        """Let a paused session go on."""
        session = await self._handles.find(call.principal, given.session_id)
        await self._kernels.resume(call.principal, session.kernel_id)
        return Done(session_id=given.session_id)

    async def usage(self, call: Call, given: Whose) -> Used:
        """Tell what is used."""
        used = Used(session_id=given.session_id)
        if given.session_id is not None:
            session = await self._handles.find(call.principal, given.session_id)
            used.limits = session.limits
            used.usage = await self._kernels.usage(call.principal, session.kernel_id)
        for name in COUNTED:
            left = self._quotas.allowance(call.principal.name, name)
            if left is not None:
                used.quotas[name] = Quota(
                    limit=left.limit, remaining=left.remaining, reset_s=round(left.reset_s, 3)
                )
        return used

    def tools(self) -> tuple[Tool, ...]:
        """Return these tools."""
        return (
            Tool(
                "create_session",
                "Make a session",
                "Start a Jupyter kernel in a sandbox of its own, without network, with a private home. "
                "Variables and files stay until the session ends: by close_session, or by itself after "
                f"ttl_s idle seconds ({self._ttl_s:g} unless you say otherwise). Keep session_id, and use it "
                "with the other tools.",
                NewSession,
                Session,
                self.create,
                KERNELS,
                ADDS,
            ),
            Tool(
                "list_sessions",
                "List sessions",
                "List your sessions that live, with the state and the limits of each.",
                Nothing,
                SessionList,
                self.list,
                KERNELS,
                SEES,
            ),
            Tool(
                "close_session",
                "Close a session",
                "End a session, everything that runs in it, and its home (but not its workspace).",
                InSession,
                Done,
                self.close,
                KERNELS,
                ENDS,
            ),
        )

    def controls(self) -> tuple[Tool, ...]:
        """Return the tools that act on a session's kernel."""
        return (
            Tool(
                "interrupt",
                "Interrupt",
                "Interrupt the code that runs in a session; its variables stay.",
                InSession,
                Done,
                self.interrupt,
                KERNELS,
                Hints(idempotent=True),
            ),
            Tool(
                "restart",
                "Restart",
                "Start a session's kernel afresh, which also mends one that died: variables are lost, and "
                "files too unless the session has a workspace.",
                InSession,
                Session,
                self.restart,
                KERNELS,
                RUNS,
            ),
        )

    def facts(self) -> tuple[Tool, ...]:
        """Return the tools that tell what is used."""
        return (
            Tool(
                "usage",
                "Show usage",
                "Show what a session uses (memory, CPU time, processes, home) of its limits, and what is "
                "left of your quotas per minute.",
                Whose,
                Used,
                self.usage,
                KERNELS,
                SEES,
            ),
        )

    def extended(self) -> tuple[Tool, ...]:
        """Return the tools that are offered where somebody asks."""
        return (
            Tool(
                "pause",
                "Pause a session",
                "Freeze everything in a session; it takes no CPU time until resume.",
                InSession,
                Done,
                self.pause,
                KERNELS,
                Hints(idempotent=True),
                extended=True,
            ),
            Tool(
                "resume",
                "Resume a session",
                "Let a paused session go on.",
                InSession,
                Done,
                self.resume,
                KERNELS,
                Hints(idempotent=True),
                extended=True,
            ),
        )


def _shown(context: ContextView) -> Session:
    return Session(
        session_id=context.name,
        kernel=context.kernel,
        state=context.state,
        reason=context.reason,
        created_at=context.created_at,
        expires_at=context.expires_at,
        workspace=context.workspace,
        limits=context.limits,
    )
