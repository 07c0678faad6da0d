"""The store keeps what it is given, for several processes at once, and says clearly when it cannot."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from gateway.errors import ConfigurationError, Conflict, StoreUnavailable
from gateway.models import (
    AuditHead,
    AuditRecord,
    KernelRecord,
    KeyRecord,
    Limits,
    Scope,
    SessionRecord,
    UsageDay,
)
from gateway.models.jobs import JobRecord, JobStatus
from gateway.store import SqlStore, database, sql
from gateway.store.schema import SCHEMA_VERSION, metadata

START = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


def a_key(key_id: str = "k1", **changes) -> KeyRecord:
    """Return a key."""
    fields = {
        "id": key_id,
        "principal": "alice",
        "scopes": frozenset({Scope.KERNELS, Scope.ADMIN}),
        "secret_hash": "ab" * 32,
        "created_at": START,
    }
    return KeyRecord(**(fields | changes))


def a_kernel(kernel_id: str = "n1", **changes) -> KernelRecord:
    """Return a kernel."""
    fields = {"id": kernel_id, "owner": "alice", "spec": "python3", "created_at": START, "limits": Limits()}
    return KernelRecord(**(fields | changes))


def a_session(session_id: str = "s1", **changes) -> SessionRecord:
    """Return a session."""
    fields = {
        "id": session_id,
        "owner": "alice",
        "path": "work/ü 'a\".ipynb",
        "name": "a",
        "type": "notebook",
        "kernel_id": "n1",
        "kernel_name": "python3",
        "created_at": START,
    }
    return SessionRecord(**(fields | changes))


@pytest.fixture
def path(tmp_path):
    """Return where a store may be made."""
    return tmp_path / "state" / "gateway" / "cellblock.db"


@pytest.fixture
async def store(path):
    """Return an open store."""
    store = await SqlStore.open(path)
    yield store
    await store.close()


async def reopen_with(store: SqlStore, pragma: str) -> None:
    """Let the store's next connections obey one more pragma."""
    engine = store._database._engine
    sa.event.listen(engine, "connect", lambda connection, _: connection.execute(pragma))
    engine.dispose()


async def test_keys(store):
    """A key comes back as it was put, with its moments in UTC; revoking works once."""
    east = timezone(timedelta(hours=9))
    key = a_key(expires_at=START.astimezone(east) + timedelta(days=1))
    await store.add_key(key)
    await store.add_key(a_key("k0", created_at=START - timedelta(seconds=1)))

    assert await store.key("k1") == key
    assert (await store.key("k1")).expires_at.tzinfo is UTC
    assert await store.key("other") is None
    assert [kept.id for kept in await store.keys()] == ["k0", "k1"]

    assert await store.revoke_key("k1", START.astimezone(east)) is True
    assert await store.revoke_key("k1", START + timedelta(hours=1)) is False
    assert await store.revoke_key("other", START) is False
    assert (await store.key("k1")).revoked_at == START


async def test_key_ids_are_not_reused(store):
    """A second key of the same id is refused and the first stays."""
    await store.add_key(a_key())

    with pytest.raises(Conflict):
        await store.add_key(a_key(principal="mallory"))

    assert (await store.key("k1")).principal == "alice"


async def test_kernels(store):
    """A kernel's limits and environment survive; putting again replaces; deleting twice is harmless."""
    limits = Limits(memory_bytes=1 << 28, idle_timeout_s=None, cpus=0.5)
    kernel = a_kernel(limits=limits, env={"KERNEL_X": "ä\n\x00\u2028", "E": ""})
    await store.put_kernel(kernel)
    await store.put_kernel(a_kernel("n0"))
    assert await store.kernels() == [a_kernel("n0"), kernel], "oldest first, then by id"

    changed = kernel.model_copy(update={"env": {}})
    await store.put_kernel(changed)
    assert await store.kernels() == [a_kernel("n0"), changed]

    await store.delete_kernel("n1")
    await store.delete_kernel("n1")
    assert await store.kernels() == [a_kernel("n0")]


async def test_sessions(store):
    """A path belongs to one session per owner; the same path of another owner is free."""
    await store.put_session(a_session())
    await store.put_session(a_session("s2", owner="bob", created_at=START + timedelta(seconds=1)))

    with pytest.raises(Conflict, match="that path"):
        await store.put_session(a_session("s3"))
    await store.put_session(a_session("s3", path="b"))
    with pytest.raises(Conflict, match="that path"):
        await store.put_session(a_session("s3"))

    assert (await store.session("s3")).path == "b"
    assert [one.id for one in await store.sessions()] == ["s1", "s3", "s2"]
    assert [one.id for one in await store.sessions("bob")] == ["s2"]
    assert await store.sessions("nobody") == []
    assert (await store.session_at("bob", a_session().path)).id == "s2"
    assert await store.session_at("bob", "b") is None, "alice's"

    await store.put_session(a_session(name="renamed", path="c"))
    assert await store.session("s1") == a_session(name="renamed", path="c")
    await store.delete_session("s1")
    await store.delete_session("s1")
    assert await store.session("s1") is None


