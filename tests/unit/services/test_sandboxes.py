"""Sandboxes over doubles: what is left of one that fails, when one ends, and whom its token speaks for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from gateway.auth import DerivedTokens, KeyRing
from gateway.errors import (
    BadRequest,
    Forbidden,
    LimitReached,
    NotFound,
    SandboxNotRunning,
    StoreUnavailable,
    Unauthorized,
)
from gateway.models import DEFAULT_SCOPES, DeathReason, Principal, Scope
from gateway.services.kernels import KernelService
from gateway.services.quotas import Quotas
from gateway.services.sandbox_book import SandboxBook
from gateway.services.sandboxes import SandboxService
from gateway.services.workspaces import WorkspaceService
from gateway.settings import E2bSettings, KernelsSettings, Settings
from tests.doubles import ManualClock, MemoryAudit, MemoryHost, MemoryStore, kernelspec


@dataclass
class Scene:
    """Sandboxes and what is below them."""

    clock: ManualClock
    store: MemoryStore
    host: MemoryHost
    keys: KeyRing
    audit: MemoryAudit
    book: SandboxBook
    sandboxes: SandboxService

    async def key(self, name: str = "alice", scopes: frozenset[Scope] = DEFAULT_SCOPES) -> Principal:
        """Return a principal with a key of its own."""
        token, _ = await self.keys.create(name, scopes)
        return await self.keys.authenticate(token)

    async def make(self, who: Principal, **named: object):
        """Make a sandbox."""
        given = {"template": "base", "timeout_s": 60, "metadata": {}, "env": {}, **named}
        return await self.sandboxes.create(who, **given)


@pytest.fixture
def scene() -> Scene:
    """A gateway that runs two kernels at most."""
    clock, store, audit = ManualClock(), MemoryStore(), MemoryAudit()
    settings = Settings(
        kernels=KernelsSettings(max_kernels_per_owner=2), e2b=E2bSettings(max_timeout_s=1000, timeout_s=60)
    )
    quotas = Quotas(settings, store, clock)
    host = MemoryHost(clock, specs=(kernelspec(),), gate=quotas)
    kernels = KernelService(host, store, clock, settings, quotas, audit=audit)
    keys = KeyRing(store, b"p" * 32, clock, cache_s=0)
    book = SandboxBook(host, kernels, store, clock, audit)
    sandboxes = SandboxService(
        book=book,
        kernels=kernels,
        workspaces=WorkspaceService(host, settings, quotas, audit),
        clock=clock,
        settings=settings,
        audit=audit,
        authenticator=keys,
        tokens=DerivedTokens(b"p" * 32),
    )
    return Scene(clock, store, host, keys, audit, book, sandboxes)


async def test_an_end_comes(scene):
    """A sandbox ends at its time, not before, with its kernel and record; to put it off puts it off."""
    alice = await scene.key()
    first, second = await scene.make(alice), await scene.make(alice)
    scene.clock.advance(30)
    await scene.sandboxes.set_timeout(alice, second.record.id, 100)
    scene.clock.advance(29)
    await scene.book.sweep()
    assert len(scene.host.kernels) == 2
    scene.clock.advance(2)
    await scene.book.sweep()
    assert scene.sandboxes.list(alice) == [second]
    assert [record.id for record in await scene.store.sandboxes()] == [second.record.id]
    assert list(scene.host.kernels) == [second.record.contexts[0].id]
    with pytest.raises(NotFound):
        scene.sandboxes.get(alice, first.record.id)


async def test_no_end_is_further_than_the_longest(scene):
    """However often it is put off or paused, a sandbox lives no longer than the setting says."""
    alice = await scene.key()
    sandbox = await scene.make(alice, timeout_s=900)
    scene.clock.advance(500)
    await scene.sandboxes.set_timeout(alice, sandbox.record.id, 900)
    await scene.sandboxes.pause(alice, sandbox.record.id)
    scene.clock.advance(499)
    await scene.book.sweep()
    assert scene.sandboxes.list(alice) == [sandbox]
    scene.clock.advance(2)
    await scene.book.sweep()
    assert scene.sandboxes.list(alice) == []
    with pytest.raises(BadRequest):
        await scene.make(alice, timeout_s=1001)


async def test_kernels_do_not_idle_away(scene):
    """A sandbox's kernels are kept from being culled until it ends; one that has gone takes it along."""
    alice = await scene.key()
    sandbox = await scene.make(alice, timeout_s=1000)
    [kernel] = scene.host.kernels.values()
    kernel.limits = kernel.limits.model_copy(update={"idle_timeout_s": 100.0})
    for _ in range(9):
        scene.clock.advance(60)
        await scene.book.sweep()
        assert kernel.idle_for_s() < 100
    await scene.host.remove(kernel.id, DeathReason.CULLED)
    await scene.book.sweep()
    assert scene.sandboxes.list(alice) == []
    assert sandbox.ended


