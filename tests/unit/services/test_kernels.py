"""Kernels: owners, scopes, quotas, environments, and nothing left behind."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from gateway.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    KernelStartFailed,
    LimitReached,
    NotFound,
    StoreUnavailable,
    UnknownKernelSpec,
)
from gateway.models import DeathReason, Limits, Scope
from gateway.services.kernels import KernelService
from gateway.services.quotas import Quotas
from gateway.settings import ExecutionsSettings, Settings
from tests.doubles import MemoryAudit, MemoryHost, principal

ALICE, BOB = principal("alice"), principal("bob")
ID = "0b8a35f6-9c1e-4c58-a2a1-5d2f6e7c8b9a"
ADMIN = principal("root", Scope.ADMIN)


async def test_create_starts_and_records(kernels, host, store, clock):
    """A created kernel is its creator's, of the default spec, and on record for the next gateway."""
    handle = await kernels.create(ALICE, env={"KERNEL_USERNAME": "al"})

    (record,) = await store.kernels()
    assert (handle.owner, handle.spec_name) == ("alice", "python3")
    assert host.kernels[handle.id].env == {"KERNEL_USERNAME": "al"}
    assert (record.id, record.owner, record.spec) == (handle.id, "alice", "python3")
    assert (record.env, record.limits) == ({"KERNEL_USERNAME": "al"}, handle.limits)
    assert record.created_at == clock.now()


async def test_unknown_spec_names_those_that_exist(kernels, host):
    """An unknown kernelspec is told together with those that there are, and nothing is started."""
    with pytest.raises(UnknownKernelSpec, match=r"'ruby'.*bash, python3"):
        await kernels.create(ALICE, name="ruby")

    assert host.starts == 0


async def test_settings_cap_the_profiles_limits(host, store, clock):
    """No kernel has a longer timeout or more output than the settings allow, nor more than its profile."""
    settings = Settings(executions=ExecutionsSettings(max_timeout_s=7, max_output_bytes=4096))
    kernels = KernelService(host, store, clock, settings, Quotas(settings, store, clock), audit=MemoryAudit())

    handle = await kernels.create(ALICE)
    assert (handle.limits.timeout_s, handle.limits.output_bytes) == (7, 4096)
    assert handle.limits.max_timeout_s == 7

    small = MemoryHost(clock, limits=Limits(timeout_s=3, output_bytes=2048))
    handle = await KernelService(
        small, store, clock, settings, Quotas(settings, store, clock), audit=MemoryAudit()
    ).create(ALICE)
    assert (handle.limits.timeout_s, handle.limits.output_bytes) == (3, 2048)


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "LD_PRELOAD", "PYTHONPATH", "HOME", "JPY_PARENT_PID", "OTHER", "", "K" * 9),
        *("KERNEL_A B", "KERNEL_É", "9KERNEL_A", "KERNEL_A=B", "KERNEL_A\n", "KERNEL_" + "A" * 200),
    ],
)
async def test_environment_names_are_allowed_or_refused(kernels, host, name):
    """Only KERNEL_* and allowed POSIX names pass; what decides on code never does, though it be allowed."""
    with pytest.raises(BadRequest, match="environment variable"):
        await kernels.create(ALICE, env={name: "x"})

    assert host.starts == 0


@pytest.mark.parametrize(
    "env",
    [
        {"KERNEL_A": "x" * (65536 + 1)},
        {"KERNEL_A": "é" * 32769},
        {"KERNEL_A": "a\0b"},
        {"KERNEL_A": "\ud800"},
        {f"KERNEL_{n}": "x" for n in range(65)},
        {f"KERNEL_{n}": "x" * 65536 for n in range(9)},
    ],
    ids=["long", "long in bytes", "NUL", "surrogate", "too many", "too much together"],
)
async def test_environment_values_are_bounded(kernels, host, env):
    """Values are bounded text, one by one and together."""
    with pytest.raises(BadRequest, match="environment variable"):
        await kernels.create(ALICE, env=env)

    assert host.starts == 0


