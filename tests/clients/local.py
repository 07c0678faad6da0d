"""Kernels of the provisioner's for tests: a place of one's own for its warden, a kernelspec, a server."""

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
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from gateway.kernels.provisioner_spec import install
from tests.gateway import Client, Gateway, new_state_dir
from tests.lifecycle import cells, eventually, traces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

BIN = Path(sys.executable).parent
AS_USER = Path(__file__).parent.parent / "as_user.py"
CANARY = "the servers own secret"
TOKEN = "the-lab-users-own"
KERNEL = "python3-local"


class Place:
    """A directory with all that a Jupyter server of one user's has: kernelspecs, runtime, state."""

    def __init__(self, directory: Path, user: pwd.struct_passwd | None = None) -> None:
        self.directory = directory
        self.user = user
        self.notebooks = directory / "notebooks"
        self.notebooks.mkdir()
        # never started: it is by this that tests look at what a warden has on the machine
        self.warden = Gateway(state_dir=directory / "state" / "local")
        self.log = directory / "log"
        self.install()
        self.give()

    def install(self, name: str = KERNEL, **options: Any) -> None:
        """Install a kernelspec of the provisioner's."""
        install(name=name, prefix=self.directory, **options)
        self.give()

    def give(self) -> None:
        """Make everything here the user's."""
        for path in [self.directory, *self.directory.rglob("*")]:
            if self.user and not path.is_symlink():
                os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a server or client that has its kernels here."""
        return {
            **os.environ,
            "HOME": str(self.directory),
            "JUPYTER_PATH": str(self.directory / "share" / "jupyter"),
            "JUPYTER_RUNTIME_DIR": str(self.directory / "runtime"),
            "JUPYTER_CONFIG_DIR": str(self.directory / "config"),
            "JUPYTER_DATA_DIR": str(self.directory / "data"),
            "CELLBLOCK_STATE_DIR": str(self.directory / "state"),
            "CANARY": CANARY,
            **more,
        }

    def command(self, *command: str) -> list[str]:
        """Return a command line that runs as the user."""
        if self.user is None or os.geteuid() != 0:
            return list(command)
        return [sys.executable, "-P", str(AS_USER), self.user.pw_name, *command]

    def cells(self) -> dict[int, str]:
        """Return the processes of the cells here."""
        return cells(self.warden)

    async def nothing_left(self) -> bool:
        """Wait until there is nothing of a cell or a warden; tell whether it came to that."""
        return await eventually(lambda: not traces(self.warden), timeout=25)

    def destroy(self) -> None:
        """End what is left, and remove the place."""
        for pid in [*self.warden.keeper_pids(), *self.warden.warden_pids()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while traces(self.warden) and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def place_of(user: pwd.struct_passwd | None = None) -> Iterator[Place]:
    """Give a place, an ordinary user's below the home."""
    if user is None:
        place = Place(new_state_dir())
    else:
        directory = Path(user.pw_dir) / f"place{time.monotonic_ns()}"
        directory.mkdir(mode=0o755)
        place = Place(directory, user)
    try:
        yield place
    finally:
        place.destroy()


class Server:
    """A real Jupyter server on a place."""

    def __init__(self, place: Place, **env: str) -> None:
        self.place = place
        options = (
            f"--IdentityProvider.token={TOKEN}",
            "--ServerApp.port=0",
            f"--ServerApp.root_dir={place.notebooks}",
            *("--allow-root", "--no-browser"),
        )
        with place.log.open("wb") as log:
            self.process = subprocess.Popen(
                place.command(str(BIN / "jupyter-server"), *options),
                env=place.environment(**env),
                cwd=place.notebooks,
                stdout=log,
                stderr=log,
            )

    async def url(self) -> str:
        """Wait until it listens."""
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.place.log.read_text()
            for file in (self.place.directory / "runtime").glob("jpserver-*.json"):
                # the file comes before the server takes connections, and in two steps
                with contextlib.suppress(OSError, ValueError):
                    port = int(json.loads(file.read_text())["port"])
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    return f"http://127.0.0.1:{port}"
            await asyncio.sleep(0.1)
        raise AssertionError(self.place.log.read_text())

    def end(self, number: int = signal.SIGTERM) -> None:
        """Signal it and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(30)


@contextlib.asynccontextmanager
async def serving(place: Place, **env: str) -> AsyncIterator[tuple[Server, Client]]:
    """Give a Jupyter server and a client of it."""
    server = Server(place, **env)
    try:
        async with aiohttp.ClientSession(
            await server.url(), headers={"Authorization": f"token {TOKEN}"}
        ) as session:
            yield server, Client(session)
    finally:
        server.end()