async def test_records_survive_the_process(path):
    """What one store wrote the next reads."""
    first = await SqlStore.open(str(path))
    await first.put_kernel(a_kernel())
    await first.close()

    second = await SqlStore.open(f"sqlite+aiosqlite:///{path}")
    assert await second.kernels() == [a_kernel()]
    await second.close()


async def test_files_are_private(store, path):
    """The directory, the database and its companions are the owner's alone, also when they were not."""
    await store.put_kernel(a_kernel())
    files = list(path.parent.iterdir())

    assert {"cellblock.db", "cellblock.db-wal", "cellblock.db-shm"} == {file.name for file in files}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    path.chmod(0o644)
    await (await SqlStore.open(path)).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_sqlite_is_set_up_on_every_connection(store):
    """Each connection writes ahead, waits for others, and checks foreign keys."""
    engine = store._database._engine
    with engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            got = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
            ]
            assert got == ["wal", 1, 5000, 1]


async def test_two_stores_write_at_once(store, path):
    """Two stores on one file interleave their writes without losing one or failing."""
    other = await SqlStore.open(path)
    try:
        await asyncio.gather(
            *(
                one.put_kernel(a_kernel(f"{name}{n:02}"))
                for n in range(25)
                for one, name in [(store, "a"), (other, "b")]
            )
        )
        assert len(await store.kernels()) == len(await other.kernels()) == 50

        outcomes = await asyncio.gather(
            *(one.put_session(a_session(f"s{n}")) for n, one in enumerate([store, other] * 4)),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes if outcome] == [Conflict] * 7
        assert await store.sessions() == await other.sessions()
    finally:
        await other.close()


async def test_two_processes_make_and_write_one_file(path):
    """Processes that make the same store at the same moment all succeed."""
    code = """
import asyncio, sys
from datetime import UTC, datetime
from gateway.models import KernelRecord, Limits
from gateway.store import SqlStore

async def main():
    sys.stdin.readline()
    store = await SqlStore.open(sys.argv[1])
    for n in range(10):
        kernel_id, now = f"{sys.argv[2]}{n}", datetime.now(UTC)
        await store.put_kernel(
            KernelRecord(id=kernel_id, owner="a", spec="s", created_at=now, limits=Limits())
        )
    await store.close()

asyncio.run(main())
"""
    processes = [
        await asyncio.create_subprocess_exec(
            *[sys.executable, "-W", "error", "-c", code, str(path), name],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in "abc"
    ]
    printed = await asyncio.gather(*(process.communicate(b"\n") for process in processes))

    assert [err.decode() for _, err in printed] == ["", "", ""]
    store = await SqlStore.open(path)
    assert len(await store.kernels()) == 30
    await store.close()


async def test_an_older_store_is_brought_up(path, store):
    """A store of version 1 keeps its kernels and gets what is new; opening it again is harmless."""
    await store.put_kernel(a_kernel(env={"KERNEL_X": "1"}))
    await store.close()
    with sqlite3.connect(path) as old:
        old.execute("ALTER TABLE kernels DROP COLUMN secret_names")
        old.execute("ALTER TABLE kernels DROP COLUMN workspace")
        old.execute("DROP TABLE audit")
        old.execute("UPDATE schema SET version = 1")
    old.close()

    for _ in range(2):
        opened = await SqlStore.open(path)
        assert await opened.kernels() == [a_kernel(env={"KERNEL_X": "1"})]
        await opened.put_kernel(a_kernel("n2", secret_names=("A",)))
        assert await opened.audit_head() == AuditHead()
        await opened.delete_kernel("n2")
        await opened.close()
    with sqlite3.connect(path) as now:
        assert now.execute("SELECT version FROM schema").fetchall() == [(SCHEMA_VERSION,)]
    now.close()


def a_record(seq: int) -> AuditRecord:
    """Return a record of the audit trail."""
    facts = {"at": "2026-01-01T00:00:00.000000Z", "prev_hash": "a", "hash": f"h{seq}"}
    return AuditRecord(seq=seq, action="kernel.create", who="alice", extra={"spec": "x"}, **facts)


async def test_audit(store):
    """The copy of the trail knows its newest record, takes none twice, and forgets from the beginning."""
    assert await store.audit_head() == AuditHead()

    await store.add_audit([a_record(1), a_record(2), a_record(3)])
    assert await store.audit_head() == AuditHead(seq=3, hash="h3")
    with pytest.raises(Conflict):
        await store.add_audit([a_record(4), a_record(3)])
    assert await store.audit_head() == AuditHead(seq=3, hash="h3")

    await store.delete_audit(3)
    assert await store.audit_head() == AuditHead()


async def test_newer_store_is_refused_untouched(path):
    """A store made by a newer program is not opened, and not changed."""
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE schema (version INTEGER PRIMARY KEY)")
        made.execute("INSERT INTO schema VALUES (?)", (SCHEMA_VERSION + 1,))
    made.close()

    with pytest.raises(ConfigurationError, match=f"version {SCHEMA_VERSION + 1}"):
        await SqlStore.open(path)

    made = sqlite3.connect(path)
    assert made.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("schema",)]
    made.close()


