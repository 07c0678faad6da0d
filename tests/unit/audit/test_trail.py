"""The trail takes what has happened, refuses what cannot be recorded, and tells when a record stands."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from gateway.audit.journal import Journal
from gateway.audit.trail import AuditTrail
from gateway.audit.verify import verify
from gateway.clock import SystemClock
from gateway.errors import AuditUnavailable, StoreUnavailable
from gateway.models import (
    AuditAction,
    AuditEvent,
    AuditHead,
    AuditOutcome,
    ExecutionRecord,
    ExecutionStatus,
    Origin,
)
from gateway.origin import acting
from gateway.settings import AuditSettings
from gateway.store import SqlStore
from tests.unit.audit.conftest import KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

ALICE = Origin(principal="alice", key_id="k1", door="rest", address="127.0.0.1", request_id="r1")
EVENT = AuditEvent(action=AuditAction.KERNEL_DELETE, kernel_id="k", who="bob")


class Stuck(Journal):
    """A journal on a disk that can be full or slow."""

    full = False
    slow_s = 0.0

    def append(self, entries: Sequence[tuple[datetime, AuditEvent]], floor: AuditHead) -> AuditHead:
        """Append, or be stuck."""
        time.sleep(self.slow_s)
        if self.full:
            raise OSError(28, "No space left on device")
        return super().append(entries, floor)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    """A store."""
    store = await SqlStore.open(tmp_path / "store.db")
    yield store
    await store.close()


@pytest.fixture
def stuck(directory: Path) -> Stuck:
    """The journal of `trail`."""
    return Stuck(directory, KEY, AuditSettings())


@pytest.fixture
async def trail(stuck: Stuck, store: SqlStore) -> AsyncIterator[AuditTrail]:
    """A running trail."""
    trail = AuditTrail(stuck, store, SystemClock(), AuditSettings(queue_bytes=1 << 16, refusals_per_s=2))
    await trail.start()
    yield trail
    await trail.close()


def records(directory: Path) -> list[dict[str, object]]:
    """Return what stands in the files."""
    files = sorted(directory.glob("*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


async def copied(store: SqlStore, seq: int) -> None:
    """Wait until the store has a copy of a record."""
    async with asyncio.timeout(20):
        while (await store.audit_head()).seq < seq:
            await asyncio.sleep(0.02)


async def test_written_means_in_the_file(trail: AuditTrail, directory: Path) -> None:
    """When `written` returns, every event recorded before stands in the file, in order."""
    for number in range(500):
        trail.record(EVENT.model_copy(update={"target": str(number)}))
    await trail.written()

    assert [record["target"] for record in records(directory)] == [str(number) for number in range(500)]


async def test_an_event_is_signed_by_the_request(trail: AuditTrail, directory: Path) -> None:
    """Within a request its origin stands in the record; what names its door is left as it is."""
    with acting(ALICE):
        trail.record(EVENT)
        trail.record(EVENT.model_copy(update={"door": "gateway"}))
    trail.record(EVENT)
    await trail.written()
    signed = [(r["who"], r["door"], r.get("address"), r.get("request_id")) for r in records(directory)]

    assert signed == [
        ("alice", "rest", "127.0.0.1", "r1"),
        ("bob", "gateway", None, None),
        ("bob", "gateway", None, None),
    ]


async def test_an_execution(trail: AuditTrail, directory: Path) -> None:
    """An execution's record has who, whence, what by its hash, how it ended, and no code unless told."""
    trail.ended(
        ExecutionRecord(
            id="m1",
            kernel_id="n1",
            owner="carol",
            origin=ALICE,
            code_sha256="ab" * 32,
            code="print('canary')",
            status=ExecutionStatus.ERROR,
            reason=None,
            started_at=datetime.now(UTC),
            duration_s=1.25,
            output_bytes=77,
        )
    )
    await trail.written()
    [record] = records(directory)

    assert record["action"] == "execution.end"
    assert (record["who"], record["kernel_id"], record["target"]) == ("alice", "n1", "m1")
    assert (record["outcome"], record["reason"], record["extra"]) == ("error", "error", {"owner": "carol"})
    assert (record["code_sha256"], record["duration_s"], record["output_bytes"]) == ("ab" * 32, 1.25, 77)
    assert "canary" not in json.dumps(record)


