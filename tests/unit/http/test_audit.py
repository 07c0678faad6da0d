"""The door records whom it refused, and acknowledges nothing that is not recorded."""

from __future__ import annotations

import asyncio

from gateway.errors import AuditUnavailable, LimitReached
from gateway.models import AuditOutcome, ExecutionState
from gateway.origin import current


def refusals(door):
    """Return the refusals: action, who, reason, target."""
    return [
        (event.action.value, event.who, event.reason, event.target)
        for event in door.audit.events
        if event.outcome is AuditOutcome.REFUSED
    ]


async def test_refusals(door):
    """No credential, a missing scope, what is another's, too much and too often are recorded."""
    kernel = await door.kernel()
    await door.call("GET", "/api/kernels?token=cb_secret", who=None)
    await door.call("POST", f"/api/kernels/{kernel.id}/execute", who="reader", json={"code": "1"})
    await door.call("GET", f"/api/kernels/{kernel.id}", who="bob")
    await door.call("POST", "/api/kernels", data=b"x" * 5000)
    door.host.failure = LimitReached("Enough.")
    await door.call("POST", "/api/kernels")

    assert refusals(door) == [
        ("auth.refused", None, "unauthorized", "GET /api/kernels"),
        ("access.refused", "alice", "missing_scope", "POST /api/kernels/{kernel_id}/execute"),
        ("access.refused", "bob", "not_found", "GET /api/kernels/{kernel_id}"),
        ("limit.refused", "alice", "payload_too_large", "POST /api/kernels"),
        ("limit.refused", "alice", "limit_reached", "POST /api/kernels"),
    ]
    refused = next(event for event in door.audit.events if event.who == "bob")
    assert (refused.kernel_id, refused.address, refused.door) == (kernel.id, "127.0.0.1", "rest")
    assert refused.request_id
    assert refused.key_id
    assert "cb_secret" not in repr(door.audit.events)


async def test_what_is_wrong_or_missing_is_no_refusal(door):
    """A path that is none and a body that is malformed are not recorded."""
    await door.call("GET", "/api/nothing")
    await door.call("POST", "/api/kernels", data=b"{")

    assert refusals(door) == []


async def test_the_request_is_known_to_what_it_does(door, monkeypatch):
    """While a request is served its origin is; afterwards there is none."""
    seen = []
    monkeypatch.setattr(door.audit, "record", lambda _event: seen.append(current()))
    await door.call("POST", "/api/kernels", headers={"X-Request-Id": "mine"})

    [origin] = seen
    assert (origin.principal, origin.door, origin.request_id) == ("alice", "rest", "mine")
    assert current() is None


async def test_nothing_is_acknowledged_that_is_not_recorded(door):
    """When the record of what was done cannot be kept the answer is 503; looking still works."""
    kernel = await door.kernel()
    door.audit.failure = AuditUnavailable("The disk is full.")

    status, body, _ = await door.call("DELETE", f"/api/kernels/{kernel.id}")
    assert (status, body["code"]) == (503, "audit_unavailable")
    assert (await door.call("GET", "/api/kernels"))[0] == 200


async def test_a_socket_ends_when_a_record_cannot_be_kept(door):
    """Over a WebSocket an execution's end is not shown without its record: the socket closes with 1011."""
    kernel = await door.kernel()
    async with door.channels(kernel.id) as socket:
        door.audit.failure = AuditUnavailable("The disk is full.")
        await socket.send_json(
            {
                "channel": "shell",
                "header": {"msg_id": "m", "msg_type": "execute_request", "session": "s", "username": "u"},
                "parent_header": {},
                "metadata": {},
                "content": {"code": "1"},
            }
        )
        while not socket.closed:
            message = await socket.receive(10)
            assert "execute_reply" not in str(message.data)

    assert socket.close_code == 1011


async def test_a_job_without_its_record_has_no_result(door):
    """What a job's code gave is told to nobody, now or later, when the record of its end cannot be kept."""
    kernel = await door.kernel()
    asking = asyncio.create_task(
        door.call("POST", "/api/executions", json={"code": "wait", "kernel_id": kernel.id})
    )
    async with asyncio.timeout(10):
        while kernel.state is not ExecutionState.BUSY:
            await asyncio.sleep(0.01)
    [job] = await door.store.jobs("alice")
    door.audit.failure = AuditUnavailable("The disk is full.")
    await kernel.interrupt()

    status, body, _ = await asking
    assert (status, body["code"]) == (503, "audit_unavailable")
    status, later, _ = await door.call("GET", f"/api/executions/{job.id}")
    assert (status, later["status"], later["result"]) == (200, "failed", None)
    assert later["failure"]["code"] == "audit_unavailable"
