"""The files of a cell of this machine: the warden resolves and opens, this side moves the bytes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from typing import IO, Any, Literal, Self, TypeVar

from gateway.errors import Conflict, KernelDead, NotFound
from gateway.models import FileFacts, Walk
from gateway.ports import OpenFile
from gateway.sandbox import wire
from gateway.sandbox.beneath import parts_of, refusal
from gateway.sandbox.files import encoded, unpacked
from gateway.sandbox.link import WardenLink

T = TypeVar("T")

# how long one removal may go on: a process of the kernel's can make files faster than they are removed
REMOVE_S = 20.0


class LocalFile:
    """An open file of a cell's home: a `ports.OpenFile`. Owns its descriptor."""

    def __init__(self, descriptor: int, facts: FileFacts) -> None:
        self.descriptor = descriptor
        self._facts = facts
        self._running: asyncio.Future[Any] | None = None

    @property
    def facts(self) -> FileFacts:
        """What the file was when it was opened."""
        return self._facts

    async def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on."""
        return await self._aside(lambda: os.pread(self.descriptor, size, offset))

    async def write(self, data: bytes) -> None:
        """Write at the end. Raises InsufficientStorage, PayloadTooLarge."""

        def write() -> None:
            view = memoryview(data)
            while view:
                view = view[os.write(self.descriptor, view) :]

        await self._aside(write)

    async def room(self) -> int:
        """Return how many bytes the file system still takes."""
        found = await self._aside(lambda: os.fstatvfs(self.descriptor))
        return found.f_bavail * found.f_frsize

    def reader(self) -> IO[bytes]:
        """Return another way to the same bytes, which blocks; it is to be closed."""
        reader = os.fdopen(os.dup(self.descriptor), "rb")
        reader.seek(0)
        return reader

    def close(self) -> None:
        """Close the descriptor, once no thread uses it any more."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor < 0:
            return
        if self._running is None or self._running.done():
            os.close(descriptor)
        else:
            self._running.add_done_callback(lambda _: os.close(descriptor))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def _aside(self, work: Callable[[], T]) -> T:
        """Work in a thread; when the caller is cancelled the thread goes on, and keeps the descriptor."""
        future = self._running = asyncio.get_running_loop().run_in_executor(None, work)
        try:
            return await asyncio.shield(future)
        except OSError as error:
            raise refusal(error, self._facts.path) from None


class CellFiles:
    """Implements `ports.KernelFiles` for one cell."""

    def __init__(self, link: WardenLink, cell: str) -> None:
        self._link = link
        self._cell = cell

    async def stat(self, path: str) -> FileFacts:
        """Return what is at a path."""
        return await self._facts(wire.OnPath(op="stat", cell=self._cell, path=checked(path)))

    async def walk(self, path: str, *, depth: int, limit: int) -> Walk:
        """List a directory; see `ports.KernelFiles.walk`."""
        order = wire.WalkHome(cell=self._cell, path=checked(path), depth=depth, limit=limit)
        answer, descriptors = await self._ask(order)
        # shielded: once started for, the thread closes the descriptor, whoever waits
        reading = asyncio.get_running_loop().run_in_executor(None, _read_walk, descriptors[0])
        entries = await asyncio.shield(reading)
        return Walk(tuple(entries), bool(answer["truncated"]))

    async def open(self, path: str, mode: Literal["read", "append"]) -> LocalFile:
        """Open a regular file; see `ports.KernelFiles.open`."""
        return await self._open(wire.OpenFile(cell=self._cell, path=checked(path), mode=mode))

    async def spool(self, *, executable: bool = False) -> LocalFile:
        """Open a new file without a name."""
        return await self._open(wire.OpenFile(cell=self._cell, mode="spool", executable=executable))

    async def place(
        self, file: OpenFile, path: str, *, replace: bool = True, version: str | None = None
    ) -> FileFacts:
        """Give a spooled file its name; see `ports.KernelFiles.place`."""
        if not isinstance(file, LocalFile):
            raise TypeError(file)
        order = wire.PlaceFile(cell=self._cell, path=checked(path), replace=replace, version=version)
        return await self._facts(order, file.descriptor)

    async def mkdir(self, path: str) -> FileFacts:
        """Make a directory, and those above it."""
        return await self._facts(wire.OnPath(op="mkdir", cell=self._cell, path=checked(path)))

    async def move(self, path: str, to: str, *, replace: bool = False) -> FileFacts:
        """Rename within the home."""
        order = wire.MoveFile(cell=self._cell, path=checked(path), to=checked(to), replace=replace)
        return await self._facts(order)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or a directory; see `ports.KernelFiles.remove`."""
        if recursive and (await self.stat(path)).type == "directory":
            order = wire.OnPath(op="empty", cell=self._cell, path=checked(path))
            try:
                async with asyncio.timeout(REMOVE_S):
                    while not (await self._ask(order))[0]["empty"]:
                        pass
            except TimeoutError:
                raise Conflict("Not all was removed in time; ask again.", reason="slow") from None
        await self._ask(wire.OnPath(op="remove", cell=self._cell, path=checked(path)))

    async def _open(self, order: wire.OpenFile) -> LocalFile:
        answer, descriptors = await self._ask(order)
        return LocalFile(descriptors[0], unpacked(answer["facts"]))

    async def _facts(self, order: wire.FileOrder, *descriptors: int) -> FileFacts:
        answer, _ = await self._ask(order, *descriptors)
        return unpacked(answer["facts"])

    async def _ask(self, order: wire.FileOrder, *descriptors: int) -> tuple[dict[str, Any], list[int]]:
        try:
            return await self._link.on_file(order, descriptors)
        except NotFound as error:
            if error.reason == "no_cell":
                raise KernelDead("The kernel's cell is gone, and its home with it.") from None
            raise


def owner_hash(owner: str) -> str:
    """Return what stands for an owner on the disk."""
    return hashlib.sha256(owner.encode()).hexdigest()[:32]


def checked(path: str) -> str:
    """Return a path as it travels. Raises BadRequest for what no path of a home looks like."""
    return encoded("/".join(parts_of(path)))


def _read_walk(listing: int) -> list[FileFacts]:
    with open(listing, "rb") as lines:
        lines.seek(0)
        return [unpacked(fields) for line in lines for fields in json.loads(line)]
