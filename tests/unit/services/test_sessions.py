"""Sessions: one per path, with a live kernel of its owner's, and no kernel orphaned on the way."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from gateway.errors import BadRequest, Conflict, Forbidden, Gone, LimitReached, NotFound, StoreUnavailable
from gateway.models import DeathReason, Scope, SessionRecord
from gateway.services import sessions as module
from gateway.services.sessions import SessionService
from tests.doubles import principal

ALICE, BOB = principal("alice"), principal("bob")
ADMIN = principal("root", Scope.ADMIN)


@pytest.fixture
def sessions(kernels, store, clock, audit) -> SessionService:
    """The session service over the kernel service."""
    return SessionService(kernels, store, clock, audit)


async def create(sessions, path="a.ipynb", who=ALICE, **fields):
    """Create a notebook's session."""
    return await sessions.create(who, path=path, type="notebook", **fields)


async def test_create_binds_a_new_kernel(sessions, host, store, clock):
    """A session is its creator's, with a kernel of the name asked for, and kept in the store."""
    record, handle = await create(sessions, "dir/a.ipynb", kernel_name="bash")

    assert (record.owner, record.path, record.name) == ("alice", "dir/a.ipynb", "a.ipynb")
    assert (record.type, record.kernel_name, record.created_at) == ("notebook", "bash", clock.now())
    assert host.get(record.kernel_id) is handle
    assert await store.session(record.id) == record


async def test_same_path_is_the_same_session(sessions, host):
    """A path that has a session with a live kernel gets it back, whatever kernel is asked for."""
    first = await create(sessions)
    second = await create(sessions, kernel_name="bash", name="other")

    assert second == first
    assert host.starts == 1


async def test_paths_are_each_owners_own(sessions):
    """Two owners have each a session at the same path."""
    mine, _ = await create(sessions)
    other, _ = await create(sessions, who=BOB)

    assert mine.id != other.id


async def test_gone_kernel_is_replaced(sessions, kernels, store):
    """A session whose kernel is gone keeps its id and gets a new kernel."""
    old, handle = await create(sessions)
    await kernels.delete(ALICE, handle.id)
    new, fresh = await create(sessions, kernel_name="bash")

    assert (new.id, new.kernel_name, new.created_at) == (old.id, "bash", old.created_at)
    assert fresh.id != handle.id
    assert await store.sessions() == [new]


async def test_dead_kernel_is_replaced_and_removed(sessions, host):
    """A dead kernel does not live: creating anew replaces it and leaves no corpse."""
    old, handle = await create(sessions)
    host.kernels[handle.id].die(DeathReason.OOM)
    new, fresh = await create(sessions)

    assert new.id == old.id
    assert fresh.id != handle.id
    assert list(host.kernels) == [fresh.id]


async def test_own_kernel_is_bound(sessions, kernels, host):
    """A kernel id of the caller's is bound, and nothing is started."""
    handle = await kernels.create(ALICE, name="bash")
    record, bound = await create(sessions, kernel_id=handle.id)

    assert bound is handle
    assert (record.kernel_id, record.kernel_name) == (handle.id, "bash")
    assert host.starts == 1


@pytest.mark.parametrize("who", [ALICE, ADMIN], ids=["alice", "admin"])
async def test_only_own_kernels_are_bound(sessions, kernels, store, who):
    """Neither another's kernel nor an unknown one becomes a session's, not even an admin's."""
    handle = await kernels.create(BOB)
    for kernel_id in (handle.id, str(uuid4())):
        with pytest.raises(NotFound, match=f"Kernel does not exist: {kernel_id}"):
            await create(sessions, who=who, kernel_id=kernel_id)

    assert await store.sessions() == []


async def test_parallel_creates_make_one_session(sessions, host):
    """Two tabs that open one notebook at once get one session and one kernel."""
    pairs = await asyncio.gather(*(create(sessions) for _ in range(5)))

    assert len({record.id for record, _ in pairs}) == 1
    assert (host.starts, len(host.kernels)) == (1, 1)


async def test_parallel_creates_at_different_paths_do_not_wait(sessions, host):
    """A slow start holds up its own path alone."""
    host.hold = asyncio.Event()
    slow = asyncio.create_task(create(sessions, "slow"))
    while host.starts < 1:
        await asyncio.sleep(0)
    host.hold, hold = None, host.hold
    async with asyncio.timeout(5):
        await create(sessions, "fast")
    hold.set()
    await slow


