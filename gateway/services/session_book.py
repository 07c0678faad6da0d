"""The book of sessions: what the store keeps of them, and in memory those that were looked up last."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from gateway.models import SessionRecord
    from gateway.ports import Store

KNOWN = 1024


class SessionBook:
    """Finds sessions by owner and path without asking the store each time.

    Every change goes through here. What is known of a session is forgotten when a change of it begins and
    again when that has ended, whoever still waits for it; a look-up that a change overtook is not remembered.

    Every method raises StoreUnavailable.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, str], SessionRecord] = {}
        self._places: dict[str, tuple[str, str]] = {}
        self._changes = 0

    async def at(self, owner: str, path: str) -> SessionRecord | None:
        """Return the session that an owner has at a path."""
        known = self._known.get((owner, path))
        if known is not None:
            return known
        before = self._changes
        found = await self._store.session_at(owner, path)
        if found is not None and before == self._changes:
            self._remember(found)
        return found

    async def get(self, session_id: str) -> SessionRecord | None:
        """Return a session by id, as the store has it."""
        return await self._store.session(session_id)

    async def all(self, owner: str | None = None) -> list[SessionRecord]:
        """Return an owner's sessions, or everybody's, oldest first, as the store has them."""
        return await self._store.sessions(owner)

    async def add(self, record: SessionRecord) -> None:
        """Keep a new session; nothing of it stays when its caller leaves meanwhile. Raises Conflict."""
        try:
            await self.put(record)
        except asyncio.CancelledError:
            with suppress(StoreUnavailable):
                await self.delete(record.id)
            raise

    async def put(self, record: SessionRecord) -> None:
        """Keep or replace a session. Raises Conflict when its owner has another session at that path."""
        await self._change(record.id, self._store.put_session(record))

    async def delete(self, session_id: str) -> None:
        """Forget a session."""
        await self._change(session_id, self._store.delete_session(session_id))

    async def _change(self, session_id: str, work: Coroutine[Any, Any, None]) -> None:
        self._forget(session_id)
        writing = asyncio.create_task(work)
        writing.add_done_callback(lambda _: self._forget(session_id))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # what is being written is written all the same, and a removal must not overtake it
            await asyncio.wait({writing})
            raise

    def _remember(self, record: SessionRecord) -> None:
        place = record.owner, record.path
        self._known[place] = record
        self._places[record.id] = place
        if len(self._known) > KNOWN:
            self._drop(next(iter(self._known.values())).id)

    def _forget(self, session_id: str) -> None:
        self._changes += 1
        self._drop(session_id)

    def _drop(self, session_id: str) -> None:
        place = self._places.pop(session_id, None)
        if place is not None:
            del self._known[place]
