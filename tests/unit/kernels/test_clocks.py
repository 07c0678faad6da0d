"""Clock steps: a wall clock that jumps makes no kernel older, younger, idle or late."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import KernelStartFailed
from gateway.kernels.kernel import LocalKernel
from gateway.kernels.observers import Observers
from gateway.kernels.running import wire
from gateway.models import Limits
from gateway.policy import CodePolicy
from gateway.sandbox.link import WardenLink
from gateway.sandbox.wire import CellFacts, Connection
from gateway.services.quotas import Quotas
from gateway.settings import Settings
from gateway.telemetry import Metrics
from tests.doubles import ManualClock, MemoryAudit, kernelspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from pathlib import Path

KERNEL = "00000000-0000-4000-8000-000000000000"
YEAR = timedelta(days=365)


class SteppedClock(ManualClock):
    """A clock whose wall time can be set, as by NTP or by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.off = timedelta()

    def now(self) -> datetime:
        """Return the moment in UTC, as far as it is set right."""
        return super().now() + self.off


@pytest.fixture
def clock() -> SteppedClock:
    """A clock that stands."""
    return SteppedClock()


@pytest.fixture
async def kernel(clock: SteppedClock, tmp_path: Path) -> AsyncIterator[LocalKernel]:
    """A kernel that was made just now, without a cell yet."""
    wiring = wire(
        WardenLink(tmp_path / "warden.sock", keep_s=0),
        session="s",
        kernels=1,
        max_message_bytes=1 << 20,
        ready_timeout_s=1,
        on_dropped=lambda *_: None,
    )
    yield LocalKernel(
        kernel_id=KERNEL,
        owner="alice",
        spec=kernelspec(),
        env={},
        secrets={},
        secret_names=(),
        limits=Limits(),
        workspace=None,
        created_at=clock.now(),
        wiring=wiring,
        pool=None,
        clock=clock,
        metrics=Metrics(),
        max_pending=10,
        replay_bytes=1 << 20,
        observer=Observers(),
        gate=Quotas(Settings(state_dir=tmp_path), None, clock),  # type: ignore[arg-type]
        audit=MemoryAudit(),
        policy=CodePolicy(),
    )
    wiring.context.destroy(linger=0)


@pytest.mark.parametrize("step", [YEAR, -YEAR])
async def test_age_and_idleness_are_monotonic(clock: SteppedClock, kernel: Any, step: timedelta) -> None:
    """After ten seconds a kernel is ten seconds old and idle, wherever the wall clock went meanwhile."""
    clock.off = step
    clock.advance(10)

    assert kernel.age_s() == 10
    assert kernel.idle_for_s() == 10


@pytest.mark.parametrize("step", [YEAR, -YEAR])
async def test_an_adopted_kernel_is_as_old_as_its_warden_says(
    clock: SteppedClock, kernel: Any, step: timedelta, tmp_path: Path
) -> None:
    """The age of an adopted kernel comes from who has lived as long as it, and not from two wall clocks."""
    clock.off = step
    connection = Connection(ip=str(tmp_path / "k"), key="0" * 64)
    facts = CellFacts(cell="0" * 12, kernel_id=KERNEL, connection=connection, landlock=0, age_s=500)
    with pytest.raises(KernelStartFailed):
        await kernel.adopt(facts, os.pidfd_open(os.getpid()))
    clock.advance(10)

    assert kernel.age_s() == 510


async def test_a_quota_per_minute_is_monotonic(clock: SteppedClock, tmp_path: Path) -> None:
    """A wall clock that jumps gives nobody another minute."""
    settings = Settings(state_dir=tmp_path, quotas={"starts_per_minute": 2})  # type: ignore[arg-type]
    quotas = Quotas(settings, None, clock)  # type: ignore[arg-type]
    quotas.start("alice")
    clock.off = timedelta(hours=1)
    clock.advance(1)

    left = quotas.allowance("alice", "starts_per_minute")
    assert left is not None
    assert (left.remaining, left.reset_s) == (1, 59)
