"""Jupyter sessions: a path of an owner's, bound to one of the owner's kernels."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from uuid import uuid4
from weakref import WeakValueDictionary

from gateway.errors import BadRequest, GatewayError, Gone, LimitReached, NotFound
from gateway.models import AuditAction, AuditEvent, ExecutionState, Principal, Scope, SessionRecord
from gateway.services.auditing import recorded
from gateway.services.kernels import owns, require
from gateway.services.session_book import SessionBook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gateway.ports import Audit, Clock, KernelHandle, Store
    from gateway.services.kernels import KernelService

    Pair = tuple[SessionRecord, KernelHandle]
    Start = Callable[[], Awaitable[KernelHandle]]

# The type of a session that is a context's: see services/contexts.py.
CONTEXT = "context"
_MAX_SESSIONS = 1000  # of one owner: several may share a kernel, so the kernels' quota does not bound them
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")  # what no store keeps and no JSON carries
_LENGTHS = {"path": 4096, "type": 256, "name": 1024}


class SessionService:
    """The sessions of every owner. A session's kernel is always its own owner's.

    Work on one (owner, path) is done by one caller at a time; the store has the last word on a path.
    """

    def __init__(self, kernels: KernelService, store: Store, clock: Clock, audit: Audit) -> None:
        self._audit = audit
        self._kernels = kernels
        self._book = SessionBook(store)
        self._clock = clock
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def create(
        self,
        principal: Principal,
        *,
        path: str,
        type: str,  # noqa: A002 - Jupyter's word
        name: str | None = None,
        kernel_name: str | None = None,
        kernel_id: str | None = None,
        start: Start | None = None,
    ) -> Pair:
        """Return the principal's session at a path, made if there is none, with a live kernel.

        A session that stands keeps its kernel, whatever is asked for; one whose kernel is gone or dead gets
        the kernel asked for: `kernel_id`, one of the owner's, or else a new one, by `start` or of
        `kernel_name`.

        Raises Forbidden, BadRequest, NotFound (no such kernel), Conflict (the path was taken meanwhile),
        LimitReached, StoreUnavailable, and what starting a kernel raises.
        """
        require(principal, Scope.KERNELS)
        _check(path=path, type=type, name=name)
        self._audit.admit()
        owner = principal.name
        async with self._lock(owner, path):
            old = await self._book.at(owner, path)
            bound = None if old is None else self._bound(old)
            if old is not None and bound is not None and bound.state is not ExecutionState.DEAD:
                return old, bound
            if old is None:
                await self._make_room(owner)
            async with self._kernel(owner, kernel_name, kernel_id, start) as handle:
                record = SessionRecord(
                    id=str(uuid4()) if old is None else old.id,
                    owner=owner,
                    path=path,
                    name=PurePosixPath(path).name if name is None else name,
                    type=type,
                    kernel_id=handle.id,
                    kernel_name=handle.spec_name,
                    created_at=self._clock.now() if old is None else old.created_at,
                )
                # one that stood gets another kernel
                action = AuditAction.SESSION_CREATE if old is None else AuditAction.SESSION_CHANGE
                with recorded(
                    self._audit,
                    action,
                    principal,
                    kernel_id=handle.id,
                    target=record.id,
                    extra={"path": path},
                ):
                    await (self._book.add(record) if old is None else self._book.put(record))
            if bound is not None and bound.id != handle.id:
                await self._end(owner, bound.id)
        return record, handle

    async def at(self, owner: str, path: str) -> Pair | None:
        """Return an owner's session at a path, if there is one whose kernel is there."""
        record = await self._book.at(owner, path)
        if record is None:
            return None
        handle = self._bound(record)
        if handle is None:
            await self._forget_gone(record)
            return None
        return record, handle

    async def list(self, principal: Principal, *, type: str | None = None) -> list[Pair]:  # noqa: A002
        """Return the principal's sessions, or everybody's for an admin; forget those without a kernel.

        With a `type`, those alone; without, all but contexts, which are no clients' of Jupyter.

        Raises Forbidden, StoreUnavailable.
        """
        require(principal, Scope.KERNELS)
        everybody = principal.has(Scope.ADMIN)
        pairs = []
        for record in await self._book.all(None if everybody else principal.name):
            if record.type != type if type is not None else record.type == CONTEXT:
                continue
            handle = self._bound(record)
            if handle is None:
                await self._forget_gone(record)
            else:
                pairs.append((record, handle))
        return pairs

    async def owned(self, principal: Principal, session_id: str) -> SessionRecord:
        """Return a session's record, if it is the principal's, whatever its kernel does.

        Raises Forbidden, NotFound, StoreUnavailable.
        """
        require(principal, Scope.KERNELS)
        record = await self._book.get(session_id)
        if record is None or not owns(principal, record.owner):
            raise _missing(session_id)
        return record

    async def get(self, principal: Principal, session_id: str) -> Pair:
        """Return a session of the principal's. Raises Forbidden, NotFound (its kernel is gone, too)."""
        record = await self.owned(principal, session_id)
        handle = self._bound(record)
        if handle is None:
            await self._forget_gone(record)
            raise _missing(session_id)
        return record, handle

    async def update(
        self,
        principal: Principal,
        session_id: str,
        *,
        path: str | None = None,
        name: str | None = None,
        type: str | None = None,  # noqa: A002 - Jupyter's word
        kernel_name: str | None = None,
        kernel_id: str | None = None,
    ) -> Pair:
        """Move a session, rename it, or bind it to another kernel, which ends the one it had.

        `kernel_id` wins over `kernel_name`, which starts a new kernel. Raises Forbidden, BadRequest, NotFound
        (session or kernel), Conflict (a taken path), StoreUnavailable, and what starting a kernel raises.
        """
        require(principal, Scope.KERNELS)
        _check(path=path, type=type, name=name)
        self._audit.admit()
        async with self._held(principal, session_id) as record:
            if not kernel_id and not kernel_name:
                if self._bound(record) is None:
                    await self._forget(record)
                    raise _missing(session_id)
                kernel_id = record.kernel_id
            async with self._kernel(record.owner, kernel_name, kernel_id) as handle:
                wanted = {"path": path, "name": name, "type": type}
                changes = {key: value for key, value in wanted.items() if value is not None}
                changes |= {"kernel_id": handle.id, "kernel_name": handle.spec_name}
                changed = record.model_copy(update=changes)
                if changed.path != record.path:
                    await self._clear(changed.owner, changed.path)
                with recorded(
                    self._audit,
                    AuditAction.SESSION_CHANGE,
                    principal,
                    kernel_id=handle.id,
                    target=record.id,
                    extra={field: str(value) for field, value in wanted.items() if value is not None},
                ):
                    await self._book.put(changed)
            if handle.id != record.kernel_id:
                await self._end(record.owner, record.kernel_id)
        return changed, handle

    async def delete(self, principal: Principal, session_id: str) -> None:
        """End a session and its kernel. Raises Forbidden, NotFound; Gone when the kernel went first."""
        async with self._held(principal, session_id) as record:
            with recorded(
                self._audit,
                AuditAction.SESSION_DELETE,
                principal,
                kernel_id=record.kernel_id,
                target=record.id,
            ):
                ended = await self._end(record.owner, record.kernel_id)
                await self._book.delete(record.id)
        if not ended:
            raise Gone("The kernel of this session was gone before the session was deleted.")

    def _lock(self, owner: str, path: str) -> asyncio.Lock:
        return self._locks.setdefault((owner, path), asyncio.Lock())

    @asynccontextmanager
    async def _held(self, principal: Principal, session_id: str) -> AsyncIterator[SessionRecord]:
        record = await self.owned(principal, session_id)
        while True:
            async with self._lock(record.owner, record.path):
                current = await self.owned(principal, session_id)
                if current.path == record.path:
                    yield current
                    return
            record = current  # moved while we waited

    @asynccontextmanager
    async def _kernel(
        self, owner: str, kernel_name: str | None, kernel_id: str | None, start: Start | None = None
    ) -> AsyncIterator[KernelHandle]:
        """Give the kernel asked for; one that is started for it does not outlive a failure of the body."""
        acting = _acting(owner)
        if kernel_id:
            yield self._kernels.get(acting, kernel_id)
            return
        handle = await (start() if start else self._kernels.create(acting, name=kernel_name))
        try:
            yield handle
        except BaseException:
            with suppress(GatewayError):
                await self._kernels.delete(acting, handle.id)
            raise

    def _bound(self, record: SessionRecord) -> KernelHandle | None:
        try:
            return self._kernels.get(_acting(record.owner), record.kernel_id)
        except NotFound:
            return None

    async def _end(self, owner: str, kernel_id: str) -> bool:
        """End a session's kernel; tell whether it was there."""
        try:
            await self._kernels.delete(_acting(owner), kernel_id)
        except NotFound:
            return False
        return True

    async def _clear(self, owner: str, path: str) -> None:
        other = await self._book.at(owner, path)
        if other is not None and self._bound(other) is None:
            await self._forget_gone(other)

    async def _make_room(self, owner: str) -> None:
        """See that an owner may have one more, by forgetting those without a kernel. Raises LimitReached."""
        mine = await self._book.all(owner)
        if len(mine) < _MAX_SESSIONS:
            return
        for record in mine:
            if self._bound(record) is None:
                await self._forget_gone(record)
        count = len(await self._book.all(owner))
        if count >= _MAX_SESSIONS:
            raise LimitReached(f"You have {count} sessions, as many as you may.", reason="max_sessions")

    async def _forget_gone(self, record: SessionRecord) -> None:
        lock = self._lock(record.owner, record.path)
        if lock.locked():
            return  # somebody is at work on it, perhaps giving it a new kernel
        async with lock:
            current = await self._book.get(record.id)
            if current == record:
                await self._forget(record)

    async def _forget(self, record: SessionRecord) -> None:
        """Forget a session whose kernel is gone: the gateway's own doing, whoever came across it."""
        await self._book.delete(record.id)
        self._audit.record(
            AuditEvent(
                action=AuditAction.SESSION_DELETE,
                door="gateway",
                kernel_id=record.kernel_id,
                target=record.id,
                reason="kernel_gone",
                extra={"owner": record.owner},
            )
        )


def _acting(owner: str) -> Principal:
    """Return the owner as a principal without an admin's reach, to handle the kernels of a session."""
    return Principal(name=owner, key_id="", scopes=frozenset({Scope.KERNELS}))


def _missing(session_id: str) -> NotFound:
    return NotFound(f"Session not found: {session_id[:64]}")


def _check(**texts: str | None) -> None:
    for field, text in texts.items():
        if text is None:
            continue
        if (not text and field != "name") or len(text) > _LENGTHS[field]:
            raise BadRequest(f"A session's {field} must have 1 to {_LENGTHS[field]} characters.")
        if _NOT_TEXT.search(text):
            raise BadRequest(f"A session's {field} must be text without NUL.")
