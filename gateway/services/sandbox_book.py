"""The book of live sandboxes: what is known of them in memory and in the store, and the end of each."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from gateway.errors import NotFound, SandboxNotRunning
from gateway.models import AuditAction, AuditEvent, DeathReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.models.sandboxes import SandboxRecord
    from gateway.ports import Audit, Clock, KernelHandle, KernelHost, Store
    from gateway.services.kernels import KernelService

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

# between two looks at all sandboxes, and between two tries to end one that would not
SWEEP_S, RETRY_S = 1.0, 10.0


@dataclass(slots=True)
class Sandbox:
    """A live sandbox. `ends_at` is monotonic; the lock is held where contexts are chosen or it is ended.

    Of one that has ended something may be left, which goes at `ends_at`.
    """

    record: SandboxRecord
    ends_at: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: bool = False


class SandboxBook:
    """Keeps sandboxes, and ends each when its time has come."""

    def __init__(
        self, host: KernelHost, kernels: KernelService, store: Store, clock: Clock, audit: Audit
    ) -> None:
        self._host = host
        self._kernels = kernels
        self._store = store
        self._clock = clock
        self._audit = audit
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

    async def begin(self, record: SandboxRecord, lives_s: float) -> Sandbox:
        """Note a sandbox that is going to be made; it counts as ended until it is opened.

        Known before there is anything of it, so that a gateway which ends meanwhile leaves no home behind.
        """
        await self._store.put_sandbox(record)
        return Sandbox(record, self._clock.monotonic() + lives_s, ended=True)

    async def open(self, sandbox: Sandbox, record: SandboxRecord) -> None:
        """Note that a sandbox is made. Raises StoreUnavailable."""
        sandbox.record = record
        await self._store.put_sandbox(record)
        sandbox.ended = False
        self._live[record.id] = sandbox

    def fail(self, sandbox: Sandbox) -> None:
        """Note that a sandbox could not be made: what there is of it goes at the next look."""
        sandbox.ends_at = self._clock.monotonic()
        self._live[sandbox.record.id] = sandbox

    def find(self, sandbox_id: str) -> Sandbox | None:
        """Return a sandbox that has not ended."""
        sandbox = self._live.get(sandbox_id)
        return None if sandbox is None or sandbox.ended else sandbox

    def of(self, owner: str) -> Sequence[Sandbox]:
        """Return an owner's sandboxes, oldest first."""
        found = (s for s in self._live.values() if s.record.owner == owner and not s.ended)
        return sorted(found, key=lambda sandbox: (sandbox.record.created_at, sandbox.record.id))

    def kernel(self, kernel_id: str) -> KernelHandle | None:
        """Return a kernel, if it is there."""
        return self._host.get(kernel_id)

    def handles(self, sandbox: Sandbox) -> Sequence[KernelHandle]:
        """Return the kernels of a sandbox that are there."""
        found = (self._host.get(context.id) for context in sandbox.record.contexts)
        return [handle for handle in found if handle is not None]

    async def change(self, sandbox: Sandbox, *, ends_at: float | None = None, **fields: object) -> None:
        """Note what has changed of a sandbox. Raises SandboxNotRunning, StoreUnavailable."""
        if sandbox.ended:
            raise SandboxNotRunning(f"The sandbox {sandbox.record.id} was not found.")
        if ends_at is not None:
            sandbox.ends_at = ends_at
            left = timedelta(seconds=ends_at - self._clock.monotonic())
            fields["end_at"] = self._clock.now() + left
        sandbox.record = sandbox.record.model_copy(update=fields)
        await self._store.put_sandbox(sandbox.record)

    async def _look(self, sandbox: Sandbox) -> None:
        contexts, ended = sandbox.record.contexts, sandbox.ended
        gone = not contexts or self._host.get(contexts[0].id) is None
        if self._clock.monotonic() < sandbox.ends_at and (ended or not gone):
            if not ended:
                self._keep(sandbox)
            return
        try:
            await self.end(sandbox)
        except Exception as error:  # noqa: BLE001 - it is met again, and the others must not wait for it
            log.warning("sandbox_end_failed", sandbox=sandbox.record.id, error=str(error))
            sandbox.ends_at = self._clock.monotonic() + RETRY_S
            return
        if not ended:
            why = "gone" if gone else "time"
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

    def _keep(self, sandbox: Sandbox) -> None:
        """Keep a sandbox's kernels from ending for idleness: they have an end of their own."""
        for handle in self.handles(sandbox):
            idle_s = handle.limits.idle_timeout_s
            if idle_s is not None and handle.idle_for_s() > idle_s / 2:
                handle.touch()

    async def end(self, sandbox: Sandbox) -> None:
        """End everything of a sandbox's, once; whoever comes meanwhile finds nothing any more."""
        async with sandbox.lock:
            sandbox.ended = True
            for handle in self.handles(sandbox):
                await self._host.remove(handle.id, DeathReason.SHUTDOWN)
                await self._kernels.forget(handle.id)
            with suppress(NotFound):
                await self._host.delete_workspace(sandbox.record.owner, sandbox.record.workspace)
            await self._store.delete_sandbox(sandbox.record.id)
            self._live.pop(sandbox.record.id, None)
