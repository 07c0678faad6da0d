"""A server's process: started in a session of its own, waited for, and ended with all below it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import aiohttp

from benchmarks.processes import Family

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

START_S = 40.0
STOP_S = 20.0


class ServerProcess:
    """One server, which may be started again on the same port."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path, ready: str) -> None:
        self._argv = list(argv)
        self._env = {**os.environ, **env}
        self._log = log
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process's pid. Raises RuntimeError when it is not started."""
        if self._process is None:
            raise RuntimeError("the server is not started")
        return self._process.pid

    async def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with its log's end."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - nothing is measured meanwhile
                self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._log.parent,
                start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its servers in order
            )
        deadline = time.monotonic() + START_S
        async with aiohttp.ClientSession() as http:
            while not await self._answers(http):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self._argv[0]} did not start: {self._log.read_text()[-2000:]}")
                await asyncio.sleep(0.01)

    async def stop(self, *, with_children: bool = True) -> None:
        """End it by SIGTERM; whatever it leaves behind is killed, unless it may keep its children."""
        if self._process is None:
            return
        family = Family([self._process.pid]) if with_children else None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if family is not None:
            await asyncio.to_thread(family.end, 1.0)
        self._process = None

    async def _answers(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get(self._ready) as response:
                return response.status < 500
        except (aiohttp.ClientError, ConnectionError):
            return False


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
