"""What survives the process, in SQLite or a database that speaks the same SQL."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateIndex, CreateTable

from gateway.errors import ConfigurationError, Conflict, StoreUnavailable
from gateway.models import AuditHead, AuditRecord, Frozen, KernelRecord, KeyRecord, SessionRecord, UsageDay

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from datetime import date

USAGE_KEPT_DAYS = 31
SCHEMA_VERSION = 3

T = TypeVar("T")
Record = TypeVar("Record", bound=Frozen)

_SQLITE_PRAGMAS = (
    "PRAGMA busy_timeout=5000",  # first, so that the others wait for a second process too
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA foreign_keys=ON",
)

_SQLITE_REASONS = {
    sqlite3.SQLITE_FULL: "The disk is full",
    sqlite3.SQLITE_READONLY: "The store is read-only",
    sqlite3.SQLITE_BUSY: "Another process keeps the store locked",
    sqlite3.SQLITE_CANTOPEN: "The store's file cannot be opened",
    sqlite3.SQLITE_IOERR: "The store's disk fails",
    sqlite3.SQLITE_NOTADB: "The store's file is not a database",
    sqlite3.SQLITE_CORRUPT: "The store's file is damaged",
}


class UtcDateTime(sa.TypeDecorator[datetime]):
    """Keep aware moments in UTC, also where the database knows no zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        """Turn any aware moment into UTC; a naive one is refused."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a moment without a time zone cannot be stored")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        """Return an aware moment in UTC."""
        if value is not None and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value and value.astimezone(UTC)


metadata = sa.MetaData()

schema = sa.Table("schema", metadata, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("principal", sa.Text, nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("secret_hash", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("revoked_at", UtcDateTime),
)

kernels = sa.Table(
    "kernels",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("limits", sa.JSON, nullable=False),
    sa.Column("env", sa.JSON, nullable=False),
    sa.Column("secret_names", sa.JSON, nullable=False),
    sa.Column("workspace", sa.JSON(none_as_null=True)),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("kernel_id", sa.Text, nullable=False),
    sa.Column("kernel_name", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Index("sessions_owner_path", "owner", "path", unique=True),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("who", sa.Text),
    sa.Column("kernel_id", sa.Text),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("record", sa.JSON, nullable=False),
    sa.Index("audit_who", "who", "seq"),
    sa.Index("audit_kernel", "kernel_id", "seq"),
)

usage_days = sa.Table(
    "usage_days",
    metadata,
    sa.Column("principal", sa.Text, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("cpu_s", sa.Float, nullable=False),
    sa.Column("output_bytes", sa.BigInteger, nullable=False),
)

# What brings a store of the version before to the version that is the key; new tables are made anyway.
MIGRATIONS: Mapping[int, tuple[str, ...]] = {
    2: ("ALTER TABLE kernels ADD COLUMN secret_names JSON NOT NULL DEFAULT '[]'",),
    3: ("ALTER TABLE kernels ADD COLUMN workspace JSON",),
}


class SqlStore:
    """Keep records in a SQL database (`ports.Store`).

    Several processes may have the same store open. Methods raise StoreUnavailable when it does not answer.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._closed = False
        self._running: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, url_or_path: str | Path) -> Self:
        """Open a store by the path of a SQLite file or by SQLAlchemy's async URL; make it when it is new.

        Raises ConfigurationError when the URL is no good or another version of the program made the store,
        and StoreUnavailable when the database does not answer or its file cannot be made private.
        """
        store = cls(await asyncio.to_thread(_engine, _url(url_or_path)))
        try:
            await store._prepare()
        except BaseException:
            await store.close()
            raise
        return store

    async def _prepare(self) -> None:
        """Make the tables that are missing, after a look at who made the store; bring an older one up."""
        first = sa.select(sa.literal(SCHEMA_VERSION)).where(~sa.exists(sa.select(schema.c.version)))

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(CreateTable(schema, if_not_exists=True))
            await connection.execute(schema.insert().from_select(["version"], first))
            version = (await connection.execute(sa.select(schema.c.version))).scalar_one()
            if version > SCHEMA_VERSION:
                raise ConfigurationError(
                    f"The store has version {version} and this program knows versions up to {SCHEMA_VERSION}."
                )
            for step in range(version + 1, SCHEMA_VERSION + 1):
                for statement in MIGRATIONS[step]:
                    await connection.execute(sa.text(statement))
                await connection.execute(schema.update().values(version=step))
            for table in metadata.sorted_tables:
                await connection.execute(CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    await connection.execute(CreateIndex(index, if_not_exists=True))

        await self._run(work, "Two processes made the store at once; try again.")

    async def _run(
        self, work: Callable[[AsyncConnection], Awaitable[T]], conflict: str = "The record is in use."
    ) -> T:
        """Do some work in one transaction; its failures are Conflict, with this message, or StoreUnavailable.

        A caller who is cancelled leaves at once, and the transaction still ends as a whole: the driver leaks
        connections, and their locks, when it is cancelled itself.
        """
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        task = asyncio.create_task(self._transaction(work, conflict))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[T]], conflict: str) -> T:
        """Do some work between begin and commit."""
        with _failures(conflict):
            async with self._engine.begin() as connection:
                return await work(connection)

    async def _records(self, kind: type[Record], statement: sa.Select[Any]) -> list[Record]:
        """Return the rows of a query as records."""

        async def work(connection: AsyncConnection) -> list[Record]:
            rows = (await connection.execute(statement)).mappings()
            return [kind.model_validate(dict(row)) for row in rows]

        return await self._run(work)

    async def _change(self, statement: sa.UpdateBase, conflict: str = "The record is in use.") -> int:
        """Write; return how many rows that concerned."""

        async def work(connection: AsyncConnection) -> int:
            return (await connection.execute(statement)).rowcount

        return await self._run(work, conflict)

    async def _put(self, table: sa.Table, values: Mapping[str, Any], conflict: str) -> None:
        """Replace the row of that id, or add it: a portable upsert that writes, and so locks, first."""
        update = table.update().where(table.c.id == values["id"]).values(values)

        async def work(connection: AsyncConnection) -> None:
            if (await connection.execute(update)).rowcount == 0:
                await connection.execute(table.insert().values(values))

        await self._run(work, conflict)

    async def add_key(self, key: KeyRecord) -> None:
        """Keep a new API key. Raises Conflict when the id is taken."""
        values = key.model_dump() | {"scopes": sorted(key.scopes)}
        await self._change(api_keys.insert().values(values), "There is a key of that id already.")

    async def key(self, key_id: str) -> KeyRecord | None:
        """Return a key by id, revoked and expired ones included."""
        found = await self._records(KeyRecord, sa.select(api_keys).where(api_keys.c.id == key_id))
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
        await self._change(kernels.delete().where(kernels.c.id == kernel_id))

    async def put_session(self, session: SessionRecord) -> None:
        """Keep or replace a session. Raises Conflict when its owner has another session at that path."""
        await self._put(sessions, session.model_dump(), "There is another session at that path.")

    async def session(self, session_id: str) -> SessionRecord | None:
        """Return a session by id."""
        found = await self._records(SessionRecord, sa.select(sessions).where(sessions.c.id == session_id))
        return found[0] if found else None

    async def sessions(self, owner: str | None = None) -> list[SessionRecord]:
        """Return an owner's sessions, or everybody's, oldest first."""
        statement = _oldest_first(sessions)
        if owner is not None:
            statement = statement.where(sessions.c.owner == owner)
        return await self._records(SessionRecord, statement)

    async def delete_session(self, session_id: str) -> None:
        """Forget a session."""
        await self._change(sessions.delete().where(sessions.c.id == session_id))

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

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(audit.insert(), rows)

        await self._run(work, "A record of the audit trail is there already.")

    async def delete_audit(self, through: int) -> None:
        """Forget the copies of the records up to and including a number."""
        await self._change(audit.delete().where(audit.c.seq <= through))

    async def usage_on(self, day: date) -> list[UsageDay]:
        """Return what every principal used on a day (UTC)."""
        return await self._records(UsageDay, sa.select(usage_days).where(usage_days.c.day == day))

    async def add_usage(self, usage: Sequence[UsageDay]) -> None:
        """Add to what is kept of principals' days, all or nothing; days long past are forgotten."""
        table = usage_days.c

        async def work(connection: AsyncConnection) -> None:
            for used in usage:
                more = {
                    "cpu_s": table.cpu_s + used.cpu_s,
                    "output_bytes": table.output_bytes + used.output_bytes,
                }
                same = (table.principal == used.principal) & (table.day == used.day)
                if (await connection.execute(usage_days.update().where(same).values(more))).rowcount == 0:
                    await connection.execute(usage_days.insert().values(used.model_dump()))
            oldest = max(used.day for used in usage) - timedelta(days=USAGE_KEPT_DAYS)
            await connection.execute(usage_days.delete().where(table.day < oldest))

        await self._run(work)

    async def close(self) -> None:
        """Let go of the store once what runs has ended; what is asked afterwards raises StoreUnavailable."""
        self._closed = True
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._engine.dispose()


