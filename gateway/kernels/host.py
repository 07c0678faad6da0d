"""The kernels of this machine: starting, finding, ending, and adopting what an earlier gateway left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any, Literal
from uuid import uuid4

import structlog
from pydantic import SecretStr

from gateway.errors import GatewayError, KernelStartFailed, LimitReached, SandboxUnavailable
from gateway.kernels.files import owner_hash
from gateway.kernels.kernel import LocalKernel
from gateway.kernels.pool import WarmPool
from gateway.kernels.running import Wiring
from gateway.kernels.specs import SpecCatalogue
from gateway.models import (
    AuditAction,
    AuditEvent,
    AuditOutcome,
    DeathReason,
    KernelRecord,
    KernelSpec,
    Limits,
    WorkspaceChoice,
    WorkspaceFacts,
)
from gateway.policy import CodePolicy
from gateway.ports import Audit, Clock, ExecutionGate, ExecutionObserver, Turn
from gateway.ports.tracing import Tracer
from gateway.sandbox.profile import SandboxProfile
from gateway.sandbox.wire import WardenFacts
from gateway.settings import KernelsSettings
from gateway.telemetry import Metrics

log = structlog.get_logger()

How = Literal["cold", "warm", "trial"]

# the owner of the gateway's own kernels: no principal can be called so
NOBODY = "~gateway"


class Ungated:
    """Counts nothing against anybody: a `ports.ExecutionGate` for the gateway's own kernels."""

    def admit(self, owner: str, kernel_id: str) -> None:
        """Let an execution begin."""

    def release(self, owner: str, kernel_id: str, output_bytes: int) -> None:
        """Take its end and do nothing."""


