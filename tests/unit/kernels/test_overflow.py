"""Output beyond what is passed on: counted, cut in the middle, and its tail kept."""

from __future__ import annotations

from gateway.kernels.overflow import TAIL_BYTES, Overflow
from gateway.models import Message
from gateway.protocol.messages import make


def output(size: int, kind: str = "stream") -> Message:
    """Return an output message of about that many bytes."""
    return make("iopub", kind, {"name": "stdout", "text": "x" * size}, parent=None, session="s")


def test_output_passes_until_the_limit() -> None:
    """Below the limit everything passes, and nothing is left for the end."""
    overflow = Overflow(40_000)

    assert all(overflow.passes(output(1000)) for _ in range(5))
    assert all(overflow.passes(output(1000, "display_data")) for _ in range(20))
    assert overflow.end() == (0, [])


def test_a_quarter_may_be_text() -> None:
    """Text has a bound of its own, since clients find it harder to take than pictures."""
    overflow = Overflow(40_000)

    assert sum(overflow.passes(output(1000)) for _ in range(20)) == 8
    assert len(overflow.end()[1]) == 12


def test_beyond_the_limit_only_the_tail_is_kept() -> None:
    """What comes after the limit is kept back; of that the last survives, the rest is counted."""
    overflow = Overflow(10_000)
    messages = [output(10_000) for _ in range(100)]

    passed = [message for message in messages if overflow.passes(message)]
    cut, tail = overflow.end()

    assert len(passed) == 0
    assert tail == messages[-len(tail) :]
    assert sum(message.size for message in tail) <= TAIL_BYTES
    assert cut == sum(message.size for message in messages) - sum(message.size for message in tail)
    assert overflow.end() == (0, [])


def test_what_is_no_output_always_passes() -> None:
    """States, errors, comms and input are never cut."""
    overflow = Overflow(1)

    assert not overflow.passes(output(100))
    assert all(
        overflow.passes(output(100, kind)) for kind in ("status", "error", "comm_msg", "execute_input")
    )
