"""Several gateways on one machine: the pool of uids shared, and one gateway per state directory."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gateway import Gateway, new_state_dir, running
from tests.lifecycle import cells, eventually, kernels, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNELS = 5


@pytest.fixture
def pair() -> Iterator[tuple[Gateway, Gateway]]:
    """Two gateways with state directories of their own."""
    with running() as left, running() as right:
        yield left, right


def serve_again(gateway: Gateway, state_dir: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Start a second gateway on a state directory and wait for it to give up."""
    directory = str(state_dir or gateway.state_dir)
    command = gateway.command("serve", "--port", "0", "--state-dir", directory)
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd="/")


def uid_of(pid: int) -> int:
    """Return whose process this is."""
    return Path(f"/proc/{pid}").stat().st_uid


async def test_they_know_nothing_of_each_other(pair: tuple[Gateway, Gateway]) -> None:
    """One's kernels are 404 at the other, one's keys 401, for the same owner's name."""
    left, right = pair
    async with left.client() as here, right.client() as there:
        mine, yours = await here.start(), await there.start()
        assert [model["id"] for model in await here.json("GET", "/api/kernels")] == [mine]
        assert [model["id"] for model in await there.json("GET", "/api/kernels")] == [yours]
        await here.json("GET", f"/api/kernels/{yours}", status=404)
        await there.json("DELETE", f"/api/kernels/{mine}", status=404)
        foreign = {"Authorization": f"token {right.key()}"}
        async with here.http.get("/api/kernels", headers=foreign) as response:
            assert response.status == 401


async def test_they_share_the_pool_without_collision(pair: tuple[Gateway, Gateway]) -> None:
    """Kernels that both start at once all have different uids, none of them root's or a gateway's."""
    async with pair[0].client() as here, pair[1].client() as there:
        starts = [client.start() for _ in range(KERNELS) for client in (here, there)]
        await asyncio.gather(*starts)

        uids = [uid_of(pid) for gateway in pair for pid in kernels(gateway)]

        assert len(uids) == 2 * KERNELS
        assert len(set(uids)) == 2 * KERNELS
        assert min(uids) >= 1000


async def test_the_end_of_one_does_not_touch_the_other() -> None:
    """Ending one gateway, its warden and cells leaves the other's kernels and state as they were."""
    with running() as left:
        async with left.client() as here:
            kernel_id = await here.start()
            await here.run(kernel_id, "x = 1")
            with running("--no-keep") as right:
                async with right.client() as there:
                    await there.start()
                assert right.end() == 0
                assert await eventually(lambda: not cells(right))

            assert await here.out(kernel_id, "print(x)") == "1\n"
            assert await here.out(await here.start(), "print(2)") == "2\n"


async def test_one_does_not_adopt_the_others_kernels(pair: tuple[Gateway, Gateway]) -> None:
    """After `kill -9` of both each adopts its own."""
    clients = []
    for gateway in pair:
        async with gateway.client() as client:
            clients.append(await client.start())
    for gateway in pair:
        gateway.end(signal.SIGKILL)
    for gateway in pair:
        gateway.start()
    for gateway, kernel_id in zip(pair, clients, strict=True):
        async with gateway.client() as client:
            assert [model["id"] for model in await client.json("GET", "/api/kernels")] == [kernel_id]


async def test_a_second_gateway_on_one_state_directory_is_refused() -> None:
    """While one lives another says so in one line and exits 2, by any name of the directory."""
    with running() as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            await client.run(kernel_id, "x = 1")
            link = gateway.state_dir.with_name(gateway.state_dir.name + "-link")
            link.symlink_to(gateway.state_dir)
            try:
                for name in (gateway.state_dir, link):
                    done = serve_again(gateway, name)
                    assert (done.returncode, done.stdout) == (2, "")
                    assert done.stderr.splitlines() == [
                        f"cellblock: Another gateway serves {name}: choose another --state-dir."
                    ]
            finally:
                link.unlink()
            assert await client.out(kernel_id, "print(x)") == "1\n"
            assert await client.out(await client.start(), "print(2)") == "2\n"
            assert len(gateway.warden_pids()) == len(gateway.keeper_pids()) == 1


async def test_the_refusal_ends_with_the_gateway() -> None:
    """The state directory is free the moment that its gateway is killed, however it died."""
    with running() as gateway:
        for number in (signal.SIGKILL, signal.SIGTERM):
            gateway.end(number)
            gateway.start()
        async with gateway.client() as client:
            assert await client.out(await client.start(), "print(1)") == "1\n"


async def test_two_that_start_at_once_on_one_directory_are_one() -> None:
    """Of several started at the same moment one serves, with one warden; the others exit 2."""
    gateway = Gateway(state_dir=new_state_dir())
    command = gateway.command("serve", "--port", "0", "--state-dir", str(gateway.state_dir))
    processes = [
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/"
        )
        for _ in range(4)
    ]
    try:
        assert await eventually(lambda: sum(process.poll() is not None for process in processes) == 3, 20)
        assert await eventually(lambda: len(gateway.warden_pids()) == 1)
        for process in processes:
            if process.poll() is not None:
                assert process.stderr is not None
                assert process.returncode == 2, process.stderr.read()
        assert len(gateway.keeper_pids()) == 1
    finally:
        for process in processes:
            process.terminate()
            process.communicate()
        gateway.destroy()


async def test_a_copied_state_directory_is_another_gateway() -> None:
    """A copy of a state directory (a backup) has the same keys and none of the kernels, and harms none."""
    with running() as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            copy = new_state_dir()
            shutil.copytree(gateway.state_dir / "gateway", copy / "gateway")
            os.chown(copy / "gateway", *_owner(gateway.state_dir / "gateway"))
            for path in (copy / "gateway").iterdir():
                os.chown(path, *_owner(gateway.state_dir / "gateway"))
            with running(state_dir=copy) as other:
                other._keys = gateway._keys
                assert tree(other) != tree(gateway)
                async with other.client() as there:
                    assert await there.json("GET", "/api/kernels") == []
            assert await client.out(kernel_id, "print(1)") == "1\n"


def _owner(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_uid, facts.st_gid
