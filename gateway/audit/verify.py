"""Proves the trail: every record genuine, none missing, moved or cut off."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.audit.chain import genuine, parse
from gateway.audit.journal import Journal
from gateway.models import AuditAction, AuditHead


@dataclass(slots=True)
class Verdict:
    """What was found: how many records are good, from which to which, and the first thing that is wrong."""

    records: int = 0
    first: int = 0
    last: int = 0
    problem: str | None = None


def verify(journal: Journal, key: bytes, head: AuditHead) -> Verdict:
    """Read the whole trail against its key and against `head`, the newest record that the store knows.

    Raises OSError when a file cannot be read.
    """
    found, before, pruned = Verdict(), "0" * 64, 0
    for where, line in _lines(journal):
        record = parse(line)
        if record is None:
            found.problem = f"Record {found.last + 1} is damaged ({where})."
            return found
        seq = record["seq"]
        follows = record.get("prev_hash") == before or (not found.records and seq > 1)
        if not genuine(line, record, key):
            found.problem = f"Record {seq} was changed ({where})."
        elif found.records and seq != found.last + 1:
            found.problem = f"{_missing(found.last + 1, seq)} ({where})."
        elif not follows or (seq == head.seq and record["hash"] != head.hash):
            found.problem = f"Record {seq} is of another trail ({where})."
        if found.problem:
            return found
        found.records += 1
        found.first, found.last, before = found.first or seq, seq, record["hash"]
        if record["action"] == AuditAction.AUDIT_PRUNE:
            pruned = max(pruned, record["extra"]["through"])
    if found.first > pruned + 1:
        found.problem = f"{_missing(pruned + 1, found.first)} (the beginning was cut)."
    elif found.last < head.seq:
        found.problem = f"{_missing(found.last + 1, head.seq + 1)} (the end was cut)."
    return found


def _lines(journal: Journal) -> Iterator[tuple[str, bytes]]:
    """Yield every line there is now, with where it stands; what is appended meanwhile is left out."""
    with journal.locked(fcntl.LOCK_SH):
        files = [(path, path.stat().st_size) for path in journal.files()]
    for path, size in files:
        left = size
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                left -= len(line)
                if left < 0:
                    break
                yield f"{path.name}, line {number}", line


def _missing(first: int, after: int) -> str:
    if after <= first:
        return f"Record {after} stands where record {first} should"
    if after == first + 1:
        return f"Record {first} is missing"
    return f"Records {first} to {after - 1} are missing"
