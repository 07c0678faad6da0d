"""A kernel's life over REST: starting, running, dying of this and that, restarting, ending."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

from tests.machine import grown, kernels_of, processes_named, remains, wait_for

if TYPE_CHECKING:
    from tests.gateway import Client, Gateway

STUBBORN = """
import time
print("before", flush=True)
while True:
    try:
        time.sleep(0.2)
    except BaseException:
        pass
"""


async def test_state_lives_between_executions(client: Client, kernel: str) -> None:
    """What one execution defines, the next one finds; counts go up."""
    await client.run(kernel, "x = 20")

    result = await client.run(kernel, "print('said'); x + 1")

    assert result["status"] == "ok"
    assert result["stdout"] == "said\n"
    assert result["outputs"][-1]["data"]["text/plain"] == "21"
    assert result["execution_count"] == 2


async def test_an_error_is_the_users(client: Client, kernel: str) -> None:
    """A user's exception is a 200 with status error, its name and its traceback."""
    result = await client.run(kernel, "1 / 0")

    assert result["status"] == "error"
    assert result["error"]["ename"] == "ZeroDivisionError"
    assert result["error"]["traceback"]


async def test_timeout_by_interrupt_keeps_state_and_output(client: Client, kernel: str) -> None:
    """Code that heeds SIGINT is interrupted at its deadline; what it printed and defined stays."""
    await client.run(kernel, "kept = 7")

    result = await client.run(kernel, "import time\nprint('early', flush=True)\ntime.sleep(60)", timeout_s=1)

    assert (result["status"], result["reason"]) == ("timeout", "timeout")
    assert "early" in result["stdout"]
    assert await client.out(kernel, "print(kept)") == "7\n"


async def test_timeout_by_kill_keeps_output_and_restarts(client: Client, kernel: str) -> None:
    """Code that swallows SIGINT is killed after the grace; its output is kept, a fresh kernel takes over."""
    begun = time.monotonic()
    result = await client.run(kernel, STUBBORN, timeout_s=1)

    assert (result["status"], result["reason"]) == ("timeout", "timeout")
    assert "before" in result["stdout"]
    assert time.monotonic() - begun < 10
    assert await client.out(kernel, "print(2)") == "2\n"


async def test_a_kernel_deleted_while_it_is_restarted_is_no_error(client: Client, gateway: Gateway) -> None:
    """A delete in the middle of a restart after a timeout is a delete: answered at once, and no failure."""
    kernel = await client.start(limits={"interrupt_grace_s": 0.1})
    execution = asyncio.create_task(client.run(kernel, STUBBORN, timeout_s=0.5))
    while (await client.kernel(kernel))["execution_state"] != "restarting":
        await asyncio.sleep(0.005)
    await client.delete(kernel)

    assert (await execution)["reason"] == "timeout"
    said = [line for line in gateway.log() if line.get("kernel") == kernel]
    assert [line for line in said if line["level"] == "error"] == []
    assert "execution timed out" in [line["event"] for line in said]


async def test_timeout_of_c_code_that_holds_the_gil(client: Client, kernel: str) -> None:
    """A computation in C, which no Python code can interrupt, still ends at its deadline."""
    result = await client.run(kernel, "x = 3 ** (10 ** 9)", timeout_s=1)

    assert (result["status"], result["reason"]) == ("timeout", "timeout")
    assert await client.out(kernel, "print('alive')") == "alive\n"


async def test_out_of_memory_is_named(client: Client, kernel: str) -> None:
    """A kernel that takes more memory than its cell has dies of oom, and says so."""
    result = await client.run(kernel, "hog = [bytearray(64 << 20) for _ in range(64)]")

    assert (result["status"], result["reason"]) == ("dead", "oom")
    assert "1024 MiB" in result["error"]["evalue"]
    model = await client.kernel(kernel)
    assert (model["execution_state"], model["reason"]) == ("dead", "oom")


async def test_a_crash_is_named_and_restart_revives(client: Client, kernel: str) -> None:
    """A kernel that exits by itself is dead of crashed; restart brings it back under the same id."""
    result = await client.run(kernel, "import os; os._exit(3)")
    assert (result["status"], result["reason"]) == ("dead", "crashed")

    model = await client.json("POST", f"/api/kernels/{kernel}/restart")

    assert (model["id"], model["execution_state"], model["reason"]) == (kernel, "idle", None)
    assert await client.out(kernel, "print('back')") == "back\n"