async def test_what_fails_leaves_nothing(scene):
    """A sandbox whose kernel is refused, or whose record cannot be kept, is gone at the next look."""
    alice = await scene.key()
    for _ in range(2):
        await scene.make(alice)
    with pytest.raises(LimitReached):
        await scene.make(alice)
    assert len(scene.sandboxes.list(alice)) == 2
    await scene.book.sweep()
    assert len(await scene.store.sandboxes()) == 2

    bob = await scene.key("bob")
    plain = scene.store.put_sandbox

    async def second_fails(record):
        if record.contexts:
            raise StoreUnavailable("no")
        await plain(record)

    scene.store.put_sandbox = second_fails
    with pytest.raises(StoreUnavailable):
        await scene.make(bob)
    assert scene.sandboxes.list(bob) == []
    await scene.book.sweep()
    assert len(scene.host.kernels) == len(await scene.store.sandboxes()) == 2


async def test_an_end_that_fails_is_tried_again(scene):
    """A sandbox that cannot be ended is hidden at once, and met again a while later."""
    alice = await scene.key()
    sandbox = await scene.make(alice)
    scene.store.broken = True
    with pytest.raises(StoreUnavailable):
        await scene.sandboxes.kill(alice, sandbox.record.id)
    assert scene.sandboxes.list(alice) == []
    await scene.book.sweep()
    scene.store.broken = False
    await scene.book.sweep()
    scene.clock.advance(61)
    await scene.book.sweep()
    assert await scene.store.sandboxes() == []


async def test_the_next_gateway(scene):
    """What the store knows is taken over, with its end; where its kernels are gone, it goes as well."""
    alice = await scene.key()
    kept, lost = await scene.make(alice), await scene.make(alice)
    del scene.host.kernels[lost.record.contexts[0].id]
    scene.book._live.clear()
    await scene.book.load()
    await scene.book.sweep()
    [found] = scene.sandboxes.list(alice)
    assert found.record == kept.record
    scene.clock.advance(61)
    await scene.book.sweep()
    assert await scene.store.sandboxes() == []


async def test_tokens(scene):
    """A token speaks for the owner while the key behind it holds, and for one sandbox alone."""
    alice = await scene.key()
    first, second = await scene.make(alice), await scene.make(alice)
    token = scene.sandboxes.token(first)
    assert (await scene.sandboxes.authenticate(first.record.id, token)).name == "alice"
    for sandbox_id in (second.record.id, "0" * 20, "", "../x"):
        with pytest.raises(Unauthorized):
            await scene.sandboxes.authenticate(sandbox_id, token)

    other = await scene.key()
    await scene.store.revoke_key(alice.key_id, scene.clock.now())
    with pytest.raises(Unauthorized):
        await scene.sandboxes.authenticate(first.record.id, token)
    await scene.sandboxes.connect(other, first.record.id, timeout_s=None)
    assert (await scene.sandboxes.authenticate(first.record.id, token)).key_id == other.key_id

    await scene.sandboxes.kill(other, first.record.id)
    with pytest.raises(SandboxNotRunning):
        await scene.sandboxes.authenticate(first.record.id, token)


async def test_whose_it_is(scene):
    """A sandbox is its owner's alone, an admin's not either; a key needs all that the token grants."""
    alice, root = await scene.key(), await scene.key("root", frozenset({Scope.ADMIN}))
    sandbox = await scene.make(alice)
    for call in (scene.sandboxes.kill, scene.sandboxes.pause):
        with pytest.raises(NotFound):
            await call(root, sandbox.record.id)
    assert scene.sandboxes.list(root) == []
    for scope in DEFAULT_SCOPES:
        narrow = await scene.key("alice", DEFAULT_SCOPES - {scope})
        with pytest.raises(Forbidden):
            await scene.sandboxes.connect(narrow, sandbox.record.id, timeout_s=None)
        with pytest.raises(Forbidden):
            await scene.make(narrow)
