"""Kernels: who may start one, see it, interrupt it, restart it and end it."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from pydantic import SecretStr, ValidationError

from gateway.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    GatewayError,
    LimitReached,
    NotFound,
    StoreUnavailable,
    UnknownKernelSpec,
)
from gateway.models import (
    AuditAction,
    DeathReason,
    KernelRecord,
    KernelSpec,
    Limits,
    Principal,
    Scope,
    Usage,
)
from gateway.services.auditing import recorded
from gateway.services.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from gateway.models import WorkspaceChoice
    from gateway.ports import Audit, Clock, KernelHandle, KernelHost, Store
    from gateway.services.quotas import Quotas
    from gateway.settings import Settings

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# What decides which code runs before the user's: not to be set by a request, whatever the settings allow.
_ENV_NEVER = re.compile(r"PATH|HOME|(LD_|PYTHON|JPY_).*")
_ENV_NAMES = 64
_ENV_NAME_LENGTH = 128
_ENV_VALUE_BYTES = 64 << 10
# The kernel's execve takes some 2 MiB of arguments and environment together.
_ENV_BYTES = 512 << 10


def require(principal: Principal, scope: Scope) -> None:
    """Refuse a principal whose credential lacks a scope. Raises Forbidden, which names the scope."""
    if not principal.has(scope):
        raise Forbidden(f"This credential lacks the scope '{scope}'.", reason="missing_scope")


def owns(principal: Principal, owner: str) -> bool:
    """Tell whether what is this owner's is the principal's to see; an admin sees all."""
    return principal.name == owner or principal.has(Scope.ADMIN)


class KernelService:
    """The kernels of every owner, each shown to its owner and to admins alone."""

    def __init__(
        self,
        host: KernelHost,
        store: Store,
        clock: Clock,
        settings: Settings,
        quotas: Quotas,
        *,
        audit: Audit,
    ) -> None:
        self._host = host
        self._store = store
        self._clock = clock
        self._quotas = quotas
        self._audit = audit
        self._settings = settings.kernels
        self._turns = Turns(self._settings.max_starting, self._settings.start_queue_s)
        self._executions = settings.executions
        self._starting: dict[str, str] = {}

    async def specs(self) -> Mapping[str, KernelSpec]:
        """Return the kernelspecs that may be started, by name."""
        return await self._host.specs()

    def default_spec(self) -> str:
        """Return the kernelspec's name that is used when a request names none."""
        return self._host.default_spec()

    def get(self, principal: Principal, kernel_id: str, *, scope: Scope = Scope.KERNELS) -> KernelHandle:
        """Return a kernel of the principal's; `scope` is what it is wanted for.

        Raises Forbidden without that scope, NotFound when there is no such kernel or it is another's.
        """
        require(principal, scope)
        handle = self._host.get(kernel_id)
        if handle is None or not owns(principal, handle.owner):
            raise NotFound(f"Kernel does not exist: {kernel_id[:64]}")
        return handle

    def list(self, principal: Principal) -> list[KernelHandle]:
        """Return the principal's kernels, or everybody's for an admin. Raises Forbidden."""
        require(principal, Scope.KERNELS)
        return [handle for handle in self._host.all() if owns(principal, handle.owner)]

    async def create(
        self,
        principal: Principal,
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, SecretStr] | None = None,
        kernel_id: str | None = None,
        limits: Mapping[str, object] | None = None,
        workspace: WorkspaceChoice | None = None,
    ) -> KernelHandle:
        """Start a kernel for the principal and wait until it answers; nothing is left of one that fails.

        `env` is this launch's alone; `secrets` are too, and never kept but in memory; `limits` may only lower
        the profile's. `workspace` is its home, which is its alone unless it is shared.

        Raises Forbidden, UnknownKernelSpec, BadRequest (env or id), Conflict
        (an id or workspace in use), LimitReached (a quota), InsufficientStorage, SandboxUnavailable,
        KernelStartFailed, StoreUnavailable, AuditUnavailable.
        """
        require(principal, Scope.KERNELS)
        spec = await self._spec(name)
        secrets = dict(secrets or {})
        checked = self._environment(env or {}, secrets)
        wanted = str(uuid4()) if kernel_id is None else _canonical(kernel_id)
        granted = self._limits(spec, limits or {})
        self._audit.admit()
        names = {
            "env": ",".join(checked),
            "secrets": ",".join(secrets),
            "workspace": workspace.name if workspace else "",
        }
        extra = {"spec": spec.name, **{kind: named for kind, named in names.items() if named}}
        with (
            recorded(
                self._audit, AuditAction.KERNEL_CREATE, principal, kernel_id=wanted, extra=extra
            ) as learned,
            self._reserved(wanted, principal.name),
        ):
            self._quotas.start(principal.name)
            handle = await self._host.start(
                kernel_id=wanted,
                owner=principal.name,
                spec=spec,
                env=checked,
                secrets=secrets,
                limits=granted,
                turn=self._turns.turn(principal.name),
                workspace=workspace,
            )
            if how := handle.model().start:
                learned["start"] = how
            record = KernelRecord(
                id=wanted,
                owner=principal.name,
                spec=spec.name,
                created_at=self._clock.now(),
                limits=granted,
                env=checked,
                secret_names=tuple(secrets),
                workspace=workspace,
            )
            try:
                await self._store.put_kernel(record)
            except BaseException:
                # A kernel without a record could not be adopted; one whose client went away is nobody's.
                await self._host.remove(wanted, DeathReason.SHUTDOWN)
                with suppress(StoreUnavailable):
                    await self._store.delete_kernel(wanted)
                raise
        return handle

    async def interrupt(self, principal: Principal, kernel_id: str) -> None:
        """Interrupt what a kernel runs. Raises Forbidden, NotFound, KernelDead, AuditUnavailable."""
        handle = self.get(principal, kernel_id)
        self._audit.admit()
        with recorded(self._audit, AuditAction.KERNEL_INTERRUPT, principal, kernel_id=handle.id):
            await handle.interrupt()

    async def restart(self, principal: Principal, kernel_id: str) -> KernelHandle:
        """Start a kernel afresh under its id.

        Raises Forbidden, NotFound, LimitReached (a quota), Conflict (its secrets are not known any more),
        SandboxUnavailable, KernelStartFailed, AuditUnavailable.
        """
        handle = self.get(principal, kernel_id)
        self._audit.admit()
        with recorded(self._audit, AuditAction.KERNEL_RESTART, principal, kernel_id=handle.id):
            self._quotas.start(handle.owner)
            await self._measure(handle)
            await handle.restart(self._turns.turn(handle.owner))
        return handle

    async def pause(self, principal: Principal, kernel_id: str) -> KernelHandle:
        """Freeze a kernel, and the clocks of its deadlines. Raises Forbidden, NotFound, KernelDead."""
        handle = self.get(principal, kernel_id)
        self._audit.admit()
        with recorded(self._audit, AuditAction.KERNEL_PAUSE, principal, kernel_id=handle.id):
            await handle.pause()
        return handle

    async def resume(self, principal: Principal, kernel_id: str) -> KernelHandle:
        """Let a paused kernel go on. Raises Forbidden, NotFound, KernelDead."""
        handle = self.get(principal, kernel_id)
        self._audit.admit()
        with recorded(self._audit, AuditAction.KERNEL_RESUME, principal, kernel_id=handle.id):
            await handle.resume()
        return handle

    async def usage(self, principal: Principal, kernel_id: str) -> Usage:
        """Return what a kernel's cell uses. Raises Forbidden, NotFound, KernelDead."""
        return await self.get(principal, kernel_id).usage()

    async def delete(self, principal: Principal, kernel_id: str) -> None:
        """End a kernel, then forget it. Raises Forbidden, NotFound, StoreUnavailable (the kernel is gone)."""
        handle = self.get(principal, kernel_id)
        # never refused for want of a record: it ends something, and there are only so many kernels
        with recorded(self._audit, AuditAction.KERNEL_DELETE, principal, kernel_id=handle.id):
            await self._measure(handle)
            await self._host.remove(handle.id, DeathReason.SHUTDOWN)
            await self.forget(handle.id)

    async def forget(self, kernel_id: str) -> None:
        """Forget the record of a kernel that the host has removed. Raises StoreUnavailable."""
        await self._store.delete_kernel(kernel_id)

    async def _measure(self, handle: KernelHandle) -> None:
        # or else a kernel could be used up and ended between two looks of the meter, for nothing
        with suppress(GatewayError):
            await self._quotas.measure(handle)

    async def _spec(self, name: str | None) -> KernelSpec:
        specs = await self._host.specs()
        wanted = name or self._host.default_spec()
        spec = specs.get(wanted)
        if spec is None:
            known = ", ".join(sorted(specs)) or "none"
            raise UnknownKernelSpec(f"No such kernelspec: {wanted[:64]!r}. There are: {known}.")
        return spec

    def _limits(self, spec: KernelSpec, wanted: Mapping[str, object]) -> Limits:
        limits = lowered(self._host.profile_limits(spec.profile), wanted)
        return limits.model_copy(
            update={
                "timeout_s": min(limits.timeout_s, self._executions.max_timeout_s),
                "max_timeout_s": min(limits.max_timeout_s, self._executions.max_timeout_s),
                "output_bytes": min(limits.output_bytes, self._executions.max_output_bytes),
            }
        )

    def _environment(self, env: Mapping[str, str], secrets: Mapping[str, SecretStr]) -> dict[str, str]:
        """Return the plain part of a checked environment. Messages have names in them, never values."""
        if len(env) + len(secrets) > _ENV_NAMES:
            raise BadRequest(f"A request may set at most {_ENV_NAMES} environment variables.")
        if both := sorted(set(env) & set(secrets)):
            raise BadRequest(f"{both[0][:64]!r} is among both the environment and the secrets.")
        revealed = {name: secret.get_secret_value() for name, secret in secrets.items()}
        total = 0
        for name, value in {**env, **revealed}.items():
            shown = repr(name[:64])
            allowed = self._settings.secrets_allowed if name in secrets else self._settings.env_allowed
            if not _may_set(name, allowed):
                raise BadRequest(f"The environment variable {shown} may not be set by a request.")
            try:
                size = len(value.encode())
            except UnicodeEncodeError:
                raise BadRequest(f"The environment variable {shown} is not text.") from None
            if size > _ENV_VALUE_BYTES:
                raise BadRequest(f"The environment variable {shown} exceeds {_ENV_VALUE_BYTES} bytes.")
            if "\0" in value:
                raise BadRequest(f"The environment variable {shown} contains a NUL.")
            total += len(name) + size
        if total > _ENV_BYTES:
            raise BadRequest(f"The environment variables exceed {_ENV_BYTES} bytes together.")
        return dict(env)

    @contextmanager
    def _reserved(self, kernel_id: str, owner: str) -> Iterator[None]:
        # Counted and taken in one step of the loop: parallel creates cannot pass a quota together. A kernel
        # that the host shows while it starts is still counted once.
        owners = {handle.id: handle.owner for handle in self._host.all()} | self._starting
        if kernel_id in owners:
            raise Conflict(f"The kernel id {kernel_id} is in use.")
        if len(owners) >= self._settings.max_kernels:
            raise LimitReached("This gateway runs as many kernels as it may.", reason="max_kernels")
        most = self._quotas.bound(owner, "kernels")
        if most is not None and sum(other == owner for other in owners.values()) >= most:
            raise LimitReached(
                f"You have {most} kernels, as many as you may.", reason="max_kernels_per_owner"
            )
        self._starting[kernel_id] = owner
        try:
            yield
        finally:
            del self._starting[kernel_id]


def lowered(limits: Limits, wanted: Mapping[str, object]) -> Limits:
    """Return limits with those that a request names, none of which may be higher. Raises BadRequest."""
    for name, value in wanted.items():
        if name not in Limits.model_fields:
            raise BadRequest(f"There is no limit {name[:64]!r}.", reason="limits")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise BadRequest(f"The limit {name} is not a number.", reason="limits")
        most = getattr(limits, name)
        if most is not None and value > most:
            raise BadRequest(f"The limit {name} can only be lowered, from {most:g}.", reason="limits")
    try:
        return Limits.model_validate(limits.model_dump() | dict(wanted))
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequest(f"The limit {first['loc'][0]} is wrong: {first['msg']}.", reason="limits") from error


def _may_set(name: str, allowed: Collection[str]) -> bool:
    if len(name) > _ENV_NAME_LENGTH or not _ENV_NAME.fullmatch(name) or _ENV_NEVER.fullmatch(name):
        return False
    return name.startswith("KERNEL_") or name in allowed


def _canonical(kernel_id: str) -> str:
    with suppress(ValueError):
        if str(UUID(kernel_id)) == kernel_id:
            return kernel_id
    raise BadRequest("The kernel id must be a UUID in lower case with hyphens.")
