"""A kernel that lies over its own sockets: the gateway stays up, and others do not notice."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway import Client, Gateway, running, text_of
from tests.security import lies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="module")
def hostile() -> Iterator[Gateway]:
    """A gateway of one's own, to see how it fares."""
    with running("--no-keep") as gateway:
        yield gateway


@pytest.fixture
async def mallory(hostile: Gateway) -> AsyncIterator[Client]:
    """The client of whoever attacks."""
    async with hostile.client("mallory") as client:
        yield client


@pytest.fixture
async def bob(hostile: Gateway) -> AsyncIterator[Client]:
    """The client of whoever works."""
    async with hostile.client("bob") as client:
        yield client


@pytest.fixture
async def bobs(bob: Client) -> AsyncIterator[str]:
    """A kernel of bob's."""
    kernel = await bob.start()
    yield kernel
    await bob.delete(kernel)


@pytest.fixture
async def mallorys(mallory: Client) -> AsyncIterator[str]:
    """A kernel of mallory's."""
    kernel = await mallory.start()
    yield kernel
    await mallory.delete(kernel)


def resident(gateway: Gateway) -> int:
    """Return the gateway's resident bytes."""
    assert gateway.process is not None
    return int(Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def attack(client: Client, kernel: str, code: str, *, timeout_s: float = 10) -> dict[str, Any]:
    """Run hostile code, with a mark before and after it; it must end by its deadline and the grace."""
    begun = time.monotonic()
    whole = f"{lies.PRELUDE}\nprint('before', flush=True)\n{code}\nprint('after')\n"
    result = await client.run(kernel, whole, timeout_s=timeout_s)
    assert time.monotonic() - begun < timeout_s + 10
    return result


async def others_work(client: Client, kernel: str, until: asyncio.Task[Any]) -> float:
    """Execute in another's kernel until a task is done; return the longest that one execution took."""
    slowest = 0.0
    while not until.done():
        begun = time.monotonic()
        assert await client.out(kernel, "print(6 * 7)") == "42\n"
        slowest = max(slowest, time.monotonic() - begun)
        await asyncio.sleep(0.05)
    return slowest


@pytest.mark.parametrize("name", lies.GARBAGE)
async def test_garbage_on_iopub(mallory: Client, mallorys: str, bob: Client, bobs: str, name: str) -> None:
    """The execution ends with its own output, nothing forged is in it, and bob's kernel answers meanwhile."""
    work = asyncio.create_task(attack(mallory, mallorys, lies.GARBAGE[name]))
    await others_work(bob, bobs, work)
    result = await work

    assert result["status"] == "ok", result
    assert result["stdout"].startswith("before\n")
    assert result["stdout"].endswith("after\n")
    assert result["execution_count"] == 1
    assert "FORGED" not in json.dumps(result)
    assert await mallory.out(mallorys, "print('still here')") == "still here\n"
    assert (await mallory.kernel(mallorys))["execution_state"] == "idle"


async def test_early_idle_ends_nothing(mallory: Client, mallorys: str) -> None:
    """An idle that comes before the reply does not end the execution: its reply still counts."""
    code = f"{lies.EARLY_IDLE}\nimport time; time.sleep(0.5); 1 / 0"
    result = await attack(mallory, mallorys, code)

    assert result["status"] == "error"
    assert result["error"]["ename"] == "ZeroDivisionError"
    assert result["duration_s"] > 0.4


async def test_large_message(
    hostile: Gateway, mallory: Client, mallorys: str, bob: Client, bobs: str
) -> None:
    """A message of 64 MiB ends in a bounded way: the gateway does not grow by it, and the deadline holds."""
    before = resident(hostile)
    work = asyncio.create_task(attack(mallory, mallorys, lies.LARGE, timeout_s=5))
    await others_work(bob, bobs, work)
    result = await work

    assert result["status"] in ("ok", "timeout", "dead"), result
    assert len(result["stdout"]) < 12 << 20
    assert resident(hostile) - before < 100 << 20
    # whatever it came to, the kernel is to be had again
    assert await mallory.out(mallorys, "print('again')", timeout_s=20) == "again\n"


async def test_flood_of_messages(
    hostile: Gateway, mallory: Client, mallorys: str, bob: Client, bobs: str
) -> None:
    """Fifty thousand messages are bounded in the result and do not hold up another's kernel."""
    before = resident(hostile)
    work = asyncio.create_task(attack(mallory, mallorys, lies.FLOOD, timeout_s=30))
    slowest = await others_work(bob, bobs, work)
    result = await work

    assert result["truncated"] or len(json.dumps(result)) < 64 << 20
    assert slowest < 3
    assert resident(hostile) - before < 256 << 20


async def test_forged_messages_reach_no_others_execution(mallory: Client, mallorys: str) -> None:
    """What is forged in the name of one request is no part of another's result."""
    async with mallory.channels(mallorys) as channels:
        waiting = await channels.execute("import time; time.sleep(1); print('mine')")
        forger = asyncio.create_task(
            attack(
                mallory,
                mallorys,
                f"publish(say('FORGED', of={{'msg_id': '{waiting}'}}))",
            )
        )
        seen = await channels.until_done(waiting)
        result = await forger

    assert text_of(seen) == "mine\n"
    assert result["stdout"] == "before\nafter\n"


async def test_identity_of_the_kernel_is_not_the_gateways(
    hostile: Gateway, mallory: Client, mallorys: str
) -> None:
    """What kernel_info says is the kernel's own affair: huge and strange fields stay in that kernel."""
    await attack(mallory, mallorys, lies.STRANGE_IDENTITY)
    async with mallory.channels(mallorys) as channels:
        asked = await channels.send("shell", "kernel_info_request", {})
        message = await channels.receive()
        while message.parent_id != asked or message.channel != "shell":
            message = await channels.receive()

    model = await mallory.kernel(mallorys)
    assert model["name"] == "python3"
    assert len(json.dumps(model)) < 4096
    assert "etc" not in json.dumps(await mallory.json("GET", "/api/kernelspecs"))
    assert await mallory.out(mallorys, "print(1)") == "1\n"
    assert hostile.process is not None
    assert hostile.process.poll() is None


@pytest.mark.parametrize("name", lies.SILENCE)
async def test_kernel_that_says_no_more(
    mallory: Client, mallorys: str, bob: Client, bobs: str, name: str
) -> None:
    """A kernel that will not answer is timed out, and to be had again; the others work on."""
    result = await attack(mallory, mallorys, lies.SILENCE[name], timeout_s=2)
    assert result["status"] in ("ok", "error", "timeout", "dead"), result
    assert await bob.out(bobs, "print(6 * 7)") == "42\n"

    # it may be that only the next execution finds out
    await mallory.run(mallorys, "print('again')", timeout_s=2)
    async with mallory.http.post(f"/api/kernels/{mallorys}/restart") as response:
        assert response.status == 200, await response.text()
    assert await mallory.out(mallorys, "print('again')") == "again\n"


async def test_garbage_on_the_other_channels(mallory: Client, mallorys: str, bob: Client, bobs: str) -> None:
    """Unasked-for replies, on shell, control and stdin, are nobody's; the execution has its own."""
    result = await attack(mallory, mallorys, lies.UNASKED)

    assert "before\n" in result["stdout"]
    assert result["execution_count"] != 777
    assert await mallory.out(mallorys, "print('still here')") == "still here\n"
    assert await bob.out(bobs, "print(6 * 7)") == "42\n"
