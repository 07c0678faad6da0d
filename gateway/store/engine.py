"""The connection to the store's database: its URL, its file, and its failures in our words."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from gateway.errors import ConfigurationError, Conflict, StoreUnavailable
from gateway.store.database import BUSY, WAIT_S, Database, DriverDatabase, FileDatabase

if TYPE_CHECKING:
    from collections.abc import Iterator

# what a path stands for; the loop has no part in it
FILE = "sqlite+pysqlite"

_SQLITE_PRAGMAS = (
    BUSY.format(WAIT_S * 1000),  # first, so that the others wait for a second process too
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


def database_url(url_or_path: str | Path) -> sa.URL:
    """Return the URL that was given, or that of the SQLite file at a path."""
    text = str(url_or_path)
    if "://" not in text:
        return sa.URL.create(FILE, database=text)
    try:
        url = sa.make_url(text)
    except SQLAlchemyError as error:
        raise ConfigurationError("The store's URL is not one that SQLAlchemy understands.") from error
    if url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}:
        raise ConfigurationError("The store must be a file: what it keeps survives the process.")
    return url


def make_database(url: sa.URL) -> Database:
    """Return a database that has not connected yet. Blocks: it imports the driver and looks at the disk."""
    if url.drivername == FILE:
        # a connection for each of its threads
        engine = sa.create_engine(url, hide_parameters=True, pool_size=2, max_overflow=0)
        _prepare_file(engine, url)
        return FileDatabase(engine)
    # slow to import, and needed for other databases only
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

    try:
        driven = create_async_engine(url, hide_parameters=True, pool_size=4, max_overflow=0)
    except (SQLAlchemyError, ImportError) as error:
        raise ConfigurationError(f"The store's URL cannot be used: {error}.") from error
    if url.get_backend_name() == "sqlite":
        _prepare_file(driven.sync_engine, url)
    return DriverDatabase(driven)


def _prepare_file(engine: sa.Engine, url: sa.URL) -> None:
    sa.event.listen(engine, "connect", _set_pragmas)
    _make_private(Path(url.database or ""))


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


@contextmanager
def failures(conflict: str) -> Iterator[None]:
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
