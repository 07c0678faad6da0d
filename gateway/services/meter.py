"""Measures the CPU time of all kernels, and ends what goes on when its owner's day is used up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from gateway.errors import GatewayError
from gateway.models import AuditAction, AuditEvent, DeathReason, ExecutionState

if TYPE_CHECKING:
    from gateway.ports import Audit, Clock, KernelHandle, KernelHost
    from gateway.services.kernels import KernelService
    from gateway.services.quotas import Quotas

# a kernel that uses more than this share of a core is at work
_AT_WORK = 0.05

log = structlog.get_logger(__name__)


class Meter:
    """Looks at every kernel, over and over. Past a quota it interrupts what runs, then ends the kernel."""

    def __init__(
        self,
        host: KernelHost,
        kernels: KernelService,
        quotas: Quotas,
        clock: Clock,
        audit: Audit,
        *,
        interval_s: float = 5.0,
    ) -> None:
        self._host = host
        self._kernels = kernels
        self._quotas = quotas
        self._clock = clock
        self._audit = audit
        self._interval_s = interval_s
        self._began = clock.monotonic()
        self._warned: set[str] = set()

    async def run(self) -> None:
        """Look every `interval_s` until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.look()
            except Exception:  # one bad look must not end all
                log.exception("usage_not_measured")

    async def look(self) -> None:
        """Measure every kernel once, and keep the sums."""
        handles = self._host.all()
        await asyncio.gather(*(self._measure(handle) for handle in handles))
        live = {handle.id for handle in handles}
        self._quotas.forget(live)
        self._warned &= live
        await self._quotas.save()

    async def _measure(self, handle: KernelHandle) -> None:
        if handle.state in {ExecutionState.DEAD, ExecutionState.STARTING}:
            return
        # an adopted kernel's time before this gateway was charged by the one before it
        anew = handle.age_s() <= self._clock.monotonic() - self._began
        try:
            used_s = await self._quotas.measure(handle, anew=anew)
            if self._quotas.spent(handle.owner) != "cpu_s_per_day" or used_s < _AT_WORK * self._interval_s:
                self._warned.discard(handle.id)
            elif handle.id not in self._warned:
                self._warned.add(handle.id)
                log.warning("cpu_quota_used_up", kernel=handle.id, owner=handle.owner)
                await handle.interrupt()
            else:
                await self._host.remove(handle.id, DeathReason.CPU)
                self._audit.record(
                    AuditEvent(
                        action=AuditAction.KERNEL_DIE,
                        door="gateway",
                        kernel_id=handle.id,
                        reason=DeathReason.CPU.value,
                        extra={"owner": handle.owner},
                    )
                )
                await self._kernels.forget(handle.id)
        except GatewayError as error:
            log.warning("usage_not_measured", kernel=handle.id, error=error.message)
