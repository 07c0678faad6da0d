"""A large file into a kernel's home and back, against a server that does nothing but that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import aiohttp

from benchmarks.environments import ROOT
from benchmarks.outcome import WrongOutcome, digest
from benchmarks.targets.process import free_port
from benchmarks.workloads.workload import kernels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.samples import Samples
    from benchmarks.sizes import Sizes
    from benchmarks.targets.target import Target

MEGABYTE = 1e6


class Transfer:
    """One upload and one download on each side. The incumbents have no files of kernels."""

    name = "transfer"
    bound_s = 120.0
    starts = False

    def rounds(self, sizes: Sizes) -> int:
        """Return how often it is measured."""
        return sizes.rounds

    def takes(self, target: Target) -> bool:
        """Tell whether it can be measured on a target."""
        return target.name == "cellblock"

    async def measure(self, target: Target, sizes: Sizes, samples: Samples) -> None:
        """Send and fetch the same bytes through the gateway and through plain aiohttp, both into memory."""
        data = os.urandom(sizes.file_bytes)
        async with kernels(target, 1) as (kernel,), _plain() as plain:
            api = target.api  # type: ignore[attr-defined]
            path = f"/api/kernels/{kernel.id}/files/benchmark.bin"
            await _both_ways(api.http, path, data, target.name, samples)
            await _both_ways(plain, "/file", data, "plain aiohttp", samples)


async def _both_ways(
    http: aiohttp.ClientSession, path: str, data: bytes, subject: str, samples: Samples
) -> None:
    begun = time.perf_counter()
    async with http.put(path, data=data) as response:
        response.raise_for_status()
        await response.read()
    sent = time.perf_counter()
    async with http.get(path) as response:
        response.raise_for_status()
        chunks = [chunk async for chunk in response.content.iter_any()]
    fetched = time.perf_counter()
    if digest(b"".join(chunks)) != digest(data):
        raise WrongOutcome(f"{subject} gave another file back")
    size = len(data) / MEGABYTE
    samples.record("upload", subject, [size / (sent - begun)], "MB per s")
    samples.record("download", subject, [size / (fetched - sent)], "MB per s")


@contextlib.asynccontextmanager
async def _plain() -> AsyncIterator[aiohttp.ClientSession]:
    """Give a client of a plain file server, which keeps its file in memory as a cell's home does."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as directory:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.sink", str(port), directory), cwd=ROOT, start_new_session=True
        )
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
                await _until_up(http)
                yield http
        finally:
            process.kill()
            await process.wait()


async def _until_up(http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with http.get("/up"):
                    return
            await asyncio.sleep(0.02)
