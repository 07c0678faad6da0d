"""What the tests of JSON-RPC share: an owner, a kernel of theirs, and connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.rpc import connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.clients.rpc import Rpc
    from tests.gateway import Client, Gateway


@pytest.fixture(scope="module")
async def owner(gateway: Gateway) -> AsyncIterator[Client]:
    """An owner of this module's own."""
    async with gateway.client("rpc-owner") as client:
        yield client


@pytest.fixture(scope="module")
async def kernel_id(owner: Client) -> AsyncIterator[str]:
    """A kernel that the tests share; each leaves it idle."""
    made = await owner.start()
    yield made
    await owner.delete(made)


@pytest.fixture
async def rpc(owner: Client) -> AsyncIterator[Rpc]:
    """A connection of its own."""
    async with connected(owner) as rpc:
        yield rpc