async def test_disk_full(store):
    """A full disk is said in words; reading goes on."""
    await store.put_kernel(a_kernel())
    await reopen_with(store, "PRAGMA max_page_count=1")

    with pytest.raises(StoreUnavailable, match="disk is full"):
        await store.put_kernel(a_kernel("n2", env={"BIG": "x" * 1_000_000}))

    assert await store.kernels() == [a_kernel()]


async def test_read_only(store):
    """A store that may not be written says so."""
    await reopen_with(store, "PRAGMA query_only=ON")

    with pytest.raises(StoreUnavailable, match="read-only"):
        await store.put_session(a_session())


async def test_locked_by_another(store, path):
    """A lock that is never released ends in a clear error, not in a hang."""
    await reopen_with(store, "PRAGMA busy_timeout=100")
    holder = sqlite3.connect(path)
    holder.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreUnavailable, match="locked"):
        await store.put_kernel(a_kernel())

    holder.rollback()
    holder.close()
    await store.put_kernel(a_kernel())


async def test_who_waits_for_too_long_is_told(store, path, monkeypatch):
    """Behind a write that takes too long no other is begun afterwards, and only so many wait at all."""
    await reopen_with(store, "PRAGMA busy_timeout=300")
    monkeypatch.setattr(database, "WAIT_S", 0.1)
    monkeypatch.setattr(sql, "MOST_RUNNING", 3)
    holder = sqlite3.connect(path)
    holder.execute("BEGIN IMMEDIATE")

    writes = [store.put_kernel(a_kernel(f"n{number}")) for number in range(4)]
    failed = await asyncio.gather(*writes, return_exceptions=True)

    holder.rollback()
    holder.close()
    assert all(isinstance(each, StoreUnavailable) for each in failed)
    said = [each.message for each in failed]
    assert "locked" in said[0]
    assert [one.split(": ")[-1] for one in said[1:]] == [
        *["this has waited for too long."] * 2,
        "too much waits for it.",
    ]
    assert await store.kernels() == []
    await store.put_kernel(a_kernel())


async def test_who_waits_behind_others_does_not_wait_twice(store, path, monkeypatch):
    """While another process keeps the file locked each write fails in its time, however many wait at once."""
    monkeypatch.setattr(database, "WAIT_S", 1.0)
    await reopen_with(store, "PRAGMA busy_timeout=1000")
    holder = sqlite3.connect(path)
    holder.execute("BEGIN IMMEDIATE")
    loop = asyncio.get_running_loop()

    async def failing(number: int) -> float:
        await asyncio.sleep(number * 0.25)
        asked = loop.time()
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.put_kernel(a_kernel(f"n{number}"))
        return loop.time() - asked

    took = await asyncio.gather(*map(failing, range(3)))

    assert max(took) < 1.5
    holder.rollback()
    holder.close()
    await store.put_kernel(a_kernel())
    # and the next waits as long as ever
    with store._database._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 1000


async def test_a_write_that_waits_does_not_hold_up_reads(store, path):
    """While another process keeps the file locked, what was written before can still be read at once."""
    await store.put_kernel(a_kernel())
    holder = sqlite3.connect(path)
    holder.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(store.put_kernel(a_kernel("n2")))
    await asyncio.sleep(0.05)

    async with asyncio.timeout(1):
        assert await store.kernels() == [a_kernel()]

    assert not waiting.done()
    holder.rollback()
    holder.close()
    await waiting
    assert len(await store.kernels()) == 2


