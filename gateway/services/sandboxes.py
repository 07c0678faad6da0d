"""Sandboxes: homes that several kernels share, each with an end that comes whatever they do."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from gateway.errors import BadRequest, NotFound, SandboxNotRunning, Unauthorized
from gateway.models import (
    DEFAULT_SCOPES,
    AuditAction,
    ExecutionState,
    Principal,
    Scope,
    WorkspaceChoice,
)
from gateway.models.sandboxes import SandboxContext, SandboxRecord
from gateway.services.auditing import recorded
from gateway.services.kernels import require

if TYPE_CHECKING:
    from gateway.models import KernelSpec
    from gateway.ports import Audit, Authenticator, Clock, KernelHandle
    from gateway.ports.sandboxes import SandboxTokens
    from gateway.services.kernels import KernelService
    from gateway.services.sandbox_book import Sandbox, SandboxBook
    from gateway.services.workspaces import WorkspaceService
    from gateway.settings import Settings

_ID = re.compile(r"[0-9a-f]{20}")
# What a sandbox's token grants: whoever is given one must have all of it.
TOKEN_SCOPES = DEFAULT_SCOPES


class SandboxService:
    """The sandboxes of every owner, each shown to its owner alone; what is another's does not exist."""

    def __init__(
        self,
        *,
        book: SandboxBook,
        kernels: KernelService,
        workspaces: WorkspaceService,
        clock: Clock,
        settings: Settings,
        audit: Audit,
        authenticator: Authenticator,
        tokens: SandboxTokens,
    ) -> None:
        self._book = book
        self._kernels = kernels
        self._workspaces = workspaces
        self._clock = clock
        self._settings = settings.e2b
        self._audit = audit
        self._authenticator = authenticator
        self._tokens = tokens

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
            sandbox = await self._book.begin(record, lives_s)
            try:
                handle = await self._kernels.create(
                    principal, name=spec.name, workspace=self.home(principal, record.workspace)
                )
                first = SandboxContext(id=handle.id, language=spec.language.lower(), cwd="", own=True)
                await self._book.open(sandbox, record.model_copy(update={"contexts": (first,)}))
            except BaseException:
                self._book.fail(sandbox)
                raise
        return sandbox

    def get(self, principal: Principal, sandbox_id: str) -> Sandbox:
        """Return a sandbox of the principal's. Raises NotFound."""
        sandbox = self._book.find(sandbox_id)
        if sandbox is None or sandbox.record.owner != principal.name:
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
        """Return the principal's sandboxes, oldest first. Raises Forbidden."""
        require(principal, Scope.KERNELS)
        return self._book.of(principal.name)

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
        sandbox = self._book.find(sandbox_id)
        if sandbox is None:
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
            await self._book.change(sandbox, ends_at=max(later, sandbox.ends_at), **behind)
        return sandbox

    async def set_timeout(self, principal: Principal, sandbox_id: str, timeout_s: float) -> None:
        """Have a sandbox end in so many seconds. Raises Forbidden, NotFound, BadRequest."""
        self._require_all(principal)
        sandbox = self.get(principal, sandbox_id)
        lives_s = self._timeout(timeout_s)
        self._audit.admit()
        with recorded(self._audit, AuditAction.SANDBOX_CHANGE, principal, target=sandbox_id):
            await self._book.change(sandbox, ends_at=self._end_in(sandbox, lives_s))

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
            for handle in self._book.handles(sandbox):
                if handle.state is not ExecutionState.DEAD:
                    await self._kernels.pause(principal, handle.id)
            latest = self._end_in(sandbox, self._settings.max_timeout_s)
            await self._book.change(sandbox, paused=True, ends_at=latest)
        return True

    async def resume(self, principal: Principal, sandbox_id: str, *, timeout_s: float | None) -> Sandbox:
        """Let a paused sandbox go on, to end in so many seconds. Raises Forbidden, NotFound, BadRequest."""
        self._require_all(principal)
        sandbox = self.get(principal, sandbox_id)
        lives_s = self._timeout(timeout_s)
        self._audit.admit()
        with recorded(self._audit, AuditAction.SANDBOX_RESUME, principal, target=sandbox_id):
            for handle in self._book.handles(sandbox):
                if handle.model().paused:
                    await self._kernels.resume(principal, handle.id)
            await self._book.change(sandbox, paused=False, ends_at=self._end_in(sandbox, lives_s))
        return sandbox

    async def kill(self, principal: Principal, sandbox_id: str) -> None:
        """End a sandbox, its kernels and its home. Raises Forbidden, NotFound, StoreUnavailable."""
        self._require_all(principal)
        sandbox = self.get(principal, sandbox_id)
        # never refused for want of a record: it ends something
        with recorded(self._audit, AuditAction.SANDBOX_DELETE, principal, target=sandbox_id):
            await self._book.end(sandbox)

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
        return self._book.kernel(kernel_id)

    def home(self, principal: Principal, workspace: str) -> WorkspaceChoice:
        """Return the home that a sandbox's kernels share. Raises Forbidden."""
        chosen = self._workspaces.choose(principal, workspace, shared=True)
        return chosen.model_copy(update={"size_bytes": self._settings.home_bytes})

    async def change_contexts(
        self, sandbox: Sandbox, *, new: SandboxContext | None = None, without: str | None = None
    ) -> None:
        """Note a context that has been made, or one that is to go. Raises SandboxNotRunning."""
        kept = tuple(context for context in sandbox.record.contexts if context.id != without)
        await self._book.change(sandbox, contexts=(*kept, new) if new else kept)

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
