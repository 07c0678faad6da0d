"""Sessions over REST, as notebook front ends keep them."""

from __future__ import annotations

NOTEBOOK = {
    "path": "dir/a.ipynb",
    "type": "notebook",
    "name": "a.ipynb",
    "kernel": {"name": "python3", "id": None},
}


async def test_create_shows_the_session_and_its_kernel(door):
    """A new session is 201 with its place; a notebook's has the deprecated part as well, nothing else has."""
    status, body, headers = await door.call("POST", "/api/sessions", json=NOTEBOOK | {"extra": 1})
    console = (await door.call("POST", "/api/sessions", json={"path": "c", "type": "console"}))[1]

    assert (status, headers["Location"]) == (201, f"/api/sessions/{body['id']}")
    assert (body["path"], body["name"], body["type"]) == ("dir/a.ipynb", "a.ipynb", "notebook")
    assert body["notebook"] == {"path": "dir/a.ipynb", "name": "a.ipynb"}
    assert body["kernel"]["id"] in door.host.kernels
    assert "notebook" not in console


async def test_the_same_path_gets_the_same_session(door):
    """Asking again for a path is 201 with the session that there is."""
    first = (await door.call("POST", "/api/sessions", json=NOTEBOOK))[1]
    status, again, _ = await door.call("POST", "/api/sessions", json=NOTEBOOK)

    assert (status, again["id"], again["kernel"]["id"]) == (201, first["id"], first["kernel"]["id"])
    assert door.host.starts == 1


async def test_the_deprecated_form(door):
    """`{"notebook": {"path": …}}` alone makes a notebook's session."""
    status, body, _ = await door.call("POST", "/api/sessions", json={"notebook": {"path": "old.ipynb"}})

    assert (status, body["path"], body["type"], body["notebook"]["path"]) == (
        201,
        "old.ipynb",
        "notebook",
        "old.ipynb",
    )


async def test_patch_renames_and_rebinds(door):
    """A session is moved without touching its kernel; another kernelspec ends the kernel that it had."""
    made = (await door.call("POST", "/api/sessions", json=NOTEBOOK))[1]
    path = f"/api/sessions/{made['id']}"

    status, moved, _ = await door.call("PATCH", path, json={"path": "b.ipynb", "kernel": None})
    assert (status, moved["path"], moved["kernel"]["id"]) == (200, "b.ipynb", made["kernel"]["id"])

    rebound = (await door.call("PATCH", path, json={"kernel": {"name": "bash"}}))[1]
    assert rebound["kernel"]["name"] == "bash"
    assert made["kernel"]["id"] not in door.host.kernels
    assert (await door.call("GET", path))[1] == rebound
    assert (await door.call("GET", "/api/sessions"))[1] == [rebound]


async def test_delete_ends_the_kernel(door):
    """Deleting a session is 204 and ends its kernel; 410 when the kernel went first."""
    made = (await door.call("POST", "/api/sessions", json=NOTEBOOK))[1]
    assert (await door.call("DELETE", f"/api/sessions/{made['id']}"))[:2] == (204, None)
    assert not door.host.kernels

    made = (await door.call("POST", "/api/sessions", json=NOTEBOOK))[1]
    await door.call("DELETE", f"/api/kernels/{made['kernel']['id']}")
    assert (await door.call("DELETE", f"/api/sessions/{made['id']}"))[0] == 410
