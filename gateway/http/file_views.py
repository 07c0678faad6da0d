"""What the API takes and shows of files."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote

from pydantic import Field

from gateway.models import FileFacts, Model, timestamp

OLDEST_NS, NEWEST_NS = 0, 253_402_300_799 * 10**9


class FileView(Model):
    """What is at a path of a home.

    `path` is for people: bytes that are no UTF-8 are shown as U+FFFD. `href` is percent-encoded and exact.
    """

    path: str
    href: str
    type: Literal["file", "directory", "link", "other"]
    size: int
    executable: bool
    modified_at: str
    etag: str
    sha256: str | None = None

    @classmethod
    def of(cls, facts: FileFacts, *, sha256: str | None = None) -> FileView:
        """Show facts."""
        raw = os.fsencode(facts.path)
        # a process sets any time that it likes
        moment = datetime.fromtimestamp(min(max(facts.modified_ns, OLDEST_NS), NEWEST_NS) // 10**9, tz=UTC)
        return cls(
            path=raw.decode("utf-8", "replace"),
            href=quote(raw),
            type=facts.type,
            size=facts.size,
            executable=facts.type == "file" and bool(facts.mode & 0o111),
            modified_at=timestamp(moment),
            etag=f'"{facts.version}"',
            sha256=sha256,
        )


class FileList(Model):
    """A directory's entries; `truncated` says that there are more."""

    files: list[FileView]
    truncated: bool


class UnpackedView(Model):
    """What came out of an archive; `size` in bytes."""

    files: int
    directories: int
    size: int


class FileChange(Model):
    """The body of POST …/files/{path}: what is to be done, and what that needs."""

    op: Literal["append", "edit", "mkdir", "move"]
    text: str | None = Field(None, description="append: what is written at the end.")
    old: str | None = Field(None, description="edit: what is replaced.")
    new: str | None = Field(None, description="edit: what it is replaced by.")
    expected_replacements: int = Field(1, ge=1, description="edit: how often it must be there.")
    to: str | None = Field(None, max_length=4096, description="move: the new path.")
    replace: bool = Field(False, description="move: replace what is there.")