async def test_environment_at_its_bounds(kernels, host):
    """The largest allowed value, an allowed other name and 64 names pass."""
    env = {f"KERNEL_{n}": "x" for n in range(62)} | {"LANG_HINT": "de", "KERNEL_BIG": "x" * 65536}
    handle = await kernels.create(ALICE, env=env)

    assert host.kernels[handle.id].env == env


async def test_environments_are_never_shared(kernels, host):
    """Parallel creates get each its own environment, and a later one without gets none."""
    first, second = await asyncio.gather(
        kernels.create(ALICE, env={"KERNEL_SECRET": "alice"}), kernels.create(BOB, env={"KERNEL_X": "bob"})
    )
    third = await kernels.create(BOB)

    assert host.kernels[first.id].env == {"KERNEL_SECRET": "alice"}
    assert host.kernels[second.id].env == {"KERNEL_X": "bob"}
    assert host.kernels[third.id].env == {}


async def test_kernel_id_is_the_callers_choice(kernels):
    """A free UUID is taken; one in use is a Conflict, one's own and another's alike."""
    wanted = str(uuid4())
    handle = await kernels.create(ALICE, kernel_id=wanted)
    assert handle.id == wanted

    messages = set()
    for who in (ALICE, BOB):
        with pytest.raises(Conflict) as caught:
            await kernels.create(who, kernel_id=wanted)
        messages.add(caught.value.message)
    assert len(messages) == 1


async def test_one_id_is_started_once(kernels, host):
    """Two parallel creates of one id start one kernel."""
    wanted = str(uuid4())
    results = await asyncio.gather(
        *(kernels.create(who, kernel_id=wanted) for who in (ALICE, BOB)), return_exceptions=True
    )

    assert [type(result) for result in results].count(Conflict) == 1
    assert (host.starts, len(host.kernels)) == (1, 1)


@pytest.mark.parametrize(
    "wrong",
    ["", "x", "../../etc", ID.replace("-", ""), "{" + ID + "}", "urn:uuid:" + ID, ID.upper(), ID + "\n"],
)
async def test_kernel_id_must_be_a_uuid(kernels, host, wrong):
    """Whatever is not a plain UUID is refused before it becomes a name of anything."""
    with pytest.raises(BadRequest, match="UUID"):
        await kernels.create(ALICE, kernel_id=wrong)

    assert host.starts == 0


async def test_owner_quota_is_exact_under_parallel_creates(kernels, host):
    """Of ten creates at once three win; the others are refused before anything starts."""
    results = await asyncio.gather(*(kernels.create(ALICE) for _ in range(10)), return_exceptions=True)

    refused = [result for result in results if isinstance(result, LimitReached)]
    assert {error.reason for error in refused} == {"max_kernels_per_owner"}
    assert (len(refused), host.starts, len(host.kernels)) == (7, 3, 3)


async def test_gateway_quota_is_exact_under_parallel_creates(kernels, host):
    """All owners together get five kernels, however many ask at once."""
    results = await asyncio.gather(
        *(kernels.create(principal(f"user{n}")) for n in range(9)), return_exceptions=True
    )

    refused = [result for result in results if isinstance(result, LimitReached)]
    assert {error.reason for error in refused} == {"max_kernels"}
    assert (len(refused), len(host.kernels)) == (4, 5)


async def test_failed_and_cancelled_starts_free_their_place(kernels, host):
    """A start that fails or whose caller goes away does not use up the quota."""
    host.failure = KernelStartFailed("It did not come up.")
    for _ in range(4):
        with pytest.raises(KernelStartFailed):
            await kernels.create(ALICE)
    host.failure, host.hold = None, asyncio.Event()
    tasks = [asyncio.create_task(kernels.create(ALICE)) for _ in range(3)]
    while host.starts < 7:
        await asyncio.sleep(0)
    with pytest.raises(LimitReached):
        await kernels.create(ALICE)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    host.hold = None

    for _ in range(3):
        await kernels.create(ALICE)


async def test_deleted_kernels_free_their_place(kernels):
    """A deleted kernel makes room for another."""
    handles = [await kernels.create(ALICE) for _ in range(3)]
    await kernels.delete(ALICE, handles[0].id)

    await kernels.create(ALICE)