async def test_path_taken_meanwhile_leaves_no_orphan(sessions, host, store, clock):
    """When another gateway took the path during the start, the new kernel is ended again."""
    host.hold = asyncio.Event()
    task = asyncio.create_task(create(sessions))
    while host.starts < 1:
        await asyncio.sleep(0)
    await store.put_session(
        SessionRecord(
            id="other",
            owner="alice",
            path="a.ipynb",
            name="",
            type="notebook",
            kernel_id=str(uuid4()),
            kernel_name="python3",
            created_at=clock.now(),
        )
    )
    host.hold.set()
    with pytest.raises(Conflict):
        await task

    assert host.kernels == {}


async def test_cancelled_create_leaves_no_orphan(sessions, host, store):
    """A caller that goes away while the session is written leaves no kernel."""
    task = asyncio.create_task(create(sessions))
    while not store._kernels:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert host.kernels == {}
    assert await store.kernels() == []
    assert await store.sessions() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", ""),
        ("path", "x" * 4097),
        ("path", "a\0b"),
        ("path", "\ud800"),
        ("type", ""),
        ("name", "x" * 1025),
    ],
)
async def test_texts_are_checked(sessions, host, field, value):
    """Texts that are empty, huge or not text are refused before anything starts."""
    fields = {"path": "a", "type": "notebook", "name": "n"} | {field: value}
    with pytest.raises(BadRequest, match=field):
        await sessions.create(ALICE, **fields)

    assert host.starts == 0


async def test_sessions_are_bounded(sessions, kernels, monkeypatch):
    """One owner cannot fill the store with sessions that share a kernel."""
    monkeypatch.setattr(module, "_MAX_SESSIONS", 2)
    handle = await kernels.create(ALICE)
    await create(sessions, "1", kernel_id=handle.id)
    await create(sessions, "2", kernel_id=handle.id)
    with pytest.raises(LimitReached):
        await create(sessions, "3", kernel_id=handle.id)

    await create(sessions, "2", kernel_id=handle.id)
    await create(sessions, "3", who=BOB)


async def test_sessions_whose_kernels_are_gone_take_no_room(sessions, kernels, store, monkeypatch):
    """Deleting kernels, which leaves their sessions' records behind, never uses up an owner's sessions."""
    monkeypatch.setattr(module, "_MAX_SESSIONS", 2)
    for number in range(5):
        _, handle = await create(sessions, str(number))
        await kernels.delete(ALICE, handle.id)

    last = await create(sessions, "last")

    assert last[0] in await store.sessions("alice")
    assert len(await store.sessions("alice")) <= 2


async def test_list_is_ones_own(sessions):
    """An owner lists its own sessions, an admin everybody's."""
    mine, other = await create(sessions), await create(sessions, who=BOB)

    assert await sessions.list(ALICE) == [mine]
    assert await sessions.list(ADMIN) == [mine, other]


async def test_list_forgets_what_is_gone(sessions, kernels, host, store):
    """A session without a kernel is not listed and forgotten; one with a dead kernel is shown."""
    (_, gone), dead = await create(sessions, "gone"), await create(sessions, "dead")
    await kernels.delete(ALICE, gone.id)
    host.kernels[dead[1].id].die(DeathReason.OOM)

    assert await sessions.list(ALICE) == [dead]
    assert await store.sessions() == [dead[0]]


async def test_list_spares_a_session_that_gets_a_new_kernel(sessions, kernels, host, store):
    """While a session's gone kernel is being replaced, listing neither forgets it nor waits for it."""
    old, handle = await create(sessions)
    await kernels.delete(ALICE, handle.id)
    host.hold = asyncio.Event()
    task = asyncio.create_task(create(sessions))
    while host.starts < 2:
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await sessions.list(ALICE) == []
    host.hold.set()
    new = await task

    assert new[0].id == old.id
    assert await sessions.list(ALICE) == [new]


async def test_list_spares_a_session_that_got_a_new_kernel(sessions, kernels, store, monkeypatch):
    """A session that was bound anew since the list was read is not forgotten."""
    old, handle = await create(sessions)
    await kernels.delete(ALICE, handle.id)
    new = await create(sessions)

    async def stale(owner):
        return [old]

    with monkeypatch.context() as patch:
        patch.setattr(store, "sessions", stale)
        assert await sessions.list(ALICE) == []

    assert await sessions.list(ALICE) == [new]


async def test_a_reused_kernel_id_opens_no_session(sessions, kernels):
    """Another's kernel under the id of one's gone kernel is not one's own."""
    record, handle = await create(sessions)
    await kernels.delete(ALICE, handle.id)
    await kernels.create(BOB, kernel_id=handle.id)

    with pytest.raises(NotFound):
        await sessions.get(ALICE, record.id)
    assert await sessions.list(ALICE) == []


