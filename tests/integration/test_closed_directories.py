"""A state directory below a directory that only root may enter: everything works as the service user."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gateway import Gateway, running
from tests.lifecycle import eventually, kernels

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = "cellblock"


@pytest.fixture
def closed() -> Iterator[Path]:
    """A directory that root alone may enter, with a secret beside where the state will be."""
    path = Path(tempfile.mkdtemp(prefix="cellblock-closed-", dir="/var/tmp"))
    (path / "secret").write_text("not for the service user")
    (path / "deeper").mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


def status(pid: int) -> dict[str, list[str]]:
    """Return /proc/PID/status, its values split."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {key: value.split() for key, value in (line.split(":", 1) for line in lines)}


def listener(gateway: Gateway) -> int:
    """Return the process that listens on the gateway's port, found by its socket's inode."""
    port = int(gateway.url.rsplit(":", 1)[1])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:]]
    (inode,) = [row[9] for row in rows if int(row[1].split(":")[1], 16) == port and row[3] == "0A"]
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if f"socket:[{inode}]" in [str(link.readlink()) for link in (entry / "fd").iterdir()]:
                return int(entry.name)
    raise AssertionError("nobody listens")


def assert_powerless(gateway: Gateway) -> None:
    """Assert that the process that listens is the service user's, without capabilities or other groups."""
    pid = listener(gateway)
    assert gateway.process is not None
    assert pid == gateway.process.pid
    service = pwd.getpwnam(SERVICE)
    facts = status(pid)
    assert facts["Uid"] == [str(service.pw_uid)] * 4
    assert facts["Gid"] == [str(service.pw_gid)] * 4
    assert facts["Groups"] == []
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(facts[name][0], 16) == 0, name
    assert service.pw_uid != 0


@pytest.mark.parametrize("below", ["state", "deeper/state"])
async def test_serve_and_keys_work_below_a_closed_directory(closed: Path, below: str) -> None:
    """Keys, kernels, `kill -9` and adoption work; the listener is the service user's and sees no more."""
    state_dir = closed / below
    state_dir.mkdir(mode=0o700)
    with running(state_dir=state_dir) as gateway:
        assert_powerless(gateway)
        async with gateway.client() as client:
            kernel_id = await client.start()
            assert await client.out(kernel_id, "x = 6; print(x)") == "6\n"
            gateway.end(signal.SIGKILL)
        gateway.start()
        assert_powerless(gateway)
        async with gateway.client() as client:
            assert await client.out(kernel_id, "print(x)") == "6\n"
            assert len(kernels(gateway)) == 1
        # what the listening process sees there, looked at from within its own mounts, as its own user
        service = pwd.getpwnam(SERVICE)
        seen = subprocess.run(
            [
                *("nsenter", f"--target={listener(gateway)}", "--mount"),
                *("setpriv", f"--reuid={service.pw_uid}", f"--regid={service.pw_gid}", "--clear-groups"),
                *("find", str(closed), "-path", str(state_dir), "-prune", "-print", "-o", "-print"),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert set(seen) == {
            str(path) for path in (state_dir, *state_dir.parents) if path.is_relative_to(closed)
        }
    assert closed.stat().st_mode & 0o777 == 0o700


async def test_the_view_outlives_the_warden(closed: Path) -> None:
    """The gateway's own mounts show the sockets of kernels that a restarted warden started, too."""
    state_dir = closed / "state"
    state_dir.mkdir(mode=0o700)
    with running(state_dir=state_dir) as gateway:
        async with gateway.client() as client:
            (old,) = gateway.warden_pids()
            os.kill(old, signal.SIGKILL)
            assert await eventually(lambda: gateway.warden_pids() not in ([], [old]))
            await asyncio.sleep(1)
            assert await client.out(await client.start(), "print(1)") == "1\n"


async def test_keys_made_before_the_first_serve(closed: Path) -> None:
    """`keys create` makes the state directory below a closed one itself, and its key is good later."""
    gateway = Gateway(state_dir=closed / "state")
    made = subprocess.run(
        gateway.command("keys", "create", "alice", "--state-dir", str(gateway.state_dir)),
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert made.stdout.startswith("cb_")
    with running(state_dir=closed / "state") as gateway:
        gateway._keys["alice", None] = made.stdout.strip()
        async with gateway.client() as client:
            assert (await client.json("GET", "/api/me"))["identity"]["username"] == "alice"


async def test_the_listener_is_powerless_in_an_open_directory_too() -> None:
    """Started as root, the process that listens runs as the service user wherever the state is."""
    with running() as gateway:
        assert_powerless(gateway)


async def test_what_is_the_services_is_nobody_elses() -> None:
    """The store, the pepper and the lock are closed to all but root and the service user."""
    with running() as gateway:
        gateway.key()
        private = gateway.state_dir / "gateway"
        assert private.stat().st_mode & 0o777 == 0o700
        assert private.owner() == SERVICE
        for path in private.iterdir():
            assert path.stat().st_mode & 0o077 == 0, path
        assert (gateway.state_dir / "warden").owner() == "root"
        for name in ("warden.log", "settings.json", "start.log"):
            assert (gateway.state_dir / "warden" / name).owner() == "root"
