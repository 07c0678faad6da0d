"""Pausing, cancelling and watching: what really stops, what waits, and what the figures say."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.machine import PROC, kernels_of, read, wait_for

if TYPE_CHECKING:
    from tests.gateway import Client, Gateway

COUNT = """
import time
for i in range(10_000):
    open("count", "w").write(str(i))
    time.sleep(0.01)
"""
STUBBORN = (
    "import time\nwhile True:\n    try:\n        time.sleep(0.1)\n    except BaseException:\n        pass"
)


async def queue_of(client: Client, kernel: str) -> list[dict[str, object]]:
    """Return the executions that have not ended."""
    found: list[dict[str, object]] = await client.json("GET", f"/api/kernels/{kernel}/executions")
    return found


async def begun(client: Client, kernel: str, count: int = 1) -> list[dict[str, object]]:
    """Wait until that many executions are there, and return them."""
    deadline = time.monotonic() + 10
    while len(found := await queue_of(client, kernel)) < count:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return found


async def test_a_paused_kernel_does_nothing(gateway: Gateway, client: Client, kernel: str) -> None:
    """Pause stops every process of a cell; resume lets it go on where it was."""
    running = asyncio.create_task(client.run(kernel, COUNT))
    await begun(client, kernel)
    await asyncio.sleep(0.5)

    assert (await client.json("POST", f"/api/kernels/{kernel}/pause"))["paused"] is True
    pid = kernels_of(gateway)[-1]
    before = cpu_of(pid)
    await asyncio.sleep(0.7)
    assert cpu_of(pid) == before

    assert (await client.json("POST", f"/api/kernels/{kernel}/resume"))["paused"] is False
    assert await wait_for(lambda: cpu_of(pid) > before)
    await client.json("POST", f"/api/kernels/{kernel}/interrupt", status=204)
    assert (await running)["status"] == "interrupted"


async def test_a_pause_stops_the_clock(client: Client, kernel: str) -> None:
    """The time that a kernel is paused does not count against its executions' deadlines."""
    running = asyncio.create_task(
        client.run(kernel, "import time; time.sleep(0.8); print('made it')", timeout_s=2)
    )
    await begun(client, kernel)
    await client.json("POST", f"/api/kernels/{kernel}/pause")
    await asyncio.sleep(2.5)
    await client.json("POST", f"/api/kernels/{kernel}/resume")

    assert (await running)["stdout"] == "made it\n"


async def test_a_paused_kernel_can_be_deleted(client: Client) -> None:
    """DELETE ends a paused kernel at once, and what it ran is answered."""
    kernel = await client.start()
    running = asyncio.create_task(client.run(kernel, COUNT))
    await begun(client, kernel)
    await client.json("POST", f"/api/kernels/{kernel}/pause")

    begun_at = time.monotonic()
    await client.delete(kernel)

    assert (await running)["reason"] == "shutdown"
    assert time.monotonic() - begun_at < 5


async def test_a_paused_kernel_can_be_restarted(client: Client, kernel: str) -> None:
    """A restart of a paused kernel gives one that runs."""
    await client.json("POST", f"/api/kernels/{kernel}/pause")

    assert (await client.json("POST", f"/api/kernels/{kernel}/restart"))["paused"] is False
    assert await client.out(kernel, "print(1)") == "1\n"


async def test_a_queued_execution_is_taken_back(client: Client, kernel: str) -> None:
    """Cancelling an execution that waits means that not a byte of it ever runs."""
    first = asyncio.create_task(client.run(kernel, "import time; time.sleep(1.5); print('first')"))
    await begun(client, kernel)
    second = asyncio.create_task(client.run(kernel, "open('trace', 'w').write('ran')"))
    listed = await begun(client, kernel, 2)
    assert [execution["state"] for execution in listed] == ["running", "queued"]

    await client.json("DELETE", f"/api/kernels/{kernel}/executions/{listed[1]['id']}", status=204)

    assert (await second)["status"] == "aborted"
    assert (await first)["stdout"] == "first\n"
    assert await client.out(kernel, "import os; print(os.path.exists('trace'))") == "False\n"


