"""Use cases record what they do, admit nothing that cannot be recorded, and keep secrets to themselves."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from gateway.errors import AuditUnavailable, BadRequest, Conflict, GatewayError, NotFound
from gateway.models import ExecuteRequest, Scope
from gateway.services.culler import Culler
from gateway.services.executions import ExecutionService
from gateway.services.kernels import KernelService
from gateway.services.quotas import Quotas
from gateway.services.sessions import SessionService
from gateway.settings import KernelsSettings, Settings
from tests.doubles import principal

ALICE, BOB = principal("alice", Scope.KERNELS, Scope.EXECUTE), principal("bob")


def told(audit) -> list[tuple[str, str, str | None]]:
    """Return what was recorded: action, outcome, reason."""
    return [(event.action.value, event.outcome.value, event.reason) for event in audit.events]


async def test_a_kernels_life(kernels, audit):
    """Each thing that is done to a kernel is one event with its owner, key and kernel."""
    handle = await kernels.create(ALICE, env={"KERNEL_B": "1", "KERNEL_A": "2"})
    await kernels.interrupt(ALICE, handle.id)
    await kernels.restart(ALICE, handle.id)
    await kernels.delete(ALICE, handle.id)

    assert [action for action, outcome, _ in told(audit) if outcome == "ok"] == [
        *("kernel.create", "kernel.interrupt", "kernel.restart", "kernel.delete")
    ]
    assert {(event.who, event.key_id, event.kernel_id) for event in audit.events} == {
        ("alice", "key-alice", handle.id)
    }
    assert audit.events[0].extra == {"spec": "python3", "env": "KERNEL_B,KERNEL_A"}


async def test_failures_are_recorded_and_refusals_left_to_the_door(kernels, host, audit):
    """A start that fails is an event with its error; what the door refuses is not recorded twice."""
    host.failure = GatewayError("It broke.")
    with pytest.raises(GatewayError):
        await kernels.create(ALICE)
    with pytest.raises(NotFound):
        await kernels.interrupt(ALICE, "0b8a35f6-9c1e-4c58-a2a1-5d2f6e7c8b9a")

    assert told(audit) == [("kernel.create", "error", "internal_error")]


async def test_sessions(kernels, store, clock, audit):
    """Making, changing and ending a session are events; finding one that stands is none."""
    sessions = SessionService(kernels, store, clock, audit)
    record, _ = await sessions.create(ALICE, path="a", type="notebook")
    await sessions.create(ALICE, path="a", type="notebook")
    await sessions.update(ALICE, record.id, name="b")
    await sessions.delete(ALICE, record.id)

    assert [action for action, _, _ in told(audit)] == [
        *("kernel.create", "session.create", "session.change", "kernel.delete", "session.delete")
    ]
    assert {event.target for event in audit.events if event.action.startswith("session")} == {record.id}


async def test_culling(kernels, host, clock, settings, audit):
    """A culled kernel is an event of the gateway's own, with the reason."""
    handle = await kernels.create(ALICE)
    clock.advance(10 * 86_400)
    await Culler(host, kernels, clock, settings, audit).sweep()

    event = audit.events[-1]
    assert (event.action, event.reason, event.door, event.kernel_id) == (
        *("kernel.cull", "lifetime", "gateway"),
        handle.id,
    )


async def test_nothing_begins_without_a_record(kernels, host, store, clock, audit):
    """While the trail takes nothing, no kernel or session is made; one can still be ended."""
    handle = await kernels.create(ALICE)
    audit.failure = AuditUnavailable("The disk is full.")
    sessions = SessionService(kernels, store, clock, audit)
    for begin in (
        kernels.create(ALICE),
        kernels.restart(ALICE, handle.id),
        kernels.interrupt(ALICE, handle.id),
        sessions.create(ALICE, path="a", type="notebook"),
    ):
        with pytest.raises(AuditUnavailable):
            await begin
    assert host.starts == 1

    await kernels.delete(ALICE, handle.id)
    assert not host.kernels


async def test_a_result_without_a_record_is_withheld(kernels, clock, settings, audit):
    """An execution whose record cannot be kept has no result."""
    handle = await kernels.create(ALICE)
    executions = ExecutionService(kernels, clock, settings, audit)
    audit.failure = AuditUnavailable("The disk is full.")

    with pytest.raises(AuditUnavailable):
        await executions.run(ALICE, handle.id, ExecuteRequest(code="1"))


async def test_secrets_reach_the_host_and_nothing_else(host, store, clock, audit):
    """A secret's value is with the host alone; record and event have its name."""
    settings = Settings(kernels=KernelsSettings(secrets_allowed=("API_TOKEN", "PYTHONSTARTUP")))
    kernels = KernelService(host, store, clock, settings, Quotas(settings, store, clock), audit=audit)
    handle = await kernels.create(
        ALICE, env={"KERNEL_X": "1"}, secrets={"API_TOKEN": SecretStr("canary"), "KERNEL_S": SecretStr("c2")}
    )

    (record,) = await store.kernels()
    assert host.kernels[handle.id].secrets["API_TOKEN"].get_secret_value() == "canary"
    assert host.kernels[handle.id].env == record.env == {"KERNEL_X": "1"}
    assert record.secret_names == ("API_TOKEN", "KERNEL_S")
    assert audit.events[0].extra["secrets"] == "API_TOKEN,KERNEL_S"
    assert "canary" not in repr(record) + repr(audit.events) + repr(host.kernels[handle.id].secrets)


@pytest.mark.parametrize(
    ("secrets", "env"),
    [
        ({"OTHER": "canary"}, {}),
        ({"LANG_HINT": "canary"}, {}),
        ({"LD_PRELOAD": "canary"}, {}),
        ({"KERNEL_A": "canary"}, {"KERNEL_A": "1"}),
        ({"KERNEL_A": "canary\0"}, {}),
        ({"KERNEL_A": "canary\ud800"}, {}),
        ({"KERNEL_A": "canary" * 20_000}, {}),
        ({f"KERNEL_{n}": "canary" for n in range(40)}, {f"KERNEL_X{n}": "1" for n in range(40)}),
    ],
)
async def test_secrets_that_may_not_be(kernels, host, secrets, env):
    """Names are allowed as for the environment, by a list of their own; no message repeats a value."""
    with pytest.raises(BadRequest) as refused:
        await kernels.create(
            ALICE, env=env, secrets={name: SecretStr(value) for name, value in secrets.items()}
        )

    assert "canary" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert host.starts == 0


async def test_an_id_in_use_is_an_error(kernels, audit):
    """A conflict is no refusal of the door's, and is recorded."""
    handle = await kernels.create(ALICE)
    with pytest.raises(Conflict):
        await kernels.create(ALICE, kernel_id=handle.id)

    assert told(audit)[-1] == ("kernel.create", "error", "conflict")
