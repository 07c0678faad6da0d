"""Transactions beside the loop: a SQLite file by threads of our own, what is elsewhere by an async driver."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gateway.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")

# how long some work may wait in all, for what was begun before it and for other processes' locks
WAIT_S = 5.0
# a wait in the queue that leaves the other one as it is
BRIEF_S = 0.1
BUSY = "PRAGMA busy_timeout={:.0f}"


class Database(Protocol):
    """Does work between begin and commit, as a whole or not at all."""

    def read(self, work: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        """Begin some work that changes nothing."""
        ...

    def write(self, work: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        """Begin some work that changes something."""
        ...

    async def close(self) -> None:
        """Let go of it; nothing runs any more."""
        ...


class FileDatabase:
    """A SQLite file: one thread writes, since SQLite lets one write at a time, and one reads beside it.

    A transaction is one hop to a thread; a driver that is async itself takes one for every call of SQLite's.
    Work whose turn comes too late is not begun, and raises StoreUnavailable. Where another process keeps the
    file locked, what has waited behind others does not wait as long as they did once more.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._closed = False

    def read(self, work: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        """Begin some work that changes nothing; what is being written meanwhile does not hold it up."""
        return self._begun(self._reader, work)

    def write(self, work: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        """Begin some work that changes something, behind what was begun before."""
        return self._begun(self._writer, work)

    async def close(self) -> None:
        """Close the file and end the threads. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._reader.shutdown(wait=False)
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._engine.dispose)
        finally:
            self._writer.shutdown(wait=False)

    def _begun(self, thread: ThreadPoolExecutor, work: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        asked = time.monotonic()
        return asyncio.get_running_loop().run_in_executor(thread, self._transaction, work, asked)

    def _transaction(self, work: Callable[[sa.Connection], T], asked: float) -> T:
        waited_s = time.monotonic() - asked
        if waited_s > WAIT_S:
            raise StoreUnavailable("The store is too slow: this has waited for too long.")
        if waited_s < BRIEF_S:
            with self._engine.begin() as connection:
                return work(connection)
        left_s = WAIT_S - waited_s
        with self._engine.connect() as connection, _patience(connection, left_s), connection.begin():
            return work(connection)


class DriverDatabase:
    """A database whose driver is async."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    def read(self, work: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        """Begin some work."""
        return _begun(self._transaction(work))

    def write(self, work: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        """Begin some work."""
        return _begun(self._transaction(work))

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.dispose()

    async def _transaction(self, work: Callable[[sa.Connection], T]) -> T:
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)


@contextmanager
def _patience(connection: sa.Connection, seconds: float) -> Iterator[None]:
    """Wait so long for the locks of other processes while the body runs."""
    driver: Any = connection.connection.driver_connection
    driver.execute(BUSY.format(seconds * 1000))
    try:
        yield
    finally:
        driver.execute(BUSY.format(WAIT_S * 1000))


def _begun(work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
    return asyncio.ensure_future(work)
