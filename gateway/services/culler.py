"""Culling: ends kernels that idle, that are too old, or that stay dead."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from gateway.models import AuditAction, AuditEvent, DeathReason, ExecutionState

if TYPE_CHECKING:
    from gateway.ports import Audit, Clock, KernelHandle, KernelHost
    from gateway.services.kernels import KernelService
    from gateway.settings import Settings

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

# How long a dead kernel is shown, when its limits know no idle timeout.
_DEAD_S = 300.0


class Culler:
    """Looks at all kernels at intervals and ends those whose time is over."""

    def __init__(
        self, host: KernelHost, kernels: KernelService, clock: Clock, settings: Settings, audit: Audit
    ) -> None:
        self._audit = audit
        self._host = host
        self._kernels = kernels
        self._clock = clock
        self._settings = settings.kernels
        self._dead_since: dict[str, float] = {}

    async def run(self) -> None:
        """Sweep every `cull_interval_s` until cancelled."""
        while True:
            await asyncio.sleep(self._settings.cull_interval_s)
            await self.sweep()

    async def sweep(self) -> None:
        """Look at every kernel once; one that cannot be ended is logged and met again next time."""
        handles = self._host.all()
        now = self._clock.monotonic()
        self._dead_since = {
            handle.id: self._dead_since.get(handle.id, now)
            for handle in handles
            if handle.state is ExecutionState.DEAD
        }
        # Together, because a kernel that is slow to end must not keep the others.
        await asyncio.gather(*(self._look(handle) for handle in handles))

    async def _look(self, handle: KernelHandle) -> None:
        try:
            why = self._verdict(handle)
            if why is None:
                return
            seen = {"idle_s": round(handle.idle_for_s(), 1), "age_s": round(handle.age_s(), 1)}
            await self._host.remove(handle.id, DeathReason.CULLED)
            self._audit.record(
                AuditEvent(
                    action=AuditAction.KERNEL_CULL,
                    door="gateway",
                    kernel_id=handle.id,
                    reason=why,
                    extra={"owner": handle.owner},
                )
            )
            log.info("kernel_culled", kernel_id=handle.id, owner=handle.owner, why=why, **seen)
            await self._kernels.forget(handle.id)
        except Exception:
            log.exception("kernel_cull_failed", kernel_id=handle.id)

    def _verdict(self, handle: KernelHandle) -> str | None:
        limits = handle.limits
        if limits.max_lifetime_s is not None and handle.age_s() > limits.max_lifetime_s:
            return "lifetime"
        if handle.state is ExecutionState.DEAD:
            kept_s = limits.idle_timeout_s if limits.idle_timeout_s is not None else _DEAD_S
            now = self._clock.monotonic()
            return "dead" if now - self._dead_since.get(handle.id, now) > kept_s else None
        if handle.state is not ExecutionState.IDLE or limits.idle_timeout_s is None:
            return None
        if handle.connections and not self._settings.cull_connected:
            return None
        return "idle" if handle.idle_for_s() > limits.idle_timeout_s else None
