"""What the file tools take and give."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from pydantic import Field

from gateway.models import FileFacts, Frozen, Model, timestamp
from gateway.toolbox.handles import SessionId
from gateway.toolbox.resources import file_uri

if TYPE_CHECKING:
    from gateway.services.files import Written

NEWEST_NS = 253_402_300_799 * 10**9
LISTED = 500
Path = Field(min_length=1, max_length=4096, description="Path of the file, relative to the home.")


class ReadFile(Frozen):
    """What to read."""

    session_id: SessionId
    path: str = Path
    encoding: Literal["text", "base64"] = Field(
        "text", description="text is UTF-8, and what is none in the file is replaced."
    )
    offset: int = Field(0, ge=0, description="Byte to begin at.")
    length: int | None = Field(
        None,
        ge=1,
        description="Bytes to read; what is more than fits into an answer is read by another call.",
    )


class Content(Model):
    """A part of a file. `sha256` is there where that is all of it."""

    path: str
    encoding: Literal["text", "base64"]
    content: str
    offset: int
    next_offset: int | None = Field(None, description="Where to read on; nothing at the end.")
    size: int
    sha256: str | None = None


class WriteFile(Frozen):
    """What to write."""

    session_id: SessionId
    path: str = Path
    content: str = Field(description="The whole content.")
    encoding: Literal["text", "base64"] = "text"
    expected_sha256: str | None = Field(
        None,
        pattern="^[0-9a-fA-F]{64}$",
        description="Write only if the file is there with this sha256.",
    )


class EditFile(Frozen):
    """What to replace, all of it or nothing."""

    session_id: SessionId
    path: str = Path
    old: str = Field(min_length=1, description="The text to replace, exactly as it stands there.")
    new: str = Field(description="What to put in its place.")
    expected_replacements: int = Field(1, ge=1, description="How often it must be there.")


class WrittenFile(Model):
    """A file as it is now."""

    path: str
    size: int
    sha256: str
    created: bool
    uri: str


class ListFiles(Frozen):
    """Which directory."""

    session_id: SessionId
    path: str = Field("", max_length=4096, description="The directory; the home if left out.")
    depth: int = Field(1, ge=1, le=16, description="Levels to list.")
    limit: int = Field(LISTED, ge=1, le=5000, description="Entries at most.")


class Entry(Model):
    """What is at a path."""

    path: str
    type: Literal["file", "directory", "link", "other"]
    size: int
    modified_at: str


class Entries(Model):
    """A directory's entries; `truncated` says that there are more."""

    entries: list[Entry]
    truncated: bool


class DeleteFile(Frozen):
    """What to remove."""

    session_id: SessionId
    path: str = Path
    recursive: bool = Field(False, description="Remove a directory with all that is in it.")


class MoveFile(Frozen):
    """What to rename."""

    session_id: SessionId
    path: str = Path
    to: str = Field(min_length=1, max_length=4096, description="The new path.")
    replace: bool = Field(False, description="Replace what is there.")


class MakeDirectory(Frozen):
    """Which directory to make, with those above it."""

    session_id: SessionId
    path: str = Path


class Removed(Model):
    """A path where nothing is any more."""

    path: str
    removed: bool = True


def written_file(session_id: str, written: Written) -> WrittenFile:
    """Show a file that was written."""
    raw = os.fsencode(written.facts.path)
    return WrittenFile(
        path=raw.decode("utf-8", "replace"),
        size=written.facts.size,
        sha256=written.sha256,
        created=written.created,
        uri=file_uri(session_id, quote(raw)),
    )


def entry(facts: FileFacts) -> Entry:
    """Show what is at a path."""
    # a process sets any time that it likes
    moment = datetime.fromtimestamp(min(max(facts.modified_ns, 0), NEWEST_NS) // 10**9, tz=UTC)
    return Entry(
        path=os.fsencode(facts.path).decode("utf-8", "replace"),
        type=facts.type,
        size=facts.size,
        modified_at=timestamp(moment),
    )
