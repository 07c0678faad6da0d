"""Short lives in a row are counted; a long one between them makes good for all."""

from __future__ import annotations

from gateway.kernels.lives import MAX_SHORT_LIVES, SHORT_LIFE_S, Lives
from tests.doubles import ManualClock


def live(lives: Lives, clock: ManualClock, seconds: float) -> None:
    """Let a run live for so long, and die."""
    lives.begun()
    clock.advance(seconds)
    lives.ended()


def test_short_lives_in_a_row_are_enough() -> None:
    """As many as are allowed are; one more is not."""
    clock = ManualClock()
    lives = Lives(clock)
    for _ in range(MAX_SHORT_LIVES):
        live(lives, clock, 1)
        assert not lives.spent
    live(lives, clock, 1)
    assert lives.spent


def test_a_long_life_makes_good() -> None:
    """After a run that lasted, the count begins anew."""
    clock = ManualClock()
    lives = Lives(clock)
    for _ in range(MAX_SHORT_LIVES):
        live(lives, clock, 1)
    live(lives, clock, SHORT_LIFE_S)
    live(lives, clock, 1)
    assert not lives.spent
