"""The attacks on limits are made at a cell's own limits, on a machine that can bear them."""

from __future__ import annotations

import re

from gateway.doctor.assault import spared
from gateway.doctor.attacks import load
from gateway.models import Limits

LIMITS = Limits(memory_bytes=4 << 30, tmp_bytes=3 << 30)


def test_a_machine_that_is_large_enough_is_attacked_at_the_cells_own_limits() -> None:
    """Where twice of what a cell may use is there, no limit is lowered."""
    assert spared(LIMITS, 8 << 30) == {}


def test_a_small_machine_is_spared() -> None:
    """What would fill more than half of what a machine has to give is lowered to that, and told."""
    assert spared(LIMITS, 5 << 30) == {"memory_bytes": 5 << 29, "tmp_bytes": 5 << 29}


def test_the_attacks_name_limits_that_there_are() -> None:
    """Each limit that an attack goes beyond is one of a cell's, and its amount is filled in."""
    names = {name.upper(): value for name, value in LIMITS}
    named = {name for attack in load() for name in re.findall(r"@@(\w+?)@@", attack.code)} & set(names)

    assert named == {
        *("MEMORY_BYTES", "PIDS", "HOME_BYTES", "HOME_INODES", "TMP_BYTES", "SHM_BYTES", "OPEN_FILES")
    }
    [bomb] = [attack for attack in load() if attack.id == "r01"]
    assert f"range({4 << 30}//(10<<20)+1)" in bomb.filled(names)
