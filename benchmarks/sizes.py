"""How much is measured: in full, and quickly."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of a run. What is compared is always measured with the same ones."""

    budget_s: float
    rounds: int
    long_rounds: int
    creates: int
    bursts: tuple[int, ...]
    one_shots_s: float
    trips: int
    warm_up: int
    displays: int
    text_bytes: int
    buffers: int
    buffer_bytes: int
    populations: tuple[int, ...]
    settle_s: float
    load_s: float
    idle_s: float
    neighbours: int
    neighbour_s: float
    restarted: int
    file_bytes: int


FULL = Sizes(
    budget_s=40 * 60,
    rounds=4,
    long_rounds=2,
    creates=4,
    bursts=(10, 50),
    one_shots_s=10,
    trips=150,
    warm_up=20,
    displays=5000,
    text_bytes=20_000_000,
    buffers=16,
    buffer_bytes=4 * MIB,
    populations=(50, 200),
    settle_s=3,
    load_s=10,
    idle_s=10,
    neighbours=10,
    neighbour_s=6,
    restarted=50,
    file_bytes=100 * MIB,
)
QUICK = Sizes(
    budget_s=240,
    rounds=2,
    long_rounds=1,
    creates=1,
    bursts=(4,),
    one_shots_s=3,
    trips=25,
    warm_up=5,
    displays=1000,
    text_bytes=4_000_000,
    buffers=4,
    buffer_bytes=4 * MIB,
    populations=(6,),
    settle_s=1,
    load_s=3,
    idle_s=3,
    neighbours=3,
    neighbour_s=2,
    restarted=5,
    file_bytes=16 * MIB,
)
