"""Sessions of a real gateway: a path of an owner's and a kernel, through moves, deaths and restarts."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOM
from tests.gateway import Client, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.gateway import Gateway


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway of this file's own: sessions are counted here."""
    with running("--no-keep", env=ROOM) as own:
        yield own


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    """A client of alice's, who has no sessions and no kernels before and after."""
    async with gateway.client() as client:
        yield client
        for session in await client.json("GET", "/api/sessions"):
            async with client.http.delete(f"/api/sessions/{session['id']}"):
                pass
        for kernel in await client.json("GET", "/api/kernels"):
            await client.delete(kernel["id"])


async def create(
    client: Client, path: str = "a.ipynb", *, status: int = 201, kind: str = "notebook", **kernel: str
) -> Any:
    """Make a session, or get the one that is there."""
    body = {"path": path, "name": path, "type": kind, "kernel": kernel or {"name": "python3"}}
    return await client.json("POST", "/api/sessions", body, status=status)


async def change(client: Client, session: dict[str, Any], *, status: int = 200, **changes: Any) -> Any:
    """Change a session."""
    return await client.json("PATCH", f"/api/sessions/{session['id']}", changes, status=status)


async def end(client: Client, session: dict[str, Any], *, status: int = 204) -> None:
    """End a session."""
    await client.json("DELETE", f"/api/sessions/{session['id']}", status=status)


async def shown(client: Client) -> list[str]:
    """List the ids of the kernels that are there."""
    return [kernel["id"] for kernel in await client.json("GET", "/api/kernels")]


async def test_one_path_is_one_session(client: Client) -> None:
    """Opening the same path again gives the same session and kernel, with its state, also as 201."""
    first = await create(client, "dir ö/notebook.ipynb")
    await client.out(first["kernel"]["id"], "print('set'); x = 7")

    again = await create(client, "dir ö/notebook.ipynb", name="python3-scientific")

    assert (again["id"], again["kernel"]["id"]) == (first["id"], first["kernel"]["id"])
    assert again["notebook"] == {"path": "dir ö/notebook.ipynb", "name": "dir ö/notebook.ipynb"}
    assert await client.out(again["kernel"]["id"], "print(x)") == "7\n"
    assert len(await shown(client)) == 1


async def test_parallel_creates_of_one_path_make_one_kernel(client: Client) -> None:
    """Ten tabs open one notebook at the same moment: one session, one kernel."""
    made = await asyncio.gather(*(create(client) for _ in range(10)))

    assert len({session["id"] for session in made}) == 1
    assert len({session["kernel"]["id"] for session in made}) == 1
    assert await shown(client) == [made[0]["kernel"]["id"]]


async def test_two_owners_have_the_same_path(gateway: Gateway, client: Client) -> None:
    """A path is its owner's: bob's session there is another, and neither sees the other's."""
    async with gateway.client("bob") as bob:
        mine, his = await asyncio.gather(create(client, "same.ipynb"), create(bob, "same.ipynb"))

        assert mine["id"] != his["id"]
        assert mine["kernel"]["id"] != his["kernel"]["id"]
        assert [one["id"] for one in await client.json("GET", "/api/sessions")] == [mine["id"]]
        assert [one["id"] for one in await bob.json("GET", "/api/sessions")] == [his["id"]]
        await bob.json("GET", f"/api/sessions/{mine['id']}", status=404)
        await change(bob, mine, path="taken.ipynb", status=404)
        await end(bob, mine, status=404)
        await change(bob, his, kernel={"id": mine["kernel"]["id"]}, status=404)
        await end(bob, his)
    assert [one["id"] for one in await client.json("GET", "/api/sessions")] == [mine["id"]]


async def test_renaming_keeps_the_kernel(client: Client) -> None:
    """PATCH of path, name and type: the same kernel at the new path, and the old path is free."""
    session = await create(client, "old.ipynb")
    kernel = session["kernel"]["id"]
    await client.run(kernel, "x = 1")

    changed = await change(client, session, path="new.py", name="new", type="file")

    assert (changed["path"], changed["name"], changed["type"]) == ("new.py", "new", "file")
    assert "notebook" not in changed
    assert changed["kernel"]["id"] == kernel
    assert (await create(client, "new.py", kind="file"))["id"] == session["id"]
    other = await create(client, "old.ipynb")
    assert other["id"] != session["id"]
    assert other["kernel"]["id"] != kernel
    await change(client, other, path="new.py", status=409)
    assert await client.out(kernel, "print(x)") == "1\n"


async def test_another_kernel_ends_the_one_before(client: Client) -> None:
    """PATCH of the kernel, by name or by id: the session has it, and the one that it had is ended."""
    session = await create(client)
    first = session["kernel"]["id"]

    second = (await change(client, session, kernel={"name": "python3"}))["kernel"]["id"]

    assert second != first
    assert await shown(client) == [second]
    own = await client.start()
    third = await change(client, session, kernel={"id": own, "name": "nonsense"})
    assert third["kernel"]["id"] == own, "the id wins"
    assert await shown(client) == [own]
    await change(client, session, kernel={"id": second}, status=404)
    await change(client, session, kernel={"name": "nonsense"}, status=404)
    same = await change(client, session, kernel={"id": own})
    assert same["kernel"]["id"] == own
    assert await client.out(own, "print(1)") == "1\n", "its own kernel is no other"


