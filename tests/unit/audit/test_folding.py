"""Floods of equal refusals become counts."""

from __future__ import annotations

from gateway.audit.folding import MAX_KINDS, Folding
from gateway.models import AuditAction, AuditEvent, AuditOutcome


def refusal(address: str = "1.2.3.4", **fields: str) -> AuditEvent:
    """Return a refusal."""
    return AuditEvent(
        action=AuditAction.AUTH_REFUSED, outcome=AuditOutcome.REFUSED, address=address, **fields
    )


def test_equal_refusals_are_counted() -> None:
    """The first of a kind pass one by one, the rest become one record with their number."""
    folding = Folding(2)
    passed = [folding.take(refusal(target=f"/{n}", request_id=f"r{n}")) for n in range(10)]
    other = folding.take(refusal(address="5.6.7.8"))

    assert [event is not None for event in passed] == [True, True] + [False] * 8
    assert other is not None
    [folded] = folding.flush()
    assert folded.extra == {"folded": 8}
    assert (folded.address, folded.request_id) == ("1.2.3.4", None)


def test_a_new_window_begins_with_nothing() -> None:
    """After a flush refusals pass again, and nothing is counted twice."""
    folding = Folding(1)
    folding.take(refusal())
    folding.take(refusal())
    folding.flush()

    assert folding.flush() == []
    assert folding.take(refusal()) is not None


def test_kinds_are_bounded() -> None:
    """A flood from everywhere is told apart up to a bound; what comes beyond is counted together."""
    folding = Folding(1)
    passed = [folding.take(refusal(address=f"10.0.{n // 256}.{n % 256}")) for n in range(1000)]

    assert sum(event is not None for event in passed) == MAX_KINDS + 1
    [others] = folding.flush()
    assert (others.reason, others.address, others.extra) == ("others", None, {"folded": 1000 - MAX_KINDS - 1})


def test_all_can_be_folded() -> None:
    """While nothing can be written, refusals are only counted."""
    folding = Folding(5)

    assert folding.take(refusal(), fold=True) is None
    assert [event.extra for event in folding.flush()] == [{"folded": 1}]
