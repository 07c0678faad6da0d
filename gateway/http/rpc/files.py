"""Methods on the files of a kernel's home: small ones, whole or in parts, as text or base64."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from gateway.errors import BadRequest
from gateway.http.file_views import FileList, FileView
from gateway.http.files import MAX_DEPTH, encoded
from gateway.http.rpc.method import Call, Method, Place, kernel_of
from gateway.models.base import Model
from gateway.services.files import Expected, pieces_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.services.files import Written

Path = Annotated[str, Field(max_length=4096, description="Relative to the home.")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]


class AtPath(Place):
    """Names something in a home."""

    path: Path


class Listing(Place):
    """Parameters of `files.list`."""

    path: Path = ""
    recursive: bool = False
    limit: int | None = Field(None, ge=1, le=1_000_000, description="Most entries that are listed.")


class Read(AtPath):
    """Parameters of `files.read`."""

    offset: int = Field(0, ge=0, description="The first byte.")
    limit: int = Field(1 << 20, ge=1, le=4 << 20, description="Most bytes.")
    encoding: Literal["text", "base64"] = "text"


class Part(Model):
    """A part of a file: `text` (what is no UTF-8 is shown as U+FFFD) or `data` (base64)."""

    path: str
    size: int
    etag: str
    offset: int
    next_offset: int | None
    text: str | None = None
    data: str | None = None


class Write(AtPath):
    """Parameters of `files.write`."""

    text: str | None = Field(None, description="What it shall hold.")
    data: str | None = Field(None, description="The same in base64, instead of text.")
    expected_sha256: Sha256 | None = Field(None, description="What it must hold now.")
    expected_etag: str | None = Field(None, max_length=96, description="The version that it must be now.")
    absent: bool = Field(False, description="It must not be there.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.text is None) == (self.data is None):
            raise ValueError("give either text or data")
        return self


class Append(AtPath):
    """Parameters of `files.append`."""

    text: str


class Edit(AtPath):
    """Parameters of `files.edit`."""

    old: str
    new: str
    expected_replacements: int = Field(1, ge=1, description="How often it must be there.")


class Move(AtPath):
    """Parameters of `files.move`."""

    to: Path
    replace: bool = Field(False, description="Replace what is there.")


class Remove(AtPath):
    """Parameters of `files.delete`."""

    recursive: bool = Field(False, description="Remove a directory with all that is in it.")


async def listing(call: Call, wanted: Listing) -> FileList:
    """List a directory."""
    kernel_id, depth = await kernel_of(call, wanted), MAX_DEPTH if wanted.recursive else 1
    found = await call.ctx.files.walk(call.principal, kernel_id, wanted.path, depth=depth, limit=wanted.limit)
    return FileList(files=[FileView.of(facts) for facts in found.entries], truncated=found.truncated)


async def stat(call: Call, wanted: AtPath) -> FileView:
    """Show what is at a path."""
    kernel_id = await kernel_of(call, wanted)
    return FileView.of(await call.ctx.files.stat(call.principal, kernel_id, wanted.path))


async def read(call: Call, wanted: Read) -> Part:
    """Read a file, or a part of it."""
    kernel_id = await kernel_of(call, wanted)
    async with call.ctx.files.reading(call.principal, kernel_id, wanted.path) as file:
        facts = file.facts
        end = min(facts.size, wanted.offset + wanted.limit)
        raw = b"".join([piece async for piece in pieces_of(file, wanted.offset, end)])
    until = wanted.offset + len(raw)
    as_text = wanted.encoding == "text"
    return Part(
        path=wanted.path,
        size=facts.size,
        etag=f'"{facts.version}"',
        offset=wanted.offset,
        next_offset=until if raw and until < facts.size else None,
        text=raw.decode("utf-8", "replace") if as_text else None,
        data=None if as_text else b64encode(raw).decode(),
    )


async def write(call: Call, wanted: Write) -> FileView:
    """Write a file: whole, or not at all."""
    kernel_id = await kernel_of(call, wanted)
    content = _decoded(wanted.data) if wanted.data is not None else encoded(wanted.text, "text")
    version = wanted.expected_etag and wanted.expected_etag.strip('"')
    expected = Expected(version, wanted.expected_sha256, absent=wanted.absent)
    return _shown(
        await call.ctx.files.write(call.principal, kernel_id, wanted.path, _whole(content), expected)
    )


async def append(call: Call, wanted: Append) -> FileView:
    """Write at the end of a file."""
    kernel_id, added = await kernel_of(call, wanted), encoded(wanted.text, "text")
    return FileView.of(await call.ctx.files.append(call.principal, kernel_id, wanted.path, added))


async def edit(call: Call, wanted: Edit) -> FileView:
    """Replace what must be there a number of times."""
    kernel_id = await kernel_of(call, wanted)
    old, new = encoded(wanted.old, "old"), encoded(wanted.new, "new")
    return _shown(
        await call.ctx.files.edit(
            call.principal, kernel_id, wanted.path, old, new, replacements=wanted.expected_replacements
        )
    )


async def mkdir(call: Call, wanted: AtPath) -> FileView:
    """Make a directory."""
    kernel_id = await kernel_of(call, wanted)
    return FileView.of(await call.ctx.files.mkdir(call.principal, kernel_id, wanted.path))


async def move(call: Call, wanted: Move) -> FileView:
    """Rename within the home."""
    kernel_id = await kernel_of(call, wanted)
    return FileView.of(
        await call.ctx.files.move(call.principal, kernel_id, wanted.path, wanted.to, replace=wanted.replace)
    )


async def remove(call: Call, wanted: Remove) -> None:
    """Remove a file or a directory."""
    kernel_id = await kernel_of(call, wanted)
    await call.ctx.files.remove(call.principal, kernel_id, wanted.path, recursive=wanted.recursive)


def _shown(written: Written) -> FileView:
    return FileView.of(written.facts, sha256=written.sha256)


def _decoded(data: str) -> bytes:
    try:
        return b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest("The field data is not base64.", reason="data") from error


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    yield content


METHODS: tuple[Method, ...] = (
    Method("files.list", listing, Listing, FileList, "List a directory of the home.", changes=False),
    Method("files.stat", stat, AtPath, FileView, "Show what is at a path.", changes=False),
    Method("files.read", read, Read, Part, "Read a file, or a part of it.", changes=False),
    Method("files.write", write, Write, FileView, "Write a file: whole, or not at all."),
    Method("files.append", append, Append, FileView, "Write at the end of a file."),
    Method("files.edit", edit, Edit, FileView, "Replace what must be there a number of times."),
    Method("files.mkdir", mkdir, AtPath, FileView, "Make a directory, and those above it."),
    Method("files.move", move, Move, FileView, "Rename within the home."),
    Method("files.delete", remove, Remove, None, "Remove a file or a directory."),
)