async def test_ending_a_session_ends_its_kernel(client: Client) -> None:
    """DELETE of a session takes its kernel along, and its sockets are told."""
    session = await create(client)
    async with client.channels(session["kernel"]["id"]) as channels:
        await end(client, session)
        assert await channels.closing() == 1000

    assert await shown(client) == []
    await end(client, session, status=404)


async def test_a_session_whose_kernel_is_gone(client: Client) -> None:
    """DELETE of the kernel takes the session along: not listed, not found; ending it at once is 410."""
    gone, listed = await create(client, "gone.ipynb"), await create(client, "listed.ipynb")
    for session in (gone, listed):
        await client.delete(session["kernel"]["id"])

    await end(client, gone, status=410)
    await end(client, gone, status=404)
    assert await client.json("GET", "/api/sessions") == []
    await client.json("GET", f"/api/sessions/{listed['id']}", status=404)
    await change(client, listed, path="x.ipynb", status=404)
    again = await create(client, "gone.ipynb")
    assert await client.out(again["kernel"]["id"], "print('anew')") == "anew\n"


async def test_a_session_whose_kernel_died(gateway: Gateway, client: Client) -> None:
    """A dead kernel is shown dead; a restart keeps the session, and opening the path gets a new kernel."""
    session = await create(client)
    kernel = session["kernel"]["id"]

    async def die() -> None:
        os.kill(gateway.kernel_pids()[-1], signal.SIGKILL)
        while (await client.kernel(kernel))["execution_state"] != "dead":
            await asyncio.sleep(0.05)

    await die()
    (shown_dead,) = await client.json("GET", "/api/sessions")
    assert (shown_dead["kernel"]["execution_state"], shown_dead["kernel"]["reason"]) == ("dead", "killed")
    await client.json("POST", f"/api/kernels/{kernel}/restart")
    (revived,) = await client.json("GET", "/api/sessions")
    assert (revived["id"], revived["kernel"]["id"]) == (session["id"], kernel)

    await die()
    again = await create(client)

    assert again["id"] == session["id"]
    assert again["kernel"]["id"] != kernel
    assert await shown(client) == [again["kernel"]["id"]]


async def test_races_leave_no_kernel_behind(client: Client) -> None:
    """Opening, moving, changing and ending the same paths at once: each kernel left has one session."""
    for _ in range(3):
        one, two = await create(client, "one.ipynb"), await create(client, "two.ipynb")
        requests = [
            ("POST", "/api/sessions", {"path": "one.ipynb", "type": "notebook", "kernel": {}}),
            ("POST", "/api/sessions", {"path": "three.ipynb", "type": "notebook", "kernel": {}}),
            ("PATCH", f"/api/sessions/{one['id']}", {"path": "three.ipynb"}),
            ("PATCH", f"/api/sessions/{two['id']}", {"path": "three.ipynb"}),
            ("PATCH", f"/api/sessions/{one['id']}", {"kernel": {"name": "python3"}}),
            ("DELETE", f"/api/sessions/{two['id']}", None),
            ("DELETE", f"/api/kernels/{one['kernel']['id']}", None),
            ("POST", "/api/sessions", {"path": "two.ipynb", "type": "notebook", "kernel": {}}),
        ]

        async def ask(method: str, path: str, body: Any) -> int:
            async with client.http.request(method, path, json=body) as response:
                return response.status

        statuses = await asyncio.gather(*(ask(*request) for request in requests))

        assert set(statuses) <= {200, 201, 204, 404, 409, 410}
        sessions = await client.json("GET", "/api/sessions")
        paths = [session["path"] for session in sessions]
        assert len(paths) == len(set(paths))
        assert sorted(session["kernel"]["id"] for session in sessions) == sorted(await shown(client))
        for session in sessions:
            await end(client, session)


async def test_sessions_live_as_long_as_their_kernels() -> None:
    """A gateway is killed and comes back: each session has its kernel and path, and what is gone is gone."""
    with running() as gateway:
        async with gateway.client() as client:
            kept, gone, moved = [await create(client, f"{name}.ipynb") for name in ("kept", "gone", "moved")]
            await client.out(kept["kernel"]["id"], "x = 5")
            moved = await change(client, moved, path="dir/moved.ipynb", kernel={"name": "python3"})
            await client.delete(gone["kernel"]["id"])
        gateway.end(signal.SIGKILL)
        gateway.start()

        async with gateway.client() as client:
            after = await client.json("GET", "/api/sessions")
            assert [(s["id"], s["path"], s["kernel"]["id"]) for s in after] == [
                (s["id"], s["path"], s["kernel"]["id"]) for s in (kept, moved)
            ]
            assert await client.out(kept["kernel"]["id"], "print(x)") == "5\n"
            again = await create(client, "kept.ipynb")
            assert (again["id"], again["kernel"]["id"]) == (kept["id"], kept["kernel"]["id"])
            await end(client, again)
            assert await shown(client) == [moved["kernel"]["id"]]


async def test_sessions_of_a_gateway_that_keeps_nothing() -> None:
    """After an orderly end with --no-keep the kernels are gone, and their sessions with them."""
    with running("--no-keep") as gateway:
        async with gateway.client() as client:
            before = await create(client)
        gateway.end()
        gateway.start()

        async with gateway.client() as client:
            assert await client.json("GET", "/api/sessions") == []
            again = await create(client)
            assert again["id"] != before["id"]
            assert await client.out(again["kernel"]["id"], "print(1)") == "1\n"
