"""Faults of the machine: what is stopped, full, used up, locked or damaged has a defined outcome."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.gateway import Client, Gateway, new_state_dir, running, text_of
from tests.integration.test_audit import audit
from tests.lifecycle import cells, eventually, kernels, until_state
from tests.machine import kernels_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = os.geteuid() == 0
ANSWER_S, START_S = 2, 3
IMPATIENT = {
    "CELLBLOCK_SANDBOX__ANSWER_TIMEOUT_S": str(ANSWER_S),
    "CELLBLOCK_SANDBOX__START_TIMEOUT_S": str(START_S),
}


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a process stopped for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def asked(
    client: Client, method: str, path: str, body: Any = None, *, within_s: float = 15.0
) -> tuple[int, dict[str, Any]]:
    """Make a request that must be answered within a bound; return its status and body."""
    async with asyncio.timeout(within_s), client.http.request(method, path, json=body) as response:
        text = await response.text()
        return response.status, await response.json() if text else {}


async def until_ok(client: Client, kernel: str, code: str, within_s: float = 30.0) -> str:
    """Execute until it succeeds; meanwhile 503 is the only other answer that is allowed."""
    deadline = time.monotonic() + within_s
    while True:
        status, body = await asked(client, "POST", f"/api/kernels/{kernel}/execute", {"code": code})
        if status == 200:
            assert body["status"] == "ok", body
            return str(body["stdout"])
        assert status == 503, body
        assert time.monotonic() < deadline, body
        await asyncio.sleep(0.1)


def limit(gateway: Gateway, name: str, value: str) -> None:
    """Set a limit of a gateway's process, as the user that it runs as: root too may not be allowed to."""
    assert gateway.process is not None
    facts = Path(f"/proc/{gateway.process.pid}").stat()
    user = ["setpriv", f"--reuid={facts.st_uid}", f"--regid={facts.st_gid}", "--clear-groups"] if ROOT else []
    command = [*user, "prlimit", f"--pid={gateway.process.pid}", f"--{name}={value}"]
    subprocess.run(command, check=True)


# -- processes that are stopped ---------------------------------------------------------------------------


async def test_a_stopped_kernel_is_replaced_at_its_deadline() -> None:
    """An execution in a kernel stopped from outside ends at its deadline; the kernel is to be had again."""
    with running("--no-keep") as gateway:
        async with gateway.client() as client:
            other = await client.start()
            kernel = await client.start()
            pid = kernels_of(gateway)[-1]
            running_code = asyncio.create_task(client.run(kernel, "import time; time.sleep(60)", timeout_s=3))
            await until_state(client, kernel, "busy")
            with stopped(pid):
                begun = time.monotonic()
                while not running_code.done():
                    assert await client.out(other, "print(6 * 7)") == "42\n"
                    await asyncio.sleep(0.1)
                result = await running_code

            assert (result["status"], result["reason"]) == ("timeout", "timeout")
            assert time.monotonic() - begun < 20
            assert pid not in kernels(gateway)
            assert await client.out(kernel, "print('again')") == "again\n"


async def test_a_stopped_kernel_is_restarted_and_deleted() -> None:
    """An idle kernel that was stopped from outside hinders neither a restart nor its end."""
    with running("--no-keep") as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            with stopped(kernels_of(gateway)[-1]):
                assert (await asked(client, "POST", f"/api/kernels/{kernel}/restart"))[0] == 200
            assert await client.out(kernel, "print(1)") == "1\n"
            with stopped(kernels_of(gateway)[-1]):
                assert (await asked(client, "DELETE", f"/api/kernels/{kernel}"))[0] == 204
            assert await eventually(lambda: not cells(gateway)), cells(gateway)


async def test_a_stopped_warden_is_waited_for_so_long() -> None:
    """What needs a stopped warden is 503 within a bound, all else goes on; then everything works again."""
    with running("--no-keep", env=IMPATIENT) as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            await client.run(kernel, "x = 1")
            (warden,) = gateway.warden_pids()
            with stopped(warden):
                needing = await asyncio.gather(
                    asked(client, "POST", "/api/kernels", {}),
                    asked(client, "POST", f"/api/kernels/{kernel}/interrupt"),
                    asked(client, "POST", f"/api/kernels/{kernel}/pause"),
                    asked(client, "GET", f"/api/kernels/{kernel}/usage"),
                    asked(client, "GET", f"/api/kernels/{kernel}/files"),
                    client.out(kernel, "x += 1; print(x)"),
                )
                assert needing.pop() == "2\n"
                for status, body in needing:
                    assert (status, body["code"], body["reason"]) == (
                        503,
                        "sandbox_unavailable",
                        "warden_timeout",
                    )
                assert (await asked(client, "GET", "/api/kernels"))[0] == 200

            assert await client.out(kernel, "print(x)") == "2\n"
            assert (await asked(client, "GET", f"/api/kernels/{kernel}/usage"))[0] == 200
            fresh = await client.start()
            assert await client.out(fresh, "print(1)") == "1\n"
            # what was started for nobody does not stay
            assert await eventually(lambda: len(kernels(gateway)) == 2), cells(gateway)


