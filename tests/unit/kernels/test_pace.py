"""The pace of one kernel: fast for a while, slower in the long run."""

from __future__ import annotations

import pytest

from gateway.kernels.pace import (
    ALONE,
    BURST_BYTES,
    BURST_MESSAGES,
    BYTES_PER_S,
    BYTES_PER_WORKED_S,
    LATELY_S,
    MESSAGES_PER_S,
    Company,
    Pace,
)


class Pair:
    """Two kernels of one gateway, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        company = Company()
        self.flooding, self.other = (Pace(lambda: self.now, company=company) for _ in range(2))


def test_the_pace_holds_in_the_long_run() -> None:
    """After a burst, no more is read than the rate allows; what was quiet may burst again."""
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.spend(BURST_BYTES) == 0
    assert pace.spend(BYTES_PER_S) == pytest.approx(1.0)
    now[0] += 1.0
    assert pace.spend(0) == pytest.approx(0.0)
    now[0] += BURST_BYTES / BYTES_PER_S
    assert pace.spend(BURST_BYTES) == 0


def test_work_counts_as_bytes_do() -> None:
    """Small messages that take long hold their kernel as large ones do."""
    pace = Pace(lambda: 0.0)
    pace.worked(BURST_BYTES / BYTES_PER_WORKED_S)
    assert pace.spend(BYTES_PER_S) == pytest.approx(1.0)


def test_who_is_alone_may_bring_any_number_of_messages() -> None:
    """Without others at work, small messages are held by what they cost alone."""
    pair = Pair()
    for _ in range(100):
        pair.now += 0.1
        assert pair.flooding.spend(10_000, MESSAGES_PER_S) == 0


def test_who_is_alone_is_read_faster() -> None:
    """A burst is followed by a higher rate while no other is at work, by the usual one as soon as one is."""
    pair = Pair()
    assert pair.flooding.spend(BURST_BYTES) == 0
    assert pair.flooding.spend(BYTES_PER_S) == pytest.approx(1.0 / ALONE)
    pair.now += 1.0 / ALONE
    pair.other.spend(100, 1)
    assert pair.flooding.spend(BYTES_PER_S) > 0.9


def test_in_company_messages_have_a_rate() -> None:
    """While another is at work, a burst passes and then so many in a second; the other is not held."""
    pair = Pair()
    assert pair.other.spend(100, 1) == 0
    assert pair.flooding.spend(100, BURST_MESSAGES) == 0
    assert pair.flooding.spend(100, 50) == pytest.approx(50 / MESSAGES_PER_S)
    pair.now += 50 / MESSAGES_PER_S
    assert pair.other.spend(100, 1) == 0
    assert pair.flooding.spend(100, 50) == pytest.approx(50 / MESSAGES_PER_S)


def test_what_was_brought_alone_is_not_held_against_a_kernel() -> None:
    """When another begins to work, a kernel that flooded before is held for what it brings then, no more."""
    pair = Pair()
    for _ in range(10):
        pair.flooding.spend(100, BURST_MESSAGES)
    pair.other.spend(100, 1)

    assert pair.flooding.spend(100, 20) == pytest.approx(20 / MESSAGES_PER_S)


def test_who_has_fallen_silent_is_no_company() -> None:
    """A while after the other's last message the kernel is alone again."""
    pair = Pair()
    pair.other.spend(100, 1)
    pair.flooding.spend(100, BURST_MESSAGES)
    pair.now += LATELY_S * 1.01

    assert pair.flooding.spend(100, 3 * BURST_MESSAGES) == 0
