"""The trail's files: JSON lines, one chain through all of them, shared safely between processes.

`<first record's number>.jsonl`, each for its owner's eyes only; the newest is appended to. Everything here
blocks on the disk and belongs into a thread.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from gateway.audit.chain import parse, seal
from gateway.models import AuditAction, AuditEvent, AuditHead, AuditRecord
from gateway.settings import AuditSettings

SUFFIX = ".jsonl"
# Longer than any line: 64 KiB of code may become six times that as JSON.
TAIL_BYTES = 1 << 20
FILE_AGE = timedelta(days=1)

Entry = tuple[datetime, AuditEvent]


@dataclass(frozen=True)
class Position:
    """How far a reader has come: the number of the last record that it took, and where that one ended."""

    seq: int
    file: Path | None = None
    offset: int = 0


class Journal:
    """Appends to the trail and reads it back. One object serves one appending and one reading thread.

    Methods raise OSError when the disk refuses.
    """

    def __init__(self, directory: Path, key: bytes, settings: AuditSettings) -> None:
        self._directory = directory
        self._key = key
        self._file_bytes = settings.file_bytes
        self._retention = timedelta(days=settings.retention_days) if settings.retention_days else None
        self._left: tuple[Path, int, AuditHead] | None = None
        self._aged: tuple[Path, datetime] | None = None

    def append(self, entries: Sequence[Entry], floor: AuditHead) -> AuditHead:
        """Write records, all or none of them, and return the new head.

        `floor` is the newest record known from elsewhere: numbers of records that were cut off are not used
        again, so that the gap stays to be seen.
        """
        with self.locked(fcntl.LOCK_EX):
            files = self.files()
            head = self._head(files)
            head = floor if floor.seq > head.seq else head
            pruned = self._prune(entries[0][0], head, files)
            return self._write(entries, pruned, files if pruned is head else self.files())

    def sync(self) -> None:
        """Bring what is written to the disk."""
        if files := self.files():
            _sync(files[-1])
            _sync(self._directory)

    def read(self, position: Position, limit: int) -> tuple[list[AuditRecord], Position]:
        """Return the next records after a position, and the position after them; no more than `limit`.

        A line that is no record is passed over: to find those is verify's work.
        """
        records: list[AuditRecord] = []
        files = self.files()
        later = [path for path in files if first_of(path) > position.seq + 1]
        reached = files[len(files) - len(later) - 1 :] if len(files) > len(later) else later
        for path in reached:
            offset = position.offset if path == position.file else 0
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n") or len(records) == limit:
                        return records, position
                    offset += len(line)
                    record = _read(line)
                    if record is not None and record.seq > position.seq:
                        records.append(record)
                        position = Position(record.seq, path, offset)
        return records, position

    def files(self) -> list[Path]:
        """Return the files that there are, oldest first."""
        there = self._directory.iterdir() if self._directory.is_dir() else ()
        return sorted(path for path in there if path.suffix == SUFFIX)

    @contextmanager
    def locked(self, how: int) -> Iterator[None]:
        """Hold the trail's lock, made with its directory, against other processes."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    def _head(self, files: Sequence[Path]) -> AuditHead:
        """Return the newest record of the files; an incomplete last line, never acknowledged, is cut."""
        for path in reversed(files):
            size = path.stat().st_size
            if self._left and self._left[:2] == (path, size):
                return self._left[2]
            with path.open("r+b") as file:
                file.seek(max(0, size - TAIL_BYTES))
                tail = file.read()
                whole = tail.rfind(b"\n") + 1
                if whole < len(tail):
                    file.truncate(size - len(tail) + whole)
            for line in reversed(tail[:whole].splitlines()):
                if record := parse(line):
                    return AuditHead(seq=record["seq"], hash=record["hash"])
        return AuditHead()

    def _target(self, first: int, now: datetime, files: Sequence[Path]) -> Path:
        """Return the file to append to: the newest, or a new one when that is full or old."""
        if files and files[-1].stat().st_size < self._file_bytes:
            begun = self._begun(files[-1])
            if begun is None or now - begun < FILE_AGE:
                return files[-1]
        return self._directory / f"{first:012d}{SUFFIX}"

    def _begun(self, path: Path) -> datetime | None:
        """Return when a file was begun, which is read once: its first record stays what it is."""
        if self._aged is not None and self._aged[0] == path:
            return self._aged[1]
        begun = _begun(path)
        if begun is not None:
            self._aged = path, begun
        return begun

    def _write(self, entries: Sequence[Entry], head: AuditHead, files: Sequence[Path]) -> AuditHead:
        path = self._target(head.seq + 1, entries[0][0], files)
        lines = []
        for at, event in entries:
            line, head = seal(event, at, head, self._key)
            lines.append(line)
        data = b"".join(lines)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, data) < len(data):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
        self._left = (path, size + len(data), head)
        return head

    def _prune(self, now: datetime, head: AuditHead, files: Sequence[Path]) -> AuditHead:
        """Remove files past their time; a record of it, written first, lets the chain begin later."""
        if self._retention is None or len(files) < 2:
            return head
        oldest = (now - self._retention).timestamp()
        # only from the beginning: a hole is never made
        old = list(itertools.takewhile(lambda path: path.stat().st_mtime < oldest, files[:-1]))
        if not old:
            return head
        through = first_of(files[len(old)]) - 1
        event = AuditEvent(action=AuditAction.AUDIT_PRUNE, door="gateway", extra={"through": through})
        head = self._write([(now, event)], head, files)
        for path in old:
            path.unlink()
        return head


def first_of(path: Path) -> int:
    """Return the number of a file's first record, by its name."""
    return int(path.stem)


def _read(line: bytes) -> AuditRecord | None:
    try:
        return AuditRecord.model_validate_json(line)
    except ValidationError:
        return None


def _begun(path: Path) -> datetime | None:
    with path.open("rb") as file:
        record = parse(file.readline(TAIL_BYTES))
    try:
        return datetime.fromisoformat(str(record["at"])) if record else None
    except ValueError:
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