async def test_what_is_acknowledged_is_there_for_others(store, path):
    """When a write has returned its record is in the file, for any other process and after any crash."""
    other = sqlite3.connect(path)
    for number in range(20):
        await store.add_job(a_job(f"j{number}", idempotency_key=str(number)))
        assert other.execute("SELECT count(*) FROM jobs").fetchone() == (number + 1,)
        await store.put_job(a_job(f"j{number}", status="ok", idempotency_key=str(number)))
        seen = other.execute("SELECT status FROM jobs WHERE id = ?", (f"j{number}",)).fetchone()
        assert seen == ("ok",)
    other.close()


async def test_who_leaves_does_not_break_a_write(store):
    """A caller that is cancelled leaves at once; what was begun is written as a whole, in its order."""
    writes = [asyncio.create_task(store.put_kernel(a_kernel(env={"N": str(n)}))) for n in range(20)]
    await asyncio.sleep(0)
    for write in writes:
        write.cancel()
    gone = await asyncio.gather(*writes, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in gone)

    await store.delete_kernel("other")

    assert await store.kernels() == [a_kernel(env={"N": "19"})]


async def test_a_database_by_its_async_driver(path):
    """What has a URL is used through its driver: the same records, the same failures, closed as well."""
    store = await SqlStore.open(f"sqlite+aiosqlite:///{path}")
    await store.put_kernel(a_kernel())
    await store.put_session(a_session())
    with pytest.raises(Conflict, match="that path"):
        await store.put_session(a_session("s2"))
    cancelled = asyncio.create_task(store.put_kernel(a_kernel("n2")))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.kernels()

    again = await SqlStore.open(path)
    assert await again.kernels() == [a_kernel(), a_kernel("n2")], "begun is done"
    assert await again.session_at("alice", a_session().path) == a_session()
    await again.close()


async def test_damaged_file_is_refused_and_leaves_no_thread(path):
    """A file that is no database is an error at once, and nothing of the attempt stays."""
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database, surely" * 1000)
    await asyncio.to_thread(lambda: None)  # the loop's own worker is not of the store
    before = set(threading.enumerate())

    with pytest.raises(StoreUnavailable, match="not a database"):
        await SqlStore.open(path)

    left = [thread for thread in set(threading.enumerate()) - before if "asyncio" not in thread.name]
    for thread in left:
        # told to stop already; it may still be on its way out
        await asyncio.to_thread(thread.join, 5)
    assert not [thread for thread in left if thread.is_alive()]


async def test_unreadable_record_is_an_error_without_its_secrets(store, path):
    """A row that makes no sense is not skipped, and the error does not quote it."""
    await store.put_kernel(a_kernel())
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE kernels SET limits = '{\"hunter2\": 1}'")
    raw.close()

    with pytest.raises(StoreUnavailable) as caught:
        await store.kernels()

    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_errors_do_not_quote_values(store):
    """What failed to be written is in neither the error nor its cause."""
    await reopen_with(store, "PRAGMA query_only=ON")

    with pytest.raises(StoreUnavailable) as caught:
        await store.put_kernel(a_kernel(env={"KERNEL_PASSWORD": "hunter2"}))

    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"


async def test_place_that_cannot_be_made(tmp_path):
    """A directory that cannot be made is a clear error."""
    (tmp_path / "file").touch()

    with pytest.raises(StoreUnavailable, match="cannot be made private"):
        await SqlStore.open(tmp_path / "file" / "below" / "s.db")


