"""Workspaces: homes that persist, their owner's alone, bounded, of one kernel or of several that share."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gateway import Client, Gateway, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MIB = 1 << 20


@pytest.fixture(scope="module")
def small() -> Iterator[Gateway]:
    """A gateway with small workspaces, of which a principal may have three."""
    env = {
        "CELLBLOCK_FILES__WORKSPACE_BYTES": str(32 * MIB),
        "CELLBLOCK_FILES__WORKSPACE_INODES": "500",
        "CELLBLOCK_QUOTAS__STORAGE_BYTES": str(96 * MIB),
    }
    with running("--no-keep", env=env) as gateway:
        yield gateway


@pytest.fixture
async def alice(small: Gateway) -> AsyncIterator[Client]:
    """A client of that gateway's; her kernels and workspaces are removed afterwards."""
    async with small.client() as client:
        yield client
        for kernel in await client.json("GET", "/api/kernels"):
            await client.delete(kernel["id"])
        for workspace in await client.json("GET", "/api/workspaces"):
            await client.json("DELETE", f"/api/workspaces/{workspace['name']}", status=204)


async def test_what_is_written_stays(alice: Client) -> None:
    """Files outlive the kernel, a restart, and the change of the cell's user; the kernel owns them all."""
    first = await alice.start(workspace="project")
    assert (await alice.kernel(first))["workspace"] == "project"
    await alice.out(
        first, "import os; os.makedirs('a/b'); open('a/b/c', 'w').write('kept'); print(os.getuid())"
    )
    await alice.json("POST", f"/api/kernels/{first}/restart")
    assert await alice.out(first, "print(open('a/b/c').read())") == "kept\n"
    # somebody takes the user that this cell had
    others = [await alice.start() for _ in range(2)]
    await alice.delete(first)
    others.append(await alice.start())

    second = await alice.start(workspace="project")
    seen = "import os; s = os.stat('a/b/c'); print(open('a/b/c').read(), s.st_uid == os.getuid())"
    assert await alice.out(second, seen) == "kept True\n"
    await alice.out(second, "open('a/b/c', 'a').write('!'); os.rmdir; os.remove('a/b/c'); os.rmdir('a/b')")
    async with alice.http.put(f"/api/kernels/{second}/files/from-outside", data=b"x") as response:
        assert response.status == 201
    assert await alice.out(second, "print(os.stat('from-outside').st_uid == os.getuid())") == "True\n"


async def test_one_kernel_at_a_time(alice: Client) -> None:
    """A workspace in use is 409, for a kernel as for a deletion; once its kernel is gone it is free."""
    first = await alice.start(workspace="one")
    answers = await asyncio.gather(
        *(alice.http.post("/api/kernels", json={"workspace": "one"}) for _ in range(3))
    )
    assert [answer.status for answer in answers] == [409, 409, 409]
    await alice.json("DELETE", "/api/workspaces/one", status=409)
    (listed,) = await alice.json("GET", "/api/workspaces")
    assert (listed["name"], listed["in_use"], listed["size_bytes"]) == ("one", True, 32 * MIB)
    await alice.delete(first)
    for _ in range(3):
        await alice.delete(await alice.start(workspace="one"))
    await alice.json("DELETE", "/api/workspaces/one", status=204)
    await alice.json("DELETE", "/api/workspaces/one", status=404)
    assert await alice.json("GET", "/api/workspaces") == []


async def test_bounds(alice: Client) -> None:
    """A workspace holds what it was given in bytes and inodes, and a full one keeps working."""
    kernel = await alice.start(workspace="full")
    code = """if True:
        import os, errno
        try:
            with open('big', 'wb') as f:
                for _ in range(64): f.write(bytes(1 << 20))
        except OSError as error: print(errno.errorcode[error.errno], os.stat('big').st_size >> 20)
        os.remove('big')
        try:
            for n in range(1000): open(f'f{n}', 'w').close()
        except OSError as error: print(errno.errorcode[error.errno], n > 300)
        """
    lines = (await alice.out(kernel, code)).split()
    assert (lines[0], 15 < int(lines[1]) < 32, lines[2], lines[3]) == ("ENOSPC", True, "ENOSPC", "True")
    for name in ("f1", "f2"):
        # one for the new file, one for the journal that SQLite makes while it writes IPython's history
        await alice.json("DELETE", f"/api/kernels/{kernel}/files/{name}", status=204)
    # IPython complains of its own history beside it
    assert "still" in await alice.out(kernel, "open('new', 'w').write('x'); print('still')")


async def test_the_storage_quota(alice: Client) -> None:
    """A principal has as many workspaces as its quota holds, however many ask at once; deletion frees."""

    async def start(name: str) -> int:
        async with alice.http.post("/api/kernels", json={"workspace": name}) as response:
            return response.status

    answers = await asyncio.gather(*(start(f"w{n}") for n in range(5)))
    assert sorted(answers) == [201, 201, 201, 507, 507]
    for kernel in await alice.json("GET", "/api/kernels"):
        await alice.delete(kernel["id"])
    names = [workspace["name"] for workspace in await alice.json("GET", "/api/workspaces")]
    await alice.json("DELETE", f"/api/workspaces/{names[0]}", status=204)
    assert await start("another") == 201


async def test_ownership(alice: Client, small: Gateway) -> None:
    """The same name is another workspace for another owner, and nothing of one's is seen by the other."""
    kernel = await alice.start(workspace="same")
    await alice.out(kernel, "open('secret', 'w').write('x')")
    async with small.client("bob") as bob, small.client("alice", "kernels,execute") as narrow:
        assert await bob.json("GET", "/api/workspaces") == []
        await bob.json("DELETE", "/api/workspaces/same", status=404)
        theirs = await bob.start(workspace="same")
        assert await bob.out(theirs, "import os; print(os.path.exists('secret'))") == "False\n"
        await bob.delete(theirs)
        await bob.json("DELETE", "/api/workspaces/same", status=204)
        await narrow.json("GET", "/api/workspaces", status=403)
        await narrow.json("POST", "/api/kernels", {"workspace": "same"}, status=403)
    for name in ("", ".", "..", "a/b", "../x", "-x", "x" * 65, "ü", "a b", "a\n"):
        await alice.json("POST", "/api/kernels", {"workspace": name}, status=400)


async def test_nothing_is_left_and_the_host_sees_no_mount(alice: Client, small: Gateway) -> None:
    """The mount is the cell's alone, without devices and set-uid; with the cell it ends, and its device."""
    kernel = await alice.start(workspace="gone")
    image = next(Path(small.state_dir, "warden", "workspaces").glob("*/gone.img"))
    assert attached(image)
    assert "ext4" not in " ".join(
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if small.tree in line
    )
    pid = small.kernel_pids()[-1]
    (mount,) = (
        line
        for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        if " - ext4 /dev/loop" in line and " /home/" in line
    )
    assert {"nosuid", "nodev"} <= set(mount.split()[5].split(","))
    await alice.delete(kernel)
    deadline = time.monotonic() + 10
    while attached(image) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert not attached(image)


async def test_the_warden_dies() -> None:
    """After a warden's death in the middle of writing, the workspace is there again with what was synced."""
    with running() as own:
        async with own.client() as client:
            kernel = await client.start(workspace="w")
            synced = "import os; f = open('x', 'w'); f.write('safe'); f.flush(); os.fsync(f.fileno())"
            await client.out(kernel, synced)
            os.kill(own.warden_pids()[0], signal.SIGKILL)
            deadline = time.monotonic() + 20
            while True:
                async with client.http.post("/api/kernels", json={"workspace": "w"}) as response:
                    answer = await response.json()
                    if response.status == 201:
                        break
                assert time.monotonic() < deadline, answer
                await asyncio.sleep(0.2)
            assert await client.out(answer["id"], "print(open('x').read())") == "safe\n"


async def test_artifacts(alice: Client) -> None:
    """An execution tells which files it made and changed, with their hashes, and no others."""
    kernel = await alice.start(workspace="art")
    await alice.run(kernel, "open('same', 'w').write('1'); open('old', 'w').write('1')")
    code = "import os; os.makedirs('d/.h'); open('d/new.csv', 'w').write('a,b'); open('old', 'a').write('2');"
    result = await alice.run(
        kernel, code + "open('d/.h/x', 'w'); open('gone', 'w'); os.remove('gone')", artifacts=True
    )
    assert result["artifacts"] == {
        "truncated": False,
        "files": [
            {
                "path": "old",
                "href": "old",
                "size": 2,
                "change": "changed",
                "sha256": hashlib.sha256(b"12").hexdigest(),
            },
            {
                "path": "d/new.csv",
                "href": "d/new.csv",
                "size": 3,
                "change": "made",
                "sha256": hashlib.sha256(b"a,b").hexdigest(),
            },
        ],
    }
    assert (await alice.run(kernel, "1"))["artifacts"] is None


def attached(image: Path) -> bool:
    """Tell whether a loop device has an image."""
    return any(
        Path(entry).read_text().strip().startswith(str(image))
        for entry in Path("/sys/block").glob("loop*/loop/backing_file")
    )


