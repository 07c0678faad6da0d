"""The asyncio client against a real gateway: every method does its work on real kernels."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from gateway.client import Client, NoAnswer, Task, ToolOffer
from gateway.errors import Conflict, NotFound, PreconditionFailed
from gateway.models.jobs import JobStatus
from tests.conftest import ROOM
from tests.gateway import Gateway, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.models import Message
    from gateway.models.jobs import Event

# what an interrupt must not come before
BEGUN = "print('begun', flush=True)\n"
SLEEP = f"{BEGUN}import time\ntime.sleep(60)"
DEAF = f"{BEGUN}while True:\n  try:\n    while True: pass\n  except: pass"
TOOLS = """
import asyncio, cellblock
async def main():
    calls = (cellblock.acall("weather", city=city) for city in ("Oslo", "Rome"))
    print(await asyncio.gather(*calls))
    try:
        cellblock.call("broken", value=0)
    except cellblock.ToolError as error:
        print(error)
await main()
"""


@pytest.fixture
async def alice(gateway: Gateway) -> AsyncIterator[Client]:
    """Alice's client."""
    async with Client(gateway.url, gateway.key()) as client:
        yield client


@pytest.fixture
async def home(alice: Client) -> AsyncIterator[str]:
    """A kernel of alice's."""
    made = await alice.kernels.create()
    yield made.id
    with contextlib.suppress(NotFound):
        await alice.kernels.delete(made.id)


async def until(holds: object, within_s: float = 15.0) -> None:
    """Wait until a coroutine function returns something true."""
    async with asyncio.timeout(within_s):
        while not await holds():  # type: ignore[operator]
            await asyncio.sleep(0.05)


async def test_who_and_what(alice: Client) -> None:
    """The gateway says who asks, what there is of his, and which kernels there may be."""
    asked = await alice.me({"kernels": ["read", "execute"]})
    specs = await alice.kernelspecs.list()

    assert asked.identity.username == "alice"
    assert set(asked.permissions["kernels"]) == {"read", "execute"}
    assert specs.default in specs.kernelspecs
    assert (await alice.status()).kernels >= 0
    assert (await alice.health()).status == "ok"
    assert (await alice.ready()).checks
    entry = specs.kernelspecs[specs.default]
    logo = next(path.rpartition("/")[2] for path in entry.resources.values())
    assert await alice.kernelspecs.resource(entry.name, logo)


async def test_kernels(alice: Client, home: str) -> None:
    """A kernel is listed, shown, paused, resumed, measured, used both ways, restarted and ended."""
    assert home in [kernel.id for kernel in await alice.kernels.list()]
    assert (await alice.kernels.pause(home)).paused
    assert not (await alice.kernels.resume(home)).paused
    assert (await alice.kernels.usage(home)).memory_bytes > 0
    assert (await alice.kernels.execute(home, "x = 6 * 7; x", 10)).outputs[0]["data"]["text/plain"] == "42"
    async with alice.kernels.session(home) as session:
        assert (await session.run("print(x)")).stdout == "42\n"
        begun = asyncio.Event()

        def take(message: Message) -> None:
            if message.msg_type == "stream":
                begun.set()

        endless = asyncio.create_task(session.run(SLEEP, on_message=take))
        async with asyncio.timeout(15):
            await begun.wait()
        await alice.kernels.interrupt(home)
        assert (await endless).status == "interrupted"
    assert (await alice.kernels.restart(home)).id == home
    assert (await alice.kernels.execute(home, "x")).status == "error"
    await alice.kernels.delete(home)
    with pytest.raises(NotFound):
        await alice.kernels.get(home)
    assert [entry.status for entry in alice.history.entries] == ["ok", "ok", "interrupted", "error"]


async def test_run(alice: Client, home: str) -> None:
    """Code runs to its end with its outputs; events come before that; a failure is a status."""
    events: list[Event] = []
    good = await alice.executions.run(
        "print('a'); 6 * 7", kernel_id=home, on_event=events.append, timeout_s=10
    )
    bad = await alice.executions.run("print('b')\n1 / 0", kernel_id=home)
    late = await alice.executions.run("import time\ntime.sleep(60)", kernel_id=home, timeout_s=0.5)
    alone = await alice.executions.run("1 + 1", within_s=60)

    assert good.result is not None
    assert bad.result is not None
    assert bad.result.error is not None
    assert (good.status, good.result.stdout) == (JobStatus.OK, "a\n")
    assert [event.type for event in events] == ["started", "stdout", "result", "task_ended", "ended"]
    assert (bad.status, bad.result.error.ename) == (JobStatus.ERROR, "ZeroDivisionError")
    assert bad.result.stdout == "b\n"
    assert late.status is JobStatus.TIMEOUT
    assert alone.kernel_id != home
    await until(lambda: _gone(alice, alone.kernel_id or ""))


