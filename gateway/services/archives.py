"""Archives of homes: many files in one request, made and unpacked as they travel."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from gateway.errors import BadRequest, Conflict, InsufficientStorage, NotFound, PayloadTooLarge
from gateway.models import AuditAction
from gateway.services.auditing import touches_files
from gateway.services.files import pieces_of
from gateway.services.packing import packer
from gateway.services.unpacking import Bounds, entries

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator

    from gateway.models import FileFacts, Principal
    from gateway.ports import KernelFiles, OpenFile
    from gateway.services.files import FileService
    from gateway.services.packing import Packer
    from gateway.services.unpacking import Format, Item
    from gateway.settings import Settings

T = TypeVar("T")
MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out of an archive."""

    files: int
    directories: int
    size: int


class ArchiveService:
    """Sends and takes archives. Raises what `FileService` does, PayloadTooLarge, InsufficientStorage."""

    def __init__(self, files: FileService, settings: Settings) -> None:
        self.audit = files.audit
        self._files = files
        self._settings = settings.files

    @touches_files(AuditAction.FILE_READ)
    async def contents(self, principal: Principal, kernel_id: str, path: str) -> list[FileFacts]:
        """Return the files and directories below a directory, for an archive: no links, nothing special."""
        most = self._settings.max_entries
        found = await self._files.of(principal, kernel_id).walk(path, depth=MAX_DEPTH, limit=most)
        if found.truncated:
            raise PayloadTooLarge(f"There are more than {most} entries (files.max_entries).")
        kept = [facts for facts in found.entries if facts.type in {"file", "directory"}]
        if sum(facts.size for facts in kept if facts.type == "file") > self._settings.max_archive_bytes:
            raise PayloadTooLarge(
                f"There are more than {self._settings.max_archive_bytes} bytes (files.max_archive_bytes)."
            )
        return kept

    async def pack(
        self, principal: Principal, kernel_id: str, path: str, contents: list[FileFacts], kind: Format
    ) -> AsyncIterator[bytes]:
        """Yield the archive of a directory's contents; what has vanished meanwhile is left out."""
        files = self._files.of(principal, kernel_id)
        archive = packer(kind)
        prefix = len("/".join(part for part in path.split("/") if part not in {"", "."}))
        for facts in contents:
            named = replace(facts, path=facts.path[prefix:].lstrip("/"))
            if facts.type == "directory":
                yield archive.begin(named)
                continue
            try:
                file = await files.open(facts.path, "read")
            except (NotFound, BadRequest, Conflict):
                continue
            with file:
                async for piece in _packed(archive, replace(file.facts, path=named.path), file):
                    yield piece
        yield archive.close()

    @touches_files(AuditAction.FILE_WRITE)
    async def unpack(
        self, principal: Principal, kernel_id: str, path: str, kind: Format, pieces: AsyncIterable[bytes]
    ) -> Unpacked:
        """Take an archive and write what is in it below a directory: all of it is checked before any is."""
        with self._files.transfer(principal):
            files = self._files.of(principal, kernel_id)
            with await files.spool() as spooled:
                packed = await self._files.fill(principal, kernel_id, spooled, pieces)
                bounds = Bounds(
                    entries=self._settings.max_entries,
                    total_bytes=self._settings.max_archive_bytes,
                    file_bytes=self._files.max_bytes(principal, kernel_id),
                )
                with spooled.reader() as reader:
                    checks = _check(entries(reader, kind, bounds, packed))
                    total = 0
                    while (size := await _aside(lambda: next(checks, None))) is not None:
                        total += size
                if total > await spooled.room():
                    raise InsufficientStorage("The home has no room for what it holds.", reason="full")
                with spooled.reader() as reader:
                    return await _write(files, path, entries(reader, kind, bounds, packed))


async def _packed(archive: Packer, facts: FileFacts, file: OpenFile) -> AsyncIterator[bytes]:
    yield archive.begin(facts)
    async for data in pieces_of(file, 0, facts.size):
        yield await _aside(lambda data=data: archive.piece(data))  # type: ignore[misc]
    yield archive.end()


def _check(items: Iterator[Item]) -> Iterator[int]:
    """Yield the sizes of an archive's pieces. Raises BadRequest where its names contradict each other."""
    files: set[str] = set()
    directories: set[str] = set()
    for entry, pieces in items:
        names = entry.path.split("/")
        above = {"/".join(names[:count]) for count in range(1, len(names))}
        if entry.path in files or above & files or (entry.size is not None and entry.path in directories):
            raise BadRequest(
                f"The archive has {entry.path[:100]!a} twice, or as a directory too.",
                reason="archive_name",
            )
        directories |= above
        (directories if entry.size is None else files).add(entry.path)
        for piece in pieces:
            yield len(piece)


async def _write(files: KernelFiles, path: str, items: Iterator[Item]) -> Unpacked:
    made = directories = total = 0
    while (item := await _aside(lambda: next(items, None))) is not None:
        entry, pieces = item
        target = f"{path}/{entry.path}"
        if entry.size is None:
            try:
                await files.mkdir(target)
            except Conflict:
                if (await files.stat(target)).type != "directory":
                    raise
            directories += 1
            continue
        with await files.spool(executable=entry.executable) as file:
            while (piece := await _aside(lambda: next(pieces, None))) is not None:  # noqa: B023 - awaited here
                await file.write(piece)
                total += len(piece)
            await files.place(file, target)
        made += 1
    return Unpacked(made, directories, total)


async def _aside(work: Callable[[], T]) -> T:
    """Work in a thread. Who is cancelled waits for it, since what it uses is closed then."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise
