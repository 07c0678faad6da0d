"""Kernels that swap their sockets for links: whatever and whenever they swap, the gateway follows none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gateway import Gateway, new_state_dir, running
from tests.lifecycle import cells, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway import Client

ROOT = os.geteuid() == 0
MODES = ["multi-tenant", "single-tenant"] if ROOT else ["single-tenant"]
USER = f"cbswap{os.getpid()}"
PYTHON = "/srv/cellblock/envs/python3"

PRELUDE = """
import json, os, socket, sys, threading, time
bait, ip = sys.argv[1], json.load(open(sys.argv[2]))["ip"]
names = [f"{ip}-{port}" for port in range(1, 6)]
def bind(name):
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(name)
    bound.listen(100)
    return bound
def swap(name):
    os.symlink(bait, name + "~")
    os.rename(name + "~", name)
"""
KERNEL = """
sys.argv = ["ipykernel_launcher", "-f", sys.argv[2]]
from ipykernel.kernelapp import IPKernelApp
"""
# to and fro, a thousand times and more, in the time in which the gateway looks and connects
TOSS = """
def toss():
    while not all(map(os.path.exists, names)):
        pass
    try:
        for name in names:
            os.rename(name, name + ".real")
            os.symlink(bait, name + ".link")
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            for kind in (".real", ".link"):
                for name in names:
                    os.link(name + kind, name + "~", follow_symlinks=False)
                    os.rename(name + "~", name)
    except OSError:
        pass
    finally:
        # rather a link than nothing
        for name in names:
            try:
                swap(name)
            except OSError:
                pass
"""
PROGRAMS = {
    "links from the beginning": "for name in names: os.symlink(bait, name)\ntime.sleep(60)",
    "links right after binding": "kept = [bind(n) for n in names]\nfor n in names: swap(n)\ntime.sleep(60)",
    "links after a moment": (
        "kept = [bind(n) for n in names]\ntime.sleep(0.01)\nfor n in names: swap(n)\ntime.sleep(60)"
    ),
    "sockets and links in turns": f"{TOSS.replace('SECONDS', '20')}\nkept = [bind(n) for n in names]\ntoss()",
    "a directory of links": """
folder = os.path.dirname(ip)
kept = [bind(name) for name in names]
for target in (os.path.dirname(bait), bait):
    try:
        os.rename(folder, folder + "~")
        os.symlink(target, folder)
    except OSError:
        pass
time.sleep(60)
""",
    "a kernel that swaps as it starts": (
        f"{TOSS.replace('SECONDS', '10')}\nthreading.Thread(target=toss, daemon=True).start()\n"
        f"{KERNEL}\nIPKernelApp.launch_instance()"
    ),
}
# in a kernel that is up; `bait` stands before it
SWAP_LATER = """
import json, os, socket
from ipykernel.kernelapp import IPKernelApp
folder = os.path.dirname(IPKernelApp.instance().connection_file)
names = [os.path.join(folder, f"k-{port}") for port in range(1, 6)]
done = []
def attempt(what, act, *arguments):
    try:
        act(*arguments)
        done.append(what)
    except OSError:
        pass
for name in names:
    attempt("link", os.link, name, name + ".real")
    attempt("symlink", os.symlink, bait, name + "~")
    attempt("rename", os.rename, name + "~", name)
    attempt("unlink", os.unlink, name) if not os.path.islink(name) else None
    attempt("symlink", os.symlink, bait, name)
attempt("directory", os.rename, folder, folder + "~")
attempt("chmod", os.chmod, folder, 0o777)
attempt("connection file", open, os.path.join(folder, "c.json"))
attempt("new file", open, os.path.join(folder, "new"), "w")
attempt("list", os.listdir, folder)
print(json.dumps(sorted(set(done))))
"""
# iopub's connection breaks, and the gateway subscribes anew
BREAK_IOPUB = """
kernel = get_ipython().kernel
for _ in range(3):
    kernel.iopub_thread.send_multipart([b"x" * (40 << 20)])
    import time; time.sleep(0.5)
"""


class Bait:
    """A listening unix socket of the host's that no gateway has any business with."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "bait"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.path))
        self.path.chmod(0o777)
        self._socket.listen(100)
        self._socket.setblocking(False)

    def taken(self) -> int:
        """Count the connections since the last look."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.accept()[0].close()
                count += 1
        return count

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


@contextlib.contextmanager
def an_ordinary_user() -> Iterator[pwd.struct_passwd]:
    """Make a throw-away user; without root, be oneself."""
    if not ROOT:
        yield pwd.getpwuid(os.geteuid())
        return
    subprocess.run(["useradd", "-m", "-U", "-s", "/bin/bash", USER], check=True, capture_output=True)
    entry = pwd.getpwnam(USER)
    try:
        yield entry
    finally:
        subprocess.run(["userdel", "-r", "-f", USER], check=False, capture_output=True)
        shutil.rmtree(f"/tmp/cellblock-{entry.pw_uid}", ignore_errors=True)
        shutil.rmtree(entry.pw_dir, ignore_errors=True)


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """How the gateway runs."""
    return str(request.param)


@pytest.fixture(scope="module")
def bait() -> Iterator[Bait]:
    """The bait, where every gateway can reach it."""
    directory = new_state_dir()
    bait = Bait(directory)
    yield bait
    bait.close()
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def swapped(mode: str, bait: Bait) -> Iterator[Gateway]:
    """A gateway with the hostile programs as its kernelspecs."""
    with contextlib.ExitStack() as stack:
        specs = new_state_dir()
        stack.callback(shutil.rmtree, specs)
        for number, program in enumerate(PROGRAMS.values()):
            argv = ["python", "-c", PRELUDE + program, str(bait.path), "{connection_file}"]
            ours = {"profile": "default", "environment": PYTHON}
            spec = {"argv": argv, "display_name": "x", "language": "x", "metadata": {"cellblock": ours}}
            (specs / f"hostile-{number}").mkdir()
            (specs / f"hostile-{number}" / "kernel.json").write_text(json.dumps(spec))
        env = {
            "CELLBLOCK_KERNELS__SPEC_DIRS": json.dumps([str(specs)]),
            "CELLBLOCK_KERNELS__READY_TIMEOUT_S": "4",
        }
        if mode == "multi-tenant" or not ROOT:
            yield stack.enter_context(running(env=env))
            return
        user = stack.enter_context(an_ordinary_user())
        state_dir = Path(user.pw_dir) / "state"
        state_dir.mkdir(mode=0o700)
        os.chown(state_dir, user.pw_uid, user.pw_gid)
        yield stack.enter_context(running(env=env, state_dir=state_dir, user=user.pw_name))


def gateways_uid(gateway: Gateway) -> int:
    """Return the user that a gateway runs as."""
    assert gateway.process is not None
    return Path(f"/proc/{gateway.process.pid}").stat().st_uid


def test_the_bait_can_be_taken(swapped: Gateway, bait: Bait) -> None:
    """A process of the gateway's user that connects to the bait is seen: else all this proved nothing."""
    code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(bait.path)!r})"
    become = ["setpriv", f"--reuid={gateways_uid(swapped)}", "--clear-groups"] if ROOT else []
    python = "/usr/bin/python3" if ROOT else sys.executable
    subprocess.run([*become, python, "-c", code], check=True)
    assert bait.taken() == 1


@pytest.mark.parametrize("number", range(len(PROGRAMS)), ids=[name.replace(" ", "-") for name in PROGRAMS])
async def test_swaps_while_a_kernel_starts(swapped: Gateway, bait: Bait, number: int) -> None:
    """A kernel that swaps its sockets while it starts does not lead the gateway anywhere, however it ends."""
    async with swapped.client() as client:
        tries = [
            asyncio.create_task(client.http.post("/api/kernels", json={"name": f"hostile-{number}"}))
            for _ in range(3)
        ]
        for answer in await asyncio.gather(*tries):
            body = await answer.json()
            assert answer.status in {201, 502, 503}, body
            if answer.status == 201:
                await client.run(body["id"], "1", timeout_s=1)
                await client.delete(body["id"])
    assert bait.taken() == 0
    assert await eventually(lambda: not cells(swapped)), cells(swapped)


async def swap_later(client: Client, bait: Bait) -> tuple[str, list[str]]:
    """Start a kernel that swaps once it is up; return its id and what it was able to do."""
    kernel = await client.start()
    done = json.loads(await client.out(kernel, f"bait = {str(bait.path)!r}\n{SWAP_LATER}"))
    return kernel, done


async def test_swaps_in_a_running_kernel(swapped: Gateway, bait: Bait, mode: str) -> None:
    """Links in place of a running kernel's sockets are not followed when the gateway subscribes anew."""
    async with swapped.client() as client:
        kernel, done = await swap_later(client, bait)
        if mode == "multi-tenant":
            assert done == []
        assert "connection file" not in done
        await client.run(kernel, BREAK_IOPUB, timeout_s=5)
        await client.run(kernel, "1", timeout_s=2)
        assert bait.taken() == 0
        if mode == "multi-tenant":
            assert await client.out(kernel, "print(1)") == "1\n"
        await client.json("POST", f"/api/kernels/{kernel}/restart")
        assert await client.out(kernel, "print(2)") == "2\n"
        await client.delete(kernel)
    assert bait.taken() == 0


async def test_swaps_between_two_gateways(swapped: Gateway, bait: Bait, mode: str) -> None:
    """The next gateway does not follow them either: it has the kernel, or ends it."""
    async with swapped.client() as client:
        kernel, _ = await swap_later(client, bait)
        await client.run(kernel, "x = 1")
    swapped.end(signal.SIGKILL)
    swapped.start()
    async with swapped.client() as client:
        if mode == "multi-tenant":
            assert await client.out(kernel, "print(x)") == "1\n"
        for model in await client.json("GET", "/api/kernels"):
            await client.delete(model["id"])
    assert bait.taken() == 0
    assert await eventually(lambda: not cells(swapped)), cells(swapped)
