"""Files: what the owners of kernels do with their kernels' homes."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import BadRequest, Conflict, LimitReached, NotFound, PayloadTooLarge, PreconditionFailed
from gateway.models import AuditAction, FileFacts, Principal, Scope
from gateway.services.auditing import recorded, touches_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterator

    from gateway.models import Walk
    from gateway.ports import Audit, KernelFiles, OpenFile
    from gateway.services.kernels import KernelService
    from gateway.settings import Settings

PIECE = 256 << 10


@dataclass(frozen=True, slots=True)
class Expected:
    """What a writer says of the file as it is now; it is left alone when that is not so.

    `version` and `sha256` are of what is there, and `absent` means that nothing may be.
    """

    version: str | None = None
    sha256: str | None = None
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it was written."""

    facts: FileFacts
    sha256: str
    created: bool


class FileService:
    """The homes of every owner's kernels, each open to its owner and to admins alone.

    Every method raises Forbidden, NotFound (kernel or path), KernelDead, BadRequest (the path), Conflict.
    """

    def __init__(self, kernels: KernelService, settings: Settings, audit: Audit) -> None:
        self.audit = audit
        self._kernels = kernels
        self._settings = settings.files
        self._transfers: dict[str, int] = {}

    def of(self, principal: Principal, kernel_id: str) -> KernelFiles:
        """Return the way to the files of a kernel of the principal's."""
        return self._kernels.get(principal, kernel_id, scope=Scope.FILES).files()

    @touches_files(AuditAction.FILE_LIST)
    async def stat(self, principal: Principal, kernel_id: str, path: str) -> FileFacts:
        """Return what is at a path."""
        return await self.of(principal, kernel_id).stat(path)

    @touches_files(AuditAction.FILE_LIST)
    async def walk(
        self, principal: Principal, kernel_id: str, path: str, *, depth: int, limit: int | None
    ) -> Walk:
        """List a directory, `depth` levels of it."""
        most = self._settings.max_entries
        return await self.of(principal, kernel_id).walk(path, depth=depth, limit=min(limit or most, most))

    @asynccontextmanager
    async def reading(self, principal: Principal, kernel_id: str, path: str) -> AsyncIterator[OpenFile]:
        """Open a file to read it while the body runs, once that is recorded. Raises AuditUnavailable."""
        self.audit.admit()
        with recorded(self.audit, AuditAction.FILE_READ, principal, kernel_id=kernel_id, target=path):
            file = await self.of(principal, kernel_id).open(path, "read")
        with file:
            await self.audit.written()
            yield file

    @contextmanager
    def transfer(self, principal: Principal) -> Iterator[None]:
        """Count one upload or download. Raises LimitReached when the principal has too many already."""
        running = self._transfers.get(principal.name, 0)
        if running >= self._settings.max_transfers:
            raise LimitReached(
                f"You have {running} transfers under way, as many as you may (files.max_transfers).",
                reason="transfers",
                retry_after_s=1,
            )
        self._transfers[principal.name] = running + 1
        try:
            yield
        finally:
            self._transfers[principal.name] -= 1
            if not self._transfers[principal.name]:
                del self._transfers[principal.name]

    @touches_files(AuditAction.FILE_WRITE)
    async def write(
        self,
        principal: Principal,
        kernel_id: str,
        path: str,
        pieces: AsyncIterable[bytes],
        expected: Expected,
    ) -> Written:
        """Write a file: whole, or not at all.

        Raises PreconditionFailed, PayloadTooLarge, InsufficientStorage.
        """
        with self.transfer(principal):
            files = self.of(principal, kernel_id)
            version = await self._check(files, path, expected)
            digest = hashlib.sha256()
            with await files.spool() as spooled:
                await self.fill(principal, kernel_id, spooled, pieces, digest)
                created = version is None and not await _exists(files, path)
                facts = await files.place(spooled, path, replace=not expected.absent, version=version)
        return Written(facts, digest.hexdigest(), created)

    async def fill(
        self,
        principal: Principal,
        kernel_id: str,
        spooled: OpenFile,
        pieces: AsyncIterable[bytes],
        digest: hashlib._Hash | None = None,
    ) -> int:
        """Write what comes into a spooled file and return its size. Raises PayloadTooLarge."""
        most = self.max_bytes(principal, kernel_id)
        size = 0
        async for piece in pieces:
            size += len(piece)
            if size > most:
                raise PayloadTooLarge(f"More than the {most} bytes that a file here may have.")
            if digest is not None:
                digest.update(piece)
            await spooled.write(piece)
        return size

    def max_bytes(self, principal: Principal, kernel_id: str) -> int:
        """Return the size of the largest file that a kernel's home takes from outside."""
        limits = self._kernels.get(principal, kernel_id, scope=Scope.FILES).limits
        return min(self._settings.max_upload_bytes, limits.file_bytes)

    @touches_files(AuditAction.FILE_WRITE)
    async def append(self, principal: Principal, kernel_id: str, path: str, text: bytes) -> FileFacts:
        """Write at the end of a file, which is made if need be.

        Raises PayloadTooLarge, InsufficientStorage.
        """
        files = self.of(principal, kernel_id)
        with await files.open(path, "append") as file:
            if file.facts.size + len(text) > self.max_bytes(principal, kernel_id):
                raise PayloadTooLarge("The file would be larger than a file here may be.")
            await file.write(text)
        return await files.stat(path)

    @touches_files(AuditAction.FILE_WRITE)
    async def edit(
        self, principal: Principal, kernel_id: str, path: str, old: bytes, new: bytes, *, replacements: int
    ) -> Written:
        """Replace what must be there a number of times, all of it or nothing.

        Raises Conflict when it is there another number of times, PreconditionFailed when the file changes
        meanwhile, PayloadTooLarge.
        """
        if not old:
            raise BadRequest("What is to be replaced is empty.", reason="old")
        files = self.of(principal, kernel_id)
        with await files.open(path, "read") as file:
            content = await self._content(file)
            version = file.facts.version
        found = content.count(old)
        if found != replacements:
            raise Conflict(f"The text is there {found} times and not {replacements}.", reason="replacements")
        changed = content.replace(old, new)
        if len(changed) > self.max_bytes(principal, kernel_id):
            raise PayloadTooLarge("The file would be larger than a file here may be.")
        with await files.spool() as spooled:
            await spooled.write(changed)
            facts = await files.place(spooled, path, version=version)
        return Written(facts, hashlib.sha256(changed).hexdigest(), created=False)

    @touches_files(AuditAction.FILE_WRITE)
    async def mkdir(self, principal: Principal, kernel_id: str, path: str) -> FileFacts:
        """Make a directory, and those above it."""
        return await self.of(principal, kernel_id).mkdir(path)

    async def move(
        self, principal: Principal, kernel_id: str, path: str, to: str, *, replace: bool
    ) -> FileFacts:
        """Rename within the home. Raises AuditUnavailable."""
        self.audit.admit()
        extra = {"how": "move", "to": to}
        with recorded(
            self.audit, AuditAction.FILE_WRITE, principal, kernel_id=kernel_id, target=path, extra=extra
        ):
            return await self.of(principal, kernel_id).move(path, to, replace=replace)

    @touches_files(AuditAction.FILE_DELETE)
    async def remove(self, principal: Principal, kernel_id: str, path: str, *, recursive: bool) -> None:
        """Remove a file or a directory."""
        await self.of(principal, kernel_id).remove(path, recursive=recursive)

    async def _check(self, files: KernelFiles, path: str, expected: Expected) -> str | None:
        """Return the version that must still be there when a file is placed. Raises PreconditionFailed."""
        if expected.version is None and expected.sha256 is None:
            return None
        try:
            file = await files.open(path, "read")
        except NotFound:
            raise PreconditionFailed("There is no such file.", reason="if_match") from None
        with file:
            if expected.version not in {None, "*", file.facts.version}:
                raise PreconditionFailed("The file is not the version that you name.", reason="if_match")
            if expected.sha256 is not None:
                digest = hashlib.sha256()
                async for piece in pieces_of(file, 0, file.facts.size):
                    digest.update(piece)
                if digest.hexdigest() != expected.sha256.lower():
                    raise PreconditionFailed("The file has another sha256.", reason="sha256")
            return file.facts.version

    async def _content(self, file: OpenFile) -> bytes:
        if file.facts.size > self._settings.max_edit_bytes:
            raise PayloadTooLarge(
                f"The file has more than {self._settings.max_edit_bytes} bytes (files.max_edit_bytes)."
            )
        return b"".join([piece async for piece in pieces_of(file, 0, file.facts.size)])


async def pieces_of(file: OpenFile, start: int, end: int) -> AsyncIterator[bytes]:
    """Yield the bytes of a file from `start` to `end`; fewer where the file has become shorter."""
    while start < end:
        piece = await file.read(start, min(PIECE, end - start))
        if not piece:
            return
        yield piece
        start += len(piece)


async def _exists(files: KernelFiles, path: str) -> bool:
    try:
        await files.stat(path)
    except NotFound:
        return False
    return True