async def test_a_deadline_holds_while_the_warden_is_stopped() -> None:
    """Whoever waits for an execution is answered although nothing can end it; it is ended afterwards."""
    with running("--no-keep", env=IMPATIENT) as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            (warden,) = gateway.warden_pids()
            (pid,) = kernels(gateway)
            with stopped(warden):
                async with asyncio.timeout(20):
                    result = await client.run(kernel, "import time; time.sleep(600)", timeout_s=1)
                assert (result["status"], result["reason"]) == ("timeout", "timeout")
            assert await eventually(lambda: pid not in kernels(gateway))

            # or idle, where the warden went on in time for its restart
            async with asyncio.timeout(20):
                while (await client.kernel(kernel))["execution_state"] not in {"dead", "idle"}:
                    await asyncio.sleep(0.1)
            assert (await asked(client, "POST", f"/api/kernels/{kernel}/restart"))[0] == 200
            assert await client.out(kernel, "print('again')") == "again\n"
            assert await eventually(lambda: len(kernels(gateway)) == 1), cells(gateway)


async def test_deleting_while_the_warden_is_stopped() -> None:
    """A kernel that is deleted meanwhile is gone for its owner at once and from the machine afterwards."""
    with running("--no-keep", env=IMPATIENT) as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            (warden,) = gateway.warden_pids()
            with stopped(warden):
                assert (await asked(client, "DELETE", f"/api/kernels/{kernel}"))[0] == 204
                assert (await asked(client, "GET", f"/api/kernels/{kernel}"))[0] == 404
            assert await eventually(lambda: not cells(gateway)), cells(gateway)


# -- a disk that takes no more ----------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """Give a state directory on a disk of its own, of 16 MiB."""
    path = new_state_dir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0755", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
        path.rmdir()


@contextlib.contextmanager
def filled(gateway: Gateway) -> Iterator[None]:
    """Have the state directory's disk full, to its last byte."""
    filler = gateway.state_dir / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * (64 << 10))
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0")
    try:
        yield
    finally:
        filler.unlink()
        with gateway.log_path.open("a") as log:
            # the line that was cut off
            log.write("\n")


@contextlib.contextmanager
def refused(gateway: Gateway) -> Iterator[None]:
    """Have the gateway's files refuse to grow, as a disk quota would; this needs no privilege."""
    limit(gateway, "fsize", "0:unlimited")
    try:
        yield
    finally:
        limit(gateway, "fsize", "unlimited:unlimited")


async def no_room(gateway: Gateway, client: Client, kernel: str, fault: Any) -> None:
    """Check what a gateway does without room on its disk, and that all goes on once there is some."""
    await client.run(kernel, "x = 1; import os")
    pid = int(await client.out(kernel, "print(os.getpid())"))
    path = f"/api/kernels/{kernel}/execute"
    with fault(gateway):
        # what is left of the last block may take some records yet
        for number in range(100):
            status, body = await asked(client, "POST", path, {"code": f"x = {number}"})
            if status != 200:
                break
        assert (status, body["code"]) == (503, "audit_unavailable")
        last = number
        for code in ("x = 'late'", "print(x)"):
            status, body = await asked(client, "POST", path, {"code": code})
            assert (status, body["code"]) == (503, "audit_unavailable")
        status, body = await asked(client, "POST", "/api/kernels", {})
        assert (status, body["code"]) in {(503, "audit_unavailable"), (503, "store_unavailable")}
        # looking is still possible, and what is dying keeps being possible
        assert (await asked(client, "GET", "/api/kernels"))[0] == 200
        assert (await asked(client, "GET", f"/api/kernels/{kernel}"))[1]["execution_state"] == "idle"
    # the execution whose record could not be kept has run; none did after it
    assert await until_ok(client, kernel, "print(x, os.getpid())") == f"{last} {pid}\n"
    fresh = await client.start()
    assert await client.out(fresh, "print('new')") == "new\n"
    await client.delete(fresh)
    assert audit(gateway, "verify").returncode == 0


async def test_files_that_may_not_grow() -> None:
    """Without room for its records a gateway begins nothing new, and kernels and gateway live on."""
    with running("--no-keep") as gateway:
        async with gateway.client() as client:
            await no_room(gateway, client, await client.start(), refused)


