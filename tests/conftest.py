"""What all tests share: firejail must be there, and nothing may be skipped for want of it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.gateway import Client, Gateway, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def pytest_sessionstart() -> None:
    """Fail loudly where firejail is missing: no test of ours means anything without it."""
    if shutil.which("firejail") is None:
        pytest.exit("firejail is not installed; run `make setup`", returncode=3)


# many tests share one principal's minute
ROOM = {
    "CELLBLOCK_KERNELS__MAX_KERNELS_PER_OWNER": "50",
    "CELLBLOCK_QUOTAS__EXECUTIONS_PER_MINUTE": "unlimited",
    "CELLBLOCK_QUOTAS__STARTS_PER_MINUTE": "unlimited",
}


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    """A gateway that many tests share; a test that kills or configures takes one of its own."""
    with running("--no-keep", env=ROOM) as shared:
        yield shared


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    """A client of alice's."""
    async with gateway.client() as client:
        yield client


@pytest.fixture
async def kernel(client: Client) -> AsyncIterator[str]:
    """A fresh kernel of alice's."""
    kernel_id = await client.start()
    yield kernel_id
    async with client.http.delete(f"/api/kernels/{kernel_id}"):
        pass
