"""Kernels: who may start one, see it, interrupt it, restart it and end it."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from gateway.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    LimitReached,
    NotFound,
    StoreUnavailable,
    UnknownKernelSpec,
)
from gateway.models import DeathReason, KernelRecord, KernelSpec, Limits, Principal, Scope

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.ports import Clock, KernelHandle, KernelHost, Store
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

    def __init__(self, host: KernelHost, store: Store, clock: Clock, settings: Settings) -> None:
        self._host = host
        self._store = store
        self._clock = clock
        self._settings = settings.kernels
        self._executions = settings.executions
        self._starting: dict[str, str] = {}

    def specs(self) -> Mapping[str, KernelSpec]:
        """Return the kernelspecs that may be started, by name."""
        return self._host.specs()

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
        kernel_id: str | None = None,
    ) -> KernelHandle:
        """Start a kernel for the principal and wait until it answers; nothing is left of one that fails.

        `env` is this launch's alone. Raises Forbidden, UnknownKernelSpec, BadRequest (env or id), Conflict
        (an id in use), LimitReached (a quota), SandboxUnavailable, KernelStartFailed, StoreUnavailable.
        """
        require(principal, Scope.KERNELS)
        spec = self._spec(name)
        checked = self._environment(env or {})
        wanted = str(uuid4()) if kernel_id is None else _canonical(kernel_id)
        limits = self._limits(spec)
        with self._reserved(wanted, principal.name):
            handle = await self._host.start(
                kernel_id=wanted, owner=principal.name, spec=spec, env=checked, limits=limits
            )
            record = KernelRecord(
                id=wanted,
                owner=principal.name,
                spec=spec.name,
                created_at=self._clock.now(),
                limits=limits,
                env=checked,
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
        """Interrupt what a kernel runs. Raises Forbidden, NotFound, KernelDead."""
        await self.get(principal, kernel_id).interrupt()

    async def restart(self, principal: Principal, kernel_id: str) -> KernelHandle:
        """Start a kernel afresh under its id.

        Raises Forbidden, NotFound, SandboxUnavailable, KernelStartFailed.
        """
        handle = self.get(principal, kernel_id)
        await handle.restart()
        return handle

    async def delete(self, principal: Principal, kernel_id: str) -> None:
        """End a kernel, then forget it. Raises Forbidden, NotFound, StoreUnavailable (the kernel is gone)."""
        handle = self.get(principal, kernel_id)
        await self._host.remove(handle.id, DeathReason.SHUTDOWN)
        await self.forget(handle.id)

    async def forget(self, kernel_id: str) -> None:
        """Forget the record of a kernel that the host has removed. Raises StoreUnavailable."""
        await self._store.delete_kernel(kernel_id)

    def _spec(self, name: str | None) -> KernelSpec:
        specs = self._host.specs()
        wanted = name or self._host.default_spec()
        spec = specs.get(wanted)
        if spec is None:
            known = ", ".join(sorted(specs)) or "none"
            raise UnknownKernelSpec(f"No such kernelspec: {wanted[:64]!r}. There are: {known}.")
        return spec

    def _limits(self, spec: KernelSpec) -> Limits:
        limits = self._host.profile_limits(spec.profile)
        return limits.model_copy(
            update={
                "timeout_s": min(limits.timeout_s, self._executions.max_timeout_s),
                "max_timeout_s": min(limits.max_timeout_s, self._executions.max_timeout_s),
                "output_bytes": min(limits.output_bytes, self._executions.max_output_bytes),
            }
        )

    def _environment(self, env: Mapping[str, str]) -> dict[str, str]:
        if len(env) > _ENV_NAMES:
            raise BadRequest(f"A request may set at most {_ENV_NAMES} environment variables.")
        total = 0
        for name, value in env.items():
            shown = repr(name[:64])
            if not self._may_set(name):
                raise BadRequest(f"The environment variable {shown} may not be set by a request.")
            try:
                size = len(value.encode())
            except UnicodeEncodeError as error:
                raise BadRequest(f"The environment variable {shown} is not text.") from error
            if size > _ENV_VALUE_BYTES:
                raise BadRequest(f"The environment variable {shown} exceeds {_ENV_VALUE_BYTES} bytes.")
            if "\0" in value:
                raise BadRequest(f"The environment variable {shown} contains a NUL.")
            total += len(name) + size
        if total > _ENV_BYTES:
            raise BadRequest(f"The environment variables exceed {_ENV_BYTES} bytes together.")
        return dict(env)

    def _may_set(self, name: str) -> bool:
        if len(name) > _ENV_NAME_LENGTH or not _ENV_NAME.fullmatch(name) or _ENV_NEVER.fullmatch(name):
            return False
        return name.startswith("KERNEL_") or name in self._settings.env_allowed

    @contextmanager
    def _reserved(self, kernel_id: str, owner: str) -> Iterator[None]:
        # Counted and taken in one step of the loop: parallel creates cannot pass a quota together. A kernel
        # that the host shows while it starts is still counted once.
        owners = {handle.id: handle.owner for handle in self._host.all()} | self._starting
        if kernel_id in owners:
            raise Conflict(f"The kernel id {kernel_id} is in use.")
        if len(owners) >= self._settings.max_kernels:
            raise LimitReached("This gateway runs as many kernels as it may.", reason="max_kernels")
        if sum(other == owner for other in owners.values()) >= self._settings.max_kernels_per_owner:
            raise LimitReached(
                f"You have {self._settings.max_kernels_per_owner} kernels, as many as you may.",
                reason="max_kernels_per_owner",
            )
        self._starting[kernel_id] = owner
        try:
            yield
        finally:
            del self._starting[kernel_id]


def _canonical(kernel_id: str) -> str:
    with suppress(ValueError):
        if str(UUID(kernel_id)) == kernel_id:
            return kernel_id
    raise BadRequest("The kernel id must be a UUID in lower case with hyphens.")