async def test_cancelling_what_does_not_stop_restarts_the_kernel(client: Client, kernel: str) -> None:
    """DELETE of a running execution that swallows its interrupt ends it all the same."""
    running = asyncio.create_task(client.run(kernel, STUBBORN))
    listed = await begun(client, kernel)
    await asyncio.sleep(0.3)

    await client.json("DELETE", f"/api/kernels/{kernel}/executions/{listed[0]['id']}", status=204)

    assert (await running)["status"] == "dead"
    assert await client.out(kernel, "print('fresh')") == "fresh\n"


async def test_interrupting_one_execution_keeps_the_kernel(client: Client, kernel: str) -> None:
    """POST interrupt on an execution stops that one; state stays."""
    await client.run(kernel, "kept = 1")
    running = asyncio.create_task(client.run(kernel, "import time; time.sleep(60)"))
    listed = await begun(client, kernel)

    path = f"/api/kernels/{kernel}/executions/{listed[0]['id']}/interrupt"
    await client.json("POST", path, status=204)

    assert (await running)["status"] == "interrupted"
    assert await client.out(kernel, "print(kept)") == "1\n"


async def test_an_error_aborts_what_waits_behind_it(client: Client, kernel: str) -> None:
    """As in every Jupyter kernel, an error takes the executions queued behind it along."""
    async with client.channels(kernel) as channels:
        await channels.execute("import time; time.sleep(0.5); 1 / 0")
        behind = await channels.execute("print('never')")
        messages = await channels.until_done(behind)

    assert any(b'"aborted"' in message.content for message in messages if message.channel == "shell")


async def test_an_unknown_execution_is_404(client: Client, kernel: str) -> None:
    """An execution that ended, or never was, cannot be cancelled."""
    await client.json("DELETE", f"/api/kernels/{kernel}/executions/nothing", status=404)


async def test_usage_follows_what_a_kernel_does(client: Client, kernel: str) -> None:
    """Memory, CPU time, processes and the home's bytes go up with use."""
    before = await client.json("GET", f"/api/kernels/{kernel}/usage")
    await client.run(kernel, "hog = bytearray(100 << 20); sum(range(10_000_000))")
    await client.run(kernel, "open('f', 'wb').write(b'x' * (20 << 20))")
    after = await client.json("GET", f"/api/kernels/{kernel}/usage")

    assert after["memory_bytes"] - before["memory_bytes"] > 90 << 20
    assert after["memory_peak_bytes"] >= after["memory_bytes"]
    assert after["home_bytes"] - before["home_bytes"] >= 20 << 20
    assert after["cpu_s"] > before["cpu_s"]
    assert 1 <= after["pids"] < 64


async def test_limits_can_be_lowered_and_not_raised(client: Client) -> None:
    """A request may lower limits, which then hold and are shown; raising one is an error that names it."""
    kernel = await client.start(limits={"memory_bytes": 300 << 20, "timeout_s": 1})
    try:
        assert (await client.kernel(kernel))["limits"]["memory_bytes"] == 300 << 20
        assert (await client.run(kernel, "import time; time.sleep(30)"))["status"] == "timeout"
        result = await client.run(kernel, "hog = bytearray(400 << 20)")
        assert (result["status"], result["reason"]) == ("dead", "oom")
        assert "300 MiB" in result["error"]["evalue"]
    finally:
        await client.delete(kernel)

    for limits in (
        {"memory_bytes": 1 << 40},
        {"nonsense": 1},
        {"pids": "many"},
        {"pids": -1},
        {"cpus": True},
    ):
        refused = await client.json("POST", "/api/kernels", {"limits": limits}, status=400)
        assert next(iter(limits)) in refused["message"]


def cpu_of(pid: int) -> int:
    """Return the CPU ticks that a process has used."""
    fields = read(PROC / str(pid) / "stat").rsplit(b")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