@pytest.mark.parametrize(
    "url",
    [
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "nosuch://u:hunter2@h/d",  # pragma: allowlist secret
        "://",
        "sqlite:///x.db",
        "mysql://u:hunter2@h/d",  # pragma: allowlist secret
    ],
)
async def test_bad_urls(url, tmp_path, monkeypatch):
    """A URL that cannot be used is a configuration error, and its password stays out of it."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigurationError) as caught:
        await SqlStore.open(url)

    assert "hunter2" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.01])
async def test_close_leaves_nothing(path, delay):
    """After callers were cancelled midway and the store closed, no thread, descriptor or journal stays."""
    await asyncio.to_thread(lambda: None)  # the loop's own worker is not of the store
    before = set(threading.enumerate())
    store = await SqlStore.open(path)
    tasks = [asyncio.create_task(store.put_kernel(a_kernel(f"n{n}"))) for n in range(8)]
    await asyncio.sleep(delay)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    await store.close()
    await store.close()

    late = set(threading.enumerate()) - before
    for thread in late:
        if "asyncio" not in thread.name:
            await asyncio.to_thread(thread.join, 1)
            assert not thread.is_alive()
    opened = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [name for name in opened if name.startswith(str(path))]
    assert [file.name for file in path.parent.iterdir()] == ["cellblock.db"], "checkpointed"
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.kernels()


def test_tables_are_valid_on_postgresql():
    """The schema compiles for PostgreSQL, with moments that know their zone."""
    dialect = postgresql.dialect()
    made = [
        str(CreateTable(table, if_not_exists=True).compile(dialect=dialect))
        for table in metadata.sorted_tables
    ]
    made += [
        str(CreateIndex(index, if_not_exists=True).compile(dialect=dialect))
        for table in metadata.sorted_tables
        for index in table.indexes
    ]

    text = "\n".join(made)
    assert "created_at TIMESTAMP WITH TIME ZONE NOT NULL" in text
    assert "CREATE UNIQUE INDEX IF NOT EXISTS sessions_owner_path" in text


def a_job(job_id: str = "j1", **changes) -> JobRecord:
    """Return a job."""
    fields = {
        "id": job_id,
        "owner": "alice",
        "request_sha256": "ab" * 32,
        "status": "running",
        "created_at": START,
        "expires_at": START + timedelta(hours=1),
    }
    return JobRecord(**(fields | changes))


async def test_jobs(store):
    """A job is found by id and by key, replaced, listed newest first without its body, and forgotten."""
    first, second = a_job(), a_job("j2", created_at=START + timedelta(seconds=1), idempotency_key="k")
    await store.add_job(first)
    await store.add_job(second)
    await store.add_job(a_job("j3", owner="bob", idempotency_key="k"))

    with pytest.raises(Conflict):
        await store.add_job(a_job("j4", idempotency_key="k"))

    assert await store.job_by_key("alice", "k") == second
    assert await store.job_by_key("alice", "other") is None

    ended = first.model_copy(update={"status": JobStatus.OK, "body": b"\x00\xff", "ended_at": START})
    await store.put_job(ended)

    assert await store.job("j1") == ended
    assert [job.id for job in await store.jobs("alice")] == ["j2", "j1"]
    assert [job.body for job in await store.jobs("alice")] == [b"", b""]
    assert len(await store.jobs()) == 3

    await store.delete_job("j1")
    await store.put_job(ended)

    assert await store.job("j1") is None


async def test_jobs_are_lost_with_their_gateway(store):
    """What was on its way is marked; what had ended is not."""
    await store.add_job(a_job("queued", status="queued"))
    await store.add_job(a_job("running"))
    await store.add_job(a_job("ok", status="ok"))

    assert await store.lose_jobs(START) == 2

    assert {job.id: job.status for job in await store.jobs()} == {
        "queued": JobStatus.LOST,
        "running": JobStatus.LOST,
        "ok": JobStatus.OK,
    }


async def test_jobs_are_trimmed(store):
    """Expired ones go, and an owner's oldest past a number or a size; what runs stays, and others' do."""
    for number in range(6):
        fields = {"created_at": START + timedelta(seconds=number), "status": "ok", "body": b"x" * 100}
        await store.add_job(a_job(f"j{number}", **fields))
    await store.add_job(a_job("gone", status="ok", expires_at=START))
    await store.add_job(a_job("runs", expires_at=START))
    await store.add_job(a_job("bobs", owner="bob", status="ok", body=b"x" * 1000))

    await store.trim_jobs(START, most=1, most_bytes=1)
    assert len(await store.jobs()) == 8

    await store.trim_jobs(START, "alice", most=4, most_bytes=10_000)
    assert {job.id for job in await store.jobs()} == {"j2", "j3", "j4", "j5", "runs", "bobs"}

    await store.trim_jobs(START, "alice", most=4, most_bytes=250)
    assert {job.id for job in await store.jobs()} == {"j4", "j5", "runs", "bobs"}


async def test_usage_of_days(tmp_path):
    """What is added to a day is summed, by two processes at once too; days and principals are apart."""
    day = date(2026, 11, 20)
    first, second = await SqlStore.open(tmp_path / "s.db"), await SqlStore.open(tmp_path / "s.db")
    try:
        used = UsageDay(principal="alice", day=day, cpu_s=1.5, output_bytes=1 << 40)
        for _ in range(3):
            await asyncio.gather(first.add_usage([used]), second.add_usage([used]))
        await first.add_usage([used.model_copy(update={"principal": "bob"})])

        found = {each.principal: each for each in await second.usage_on(day)}
        assert found["alice"] == used.model_copy(update={"cpu_s": 9.0, "output_bytes": 6 << 40})
        assert found["bob"].cpu_s == 1.5
        assert await first.usage_on(day + timedelta(days=1)) == []

        await first.add_usage([used.model_copy(update={"day": day + timedelta(days=40)})])
        assert await second.usage_on(day) == []
    finally:
        await first.close()
        await second.close()