async def test_get(sessions, kernels, store):
    """A session is shown while its kernel is there, and forgotten after."""
    pair = await create(sessions)
    assert await sessions.get(ALICE, pair[0].id) == pair
    assert await sessions.get(ADMIN, pair[0].id) == pair

    await kernels.delete(ALICE, pair[1].id)
    with pytest.raises(NotFound, match=f"Session not found: {pair[0].id}"):
        await sessions.get(ALICE, pair[0].id)
    assert await store.sessions() == []


async def test_what_is_anothers_does_not_exist(sessions, host, store):
    """Every verb on another's session answers as for an id that never was, and does nothing."""
    record, _ = await create(sessions)
    for session_id in (record.id, str(uuid4())):
        for verb in (
            sessions.owned(BOB, session_id),
            sessions.get(BOB, session_id),
            sessions.update(BOB, session_id, path="b"),
            sessions.update(BOB, session_id, kernel_name="bash"),
            sessions.delete(BOB, session_id),
        ):
            with pytest.raises(NotFound) as caught:
                await verb
            assert caught.value.body() == {
                "message": f"Session not found: {session_id}",
                "reason": None,
                "code": "not_found",
            }

    assert await store.sessions() == [record]
    assert host.starts == 1


async def test_scopes_are_checked(sessions):
    """A credential without `kernels` may use no verb."""
    record, _ = await create(sessions)
    who = principal("alice", Scope.EXECUTE)
    for verb in (
        create(sessions, who=who),
        sessions.list(who),
        sessions.owned(who, record.id),
        sessions.get(who, record.id),
        sessions.update(who, record.id, path="b"),
        sessions.delete(who, record.id),
    ):
        with pytest.raises(Forbidden, match="'kernels'"):
            await verb


async def test_update_moves_and_renames(sessions, host):
    """Path, name and type change; the kernel stays."""
    record, handle = await create(sessions)
    changed, kept = await sessions.update(ALICE, record.id, path="b.ipynb", name="b", type="console")

    assert (changed.path, changed.name, changed.type) == ("b.ipynb", "b", "console")
    assert (changed.id, kept) == (record.id, handle)
    assert await sessions.get(ALICE, record.id) == (changed, handle)
    assert host.removed == []


async def test_update_to_a_taken_path(sessions):
    """A path that another living session of the owner's has is a Conflict; nothing changes."""
    first, second = await create(sessions, "a"), await create(sessions, "b")
    with pytest.raises(Conflict):
        await sessions.update(ALICE, first[0].id, path="b")

    assert await sessions.list(ALICE) == [first, second]


async def test_update_to_a_path_that_is_free_again(sessions, kernels):
    """A session whose kernel is gone does not hold its path."""
    first, second = await create(sessions, "a"), await create(sessions, "b")
    await kernels.delete(ALICE, second[1].id)
    changed, _ = await sessions.update(ALICE, first[0].id, path="b")

    assert changed.path == "b"


async def test_update_with_a_new_kernel_ends_the_old(sessions, host):
    """A kernel name starts a new kernel, and the old one is shut down."""
    record, old = await create(sessions)
    changed, new = await sessions.update(ALICE, record.id, kernel_name="bash")

    assert (changed.kernel_id, changed.kernel_name) == (new.id, "bash")
    assert host.removed == [(old.id, DeathReason.SHUTDOWN)]
    assert list(host.kernels) == [new.id]


async def test_update_kernel_id_wins(sessions, kernels, host):
    """With both given, the id is bound and nothing is started."""
    record, old = await create(sessions)
    other = await kernels.create(ALICE)
    _, bound = await sessions.update(ALICE, record.id, kernel_id=other.id, kernel_name="bash")

    assert bound is other
    assert host.starts == 2
    assert host.removed == [(old.id, DeathReason.SHUTDOWN)]


async def test_update_to_its_own_kernel_keeps_it(sessions, host):
    """Naming the kernel that is bound already ends nothing."""
    record, handle = await create(sessions)

    assert await sessions.update(ALICE, record.id, kernel_id=handle.id) == (record, handle)
    assert host.removed == []


async def test_update_to_anothers_kernel(sessions, kernels, host):
    """Another's kernel is not bound, by an admin's hand neither, and the old kernel lives."""
    record, handle = await create(sessions)
    other = await kernels.create(BOB)
    for who in (ALICE, ADMIN):
        with pytest.raises(NotFound, match=f"Kernel does not exist: {other.id}"):
            await sessions.update(who, record.id, kernel_id=other.id)

    assert await sessions.get(ALICE, record.id) == (record, handle)
    assert host.removed == []


