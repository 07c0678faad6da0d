"""Sandboxes: homes that several kernels share, each with an end that comes whatever they do."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from gateway.errors import BadRequest, GatewayError, NotFound, SandboxNotRunning, Unauthorized
from gateway.models import (
    DEFAULT_SCOPES,
    AuditAction,
    AuditEvent,
    DeathReason,
    ExecutionState,
    Principal,
    WorkspaceChoice,
)
from gateway.models.sandboxes import SandboxContext, SandboxRecord
from gateway.services.auditing import recorded
from gateway.services.kernels import require

if TYPE_CHECKING:
    from gateway.models import KernelSpec
    from gateway.ports import Audit, Authenticator, Clock, KernelHandle, KernelHost, Store
    from gateway.ports.sandboxes import SandboxTokens
    from gateway.services.kernels import KernelService
    from gateway.services.workspaces import WorkspaceService
    from gateway.settings import Settings

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

SWEEP_S = 1.0
_ID = re.compile(r"[0-9a-f]{20}")
# What a sandbox's token grants: whoever is given one must have all of it.
TOKEN_SCOPES = DEFAULT_SCOPES


@dataclass(slots=True)
class Sandbox:
    """A live sandbox. `ends_at` is monotonic; the lock is held where contexts are chosen or it is ended."""

    record: SandboxRecord
    ends_at: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: bool = False


class SandboxService:
    """The sandboxes of every owner, each shown to its owner alone; what is another's does not exist."""

    def __init__(
        self,
        *,
        host: KernelHost,
        kernels: KernelService,
        workspaces: WorkspaceService,
        store: Store,
        clock: Clock,
        settings: Settings,
        audit: Audit,
        authenticator: Authenticator,
        tokens: SandboxTokens,
    ) -> None:
        self._host = host
        self._kernels = kernels
        self._workspaces = workspaces
        self._store = store
        self._clock = clock
        self._settings = settings.e2b
        self._audit = audit
        self._authenticator = authenticator
        self._tokens = tokens
        self._live: dict[str, Sandbox] = {}

    async def load(self) -> None:
        """Take over the sandboxes that the store knows; those whose kernels are gone end at the next look."""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        for record in await self._store.sandboxes():
            left_s = (record.end_at - now).total_seconds()
            self._live[record.id] = Sandbox(record, monotonic + left_s)

    async def run(self) -> None:
        """End the sandboxes whose time has come, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            await self.sweep()

    async def sweep(self) -> None:
        """Look at every sandbox once; one that cannot be ended is logged and met again next time."""
        await asyncio.gather(*(self._look(sandbox) for sandbox in list(self._live.values())))

    async def create(
        self,
        principal: Principal,
        *,
        template: str,
        timeout_s: float | None,
        metadata: Mapping[str, str],
        env: Mapping[str, str],
    ) -> Sandbox:
        """Make a sandbox: a home, and the kernel of its first context.

        Raises Forbidden, NotFound (template), BadRequest (timeout), LimitReached, InsufficientStorage, and
        what starting a kernel raises; nothing is left of one that fails.
        """
        self._require_all(principal)
        spec = (await self._kernels.specs()).get(self._settings.templates.get(template, ""))
        if spec is None:
            known = ", ".join(sorted(self._settings.templates))
            raise NotFound(f"Template {template[:64]!r} was not found. There are: {known} (e2b.templates).")
        lives_s = self._timeout(timeout_s)
        sandbox_id, now = secrets.token_hex(10), self._clock.now()
        record = SandboxRecord(
            id=sandbox_id,
            owner=principal.name,
            key_id=principal.key_id,
            scopes=TOKEN_SCOPES,
            credential_ends_at=principal.expires_at,
            template=template,
            spec=spec.name,
            workspace=f"e2b-{sandbox_id}",
            metadata=metadata,
            env=env,
            contexts=(),
            paused=False,
            created_at=now,
            end_at=now + timedelta(seconds=lives_s),
        )
        self._audit.admit()
        extra = {"template": template, "env": ",".join(env)[:500]}
        with recorded(self._audit, AuditAction.SANDBOX_CREATE, principal, target=sandbox_id, extra=extra):
            # known before it is made, so that a gateway which ends meanwhile leaves no home behind
            await self._store.put_sandbox(record)
            try:
                handle = await self._kernels.create(
                    principal, name=spec.name, workspace=self.home(principal, record.workspace)
                )
                first = SandboxContext(id=handle.id, language=spec.language.lower(), cwd="", own=True)
                sandbox = Sandbox(
                    record.model_copy(update={"contexts": (first,)}), self._clock.monotonic() + lives_s
                )
                await self._store.put_sandbox(sandbox.record)
            except BaseException:
                await asyncio.shield(self._undo(principal, record))
                raise
            self._live[sandbox_id] = sandbox
        return sandbox

    def get(self, principal: Principal, sandbox_id: str) -> Sandbox:
        """Return a sandbox of the principal's. Raises NotFound."""
        sandbox = self._live.get(sandbox_id)
        if sandbox is None or sandbox.ended or sandbox.record.owner != principal.name:
            raise NotFound(f"Sandbox {sandbox_id[:64]} was not found.")
        return sandbox

    def running(self, principal: Principal, sandbox_id: str) -> Sandbox:
        """Return a sandbox of the principal's that is not paused. Raises SandboxNotRunning."""
        with suppress(NotFound):
            sandbox = self.get(principal, sandbox_id)
            if not sandbox.record.paused:
                return sandbox
        raise SandboxNotRunning(f"The sandbox {sandbox_id[:64]} was not found.")

    def list(self, principal: Principal) -> Sequence[Sandbox]:
        """Return the principal's sandboxes, oldest first."""
        mine = (s for s in self._live.values() if s.record.owner == principal.name and not s.ended)
        return sorted(mine, key=lambda sandbox: (sandbox.record.created_at, sandbox.record.id))

    def token(self, sandbox: Sandbox) -> str:
        """Return a sandbox's token, for whoever made it or has come back to it."""
        return self._tokens.token(sandbox.record.id)

    async def authenticate(self, sandbox_id: str, token: str) -> Principal:
        """Return whom a sandbox's token speaks for: its owner, with what the token grants.

        Raises Unauthorized, also when the credential behind it holds no more, SandboxNotRunning when the
        token was right and its sandbox has ended, and StoreUnavailable.
        """
        if not _ID.fullmatch(sandbox_id) or not self._tokens.right(sandbox_id, token):
            raise Unauthorized("The credential is missing or not valid.")
        sandbox = self._live.get(sandbox_id)
        if sandbox is None or sandbox.ended:
            raise SandboxNotRunning(f"The sandbox {sandbox_id} was not found.")
        record = sandbox.record
        principal = Principal(
            name=record.owner,
            key_id=record.key_id,
            scopes=record.scopes,
            expires_at=record.credential_ends_at,
        )
        if not await self._authenticator.valid(principal):
            raise Unauthorized("The credential is missing or not valid.")
        return principal

    async def connect(self, principal: Principal, sandbox_id: str, *, timeout_s: float | None) -> Sandbox:
        """Come back to a sandbox: a paused one goes on, and its end is put off, never drawn nearer.

        Its token is worth from now on what this credential is. Raises Forbidden, NotFound, BadRequest.
        """
        self._require_all(principal)
        sandbox = self.get(principal, sandbox_id)
        lives_s = self._timeout(timeout_s)
        self._audit.admit()
        if sandbox.record.paused:
            await self.resume(principal, sandbox_id, timeout_s=timeout_s)
        with recorded(self._audit, AuditAction.SANDBOX_CONNECT, principal, target=sandbox_id):
            later = self._end_in(sandbox, lives_s)
            behind = {"key_id": principal.key_id, "credential_ends_at": principal.expires_at}
            await self._change(sandbox, ends_at=max(later, sandbox.ends_at), **behind)
        return sandbox

    async def set_timeout(self, principal: Principal, sandbox_id: str, timeout_s: float) -> None:
        """Have a sandbox end in so many seconds. Raises Forbidden, NotFound, BadRequest."""
        self._require_all(principal)
        sandbox = self.get(principal, sandbox_id)
        lives_s = self._timeout(timeout_s)
        self._audit.admit()
        with recorded(self._audit, AuditAction.SANDBOX_CHANGE, principal, target=sandbox_id):
            await self._change(sandbox, ends_at=self._end_in(sandbox, lives_s))

    async def pause(self, principal: Principal, sandbox_id: str) -> bool:
        """Freeze a sandbox's kernels; tell whether it was not paused already. Raises Forbidden, NotFound.

        Its time does not run meanwhile, but no sandbox outlives `e2b.max_timeout_s`.
        """
        self._require_all(principal)
        sandbox = self.get(principal, sandbox_id)
        if sandbox.record.paused:
            return False
        self._audit.admit()
        with recorded(self._audit, AuditAction.SANDBOX_PAUSE, principal, target=sandbox_id):
            for handle in self._handles(sandbox):
                if handle.state is not ExecutionState.DEAD:
                    await self._kernels.pause(principal, handle.id)
            latest = self._end_in(sandbox, self._settings.max_timeout_s)
            await self._change(sandbox, paused=True, ends_at=latest)
        return True

    async def resume(self, principal: Principal, sandbox_id: str, *, timeout_s: float | None) -> Sandbox:
        """Let a paused sandbox go on, to end in so many seconds. Raises Forbidden, NotFound, BadRequest."""
        self._require_all(principal)
        sandbox = self.get(principal, sandbox_id)
        lives_s = self._timeout(timeout_s)
        self._audit.admit()
        with recorded(self._audit, AuditAction.SANDBOX_RESUME, principal, target=sandbox_id):
            for handle in self._handles(sandbox):
                if handle.model().paused:
                    await self._kernels.resume(principal, handle.id)
            await self._change(sandbox, paused=False, ends_at=self._end_in(sandbox, lives_s))
        return sandbox

    async def kill(self, principal: Principal, sandbox_id: str) -> None:
        """End a sandbox, its kernels and its home. Raises Forbidden, NotFound, StoreUnavailable."""
        self._require_all(principal)
        sandbox = self.get(principal, sandbox_id)
        # never refused for want of a record: it ends something
        with recorded(self._audit, AuditAction.SANDBOX_DELETE, principal, target=sandbox_id):
            await self._end(sandbox)

    async def spec_for(self, sandbox: Sandbox, language: str | None) -> KernelSpec:
        """Return the kernelspec of a language, the sandbox's own for its own. Raises BadRequest."""
        specs = await self._kernels.specs()
        own = specs.get(sandbox.record.spec)
        wanted = (language or (own.language if own else "")).lower()
        if own is not None and own.language.lower() == wanted:
            return own
        for _, spec in sorted(specs.items()):
            if spec.language.lower() == wanted:
                return spec
        known = ", ".join(sorted({spec.language.lower() for spec in specs.values()}))
        raise BadRequest(f"There is no kernel for the language {wanted[:64]!r}; there are: {known}.")

    def kernel(self, kernel_id: str) -> KernelHandle | None:
        """Return a kernel, if it is there."""
        return self._host.get(kernel_id)

    def home(self, principal: Principal, workspace: str) -> WorkspaceChoice:
        """Return the home that a sandbox's kernels share. Raises Forbidden."""
        chosen = self._workspaces.choose(principal, workspace, shared=True)
        return chosen.model_copy(update={"size_bytes": self._settings.home_bytes})

    async def change_contexts(
        self, sandbox: Sandbox, *, new: SandboxContext | None = None, without: str | None = None
    ) -> None:
        """Note a context that has been made, or one that is to go. Raises SandboxNotRunning."""
        kept = tuple(context for context in sandbox.record.contexts if context.id != without)
        await self._change(sandbox, contexts=(*kept, new) if new else kept)

    def _require_all(self, principal: Principal) -> None:
        for scope in sorted(TOKEN_SCOPES):
            require(principal, scope)

    def _timeout(self, timeout_s: float | None) -> float:
        wanted = self._settings.timeout_s if timeout_s is None else timeout_s
        if not 0 <= wanted <= self._settings.max_timeout_s:
            raise BadRequest(
                f"A sandbox's timeout is at most {self._settings.max_timeout_s:g} s (e2b.max_timeout_s).",
                reason="timeout",
            )
        return wanted

    def _end_in(self, sandbox: Sandbox, lives_s: float) -> float:
        """Return the monotonic moment so many seconds from now, within the longest that any sandbox lives."""
        age_s = (self._clock.now() - sandbox.record.created_at).total_seconds()
        return self._clock.monotonic() + min(lives_s, max(0.0, self._settings.max_timeout_s - age_s))

    def _handles(self, sandbox: Sandbox) -> Sequence[KernelHandle]:
        found = (self._host.get(context.id) for context in sandbox.record.contexts)
        return [handle for handle in found if handle is not None]

    async def _change(self, sandbox: Sandbox, *, ends_at: float | None = None, **fields: object) -> None:
        if sandbox.ended:
            raise SandboxNotRunning(f"The sandbox {sandbox.record.id} was not found.")
        if ends_at is not None:
            sandbox.ends_at = ends_at
            left = timedelta(seconds=ends_at - self._clock.monotonic())
            fields["end_at"] = self._clock.now() + left
        sandbox.record = sandbox.record.model_copy(update=fields)
        await self._store.put_sandbox(sandbox.record)

    async def _look(self, sandbox: Sandbox) -> None:
        try:
            first = self._host.get(sandbox.record.contexts[0].id) if sandbox.record.contexts else None
            why = "gone" if first is None else "time"
            if first is not None and self._clock.monotonic() < sandbox.ends_at:
                self._keep(sandbox)
                return
            await self._end(sandbox)
            log.info("sandbox_ended", sandbox=sandbox.record.id, owner=sandbox.record.owner, why=why)
            self._audit.record(
                AuditEvent(
                    action=AuditAction.SANDBOX_END,
                    door="gateway",
                    target=sandbox.record.id,
                    reason=why,
                    extra={"owner": sandbox.record.owner},
                )
            )
        except Exception:
            log.exception("sandbox_end_failed", sandbox=sandbox.record.id)

    def _keep(self, sandbox: Sandbox) -> None:
        """Keep a sandbox's kernels from ending for idleness: they have an end of their own."""
        for handle in self._handles(sandbox):
            idle_s = handle.limits.idle_timeout_s
            if idle_s is not None and handle.idle_for_s() > idle_s / 2:
                handle.touch()

    async def _end(self, sandbox: Sandbox) -> None:
        """End everything of a sandbox's, once; whoever comes meanwhile finds nothing any more."""
        async with sandbox.lock:
            sandbox.ended = True
            for handle in self._handles(sandbox):
                await self._host.remove(handle.id, DeathReason.SHUTDOWN)
                await self._kernels.forget(handle.id)
            with suppress(NotFound):
                await self._host.delete_workspace(sandbox.record.owner, sandbox.record.workspace)
            await self._store.delete_sandbox(sandbox.record.id)
            self._live.pop(sandbox.record.id, None)

    async def _undo(self, principal: Principal, record: SandboxRecord) -> None:
        with suppress(GatewayError):
            for handle in self._host.all():
                model = handle.model()
                if handle.owner == principal.name and model.workspace == record.workspace:
                    await self._host.remove(handle.id, DeathReason.SHUTDOWN)
                    await self._kernels.forget(handle.id)
            with suppress(NotFound):
                await self._host.delete_workspace(record.owner, record.workspace)
            await self._store.delete_sandbox(record.id)