async def _gone(client: Client, kernel_id: str) -> bool:
    return kernel_id not in [kernel.id for kernel in await client.kernels.list()]


async def test_tasks(alice: Client, home: str) -> None:
    """Tasks run in order, a file of the home too, and go on after an error where that is asked for."""
    await alice.files.write(home, "step.py", "y = x + 1\n")
    tasks = [Task(code="x = 1"), Task(path="step.py"), Task(code="1 / 0"), Task(code="print(y)", name="last")]
    view = await alice.executions.run(tasks=tasks, kernel_id=home, on_error="continue")

    assert view.tasks is not None
    assert [task.status for task in view.tasks] == ["ok", "ok", "error", "ok"]
    assert view.tasks[3].result is not None
    assert view.tasks[3].result.stdout == "2\n"


async def test_jobs(alice: Client, home: str) -> None:
    """A job is started, followed from a cursor, waited for, listed, and its text read in pages."""
    code = "import time\nfor n in range(5):\n    print(n, flush=True)\n    time.sleep(0.05)"
    job = await alice.executions.start(code, kernel_id=home)
    half = []
    async for event in alice.executions.follow(job.id):
        half.append(event)
        if event.text and "2" in event.text:
            break
    rest = [event async for event in alice.executions.follow(job.id, cursor=half[-1].seq)]
    done = await alice.executions.wait(job.id, within_s=20)
    again = await alice.executions.get(job.id, cursor=0)
    page = await alice.executions.text(job.id, "stdout", offset=2, limit=4)

    assert done.status is JobStatus.OK
    assert "".join(event.text or "" for event in half + rest) == "0\n1\n2\n3\n4\n"
    assert [event.seq for event in half + rest] == list(range(1, done.cursor + 1))
    assert again.events is not None
    assert [event.seq for event in again.events] == list(range(1, done.cursor + 1))
    assert (page.text, page.next_offset, page.total) == ("1\n2\n", 6, 10)
    assert job.id in [summary.id for summary in await alice.executions.list()]
    await alice.executions.cancel(job.id)
    with pytest.raises(NotFound):
        await alice.executions.get(job.id)


async def test_cancel_and_interrupt(alice: Client, home: str) -> None:
    """An interrupt keeps the kernel's state; a cancellation ends what ignores interrupts; both are ends."""
    await alice.kernels.execute(home, "x = 1")
    job = await alice.executions.start(SLEEP, kernel_id=home)
    await until(lambda: _running(alice, job.id))
    await alice.executions.interrupt(job.id)
    assert (await alice.executions.wait(job.id, within_s=20)).status is JobStatus.INTERRUPTED
    assert (await alice.kernels.execute(home, "x")).status == "ok"
    with pytest.raises(Conflict):
        await alice.executions.interrupt(job.id)

    deaf = await alice.executions.start(DEAF, kernel_id=home)
    await until(lambda: _running(alice, deaf.id))
    with pytest.raises(NoAnswer):
        await alice.executions.wait(deaf.id, within_s=0.2)
    await alice.executions.cancel(deaf.id)
    assert (await alice.executions.wait(deaf.id, within_s=20)).status is JobStatus.CANCELLED


async def _running(client: Client, execution_id: str) -> bool:
    view = await client.executions.get(execution_id, cursor=0)
    return any(event.text == "begun\n" for event in view.events or [])


async def test_who_leaves_interrupts(alice: Client, home: str) -> None:
    """A run that is cancelled, and one that is waited for too long, leave no code running."""
    begun = asyncio.Event()

    def take(event: Event) -> None:
        if event.text == "begun\n":
            begun.set()

    left = asyncio.create_task(alice.executions.run(SLEEP, kernel_id=home, on_event=take))
    async with asyncio.timeout(15):
        await begun.wait()
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    with pytest.raises(NoAnswer):
        await alice.executions.run(SLEEP, kernel_id=home, within_s=1)

    assert (await alice.executions.run("1", kernel_id=home, within_s=20)).status is JobStatus.OK
    ends = [summary.status for summary in (await alice.executions.list())[:3]]
    assert ends == [JobStatus.OK, JobStatus.INTERRUPTED, JobStatus.INTERRUPTED]