async def a_full_disk() -> None:
    """A full disk ends no kernel and no gateway; the next gateway starts and adopts once there is room."""
    with small_disk() as path, running(state_dir=path) as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            await no_room(gateway, client, kernel, filled)
            await client.run(kernel, "kept = 7")
        with filled(gateway):
            assert gateway.end(signal.SIGKILL)
        gateway.start()
        async with gateway.client() as client:
            assert await client.out(kernel, "print(kept)") == "7\n"


if ROOT:
    # nobody else can mount a disk

    async def test_a_full_disk() -> None:
        """See `a_full_disk`."""
        await a_full_disk()


# -- descriptors that are used up -------------------------------------------------------------------------


def descriptors(gateway: Gateway) -> int:
    """Count a gateway's open descriptors."""
    assert gateway.process is not None
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


@contextlib.contextmanager
def descriptors_left(gateway: Gateway, spare: int) -> Iterator[None]:
    """Leave a gateway so many descriptors beside those that it has."""
    assert gateway.process is not None
    line = re.search(r"Max open files\s+\d+\s+(\d+)", Path(f"/proc/{gateway.process.pid}/limits").read_text())
    assert line is not None
    limit(gateway, "nofile", f"{descriptors(gateway) + spare}:{line[1]}")
    try:
        yield
    finally:
        limit(gateway, "nofile", f"{line[1]}:{line[1]}")


