"""The book of sessions never tells of one what the store does not."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from gateway.errors import Conflict, StoreUnavailable
from gateway.models import SessionRecord
from gateway.services import session_book
from gateway.services.session_book import SessionBook
from gateway.store import SqlStore
from tests.doubles import MemoryStore


def a_session(session_id: str = "s1", **changes) -> SessionRecord:
    """Return a session of alice's at the path `a`."""
    fields = {
        "id": session_id,
        "owner": "alice",
        "path": "a",
        "name": "a",
        "type": "context",
        "kernel_id": "k1",
        "kernel_name": "python3",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return SessionRecord(**fields | changes)


class SlowStore(MemoryStore):
    """A store that counts look-ups, and waits in whatever it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.lookups = 0
        self.open = asyncio.Event()
        self.open.set()
        self.slow = ""

    async def _wait(self, what: str) -> None:
        if self.slow == what:
            await self.open.wait()

    async def session_at(self, owner, path):
        """Look first and wait then: what is told is as old as the look."""
        self.lookups += 1
        found = await super().session_at(owner, path)
        await self._wait("session_at")
        return found

    async def put_session(self, session):
        """Wait, then keep it."""
        await self._wait("put_session")
        await super().put_session(session)

    def hold(self, what: str) -> None:
        """Have what is asked for from now on wait."""
        self.slow = what
        self.open.clear()


@pytest.fixture
def store() -> SlowStore:
    """An empty store."""
    return SlowStore()


@pytest.fixture
def book(store) -> SessionBook:
    """The book over it."""
    return SessionBook(store)


async def test_what_is_known_is_not_asked_for_again(book, store):
    """The second look at a path is answered without the store; a path without a session is always asked."""
    await book.put(a_session())

    assert await book.at("alice", "a") == await book.at("alice", "a") == a_session()
    assert store.lookups == 1
    assert (await book.at("alice", "b"), await book.at("alice", "b")) == (None, None)
    assert store.lookups == 3


async def test_owners_are_apart(book):
    """A path that one owner's session is known at is nothing of another's."""
    await book.put(a_session())
    await book.at("alice", "a")

    assert await book.at("bob", "a") is None
    await book.put(a_session("s2", owner="bob", kernel_id="k2"))
    assert (await book.at("bob", "a")).kernel_id == "k2"
    assert (await book.at("alice", "a")).kernel_id == "k1"


async def test_changes_show_at_once(book):
    """After a new kernel, a move and a removal the old is not told any more, at the old path nor the new."""
    await book.put(a_session())
    await book.at("alice", "a")

    await book.put(a_session(kernel_id="k2"))
    assert (await book.at("alice", "a")).kernel_id == "k2"

    await book.put(a_session(path="b"))
    assert await book.at("alice", "a") is None
    assert (await book.at("alice", "b")).path == "b"

    await book.delete("s1")
    assert await book.at("alice", "b") is None


async def test_a_change_that_fails_is_none(book):
    """What the store refuses does not show, and what was there is told on."""
    await book.put(a_session())
    await book.put(a_session("s2", path="b"))
    await book.at("alice", "a")

    with pytest.raises(Conflict):
        await book.put(a_session("s2", path="a"))

    assert (await book.at("alice", "a")).id == "s1"
    assert (await book.at("alice", "b")).id == "s2"


@pytest.mark.parametrize("change", ["put", "delete"])
async def test_a_look_that_a_change_overtakes_is_not_remembered(book, store, change):
    """Who looked before a change is told what was there then; who looks afterwards is told what is."""
    await book.put(a_session())
    store.hold("session_at")
    early = asyncio.create_task(book.at("alice", "a"))
    await asyncio.sleep(0.01)

    await (book.put(a_session(kernel_id="k2")) if change == "put" else book.delete("s1"))
    store.open.set()

    assert (await early).kernel_id == "k1"
    now = await book.at("alice", "a")
    assert now == (a_session(kernel_id="k2") if change == "put" else None)


async def test_a_look_during_a_change_is_not_remembered(book, store):
    """What is read while a change is being written is forgotten with its end, though its caller has left."""
    await book.put(a_session())
    store.hold("put_session")
    changing = asyncio.create_task(book.put(a_session(kernel_id="k2")))
    await asyncio.sleep(0.01)
    changing.cancel()
    await asyncio.sleep(0.01)
    assert (await book.at("alice", "a")).kernel_id == "k1"
    assert not changing.done(), "the change is not over while it is being written"

    store.open.set()
    with pytest.raises(asyncio.CancelledError):
        await changing

    assert (await book.at("alice", "a")).kernel_id == "k2"


async def test_a_new_session_whose_caller_leaves_is_none(tmp_path):
    """Nothing stays of a session that was cancelled while it was being added, in the real store too."""
    store = await SqlStore.open(tmp_path / "s.db")
    try:
        book = SessionBook(store)
        for delay in (0, 0.0001, 0.001):
            adding = asyncio.create_task(book.add(a_session()))
            await asyncio.sleep(delay)
            if not adding.cancel():
                await book.delete("s1")
            await asyncio.gather(adding, return_exceptions=True)
            assert await store.sessions() == []
            assert await book.at("alice", "a") is None
    finally:
        await store.close()


async def test_without_the_store(book, store):
    """What is not known needs the store."""
    await book.put(a_session())
    store.broken = True

    with pytest.raises(StoreUnavailable):
        await book.at("alice", "a")


async def test_only_so_many_are_known(book, store, monkeypatch):
    """The one that has been known for the longest goes for a new one, and is looked up again."""
    monkeypatch.setattr(session_book, "KNOWN", 2)
    for name in "abc":
        await book.put(a_session(name, path=name))
        await book.at("alice", name)
    assert store.lookups == 3

    await book.at("alice", "b")
    await book.at("alice", "c")
    assert store.lookups == 3
    await book.at("alice", "a")
    assert store.lookups == 4