async def test_tools(alice: Client, home: str) -> None:
    """Code in the cell calls tools here, side by side; what a tool raises is an exception there."""
    both = asyncio.Barrier(2)

    async def weather(city: str) -> str:
        async with asyncio.timeout(20):
            await both.wait()  # passes only where two calls are under way
        return f"rain in {city}"

    def broken(value: int) -> float:
        return 1 / value

    tools = {"weather": weather, "broken": broken}
    view = await alice.executions.run(TOOLS, kernel_id=home, tools=tools, timeout_s=40)

    assert view.result is not None
    assert view.status is JobStatus.OK, view.result
    assert "['rain in Oslo', 'rain in Rome']" in view.result.stdout
    assert "ZeroDivisionError: division by zero" in view.result.stdout


async def test_answers_by_hand(alice: Client, home: str) -> None:
    """A call that is seen in the events, or among those that wait, is answered by its id."""
    job = await alice.executions.start(
        "import cellblock\nprint(cellblock.call('ask', what='name'))",
        kernel_id=home,
        offered=[ToolOffer(name="ask")],
    )
    async for event in alice.executions.follow(job.id):
        if event.type == "tool_call":
            assert event.arguments == {"what": "name"}
            [pending] = (await alice.executions.get(job.id)).pending_calls
            assert pending.call_id == event.call_id
            await alice.executions.answer(job.id, event.call_id or "", "Ada")
    done = await alice.executions.wait(job.id)

    assert done.result is not None
    assert done.result.stdout == "Ada\n"
    with pytest.raises(NotFound):
        await alice.executions.answer(job.id, pending.call_id or "", "late")


async def test_contexts(alice: Client) -> None:
    """A name keeps its kernel between executions, is kept alive, listed, and ends."""
    opened = await alice.contexts.open("client-test", ttl_s=300)
    await alice.executions.run("x = 41", context="client-test")
    view = await alice.executions.run("x + 1", context="client-test")

    assert view.result is not None
    assert view.result.outputs[0]["data"]["text/plain"] == "42"
    assert view.kernel_id == opened.kernel_id == (await alice.contexts.get("client-test")).kernel_id
    assert (await alice.contexts.keep_alive("client-test")).name == "client-test"
    assert "client-test" in [context.name for context in await alice.contexts.list()]
    await alice.contexts.close("client-test")
    with pytest.raises(NotFound):
        await alice.contexts.get("client-test")


async def test_files(alice: Client, home: str, tmp_path: Path) -> None:
    """Every verb on files: text, bytes, expectations, edits, directories, large files and archives."""
    files = alice.files
    written = await files.write(home, "in/a b.txt", "one\n")
    assert written.sha256 == hashlib.sha256(b"one\n").hexdigest()
    assert (await files.append(home, "in/a b.txt", "two\n")).size == 8
    await files.edit(home, "in/a b.txt", "two", "three")
    assert await files.read(home, "in/a b.txt") == "one\nthree\n"
    with pytest.raises(Conflict):
        await files.edit(home, "in/a b.txt", "absent", "x")
    with pytest.raises(PreconditionFailed):
        await files.write(home, "in/a b.txt", b"\xff", expected_sha256="0" * 64)
    with pytest.raises(PreconditionFailed):
        await files.write(home, "in/a b.txt", b"\xff", new=True)
    entry = await files.stat(home, "in/a b.txt")
    assert (entry.type, entry.size) == ("file", 10)
    await files.write(home, "in/a b.txt", b"\xff\x00", expected_etag=entry.etag)
    assert await files.read_bytes(home, "in/a b.txt") == b"\xff\x00"

    assert (await files.mkdir(home, "deep/er")).type == "directory"
    await files.move(home, "in/a b.txt", "deep/er/c")
    found = {file.path for file in (await files.list(home, recursive=True)).files}
    assert {"in", "deep", "deep/er", "deep/er/c"} <= found
    with pytest.raises(NotFound):
        await files.stat(home, "in/a b.txt")

    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * (12 << 12))
    assert (await files.upload(home, large, "large")).size == large.stat().st_size
    assert await files.download(home, "large", tmp_path / "back") == large.stat().st_size
    assert (tmp_path / "back").read_bytes() == large.read_bytes()

    await files.download_archive(home, tmp_path / "deep.tar.gz", "deep")
    with tarfile.open(tmp_path / "deep.tar.gz") as archive:
        assert "er/c" in [name.removeprefix("./").removeprefix("deep/") for name in archive.getnames()]
    unpacked = await files.upload_archive(home, tmp_path / "deep.tar.gz", "again")
    assert unpacked.files == 1
    await files.delete(home, "deep", recursive=True)
    with pytest.raises(NotFound):
        await files.list(home, "deep")