async def test_connections_that_take_every_descriptor() -> None:
    """Who is connected is still served, who comes is served once others leave, and nothing spins or dies."""
    with running("--no-keep") as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            await client.run(kernel, "x = 1")
            assert gateway.process is not None
            port = int(gateway.url.rsplit(":", 1)[1])
            with descriptors_left(gateway, 10), contextlib.ExitStack() as guests:
                for _ in range(50):
                    guests.enter_context(socket.create_connection(("127.0.0.1", port), 5))
                await asyncio.sleep(0.5)
                used = Path(f"/proc/{gateway.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
                status, body = await asked(client, "GET", "/api/kernels")
                assert status == 200, body
                status, body = await asked(
                    client, "POST", f"/api/kernels/{kernel}/execute", {"code": "print(x)"}
                )
                # records need a descriptor
                assert (status, body.get("code")) in {(200, None), (503, "audit_unavailable")}
                await asyncio.sleep(1)
                now = Path(f"/proc/{gateway.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
                ticks = sum(map(int, now[11:13])) - sum(map(int, used[11:13]))
                assert ticks < 0.8 * os.sysconf("SC_CLK_TCK")
        async with gateway.client() as client:
            assert await until_ok(client, kernel, "print(x)") == "1\n"
            assert await client.out(await client.start(), "print(2)") == "2\n"


@pytest.mark.parametrize("spare", [0, 1, 2, 4, 6, 8, 10, 12, 14])
async def test_a_start_without_descriptors(spare: int) -> None:
    """A kernel for which there are no descriptors is refused with 5xx and leaves no cell; others go on."""
    with running("--no-keep", env={"CELLBLOCK_KERNELS__READY_TIMEOUT_S": "5"}) as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            await client.run(kernel, "x = 1")
            with descriptors_left(gateway, spare):
                status, body = await asked(client, "POST", "/api/kernels", {}, within_s=30)
                assert status == 201 or (500 < status < 600 and body["code"] != "internal_error"), body
                assert (await asked(client, "GET", "/api/kernels"))[0] == 200
            assert await until_ok(client, kernel, "print(x)") == "1\n"
            shown = await client.json("GET", "/api/kernels")
            # one that is up, and whose record is only late, is its owner's all the same
            late = body.get("code") == "audit_unavailable"
            assert len(shown) == 2 if status == 201 else len(shown) in {1, 1 + late}
            assert await eventually(lambda: len(kernels(gateway)) == len(shown)), (status, body)
            assert await client.out(await client.start(), "print(2)") == "2\n"


# -- a store that errors ----------------------------------------------------------------------------------


def store_of(gateway: Gateway) -> Path:
    """Return where a gateway's store lies."""
    return gateway.state_dir / "gateway" / "cellblock.db"


async def test_a_store_that_another_process_locks() -> None:
    """What must be stored is 503 after a bounded wait and leaves no cell; executions go on meanwhile."""
    with running("--no-keep") as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            with contextlib.closing(sqlite3.connect(store_of(gateway), isolation_level=None)) as other:
                other.execute("BEGIN EXCLUSIVE")
                starting = asyncio.create_task(asked(client, "POST", "/api/kernels", {}, within_s=30))
                while not starting.done():
                    assert await client.out(kernel, "print(6 * 7)") == "42\n"
                    await asyncio.sleep(0.1)
                status, body = await starting
                assert (status, body["code"]) == (503, "store_unavailable")
                assert [model["id"] for model in await client.json("GET", "/api/kernels")] == [kernel]
            assert await eventually(lambda: len(kernels(gateway)) == 1)
            assert await client.out(await client.start(), "print(1)") == "1\n"
            # the trail's copy has caught up
            with contextlib.closing(sqlite3.connect(store_of(gateway))) as store:
                count = "SELECT count(*) FROM audit WHERE action = 'execution.end'"
                assert await eventually(lambda: store.execute(count).fetchone()[0] > 1)
        assert audit(gateway, "verify").returncode == 0


async def test_a_damaged_store() -> None:
    """A store that is damaged while in use lets nobody in unchecked, says so, and stops nothing."""
    with running("--no-keep") as gateway:
        async with gateway.client() as client, gateway.client("bob") as bob:
            kernel = await client.start()
            await client.run(kernel, "x = 1")
            async with client.channels(kernel) as channels:
                saved = gateway.state_dir / "saved"
                saved.mkdir()
                files = [path for path in store_of(gateway).parent.glob("cellblock.db*") if path.is_file()]
                for path in files:
                    shutil.copyfile(path, saved / path.name)
                    with path.open("r+b") as file:
                        file.write(os.urandom(path.stat().st_size))
                # nobody that a look into the store would be needed for
                status, body = await asked(bob, "GET", "/api/kernels")
                assert (status, body["code"]) == (503, "store_unavailable")
                await asyncio.sleep(1.5)
                status, body = await asked(client, "GET", "/api/kernels")
                assert (status, body["code"]) == (503, "store_unavailable")
                for path in files:
                    with path.open("r+b") as file:
                        file.write((saved / path.name).read_bytes())
                        file.truncate()
                messages = await channels.until_done(await channels.execute("print(x)"))
                assert text_of(messages) == "1\n"
            assert await until_ok(client, kernel, "print(x)") == "1\n"
            assert gateway.process is not None
            assert gateway.process.poll() is None


async def test_a_store_that_is_no_database_at_the_start() -> None:
    """A gateway whose store is damaged does not start, and says which file it is."""
    with running("--no-keep") as gateway:
        gateway.end()
        store_of(gateway).write_bytes(b"no database" * 1000)
        with pytest.raises(AssertionError, match=r"(?i)not a database"):
            gateway.start()


async def test_requests_end_when_the_gateway_is_stopped_and_goes_on() -> None:
    """A gateway that was stopped for a while answers what was asked meanwhile, and has lost no kernel."""
    with running("--no-keep") as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            assert gateway.process is not None
            with stopped(gateway.process.pid):
                waiting = asyncio.create_task(client.out(kernel, "print(1)"))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(waiting), 2)
            assert await asyncio.wait_for(waiting, 10) == "1\n"
            with contextlib.suppress(aiohttp.ClientError):
                assert (await asked(client, "GET", "/api/kernels"))[0] == 200


# -- clocks that are set ----------------------------------------------------------------------------------


async def test_a_lifetime_counts_through_restarts_and_gateways() -> None:
    """A kernel ends at its age, whatever of it is new and whatever the wall clocks of two gateways said."""
    with running(env={"CELLBLOCK_KERNELS__CULL_INTERVAL_S": "0.2"}) as gateway:
        async with gateway.client() as client:
            old = await client.start(limits={"max_lifetime_s": 12})
            begun = time.monotonic()
            young = await client.start(limits={"max_lifetime_s": 3600})
            await asyncio.sleep(5)
            await client.json("POST", f"/api/kernels/{old}/restart")
        gateway.end(signal.SIGKILL)
        with contextlib.closing(sqlite3.connect(store_of(gateway))) as store, store:
            # as if they were made a year ago, or in a year
            store.execute("UPDATE kernels SET created_at = '2020-01-01 00:00:00' WHERE id = ?", (young,))
            store.execute("UPDATE kernels SET created_at = '2100-01-01 00:00:00' WHERE id = ?", (old,))
        gateway.start()
        async with gateway.client() as client:
            assert {model["id"] for model in await client.json("GET", "/api/kernels")} == {old, young}
            async with asyncio.timeout(30):
                while old in {model["id"] for model in await client.json("GET", "/api/kernels")}:
                    await asyncio.sleep(0.1)
            # five more would have passed since the restart
            assert 11 < time.monotonic() - begun < 16
            assert await client.out(young, "print(1)") == "1\n"