async def test_the_store_follows(trail: AuditTrail, stuck: Stuck, store: SqlStore) -> None:
    """The copy in the store reaches the file's head, records of other processes included."""
    trail.record(EVENT)
    await trail.written()
    stuck.append([(datetime.now(UTC), EVENT)], AuditHead())
    trail.record(EVENT)
    await copied(store, 3)

    assert verify(stuck, KEY, await store.audit_head()).problem is None


async def test_a_failing_store_is_caught_up(
    trail: AuditTrail, stuck: Stuck, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store fails, records are written all the same, and copied when it is back."""

    async def fails(_records: object) -> None:
        raise StoreUnavailable("The disk fails.")

    monkeypatch.setattr(store, "add_audit", fails)
    trail.record(EVENT)
    await trail.written()
    trail.admit()
    await asyncio.sleep(0.3)
    assert (await store.audit_head()).seq == 0

    monkeypatch.undo()
    await copied(store, 1)


async def test_a_full_disk_stops_new_work(trail: AuditTrail, stuck: Stuck, directory: Path) -> None:
    """When the file cannot be written, waiters and new work are refused; what happened is written later."""
    stuck.full = True
    trail.record(EVENT)
    with pytest.raises(AuditUnavailable, match="No space"):
        await trail.written()
    with pytest.raises(AuditUnavailable):
        trail.admit()
    for _ in range(1000):
        trail.record(AuditEvent(action=AuditAction.AUTH_REFUSED, outcome=AuditOutcome.REFUSED))
    trail.record(EVENT)

    stuck.full = False
    async with asyncio.timeout(20):
        while len(records(directory)) < 3:
            await asyncio.sleep(0.02)
    trail.admit()
    await trail.written()
    assert [record["action"] for record in records(directory)] == ["kernel.delete"] * 2 + ["auth.refused"]
    assert records(directory)[-1]["extra"] == {"folded": 1000}


async def test_a_slow_disk_stops_new_work(trail: AuditTrail, stuck: Stuck) -> None:
    """When more waits than may, new work is refused until it is written; nothing of it is lost."""
    stuck.slow_s = 0.2
    for _ in range(100):
        trail.record(EVENT)
    with pytest.raises(AuditUnavailable, match="slow"):
        trail.admit()

    await trail.written()
    trail.admit()


async def test_refusals_are_folded(trail: AuditTrail, directory: Path) -> None:
    """Equal refusals beyond the bound are one record with a count, a second later."""
    for _ in range(50):
        trail.record(AuditEvent(action=AuditAction.AUTH_REFUSED, outcome=AuditOutcome.REFUSED, door="rest"))
    async with asyncio.timeout(20):
        while len(records(directory)) < 3:
            await asyncio.sleep(0.02)

    assert [record["extra"] for record in records(directory)] == [{}, {}, {"folded": 48}]


async def test_failed_requests_are_folded_too(trail: AuditTrail, directory: Path) -> None:
    """Who sends nonsense without end fills no disk either; what was done is never folded."""
    failed = AuditEvent(action=AuditAction.REQUEST_FAILED, outcome=AuditOutcome.ERROR, door="rest")
    for _ in range(50):
        trail.record(failed)
        trail.record(EVENT)
    async with asyncio.timeout(20):
        while len(records(directory)) < 53:
            await asyncio.sleep(0.02)

    found = [record["extra"] for record in records(directory) if record["action"] == "request.failed"]
    assert found == [{}, {}, {"folded": 48}]
    assert len(records(directory)) == 53


async def test_closing_writes_and_copies_all(stuck: Stuck, store: SqlStore, directory: Path) -> None:
    """What was taken stands in files and store when close returns; a new trail goes on behind it."""
    for run in (1, 2):
        trail = AuditTrail(stuck, store, SystemClock(), AuditSettings())
        await trail.start()
        for _ in range(300):
            trail.record(EVENT)
        await trail.close()
        assert (await store.audit_head()).seq == 300 * run

    assert verify(stuck, KEY, await store.audit_head()).records == 600