async def test_processes(alice: Client, home: str) -> None:
    """Commands and processes run beside the kernel, are talked to, signalled, listed, killed and measured."""
    processes = alice.processes
    done = await processes.run(home, "echo out; echo err >&2; cat; exit 3", stdin="in", timeout_s=20)
    assert (done.exit_code, done.stdout, done.stderr) == (3, "out\nin", "err\n")
    assert (await processes.run(home, ["printf", "%s", "a b"], env={"X": "1"}, cwd="/tmp")).stdout == "a b"

    cat = await processes.start(home, ["cat"])
    await processes.write(home, cat.id, "hello\n")
    output = await processes.read(home, cat.id, wait_s=10)
    assert "".join(chunk.text for chunk in output.chunks) == "hello\n"
    assert cat.pid in [process.pid for process in await processes.tree(home)]
    await processes.write(home, cat.id, b"bye\n", eof=True)
    texts = [chunk.text async for more in processes.follow(home, cat.id) for chunk in more.chunks]
    assert "".join(texts) == "hello\nbye\n"

    sleeper = await processes.start(home, "exec sleep 100")
    await processes.signal(home, sleeper.id, "INT")
    await until(lambda: _ended(alice, home, sleeper.id))
    other = await processes.start(home, "exec sleep 100")
    await processes.end(home, other.pid, "KILL")
    await until(lambda: _ended(alice, home, other.id))
    assert {cat.id, sleeper.id, other.id} <= {process.id for process in await processes.list(home)}
    await processes.kill(home, other.id)
    assert other.id not in [process.id for process in await processes.list(home)]
    system = await processes.system(home, packages=True)
    assert system.home
    assert "ipykernel" in system.packages


async def _ended(client: Client, kernel_id: str, process_id: str) -> bool:
    return any(
        process.id == process_id and process.state == "ended"
        for process in await client.processes.list(kernel_id)
    )


async def test_workspaces(alice: Client) -> None:
    """A workspace outlives the kernel that made it, is listed, and is deleted."""
    first = await alice.kernels.create(workspace="client-test")
    await alice.files.write(first.id, "kept", "x")
    await alice.kernels.delete(first.id)
    assert "client-test" in [workspace.name for workspace in await alice.workspaces.list()]
    with_it = await alice.kernels.create(workspace="client-test")
    with pytest.raises(Conflict):
        await alice.kernels.create(workspace="client-test")
    await alice.kernels.delete(with_it.id)
    second = await alice.kernels.create(workspace="client-test", env={"KERNEL_X": "1"}, limits={"pids": 64})
    assert await alice.files.read(second.id, "kept") == "x"
    assert second.limits.pids == 64
    await alice.kernels.delete(second.id)
    await alice.workspaces.delete("client-test")
    assert "client-test" not in [workspace.name for workspace in await alice.workspaces.list()]


async def test_secrets_stay_out_of_the_history(alice: Client) -> None:
    """What a kernel was given as a secret is replaced where its code printed it."""
    kernel = await alice.kernels.create(secrets={"KERNEL_TOKEN": "swordfish-12"})
    await alice.executions.run("import os; print(os.environ['KERNEL_TOKEN'])", kernel_id=kernel.id)
    await alice.kernels.delete(kernel.id)

    assert "swordfish" not in alice.history.lines()
    assert "[secret]" in alice.history.lines()


async def test_others_see_nothing(gateway: Gateway, alice: Client, home: str) -> None:
    """Another's kernel, execution and files are not there, as typed errors."""
    job = await alice.executions.start("1", kernel_id=home, wait_s=20)
    async with Client(gateway.url, gateway.key("bob")) as bob:
        for call in (
            bob.kernels.get(home),
            bob.executions.get(job.id),
            bob.executions.cancel(job.id),
            bob.files.list(home),
            bob.processes.list(home),
            bob.executions.run("1", kernel_id=home),
        ):
            with pytest.raises(NotFound):
                await call
        with pytest.raises(NotFound):
            [event async for event in bob.executions.follow(job.id)]


async def test_a_gateway_that_restarts(tmp_path: Path) -> None:
    """A client waits for the next gateway, and its kernel is there with its state; nothing runs twice."""
    with running(env=ROOM) as own:
        async with Client(own.url, own.key()) as client:
            kernel = await client.kernels.create()
            await client.kernels.execute(kernel.id, "n = 0")
            port = own.url.rpartition(":")[2]
            own.end(signal.SIGKILL)

            async def again() -> None:
                await asyncio.sleep(0.5)
                own._arguments = ("--port", port)
                await asyncio.to_thread(own.start)

            starting = asyncio.create_task(again())
            client._transport.retry = type(client._transport.retry)(retries=30, first_s=0.5, longest_s=0.5)
            begun = time.monotonic()
            view = await client.executions.run("n += 1; n", kernel_id=kernel.id)
            await starting

            assert view.result is not None
            assert view.result.outputs[0]["data"]["text/plain"] == "1"
            assert time.monotonic() - begun < 30
