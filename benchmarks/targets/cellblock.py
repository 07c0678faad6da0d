"""Cellblock: a gateway of the benchmark's own, with every kernel in a firejail cell."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from benchmarks.environments import ROOT
from benchmarks.processes import Family, descendants, with_argument
from benchmarks.targets.jupyter_api import JupyterApi
from benchmarks.targets.process import ServerProcess, free_port
from benchmarks.targets.target import Kernel
from benchmarks.wires.raw import Address, Raw
from benchmarks.wires.requests import Mcp, Rest
from benchmarks.wires.wire import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from types import TracebackType

    import zmq

    from benchmarks.wires.wire import Wire

COMMAND = ROOT / ".venv" / "bin" / "cellblock"
KERNELSPEC = "benchmark"
OWNER = "benchmark"
READY_S, QUIET_S = 60.0, 0.5
# What keeps one principal from a benchmark, and output from being cut: the incumbents have no such limits, or
# theirs are turned off as well. Everything else is as shipped.
SETTINGS = {
    "KERNELS__MAX_KERNELS": "260",
    "KERNELS__MAX_KERNELS_PER_OWNER": "260",
    "KERNELS__START_QUEUE_S": "120",
    "KERNELS__MAX_MESSAGE_BYTES": str(64 << 20),
    "QUOTAS__STARTS_PER_MINUTE": "unlimited",
    "QUOTAS__EXECUTIONS_PER_MINUTE": "unlimited",
    "QUOTAS__SOCKETS": "1000",
    "SERVER__MAX_CONNECTIONS": "2000",
    "SERVER__MAX_CONNECTIONS_PER_ADDRESS": "2000",
    "SERVER__QUEUE_BYTES": str(128 << 20),
    "SERVER__QUEUE_MESSAGES": "100000",
    "EXECUTIONS__MAX_OUTPUT_BYTES": str(256 << 20),
    "LOG__FORMAT": "json",
}
PROFILE = f"""
description = "The profile default, with room for the output that the benchmark makes."
extends = "default"

[limits]
relay_bytes = {1 << 30}
output_bytes = {128 << 20}
cpus = {os.cpu_count()}
"""


class Cellblock:
    """A gateway and its warden on a state directory of their own, with a pool of so many warm kernels."""

    doors = ("v1", "legacy", "rest", "mcp", "raw")
    server = True
    keeps = True

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], *, pool: int = 0) -> None:
        self.name = "cellblock, warm" if pool else "cellblock"
        self.warm = pool > 0
        self._pool = pool
        self._context = context

    async def __aenter__(self) -> Self:
        # the service user must reach it, and /tmp is often private
        self._home = Path(tempfile.mkdtemp(prefix="cellblock-bench-", dir="/var/tmp"))
        self._home.chmod(0o755)
        self._state = self._home / "state"
        port = free_port()
        env = {f"CELLBLOCK_{name}": value for name, value in (SETTINGS | self._own_kernel()).items()}
        serve = [str(COMMAND), "serve", "--port", str(port), "--state-dir", str(self._state)]
        url = f"http://127.0.0.1:{port}"
        self._process = ServerProcess(serve, env, self._home / "log", f"{url}/healthz")
        try:
            await self._process.start()
            # an admin's, who may read the metrics
            create = [str(COMMAND), "keys", "create", OWNER, "--scopes", "admin"]
            create += ["--state-dir", str(self._state)]
            made = subprocess.run(  # noqa: ASYNC221 - nothing is measured meanwhile
                create, env=os.environ | env, capture_output=True, text=True, check=True, cwd="/"
            )
        except BaseException:
            await self._end()
            raise
        self.api = JupyterApi(url, made.stdout.strip(), KERNELSPEC)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.api.close()
        await self._end()

    async def create(self, *, session: bool = False) -> Kernel:
        """Start a kernel; with a session as a context, which is what a tool of MCP's takes."""
        if not session:
            return await self.api.create()
        name = f"bench-{new_id()}"
        made = await self.api.json("PUT", f"/api/contexts/{name}", {"kernel": KERNELSPEC})
        return Kernel(made["kernel_id"], session=name)

    async def ready(self) -> None:
        """Wait until the pool is full and the machine is quiet: nobody is measured while it is filled."""
        full = f'cellblock_warm_kernels{{spec="{KERNELSPEC}"}} {float(self._pool)}'
        async with asyncio.timeout(READY_S):
            while full not in await self.api.text("/metrics"):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.1)
        await asyncio.sleep(QUIET_S)

    async def delete(self, kernel: Kernel) -> None:
        """End a kernel."""
        if kernel.session is None:
            await self.api.delete(kernel.id)
        else:
            await self.api.json("DELETE", f"/api/contexts/{kernel.session}")

    @contextlib.asynccontextmanager
    async def connect(self, kernel: Kernel, door: str) -> AsyncIterator[Wire]:
        """Open a way to a kernel: through the gateway, or beside it to the sockets of the cell (`raw`)."""
        if door == "rest":
            yield Rest(self.api.http, kernel.id)
        elif door == "mcp":
            assert kernel.session is not None
            yield Mcp(self.api.http, kernel.session)
        elif door == "raw":
            async with self.api.channels(kernel.id, "v1") as asking:
                address = await Address.asked(asking)
            with contextlib.closing(Raw(self._context, address)) as raw:
                raw.wait_until_heard()
                yield raw
        else:
            async with self.api.channels(kernel.id, door) as channels:
                yield channels

    def one_shot(self) -> Wire:
        """Return the door that starts a kernel, runs code in it, and ends it, all in one request."""
        return Rest(self.api.http, None, KERNELSPEC)

    def parts(self) -> Mapping[str, Sequence[int]]:
        """Return the gateway's process, and the warden's with its keeper."""
        return {"gateway": [self._process.pid], "warden": self._wardens()}

    def kernel_pids(self) -> Sequence[int]:
        """Return all that is in cells, and the firejails that make them."""
        wardens = set(self._wardens())
        return [pid for pid in descendants(wardens) if pid not in wardens]

    async def restart(self) -> float:
        """Restart the gateway alone: the warden and its cells stay."""
        await self._process.stop(with_children=False)
        stopped = time.monotonic()
        await self._process.start()
        return time.monotonic() - stopped

    def _own_kernel(self) -> dict[str, str]:
        """Write the profile and the kernelspec, and return the settings that name their places."""
        profiles, specs = self._home / "profiles", self._home / "kernelspecs"
        profiles.mkdir()
        (profiles / "benchmark.toml").write_text(PROFILE)
        shutil.copytree(ROOT / "kernelspecs" / "python3", specs / KERNELSPEC)
        file = specs / KERNELSPEC / "kernel.json"
        spec = json.loads(file.read_text())
        spec["metadata"]["cellblock"]["profile"] = "benchmark"
        file.write_text(json.dumps(spec))
        pools = {KERNELSPEC: {"size": self._pool, "max_size": self._pool}} if self._pool else {}
        return {
            "KERNELS__POOLS": json.dumps(pools),
            "SANDBOX__PROFILE_DIRS": json.dumps([str(profiles)]),
            "KERNELS__SPEC_DIRS": json.dumps([str(specs)]),
        }

    def _wardens(self) -> list[int]:
        return with_argument(f"{self._state}/warden/settings.json")

    async def _end(self) -> None:
        """End gateway, warden and cells, whatever state they are in."""
        wardens = self._wardens()
        family = Family(wardens)
        await self._process.stop(with_children=False)
        for pid in self._wardens():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        family.end(10.0)
        shutil.rmtree(self._home, ignore_errors=True)