class LocalKernelHost:
    """Implements `ports.KernelHost` with cells of this machine's warden."""

    def __init__(
        self,
        *,
        catalogue: SpecCatalogue,
        profiles: Mapping[str, SandboxProfile],
        wiring: Wiring,
        clock: Clock,
        metrics: Metrics,
        settings: KernelsSettings,
        pool: WarmPool,
        observer: ExecutionObserver,
        gate: ExecutionGate,
        audit: Audit,
        tracer: Tracer,
    ) -> None:
        self._pool = pool
        self._audit = audit
        self._tracer = tracer
        self._catalogue = catalogue
        self._profiles = profiles
        self._wiring = wiring
        self._clock = clock
        self._metrics = metrics
        self._settings = settings
        self._observer = observer
        self._gate = gate
        self._kernels: dict[str, LocalKernel] = {}

    async def specs(self) -> Mapping[str, KernelSpec]:
        """Return the kernelspecs that may be started, by name."""
        return await self._catalogue.offered()

    def default_spec(self) -> str:
        """Return the name used when a request names none."""
        return self._settings.default

    def profile_limits(self, profile: str) -> Limits:
        """Return the limits of a profile's kernels. Raises SandboxUnavailable for an unknown profile."""
        try:
            return self._profiles[profile].limits
        except KeyError:
            raise SandboxUnavailable(
                f"There is no sandbox profile {profile!r}.", reason="no_profile"
            ) from None

    async def start(
        self,
        *,
        kernel_id: str,
        owner: str,
        spec: KernelSpec,
        env: Mapping[str, str],
        secrets: Mapping[str, SecretStr],
        limits: Limits,
        turn: Turn,
        workspace: WorkspaceChoice | None = None,
    ) -> LocalKernel:
        """Start a kernel and wait until it answers; see `ports.KernelHost.start`."""
        if len(self._kernels) >= self._settings.max_kernels:
            raise LimitReached(f"This gateway runs {self._settings.max_kernels} kernels already.")
        kernel = self._make(
            KernelRecord(
                id=kernel_id,
                owner=owner,
                spec=spec.name,
                created_at=self._clock.now(),
                limits=limits,
                env=env,
                secret_names=tuple(secrets),
                workspace=workspace,
            ),
            spec,
            secrets,
            pool=self._pool,
        )
        self._kernels[kernel_id] = kernel
        try:
            with self._starting(kernel_id, spec.name) as started:
                started(await kernel.start(turn))
        except BaseException:
            self._kernels.pop(kernel_id, None)
            raise
        self._metrics.kernels.set(len(self._kernels))
        return kernel

    @asynccontextmanager
    async def trial(self, spec: KernelSpec, limits: Limits) -> AsyncIterator[LocalKernel]:
        """Give a kernel of the gateway's own; see `ports.KernelHost.trial`."""
        kernel_id, now = str(uuid4()), self._clock.now()
        record = KernelRecord(id=kernel_id, owner=NOBODY, spec=spec.name, created_at=now, limits=limits)
        kernel = self._make(record, spec, {}, gate=Ungated(), pool=None)
        with self._starting(kernel_id, spec.name) as started:
            started("trial")
            await kernel.start(nullcontext())
        try:
            yield kernel
        finally:
            await kernel.shutdown(DeathReason.SHUTDOWN)

    @contextmanager
    def _starting(self, kernel_id: str, spec: str) -> Iterator[Callable[[How], None]]:
        """Count, log and trace how a start goes; give a way to say how it is made, cold unless told."""
        how: How = "cold"
        facts = {"cellblock.kernel_id": kernel_id, "cellblock.kernelspec": spec}

        def made(known: How) -> None:
            nonlocal how
            how = known
            span.note({"cellblock.how": known})

        with self._tracer.span("kernel.start", facts) as span:
            try:
                yield made
            except BaseException as error:
                outcome = error.code if isinstance(error, GatewayError) else "cancelled"
                self._metrics.kernel_starts.labels(spec, outcome, how).inc()
                log.warning("kernel did not start", kernel=kernel_id, outcome=outcome, error=str(error))
                span.fail(outcome)
                raise
            self._metrics.kernel_starts.labels(spec, "ok", how).inc()

    async def warden(self) -> WardenFacts:
        """Return what this machine's warden is. Raises SandboxUnavailable."""
        return await self._wiring.link.facts()

    async def workspaces(self, owner: str) -> Sequence[WorkspaceFacts]:
        """Return an owner's workspaces by name."""
        return await self._wiring.link.workspaces(owner_hash(owner))

    async def delete_workspace(self, owner: str, name: str) -> None:
        """Delete a workspace. Raises NotFound, Conflict while a kernel has it."""
        await self._wiring.link.delete_workspace(owner_hash(owner), name)

    async def keep_warm(self) -> None:
        """Keep kernels ready that are nobody's yet, until cancelled."""
        await self._pool.run(lambda: len(self._kernels))

    def get(self, kernel_id: str) -> LocalKernel | None:
        """Return a kernel by id."""
        return self._kernels.get(kernel_id)

    def all(self) -> Sequence[LocalKernel]:
        """Return every kernel, oldest first."""
        return list(self._kernels.values())

    async def remove(self, kernel_id: str, reason: DeathReason) -> None:
        """End a kernel and forget it. Unknown ids are ignored."""
        kernel = self._kernels.pop(kernel_id, None)
        if kernel:
            await kernel.shutdown(reason)
            self._metrics.kernels.set(len(self._kernels))

    async def adopt(self, records: Iterable[KernelRecord]) -> list[str]:
        """Adopt the cells that these records know, end the others, return the ids whose cells are gone."""
        known = {record.id: record for record in records}
        cells = await self._wiring.link.cells()
        await asyncio.gather(*(self._adopt_cell(cell, known) for cell in cells))
        self._metrics.kernels.set(len(self._kernels))
        return [kernel_id for kernel_id in known if kernel_id not in self._kernels]

    async def close(self, *, keep: bool) -> None:
        """Leave the kernels to the next gateway, or end them all and the warden; nobody's end either way."""
        await self._pool.close()
        kernels, self._kernels = self.all(), {}
        if keep:
            await asyncio.gather(*(kernel.leave() for kernel in kernels))
        else:
            ends = (kernel.shutdown(DeathReason.SHUTDOWN) for kernel in kernels)
            await asyncio.gather(*ends, return_exceptions=True)
            try:
                await self._wiring.link.stop()
            except GatewayError as error:
                log.warning("the warden cannot be stopped", error=error.message)
        self._wiring.link.close()
        self._wiring.context.destroy(linger=0)

    async def _adopt_cell(self, cell: str, known: Mapping[str, KernelRecord]) -> None:
        try:
            facts, pidfd = await self._wiring.link.adopt(cell)
            if facts.pooled:
                # nobody's: this gateway keeps its own
                os.close(pidfd)
                await self._wiring.link.end(cell)
                return
            record = known.get(facts.kernel_id)
            spec = (await self.specs()).get(record.spec) if record else None
            if record is None or spec is None or facts.kernel_id in self._kernels:
                os.close(pidfd)
                raise KernelStartFailed("No record of this cell's kernel is left.", reason="adoption")
            kernel = self._make(record, spec, {}, pool=self._pool)
            self._kernels[record.id] = kernel
            try:
                await kernel.adopt(facts, pidfd)
            except BaseException:
                del self._kernels[record.id]
                raise
            log.info("kernel adopted", kernel=record.id, cell=cell)
            self._note_adoption(cell, kernel_id=record.id, extra={"owner": record.owner})
        except GatewayError as error:
            self._note_adoption(cell, outcome=AuditOutcome.ERROR, reason=error.code)
            log.warning("a cell was not adopted and is ended", cell=cell, error=error.message)
            await self._wiring.link.end(cell)

    def _note_adoption(self, cell: str, **facts: Any) -> None:
        self._audit.record(AuditEvent(action=AuditAction.KERNEL_ADOPT, door="gateway", target=cell, **facts))

    def _make(
        self,
        record: KernelRecord,
        spec: KernelSpec,
        secrets: Mapping[str, SecretStr],
        *,
        pool: WarmPool | None,
        gate: ExecutionGate | None = None,
    ) -> LocalKernel:
        profile = self._profiles.get(spec.profile)
        return LocalKernel(
            kernel_id=record.id,
            owner=record.owner,
            spec=spec,
            env=record.env,
            secrets=secrets,
            secret_names=record.secret_names,
            limits=record.limits,
            workspace=record.workspace,
            created_at=record.created_at,
            wiring=self._wiring,
            pool=pool,
            clock=self._clock,
            metrics=self._metrics,
            max_pending=self._settings.max_pending,
            replay_bytes=self._settings.replay_bytes,
            observer=self._observer,
            gate=gate or self._gate,
            audit=self._audit,
            # a profile that is gone allows nothing to start, and forbids nothing to what runs
            policy=profile.policy if profile else CodePolicy(),
        )
