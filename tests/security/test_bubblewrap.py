"""The attack table against bubblewrap's cells: the same probes, victim and bounds as against firejail's."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from gateway.doctor import bait
from tests.gateway import new_state_dir, running
from tests.security import test_escapes as table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from gateway.doctor.attacks import Attack

SPEC = "python3-bubblewrap"


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, str]]:
    """The bait of this module."""
    directory = new_state_dir()
    with bait.laid(directory) as placeholders:
        yield placeholders
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
async def arena(found: dict[str, str]) -> AsyncIterator[table.Arena]:
    """Attackers and a victim in bubblewrap's cells."""
    settings = {"CB_CANARY": "sing", "CB_SECRET_TOKEN": "sing", "CELLBLOCK_KERNELS__DEFAULT": SPEC}
    with running("--no-keep", env=settings) as gateway:
        async with gateway.client("alice") as alice, gateway.client("bob") as bob:
            arena = table.Arena(gateway, alice, bob, found)
            await arena.begin()
            assert (await bob.kernel(arena.victim.kernel))["profile"] == "bubblewrap"
            yield arena


@pytest.mark.parametrize("attack", table.HELD, ids=lambda attack: attack.id)
async def test_attack(arena: table.Arena, attack: Attack) -> None:
    """The attack fails in a bubblewrap cell as it does in firejail's."""
    await table.withstand(arena, attack, backend="bubblewrap")


async def test_attacks_leave_the_victim_as_it_was(arena: table.Arena) -> None:
    """After all of it the victim's kernel is the same process with its files."""
    await table.test_attacks_leave_the_victim_as_it_was(arena)


async def test_what_a_cell_plants_is_not_the_next_cells(arena: table.Arena) -> None:
    """A kernel of the same user finds nothing of the one before."""
    await table.test_what_a_cell_plants_is_not_the_next_cells(arena)
