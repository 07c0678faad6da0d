"""Tools on the files of a session's home."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Literal

from gateway.errors import BadRequest, NotFound, PayloadTooLarge
from gateway.models import Principal, Scope
from gateway.services.files import Expected, pieces_of
from gateway.toolbox.file_views import (
    Content,
    DeleteFile,
    EditFile,
    Entries,
    Entry,
    ListFiles,
    MakeDirectory,
    MoveFile,
    ReadFile,
    Removed,
    WriteFile,
    WrittenFile,
    entry,
    written_file,
)
from gateway.toolbox.tool import ENDS, RUNS, SEES, Call, Hints, Tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.services.files import FileService
    from gateway.settings import McpSettings
    from gateway.toolbox.handles import Handles

SCOPES = frozenset({Scope.FILES, Scope.KERNELS})


class FileTools:
    """The files of sessions, for agents."""

    def __init__(self, files: FileService, handles: Handles, settings: McpSettings) -> None:
        self._files = files
        self._handles = handles
        self._most = settings.file_bytes
        self._part = settings.read_bytes

    async def read(self, call: Call, given: ReadFile) -> Content:
        """Read a file, or a part of it."""
        session = await self._handles.find(call.principal, given.session_id)
        most = min(given.length or self._part, self._part)
        raw, size = await self._bytes(call.principal, session.kernel_id, given.path, given.offset, most)
        whole = given.offset == 0 and len(raw) == size
        after = given.offset + len(raw)
        if given.encoding == "text":
            raw = _up_to_a_character(raw) if after < size else raw
            after = given.offset + len(raw)
        return Content(
            path=given.path,
            encoding=given.encoding,
            content=base64.b64encode(raw).decode()
            if given.encoding == "base64"
            else raw.decode("utf-8", "replace"),
            offset=given.offset,
            next_offset=after if raw and after < size else None,
            size=size,
            sha256=hashlib.sha256(raw).hexdigest() if whole else None,
        )

    async def whole(self, principal: Principal, session_id: str, path: str) -> bytes:
        """Return a file's content. Raises NotFound, PayloadTooLarge (`mcp.file_bytes`)."""
        session = await self._handles.find(principal, session_id)
        raw, size = await self._bytes(principal, session.kernel_id, path, 0, self._most + 1)
        if size > self._most or len(raw) > self._most:
            raise PayloadTooLarge(
                f"The file has more than {self._most} bytes (mcp.file_bytes): read_file has it in parts."
            )
        return raw

    async def write(self, call: Call, given: WriteFile) -> WrittenFile:
        """Write a file: whole, or not at all."""
        content = self._content(given.content, given.encoding)
        session = await self._handles.find(call.principal, given.session_id)
        written = await self._files.write(
            call.principal,
            session.kernel_id,
            given.path,
            _once(content),
            Expected(sha256=given.expected_sha256),
        )
        return written_file(given.session_id, written)

    async def edit(self, call: Call, given: EditFile) -> WrittenFile:
        """Replace a text in a file."""
        old, new = self._content(given.old, "text"), self._content(given.new, "text")
        session = await self._handles.find(call.principal, given.session_id)
        written = await self._files.edit(
            call.principal,
            session.kernel_id,
            given.path,
            old,
            new,
            replacements=given.expected_replacements,
        )
        return written_file(given.session_id, written)

    async def list(self, call: Call, given: ListFiles) -> Entries:
        """List a directory."""
        session = await self._handles.find(call.principal, given.session_id)
        walk = await self._files.walk(
            call.principal, session.kernel_id, given.path, depth=given.depth, limit=given.limit
        )
        return Entries(entries=[entry(facts) for facts in walk.entries], truncated=walk.truncated)

    async def delete(self, call: Call, given: DeleteFile) -> Removed:
        """Remove a file or a directory."""
        session = await self._handles.find(call.principal, given.session_id)
        await self._files.remove(call.principal, session.kernel_id, given.path, recursive=given.recursive)
        return Removed(path=given.path)

    async def move(self, call: Call, given: MoveFile) -> Entry:
        """Rename within the home."""
        session = await self._handles.find(call.principal, given.session_id)
        return entry(
            await self._files.move(
                call.principal, session.kernel_id, given.path, given.to, replace=given.replace
            )
        )

    async def mkdir(self, call: Call, given: MakeDirectory) -> Entry:
        """Make a directory."""
        session = await self._handles.find(call.principal, given.session_id)
        return entry(await self._files.mkdir(call.principal, session.kernel_id, given.path))

    async def _bytes(
        self, principal: Principal, kernel_id: str, path: str, offset: int, most: int
    ) -> tuple[bytes, int]:
        with self._files.transfer(principal):
            async with self._files.reading(principal, kernel_id, path) as file:
                if file.facts.type != "file":
                    raise NotFound("There is no such file.")
                size = file.facts.size
                pieces = pieces_of(file, min(offset, size), min(offset + most, size))
                return b"".join([piece async for piece in pieces]), size

    def _content(self, text: str, encoding: Literal["text", "base64"]) -> bytes:
        try:
            content = base64.b64decode(text, validate=True) if encoding == "base64" else text.encode()
        except (binascii.Error, UnicodeEncodeError, ValueError):
            raise BadRequest(f"The content is no {encoding}.", reason="content") from None
        if len(content) > self._most:
            raise PayloadTooLarge(f"That is more than {self._most} bytes (mcp.file_bytes).")
        return content

    def tools(self) -> tuple[Tool, ...]:
        """Return these tools."""
        return (
            Tool(
                "read_file",
                "Read a file",
                "Read a file of a session's home, as text or base64. A large file is read in parts: go on at "
                "next_offset.",
                ReadFile,
                Content,
                self.read,
                SCOPES,
                SEES,
            ),
            Tool(
                "write_file",
                "Write a file",
                "Write a whole file of a session's home, made if it is new. With expected_sha256 it is "
                "written only if nobody has changed it meanwhile.",
                WriteFile,
                WrittenFile,
                self.write,
                SCOPES,
                Hints(destructive=True, idempotent=True),
            ),
            Tool(
                "edit_file",
                "Edit a file",
                "Replace a text in a file, all of its occurrences or nothing: it must be there exactly "
                "expected_replacements times.",
                EditFile,
                WrittenFile,
                self.edit,
                SCOPES,
                RUNS,
            ),
            Tool(
                "list_files",
                "List files",
                "List a directory of a session's home.",
                ListFiles,
                Entries,
                self.list,
                SCOPES,
                SEES,
            ),
        )

    def extended(self) -> tuple[Tool, ...]:
        """Return the tools that are offered where somebody asks."""
        return (
            Tool(
                "delete_file",
                "Delete a file",
                "Remove a file or a directory of a session's home.",
                DeleteFile,
                Removed,
                self.delete,
                SCOPES,
                ENDS,
                extended=True,
            ),
            Tool(
                "move_file",
                "Move a file",
                "Rename a file or a directory within a session's home.",
                MoveFile,
                Entry,
                self.move,
                SCOPES,
                RUNS,
                extended=True,
            ),
            Tool(
                "make_directory",
                "Make a directory",
                "Make a directory in a session's home, and those above it.",
                MakeDirectory,
                Entry,
                self.mkdir,
                SCOPES,
                Hints(idempotent=True),
                extended=True,
            ),
        )


def _up_to_a_character(raw: bytes) -> bytes:
    """Return the bytes without the first ones of a character that is cut through."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte & 0b1100_0000 != 0b1000_0000:
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return raw[:-back] if length > back and len(raw) > back else raw
    return raw


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