def _url(url_or_path: str | Path) -> sa.URL:
    """Return the URL that was given, or that of the SQLite file at a path."""
    text = str(url_or_path)
    if "://" not in text:
        return sa.URL.create("sqlite+aiosqlite", database=text)
    try:
        url = sa.make_url(text)
    except SQLAlchemyError as error:
        raise ConfigurationError("The store's URL is not one that SQLAlchemy understands.") from error
    if url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}:
        raise ConfigurationError("The store must be a file: what it keeps survives the process.")
    return url


def _engine(url: sa.URL) -> AsyncEngine:
    """Return an engine that has not connected yet. Blocks: it imports the driver and looks at the disk."""
    try:
        engine = create_async_engine(url, hide_parameters=True, pool_size=4, max_overflow=0)
    except (SQLAlchemyError, ImportError) as error:
        raise ConfigurationError(f"The store's URL cannot be used: {error}.") from error
    if url.get_backend_name() == "sqlite":
        sa.event.listen(engine.sync_engine, "connect", _set_pragmas)
        _make_private(Path(url.database or ""))
    return engine


def _make_private(path: Path) -> None:
    """Make the file that SQLite will open, for its owner's eyes only: kernels' environments hold secrets."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            # Never open() the file: closing it would drop the locks that SQLite holds on it in this process.
            os.mknod(path, 0o600)
        for suffix in ("", "-wal", "-shm"):
            file = path.with_name(path.name + suffix)
            with suppress(FileNotFoundError):
                if stat.S_IMODE(file.stat().st_mode) & 0o077:
                    file.chmod(0o600)
    except OSError as error:
        raise StoreUnavailable(f"The store {path} cannot be made private: {error.strerror}.") from error


def _set_pragmas(connection: Any, _record: object) -> None:
    """Prepare a new SQLite connection; one that cannot be prepared is closed, with its thread."""
    try:
        cursor = connection.cursor()
        for pragma in _SQLITE_PRAGMAS:
            cursor.execute(pragma)
        cursor.close()
    except BaseException:
        connection.close()
        raise


def _oldest_first(table: sa.Table) -> sa.Select[Any]:
    """Select a table in the order of creation."""
    return sa.select(table).order_by(table.c.created_at, table.c.id)


@contextmanager
def _failures(conflict: str) -> Iterator[None]:
    """Turn the database's failures into ours: the one place where it happens."""
    try:
        yield
    except IntegrityError as error:
        raise Conflict(conflict) from error
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        reason = _SQLITE_REASONS.get(code, "The store does not answer")
        raise StoreUnavailable(f"{reason} ({cause}).") from error
    except ValueError:
        # Not chained: the complaint of JSON or pydantic quotes the row, and rows hold secrets.
        raise StoreUnavailable("The store holds a record that this program cannot read.") from None
