"""Floods of output: cut with a mark or ended with a reason, in time; the gateway stays small."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.security.flooding import TIMEOUT_S, Pair, flooded
from tests.security.floods import FLOODS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """The pair of one flood: another would hide in the memory that the first has left."""
    async with flooded() as found:
        yield found


@pytest.mark.parametrize("flood", FLOODS)
async def test_flood(pair: Pair, flood: str, record_property: Callable[[str, object], None]) -> None:
    """It ends in time, with a mark or a reason; the gateway grows by less than its bound, others go on."""
    async with pair.watched() as seen:
        result = await pair.alice.run(pair.flooding, FLOODS[flood], timeout_s=TIMEOUT_S)

    pair.check(seen, record_property)
    said = json.dumps(result["outputs"])
    cut = "[cellblock" in said
    assert cut or result["reason"] or result["status"] != "ok" or len(said) < 12 << 20, said[-300:]
    assert len(said) < 40 << 20


@pytest.mark.parametrize("flood", ["one huge line", "messages of a MiB"])
async def test_the_kernel_is_the_same_afterwards(pair: Pair, flood: str) -> None:
    """Who floods within the deadline keeps the kernel, and the next execution is answered."""
    await pair.alice.out(pair.flooding, "kept = 6 * 7")
    result = await pair.alice.run(pair.flooding, FLOODS[flood].replace("500", "100"), timeout_s=30)

    assert result["status"] == "ok"
    assert result["truncated"]
    assert await pair.alice.out(pair.flooding, "print(kept)") == "42\n"
