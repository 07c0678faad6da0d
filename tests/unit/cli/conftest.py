"""The commands as a user runs them: in a process of their own, against a small real server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.fake_gateway import TOKEN, FakeGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


class Command:
    """Starts `cellblock` in a directory of its own, with nothing of the developer's environment."""

    def __init__(self, home: Path, env: dict[str, str]) -> None:
        self.home = home
        self.env = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONUNBUFFERED": "1", **env}

    async def start(self, *args: str, **env: str) -> asyncio.subprocess.Process:
        """Start the command."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway.cli",
            *args,
            cwd=self.home,
            env=self.env | env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *args: str, **env: str) -> Done:
        """Run the command to its end."""
        return await self.done(await self.start(*args, **env))

    async def done(self, process: asyncio.subprocess.Process) -> Done:
        """Wait for a command's end; whatever it says, it never shows a traceback of its own."""
        try:
            out, err = await asyncio.wait_for(process.communicate(), 30)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
        assert b"Traceback" not in err, err.decode()
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    """A running server."""
    fake = FakeGateway()
    async with fake.server:
        yield fake


@pytest.fixture
def cellblock(gateway: FakeGateway, tmp_path: Path) -> Command:
    """The command, with the server's URL and key in its environment."""
    return Command(tmp_path, {"CELLBLOCK_URL": gateway.url, "CELLBLOCK_KEY": TOKEN})


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait until something holds, for 20 seconds at most."""

    async def wait(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0.02)

    return wait