async def test_no_kernel_without_a_record(kernels, host, store):
    """When the store refuses, the started kernel is ended again and the caller told."""
    store.broken = True
    with pytest.raises(StoreUnavailable):
        await kernels.create(ALICE)

    assert host.kernels == {}
    assert [reason for _, reason in host.removed] == [DeathReason.SHUTDOWN]


async def test_no_kernel_for_a_caller_that_left(kernels, host, store):
    """A caller cancelled while the record is written leaves neither kernel nor record."""
    task = asyncio.create_task(kernels.create(ALICE))
    while not host.kernels:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert host.kernels == {}
    assert await store.kernels() == []


async def test_what_is_anothers_does_not_exist(kernels, host):
    """Every verb on another's kernel answers exactly as for an id that never was, and does nothing."""
    handle = await kernels.create(ALICE)
    for kernel_id in (handle.id, str(uuid4())):
        message = f"Kernel does not exist: {kernel_id}"
        with pytest.raises(NotFound) as caught:
            kernels.get(BOB, kernel_id)
        assert (caught.value.message, caught.value.reason) == (message, None)
        for verb in (kernels.interrupt, kernels.restart, kernels.delete):
            with pytest.raises(NotFound) as caught:
                await verb(BOB, kernel_id)
            assert (caught.value.message, caught.value.reason) == (message, None)

    kernel = host.kernels[handle.id]
    assert (kernel.interrupts, kernel.restarts) == (0, 0)
    assert kernels.list(BOB) == []
    assert kernels.get(ALICE, handle.id) is handle


async def test_admin_sees_all(kernels):
    """An admin lists everybody's kernels and may end them."""
    mine, other = await kernels.create(ALICE), await kernels.create(BOB)

    assert kernels.list(ADMIN) == [mine, other]
    assert kernels.list(ALICE) == [mine]
    await kernels.delete(ADMIN, other.id)
    assert kernels.list(ADMIN) == [mine]


async def test_scopes_are_checked(kernels):
    """A credential without `kernels` may use no verb; one without `execute` gets no kernel to execute in."""
    handle = await kernels.create(ALICE)
    executor, keeper = principal("alice", Scope.EXECUTE), principal("alice", Scope.KERNELS)
    with pytest.raises(Forbidden, match="'kernels'"):
        kernels.get(executor, handle.id)
    with pytest.raises(Forbidden, match="'kernels'"):
        kernels.list(executor)
    with pytest.raises(Forbidden, match="'kernels'"):
        await kernels.create(executor)
    for verb in (kernels.interrupt, kernels.restart, kernels.delete):
        with pytest.raises(Forbidden, match="'kernels'"):
            await verb(executor, handle.id)
    with pytest.raises(Forbidden, match="'execute'"):
        kernels.get(keeper, handle.id, scope=Scope.EXECUTE)

    assert kernels.get(executor, handle.id, scope=Scope.EXECUTE) is handle


async def test_interrupt_restart_delete(kernels, host, store):
    """The verbs reach the kernel; a deleted one is gone from host and store."""
    handle = await kernels.create(ALICE)
    kernel = host.kernels[handle.id]
    await kernels.interrupt(ALICE, handle.id)
    assert await kernels.restart(ALICE, handle.id) is handle
    await kernels.delete(ALICE, handle.id)

    assert (kernel.interrupts, kernel.restarts) == (1, 1)
    assert host.removed == [(handle.id, DeathReason.SHUTDOWN)]
    assert await store.kernels() == []


async def test_a_broken_store_does_not_keep_a_kernel_alive(kernels, host, store):
    """Deleting ends the kernel even when its record cannot be forgotten."""
    handle = await kernels.create(ALICE)
    store.broken = True
    with pytest.raises(StoreUnavailable):
        await kernels.delete(ALICE, handle.id)

    assert host.kernels == {}


async def test_specs_are_the_hosts(kernels):
    """The service offers what the host has."""
    assert list(await kernels.specs()) == ["python3", "bash"]
    assert kernels.default_spec() == "python3"