async def test_update_by_an_admin_stays_the_owners(sessions):
    """A kernel that an admin starts for a session is the session's owner's."""
    record, _ = await create(sessions)
    changed, new = await sessions.update(ADMIN, record.id, kernel_name="bash")

    assert (changed.owner, new.owner) == ("alice", "alice")
    assert await sessions.get(ALICE, record.id) == (changed, new)


async def test_update_that_fails_ends_its_new_kernel(sessions, host):
    """A new kernel does not outlive the update that asked for it; the old one lives."""
    first, second = await create(sessions, "a"), await create(sessions, "b")
    with pytest.raises(Conflict):
        await sessions.update(ALICE, first[0].id, path="b", kernel_name="bash")

    assert set(host.kernels) == {first[1].id, second[1].id}


async def test_update_without_a_kernel(sessions, kernels, store):
    """A session whose kernel is gone cannot be renamed, but bound anew."""
    record, handle = await create(sessions)
    await kernels.delete(ALICE, handle.id)
    changed, fresh = await sessions.update(ALICE, record.id, kernel_name="python3")
    assert (changed.id, changed.kernel_id) == (record.id, fresh.id)

    await kernels.delete(ALICE, fresh.id)
    with pytest.raises(NotFound, match="Session not found"):
        await sessions.update(ALICE, record.id, name="x")
    assert await store.sessions() == []


async def test_parallel_updates_leave_one_kernel(sessions, host):
    """Updates of one session follow each other, though the session moves under them."""
    record, _ = await create(sessions)
    await asyncio.gather(
        sessions.update(ALICE, record.id, path="b", kernel_name="bash"),
        sessions.update(ALICE, record.id, path="c", kernel_name="bash"),
        sessions.update(ALICE, record.id, kernel_name="python3"),
    )

    ((current, handle),) = await sessions.list(ALICE)
    assert list(host.kernels) == [current.kernel_id] == [handle.id]


async def test_updates_follow_a_session_that_moves(sessions, host):
    """An update that waited for a session which moved meanwhile waits for its turn at the new path, too."""
    record, _ = await create(sessions)
    host.hold = asyncio.Event()
    moving = asyncio.create_task(sessions.update(ALICE, record.id, path="b", kernel_name="bash"))
    while host.starts < 2:
        await asyncio.sleep(0)
    waiting = asyncio.create_task(sessions.update(ALICE, record.id, kernel_name="bash"))
    await asyncio.sleep(0.01)
    host.hold.set()
    await moving
    await asyncio.gather(waiting, sessions.update(ALICE, record.id, kernel_name="bash"))

    ((current, _),) = await sessions.list(ALICE)
    assert current.path == "b"
    assert list(host.kernels) == [current.kernel_id]


async def test_delete_ends_the_kernel(sessions, host, store):
    """A deleted session takes its kernel along."""
    record, handle = await create(sessions)
    await sessions.delete(ALICE, record.id)

    assert host.removed == [(handle.id, DeathReason.SHUTDOWN)]
    assert await store.sessions() == []
    with pytest.raises(NotFound):
        await sessions.delete(ALICE, record.id)


async def test_delete_after_the_kernel_went(sessions, kernels, store):
    """Gone is told when the kernel went first, and the session is forgotten all the same."""
    record, handle = await create(sessions)
    await kernels.delete(ALICE, handle.id)
    with pytest.raises(Gone):
        await sessions.delete(ALICE, record.id)

    assert await store.sessions() == []


async def test_store_that_does_not_answer(sessions, host, store):
    """Without the store nothing is bound and nothing is left running."""
    store.broken = True
    with pytest.raises(StoreUnavailable):
        await create(sessions)

    assert host.kernels == {}


async def test_what_was_looked_up_is_not_told_after_its_end(sessions):
    """A session that was found by its path is found no more once it is deleted, nor ever by another owner."""
    record, handle = await create(sessions)
    for _ in range(2):
        assert await sessions.at("alice", "a.ipynb") == (record, handle)
        assert await sessions.at("bob", "a.ipynb") is None

    await sessions.delete(ALICE, record.id)

    assert await sessions.at("alice", "a.ipynb") is None
    again, other = await create(sessions)
    assert (again.id != record.id, other.id != handle.id) == (True, True)
    assert await sessions.at("alice", "a.ipynb") == (again, other)


async def test_what_was_looked_up_follows_its_changes(sessions):
    """After a move and a change of kernel a session is found where it is, with the kernel that it has."""
    record, handle = await create(sessions)
    await sessions.at("alice", "a.ipynb")

    moved, bound = await sessions.update(ALICE, record.id, path="b.ipynb", kernel_name="bash")

    assert bound.id != handle.id
    assert await sessions.at("alice", "a.ipynb") is None
    assert await sessions.at("alice", "b.ipynb") == (moved, bound)
