"""Kernels over REST, as Jupyter's clients ask for them."""

from __future__ import annotations

import re

import pytest

from gateway.models import DeathReason

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"{}",
        b"null",
        b'{"name":"python3","path":"a/b.ipynb","extra":[1]}',
        b' {"env":{"KERNEL_A":"b"}}\n',
    ],
)
async def test_create_takes_what_clients_send(door, data):
    """No body, an empty one, extra fields, any Content-Type: 201, the model, and where to find it."""
    status, body, headers = await door.call(
        "POST", "/api/kernels", data=data, headers={"Content-Type": "text/x"}
    )

    assert (status, headers["Location"]) == (201, f"/api/kernels/{body['id']}")
    assert (body["name"], body["execution_state"], body["connections"], body["owner"]) == (
        "python3",
        "idle",
        0,
        "alice",
    )
    assert TIMESTAMP.fullmatch(body["last_activity"])
    assert (await door.call("GET", headers["Location"]))[1] == body


async def test_the_asked_id_is_given_once(door):
    """A kernel gets the id that was asked for; a second one of that id is a conflict."""
    wanted = {"kernel_id": "0b8a35f6-9c1e-4c58-a2a1-5d2f6e7c8b9a"}

    assert (await door.call("POST", "/api/kernels", json=wanted))[1]["id"] == wanted["kernel_id"]
    assert (await door.call("POST", "/api/kernels", json=wanted))[0] == 409


async def test_interrupt_restart_delete(door):
    """Interrupt and delete are 204 without a body, restart answers with the model, with or without a body."""
    kernel = await door.kernel()
    path = f"/api/kernels/{kernel.id}"

    assert (await door.call("POST", f"{path}/interrupt", data=b"junk"))[:2] == (204, None)
    status, body, _ = await door.call("POST", f"{path}/restart", json={})
    assert (status, body["id"]) == (200, kernel.id)
    assert (kernel.interrupts, kernel.restarts) == (1, 1)
    assert (await door.call("DELETE", path))[:2] == (204, None)
    assert (await door.call("GET", path))[0] == 404


async def test_a_dead_kernel_says_why(door):
    """A dead kernel stays to be seen, with its reason; interrupting it is a conflict."""
    kernel = await door.kernel()
    kernel.die(DeathReason.OOM)

    body = (await door.call("GET", f"/api/kernels/{kernel.id}"))[1]
    assert (body["execution_state"], body["reason"]) == ("dead", "oom")
    status, body, _ = await door.call("POST", f"/api/kernels/{kernel.id}/interrupt")
    assert (status, body["code"]) == (409, "kernel_dead")


async def test_execute(door):
    """Code goes in, everything that came of it comes out."""
    kernel = await door.kernel()
    path = f"/api/kernels/{kernel.id}/execute"

    _, printed, _ = await door.call("POST", path, json={"code": "print hello"})
    _, failed, _ = await door.call("POST", path, json={"code": "raise ValueError"})

    assert (printed["status"], printed["stdout"], printed["execution_count"]) == ("ok", "hello\n", 1)
    assert (failed["status"], failed["error"]["ename"]) == ("error", "ValueError")
    assert kernel.subscribers == 0
