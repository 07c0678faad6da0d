"""The book of jobs holds what it was told, and nothing of whoever left before it could be told."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from gateway.models import Origin, Principal, Scope
from gateway.models.jobs import JobRecord, JobRequest
from gateway.services.job import Job
from gateway.services.job_book import JobBook
from gateway.services.journal import Journal
from gateway.settings import ExecutionsSettings
from tests.doubles import ManualClock, MemoryStore

ALICE = Principal(name="alice", key_id="k", scopes=frozenset({Scope.EXECUTE}))


class SlowStore(MemoryStore):
    """A store that writes a job when it is let, whatever has become of whoever asked: as the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.let = asyncio.Event()

    async def add_job(self, job: JobRecord) -> None:
        """Write it once that is let."""
        self.writing = asyncio.create_task(self._write(job))
        await asyncio.shield(self.writing)

    async def _write(self, job: JobRecord) -> None:
        await self.let.wait()
        await super().add_job(job)


def a_job(clock: ManualClock) -> Job:
    """Return a job of alice's."""
    return Job(
        id="job",
        principal=ALICE,
        request=JobRequest(code="1"),
        origin=Origin(principal="alice", key_id="k", door="rest"),
        journal=Journal(1 << 20),
        created_at=clock.now(),
        expires_at=clock.now() + timedelta(hours=1),
        request_sha256="",
    )


async def test_who_leaves_while_a_job_is_written_leaves_nothing() -> None:
    """A caller that is cancelled leaves no job behind, also where the store writes it only afterwards."""
    clock, store = ManualClock(), SlowStore()
    book = JobBook(store, clock, ExecutionsSettings(max_jobs=1))
    adding = asyncio.create_task(book.add(a_job(clock)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    adding.cancel()
    await asyncio.sleep(0.01)
    store.let.set()
    with pytest.raises(asyncio.CancelledError):
        await adding
    await store.writing

    assert await store.jobs() == []
    assert await book.listing(ALICE) == []
    # and its place is free
    await book.add(a_job(clock))
    assert [record.id for record in await book.listing(ALICE)] == ["job"]