async def test_kill_from_outside_is_answered_within_a_second(
    gateway: Gateway, client: Client, kernel: str
) -> None:
    """`kill -9` of the kernel in the middle of an execution: the caller is told why, at once."""
    running = asyncio.create_task(client.run(kernel, "import time; time.sleep(60)"))
    await asyncio.sleep(0.5)
    begun = time.monotonic()
    os.kill(kernels_of(gateway)[-1], signal.SIGKILL)

    result = await running

    assert time.monotonic() - begun < 1
    assert (result["status"], result["reason"]) == ("dead", "killed")


async def test_interrupt(client: Client, kernel: str) -> None:
    """POST interrupt stops what runs, children of the kernel's included, and the kernel stays."""
    for code in ("import time; time.sleep(60)", "import os; os.system('sleep 60')", "!sleep 60"):
        running = asyncio.create_task(client.run(kernel, code))
        await asyncio.sleep(0.7)
        begun = time.monotonic()
        await client.json("POST", f"/api/kernels/{kernel}/interrupt", status=204)
        await running
        assert time.monotonic() - begun < 5, code
    assert await client.out(kernel, "print(1)") == "1\n"


async def test_restart_forgets_and_answers_what_was_in_flight(client: Client, kernel: str) -> None:
    """A restart answers the execution that it cuts off, and nothing of the old state is left."""
    await client.run(kernel, "gone = 1; open('left', 'w').write('x')")
    running = asyncio.create_task(client.run(kernel, "import time; time.sleep(60)"))
    await asyncio.sleep(0.5)

    await client.json("POST", f"/api/kernels/{kernel}/restart")

    assert (await running)["status"] == "dead"
    assert (await client.run(kernel, "gone"))["error"]["ename"] == "NameError"
    assert await client.out(kernel, "import os; print(os.path.exists('left'))") == "False\n"


async def test_daemons_of_a_kernel_die_with_it(client: Client) -> None:
    """What a kernel forked twice and detached does not outlive it."""
    kernel_id = await client.start()
    mark = f"cellblock-daemon-{os.getpid()}"
    code = f"""
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/bin/sleep", ["{mark}", "300"])
    os._exit(0)
"""
    await client.run(kernel_id, code)
    assert await wait_for(lambda: len(processes_named(mark)) == 1)

    await client.delete(kernel_id)

    assert processes_named(mark) == []


async def test_a_dead_kernel_never_hangs_a_client(client: Client, kernel: str) -> None:
    """Executing on a dead kernel is answered at once."""
    await client.run(kernel, "import os; os._exit(0)")

    begun = time.monotonic()
    async with client.http.post(f"/api/kernels/{kernel}/execute", json={"code": "1"}) as response:
        body = await response.json()

    assert time.monotonic() - begun < 1
    assert body.get("status") == "dead" or body.get("code") == "kernel_dead"


async def test_deleting_while_it_runs_answers_the_caller(client: Client) -> None:
    """DELETE ends a running execution with an answer, and the kernel is 404 afterwards."""
    kernel_id = await client.start()
    running = asyncio.create_task(client.run(kernel_id, "import time; time.sleep(60)"))
    await asyncio.sleep(0.5)

    await client.delete(kernel_id)

    assert (await running)["reason"] == "shutdown"
    await client.json("GET", f"/api/kernels/{kernel_id}", status=404)


async def test_nothing_of_fifty_kernels_is_left(gateway: Gateway, client: Client) -> None:
    """After 50 starts and ends there is no process, socket, descriptor, mount, directory or cgroup more."""
    await five_lives(client)
    before = remains(gateway)

    for _ in range(10):
        await five_lives(client)

    assert await wait_for(lambda: not grown(before, remains(gateway))), grown(before, remains(gateway))


async def five_lives(client: Client) -> None:
    """Start five kernels at once and end them at once."""
    ids = await asyncio.gather(*(client.start() for _ in range(5)))
    await asyncio.gather(*(client.delete(kernel_id) for kernel_id in ids))
