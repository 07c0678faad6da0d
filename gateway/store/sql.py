"""The store: every record that must survive the process, by the statements that keep and find it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable

from gateway.errors import ConfigurationError, StoreUnavailable
from gateway.models import AuditHead, AuditRecord, Frozen, KernelRecord, KeyRecord, SessionRecord, UsageDay
from gateway.models.jobs import JobRecord, JobStatus
from gateway.models.sandboxes import SandboxRecord
from gateway.store.engine import database_url, failures, make_database
from gateway.store.schema import (
    ADD,
    CHANGE,
    FORGET,
    MIGRATIONS,
    ONE,
    SCHEMA_VERSION,
    SESSION_AT,
    WHICH,
    api_keys,
    audit,
    jobs,
    kernels,
    metadata,
    sandboxes,
    schema,
    sessions,
    usage_days,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date, datetime
    from pathlib import Path

    from gateway.store.database import Database

USAGE_KEPT_DAYS = 31
# transactions at a time, those that wait for others among them
MOST_RUNNING = 5000

T = TypeVar("T")
Record = TypeVar("Record", bound=Frozen)


class SqlStore:
    """Keep records in a SQL database (`ports.Store`).

    Several processes may have the same store open. Methods raise StoreUnavailable when it does not answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._closed = False
        self._running: set[asyncio.Future[Any]] = set()

    @classmethod
    async def open(cls, url_or_path: str | Path) -> Self:
        """Open a store by the path of a SQLite file or by SQLAlchemy's async URL; make it when it is new.

        Raises ConfigurationError when the URL is no good or another version of the program made the store,
        and StoreUnavailable when the database does not answer or its file cannot be made private.
        """
        store = cls(await asyncio.to_thread(make_database, database_url(url_or_path)))
        try:
            await store._prepare()
        except BaseException:
            await store.close()
            raise
        return store

    async def _prepare(self) -> None:
        """Make the tables that are missing, after a look at who made the store; bring an older one up."""
        first = sa.select(sa.literal(SCHEMA_VERSION)).where(~sa.exists(sa.select(schema.c.version)))

        def work(connection: sa.Connection) -> None:
            connection.execute(CreateTable(schema, if_not_exists=True))
            connection.execute(schema.insert().from_select(["version"], first))
            version = connection.execute(sa.select(schema.c.version)).scalar_one()
            if version > SCHEMA_VERSION:
                raise ConfigurationError(
                    f"The store has version {version} and this program knows versions up to {SCHEMA_VERSION}."
                )
            for step in range(version + 1, SCHEMA_VERSION + 1):
                for statement in MIGRATIONS[step]:
                    connection.execute(sa.text(statement))
                connection.execute(schema.update().values(version=step))
            for table in metadata.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(CreateIndex(index, if_not_exists=True))

        await self._write(work, "Two processes made the store at once; try again.")

    async def _write(self, work: Callable[[sa.Connection], T], conflict: str = "The record is in use.") -> T:
        """Do some work in one transaction; its failures are Conflict, with this message, or StoreUnavailable.

        A caller who is cancelled leaves at once, and the transaction still ends as a whole.
        """
        return await self._done(self._database.write, work, conflict)

    async def _done(
        self,
        begin: Callable[[Callable[[sa.Connection], T]], asyncio.Future[T]],
        work: Callable[[sa.Connection], T],
        conflict: str = "The record is in use.",
    ) -> T:
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        if len(self._running) >= MOST_RUNNING:
            raise StoreUnavailable("The store is too slow: too much waits for it.")
        running = begin(work)
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        with failures(conflict):
            return await asyncio.shield(running)

    async def _records(
        self, kind: type[Record], statement: sa.Select[Any], values: Mapping[str, Any] | None = None
    ) -> list[Record]:
        """Return the rows of a query as records."""

        def work(connection: sa.Connection) -> list[Record]:
            rows = connection.execute(statement, values).mappings()
            return [kind.model_validate(dict(row)) for row in rows]

        return await self._done(self._database.read, work)

    async def _change(
        self,
        statement: sa.UpdateBase,
        values: Mapping[str, Any] | None = None,
        conflict: str = "The record is in use.",
    ) -> int:
        """Write; return how many rows that concerned."""

        def work(connection: sa.Connection) -> int:
            return connection.execute(statement, values).rowcount

        return await self._write(work, conflict)

    async def _put(self, table: sa.Table, values: Mapping[str, Any], conflict: str) -> None:
        """Replace the row of that id, or add it: a portable upsert that writes, and so locks, first."""

        def work(connection: sa.Connection) -> None:
            changed = connection.execute(CHANGE[table], {**values, WHICH: values["id"]})
            if changed.rowcount == 0:
                connection.execute(ADD[table], values)

        await self._write(work, conflict)

    async def add_key(self, key: KeyRecord) -> None:
        """Keep a new API key. Raises Conflict when the id is taken."""
        values = key.model_dump() | {"scopes": sorted(key.scopes)}
        await self._change(ADD[api_keys], values, "There is a key of that id already.")

    async def key(self, key_id: str) -> KeyRecord | None:
        """Return a key by id, revoked and expired ones included."""
        found = await self._records(KeyRecord, ONE[api_keys], {WHICH: key_id})
        return found[0] if found else None

    async def keys(self) -> list[KeyRecord]:
        """Return all keys, oldest first."""
        return await self._records(KeyRecord, _oldest_first(api_keys))

    async def revoke_key(self, key_id: str, at: datetime) -> bool:
        """Mark a key revoked; tell whether there was such a key not yet revoked."""
        unrevoked = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
        return await self._change(api_keys.update().where(unrevoked).values(revoked_at=at)) == 1

    async def put_kernel(self, kernel: KernelRecord) -> None:
        """Keep or replace a kernel's record."""
        await self._put(kernels, kernel.model_dump(), "The kernel is being recorded by another process.")

    async def kernels(self) -> list[KernelRecord]:
        """Return all kernel records, oldest first."""
        return await self._records(KernelRecord, _oldest_first(kernels))

    async def delete_kernel(self, kernel_id: str) -> None:
        """Forget a kernel."""
        await self._change(FORGET[kernels], {WHICH: kernel_id})

    async def put_session(self, session: SessionRecord) -> None:
        """Keep or replace a session. Raises Conflict when its owner has another session at that path."""
        await self._put(sessions, session.model_dump(), "There is another session at that path.")

    async def session(self, session_id: str) -> SessionRecord | None:
        """Return a session by id."""
        found = await self._records(SessionRecord, ONE[sessions], {WHICH: session_id})
        return found[0] if found else None

    async def session_at(self, owner: str, path: str) -> SessionRecord | None:
        """Return the session that an owner has at a path."""
        found = await self._records(SessionRecord, SESSION_AT, {"owner": owner, "path": path})
        return found[0] if found else None

    async def sessions(self, owner: str | None = None) -> list[SessionRecord]:
        """Return an owner's sessions, or everybody's, oldest first."""
        statement = _oldest_first(sessions)
        if owner is not None:
            statement = statement.where(sessions.c.owner == owner)
        return await self._records(SessionRecord, statement)

    async def delete_session(self, session_id: str) -> None:
        """Forget a session."""
        await self._change(FORGET[sessions], {WHICH: session_id})

    async def audit_head(self) -> AuditHead:
        """Return the newest record of the audit trail's copy."""
        newest = sa.select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)
        found = await self._records(AuditHead, newest)
        return found[0] if found else AuditHead()

    async def add_audit(self, records: Sequence[AuditRecord]) -> None:
        """Keep copies of records of the audit trail. Raises Conflict when one is there already."""
        columns = [column.name for column in audit.columns if column.name != "record"]
        rows = [
            {**{name: getattr(record, name) for name in columns}, "record": record.model_dump(mode="json")}
            for record in records
        ]

        def work(connection: sa.Connection) -> None:
            connection.execute(ADD[audit], rows)

        await self._write(work, "A record of the audit trail is there already.")

    async def delete_audit(self, through: int) -> None:
        """Forget the copies of the records up to and including a number."""
        await self._change(audit.delete().where(audit.c.seq <= through))

    async def usage_on(self, day: date) -> list[UsageDay]:
        """Return what every principal used on a day (UTC)."""
        return await self._records(UsageDay, sa.select(usage_days).where(usage_days.c.day == day))

    async def add_usage(self, usage: Sequence[UsageDay]) -> None:
        """Add to what is kept of principals' days, all or nothing; days long past are forgotten."""
        table = usage_days.c

        def work(connection: sa.Connection) -> None:
            for used in usage:
                more = {
                    "cpu_s": table.cpu_s + used.cpu_s,
                    "output_bytes": table.output_bytes + used.output_bytes,
                }
                same = (table.principal == used.principal) & (table.day == used.day)
                if connection.execute(usage_days.update().where(same).values(more)).rowcount == 0:
                    connection.execute(ADD[usage_days], used.model_dump())
            oldest = max(used.day for used in usage) - timedelta(days=USAGE_KEPT_DAYS)
            connection.execute(usage_days.delete().where(table.day < oldest))

        await self._write(work)

    async def add_job(self, job: JobRecord) -> None:
        """Keep a new execution. Raises Conflict when its owner has used its idempotency key already."""
        await self._change(ADD[jobs], dict(job), "The idempotency key is in use.")

    async def put_job(self, job: JobRecord) -> None:
        """Keep what became of an execution, if it is still there."""
        await self._change(CHANGE[jobs], {**dict(job), WHICH: job.id})

    async def job(self, job_id: str) -> JobRecord | None:
        """Return an execution by id."""
        found = await self._records(JobRecord, ONE[jobs], {WHICH: job_id})
        return found[0] if found else None

    async def job_by_key(self, owner: str, idempotency_key: str) -> JobRecord | None:
        """Return the execution that an owner asked for with a key."""
        same = (jobs.c.owner == owner) & (jobs.c.idempotency_key == idempotency_key)
        found = await self._records(JobRecord, sa.select(jobs).where(same))
        return found[0] if found else None

    async def jobs(self, owner: str | None = None) -> list[JobRecord]:
        """Return an owner's executions, or everybody's, newest first and without their bodies."""
        columns = [column for column in jobs.columns if column.name != "body"]
        statement = sa.select(*columns).order_by(jobs.c.created_at.desc(), jobs.c.id)
        if owner is not None:
            statement = statement.where(jobs.c.owner == owner)
        return await self._records(JobRecord, statement)

    async def delete_job(self, job_id: str) -> None:
        """Forget an execution."""
        await self._change(FORGET[jobs], {WHICH: job_id})

    async def lose_jobs(self, at: datetime) -> int:
        """Mark what was on its way as lost: its gateway is gone. Return how many that were."""
        going = jobs.c.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))
        return await self._change(jobs.update().where(going).values(status=JobStatus.LOST, ended_at=at))

    async def trim_jobs(self, now: datetime, owner: str | None = None, *, most: int, most_bytes: int) -> None:
        """Forget ended executions: expired ones and, of an owner's, the oldest past a number or size."""
        ended = jobs.c.status.not_in((JobStatus.QUEUED, JobStatus.RUNNING))
        sizes = (
            sa.select(jobs.c.id, sa.func.length(jobs.c.body))
            .where(ended & (jobs.c.owner == owner))
            .order_by(jobs.c.created_at.desc(), jobs.c.id)
        )

        def work(connection: sa.Connection) -> None:
            connection.execute(jobs.delete().where(ended & (jobs.c.expires_at <= now)))
            total, gone = 0, []
            rows = connection.execute(sizes).all() if owner is not None else []
            for number, (job_id, size) in enumerate(rows, start=1):
                total += size
                if number > most or total > most_bytes:
                    gone.append(job_id)
            if gone:
                connection.execute(jobs.delete().where(jobs.c.id.in_(gone)))

        await self._write(work)

    async def put_sandbox(self, sandbox: SandboxRecord) -> None:
        """Keep or replace a sandbox's record."""
        values = sandbox.model_dump() | {"scopes": sorted(sandbox.scopes)}
        await self._put(sandboxes, values, "There is a sandbox of that id already.")

    async def sandboxes(self) -> list[SandboxRecord]:
        """Return all sandboxes' records, oldest first."""
        return await self._records(SandboxRecord, _oldest_first(sandboxes))

    async def delete_sandbox(self, sandbox_id: str) -> None:
        """Forget a sandbox; one that is not there is as good as forgotten."""
        await self._change(FORGET[sandboxes], {WHICH: sandbox_id})

    async def close(self) -> None:
        """Let go of the store once what runs has ended; what is asked afterwards raises StoreUnavailable."""
        self._closed = True
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._database.close()


def _oldest_first(table: sa.Table) -> sa.Select[Any]:
    """Select a table in the order of creation."""
    return sa.select(table).order_by(table.c.created_at, table.c.id)
