"""Contexts: a caller's own names for kernels, made on first use, and gone when nobody uses them."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.conftest import ROOM
from tests.gateway import running

if TYPE_CHECKING:
    from tests.gateway import Client, Gateway


async def say(client: Client, context: str, code: str, **more: object) -> str:
    """Run code in a context and return what it printed."""
    job = await client.json("POST", "/api/executions", {"code": code, "context": context, **more})
    assert job["status"] == "ok", job
    return str(job["result"]["stdout"])


async def test_made_on_first_use(client: Client) -> None:
    """A name that is new gets a kernel; used again it is the same one, with its state."""
    name = f"chat:{uuid4()}"
    await say(client, name, "x = 1")

    assert await say(client, name, "print(x)") == "1\n"
    context = await client.json("GET", f"/api/contexts/{name}")
    assert (context["name"], context["state"], context["kernel"]) == (name, "idle", "python3")
    assert context["expires_at"] > context["created_at"]
    assert name in {one["name"] for one in await client.json("GET", "/api/contexts")}
    await client.json("DELETE", f"/api/contexts/{name}", status=204)
    await client.json("GET", f"/api/contexts/{name}", status=404)
    await client.json("GET", f"/api/kernels/{context['kernel_id']}", status=404)


async def test_at_the_same_moment(client: Client) -> None:
    """Many first uses at once make one kernel."""
    name = uuid4().hex
    answers = await asyncio.gather(
        *(client.json("POST", "/api/executions", {"code": "1", "context": name}) for _ in range(5))
    )

    assert len({job["kernel_id"] for job in answers}) == 1
    await client.json("DELETE", f"/api/contexts/{name}", status=204)


async def test_names_are_each_owners_own(gateway: Gateway, client: Client) -> None:
    """The same name of two owners is two contexts, and nobody sees another's."""
    name = uuid4().hex
    await say(client, name, "secret = 'alice'")
    async with gateway.client("bob") as bob:
        assert await say(bob, name, "print(globals().get('secret'))") == "None\n"
        theirs = await bob.json("GET", f"/api/contexts/{name}")
        mine = await client.json("GET", f"/api/contexts/{name}")
        assert theirs["kernel_id"] != mine["kernel_id"]
        await bob.json("DELETE", f"/api/contexts/{name}", status=204)
        await bob.json("GET", f"/api/contexts/{name}", status=404)
    assert await say(client, name, "print(secret)") == "alice\n"
    await client.json("DELETE", f"/api/contexts/{name}", status=204)


async def test_what_its_kernel_shall_be(client: Client) -> None:
    """Options are its kernel's when it is made, and nothing to one that stands."""
    name = uuid4().hex
    options = {"env": {"KERNEL_COLOUR": "red"}, "limits": {"memory_bytes": 200 << 20}, "ttl_s": 60}
    made = await client.json("PUT", f"/api/contexts/{name}", options)

    assert (made["limits"]["memory_bytes"], made["limits"]["idle_timeout_s"]) == (200 << 20, 60)
    code = "import os; print(os.environ['KERNEL_COLOUR'])"
    assert await say(client, name, code, env={"KERNEL_COLOUR": "blue"}) == "red\n"
    again = await client.json("PUT", f"/api/contexts/{name}", {"ttl_s": 30})
    assert again["kernel_id"] == made["kernel_id"]
    await client.json("DELETE", f"/api/contexts/{name}", status=204)


async def test_contexts_are_no_sessions_of_jupyters(client: Client) -> None:
    """A Jupyter client that lists sessions does not meet contexts."""
    name = uuid4().hex
    await client.json("PUT", f"/api/contexts/{name}", {})

    assert name not in {session["name"] for session in await client.json("GET", "/api/sessions")}
    await client.json("DELETE", f"/api/contexts/{name}", status=204)


@pytest.mark.parametrize("name", ["-a", "a b", "a%2Fb", "x" * 129, "%00", "ä"])
async def test_names_that_are_none(client: Client, name: str) -> None:
    """A name that no context may have is 400."""
    refused = await client.json("PUT", f"/api/contexts/{name}", {}, status=400)

    assert refused["code"] == "bad_request"


async def test_time_to_live_and_restarts() -> None:
    """Unused it ends; kept alive it stays, past the gateway's death too; a lost kernel is replaced."""
    with running(env=ROOM | {"CELLBLOCK_KERNELS__CULL_INTERVAL_S": "0.2"}) as gateway:
        async with gateway.client() as client:
            for name in ("short", "kept"):
                await client.json("PUT", f"/api/contexts/{name}", {"ttl_s": 2})
            await say(client, "lasting", "x = 'still here'")
            for _ in range(6):
                await asyncio.sleep(0.5)
                await client.json("POST", "/api/contexts/kept/keepalive")
            await client.json("GET", "/api/contexts/short", status=404)
            await client.json("GET", "/api/contexts/kept")
        gateway.end(signal.SIGKILL)
        gateway.start()
        async with gateway.client() as client:
            assert await say(client, "lasting", "print(x)") == "still here\n"
            kernel = (await client.json("GET", "/api/contexts/lasting"))["kernel_id"]
            await client.delete(kernel)
            assert await say(client, "lasting", "print(globals().get('x'))") == "None\n"