async def test_adoption() -> None:
    """The next gateway finds the kernel's files and workspace, and a restart there begins in the same one."""
    with running() as own:
        async with own.client() as client:
            kernel = await client.start(workspace="w")
            await client.out(kernel, "open('x', 'w').write('1')")
        own.end(signal.SIGKILL)
        own.start()
        async with own.client() as client:
            assert (await client.kernel(kernel))["workspace"] == "w"
            async with client.http.get(f"/api/kernels/{kernel}/files/x") as response:
                assert await response.read() == b"1"
            await client.json("POST", f"/api/kernels/{kernel}/restart")
            assert await client.out(kernel, "print(open('x').read())") == "1\n"


async def test_shared_by_several(alice: Client, small: Gateway) -> None:
    """Kernels that all say so share a home: each reads and writes the others' files as its own user."""
    first, second = [await alice.start(workspace="both", shared=True) for _ in range(2)]
    uids = [await alice.out(kernel, "import os; print(os.getuid())") for kernel in (first, second)]
    assert uids[0] != uids[1]
    await alice.out(first, "import os; os.makedirs('d'); open('d/x', 'w').write('one')")
    seen = "import os; s = os.stat('d/x'); print(open('d/x').read(), s.st_uid == os.getuid())"
    assert await alice.out(second, seen) == "one True\n"
    await alice.out(second, "open('d/x', 'a').write(', two'); open('d/y', 'w').write('new')")
    assert await alice.out(first, "print(open('d/x').read()); os.remove('d/y')") == "one, two\n"
    async with alice.http.get(f"/api/kernels/{second}/files/d/x") as response:
        assert await response.read() == b"one, two"

    async with small.client("bob") as bob:
        theirs = await bob.start(workspace="both", shared=True)
        assert await bob.out(theirs, "import os; print(os.path.exists('d'))") == "False\n"
        await bob.delete(theirs)
        await bob.json("DELETE", "/api/workspaces/both", status=204)


async def test_shared_and_alone_exclude_each_other(alice: Client) -> None:
    """Who wants a shared home alone is refused, as who would share one that is not; the last frees it."""
    first = await alice.start(workspace="both", shared=True)
    second = await alice.start(workspace="both", shared=True)
    refused = await alice.json("POST", "/api/kernels", {"workspace": "both"}, status=409)
    assert refused["reason"] == "in_use"
    # a restart takes it again, while the other goes on
    await alice.json("POST", f"/api/kernels/{first}/restart")
    await alice.out(first, "open('x', 'w').write('1')")
    await alice.delete(first)
    await alice.json("POST", "/api/kernels", {"workspace": "both"}, status=409)
    await alice.json("DELETE", "/api/workspaces/both", status=409)
    assert await alice.out(second, "print(open('x').read())") == "1\n"
    await alice.delete(second)

    alone = await alice.start(workspace="both")
    assert await alice.out(alone, "print(open('x').read())") == "1\n"
    await alice.json("POST", "/api/kernels", {"workspace": "both", "shared": True}, status=409)
    await alice.delete(alone)
    await alice.json("DELETE", "/api/workspaces/both", status=204)


async def test_links_in_a_shared_home(alice: Client) -> None:
    """A link that one kernel plants is not followed for another's files, neither out of the home nor in."""
    first, second = [await alice.start(workspace="both", shared=True) for _ in range(2)]
    await alice.out(
        first,
        "import os; os.symlink('/etc/passwd', 'out'); os.symlink('d', 'in'); os.mkdir('d'); open('d/x', 'w')",
    )
    for path in ("out", "in/x"):
        async with alice.http.get(f"/api/kernels/{second}/files/{path}") as response:
            assert (response.status, (await response.json())["reason"]) == (400, "link")
    async with alice.http.put(f"/api/kernels/{second}/files/out", data=b"x") as response:
        assert response.status == 200
    # the link was replaced, not what it pointed to
    assert await alice.out(first, "print(os.path.islink('out'), open('out').read())") == "False x\n"


@pytest.mark.parametrize("spec", ["python3", "python3-bubblewrap"])
async def test_another_name_of_the_home(alice: Client, spec: str) -> None:
    """The home, with a workspace or without, is /home/user as well, and nothing of the host's is there."""
    code = (
        "import os; open('/home/user/x', 'w').write('1'); print(open(os.path.expanduser('~/x')).read(), "
        "os.path.samefile('/home/user', os.path.expanduser('~')))"
    )
    for kernel in (await alice.start(spec), await alice.start(spec, workspace="named")):
        assert await alice.out(kernel, code) == "1 True\n"
        await alice.delete(kernel)
    assert not Path("/home/user").is_symlink()
