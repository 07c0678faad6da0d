"""The services over doubles of the ports."""

from __future__ import annotations

import pytest

from gateway.services.kernels import KernelService
from gateway.services.quotas import Quotas
from gateway.settings import KernelsSettings, Settings
from tests.doubles import ManualClock, MemoryAudit, MemoryHost, MemoryStore, kernelspec


@pytest.fixture
def clock() -> ManualClock:
    """A clock that the test moves."""
    return ManualClock()


@pytest.fixture
def host(clock: ManualClock) -> MemoryHost:
    """A host with two kernelspecs."""
    return MemoryHost(clock, specs=(kernelspec(), kernelspec("bash")))


@pytest.fixture
def store() -> MemoryStore:
    """An empty store."""
    return MemoryStore()


@pytest.fixture
def audit() -> MemoryAudit:
    """A trail that takes everything."""
    return MemoryAudit()


@pytest.fixture
def settings() -> Settings:
    """Settings with small quotas and one allowed name for the environment."""
    return Settings(
        kernels=KernelsSettings(
            max_kernels=5, max_kernels_per_owner=3, env_allowed=("LANG_HINT", "PATH", "LD_PRELOAD")
        )
    )


@pytest.fixture
def kernels(
    host: MemoryHost, store: MemoryStore, clock: ManualClock, settings: Settings, audit: MemoryAudit
) -> KernelService:
    """The kernel service over these."""
    return KernelService(host, store, clock, settings, Quotas(settings, store, clock), audit=audit)
