"""Archives made as they are sent: tar.gz and zip, a piece at a time."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gateway.models import FileFacts
    from gateway.services.unpacking import Format

OLDEST_ZIP, NEWEST_ZIP = 315_532_800, 4_354_819_198


class Packer(Protocol):
    """Makes one archive; what each call returns is to be sent."""

    def begin(self, facts: FileFacts) -> bytes:
        """Begin a file, or note a directory."""
        ...

    def piece(self, data: bytes) -> bytes:
        """Add bytes to the file that was begun."""
        ...

    def end(self) -> bytes:
        """End the file that was begun; what it lacks of its size is zeros."""
        ...

    def close(self) -> bytes:
        """End the archive."""
        ...


def packer(kind: Format) -> Packer:
    """Return what makes archives of a kind."""
    return ZipPacker() if kind == "zip" else TarPacker()


class TarPacker:
    """Makes a tar.gz."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(wbits=31)
        self._size = self._left = 0

    def begin(self, facts: FileFacts) -> bytes:
        """Begin a file, or note a directory."""
        info = tarfile.TarInfo(facts.path)
        info.mtime = min(max(facts.modified_ns // 10**9, 0), 8**11 - 1)
        info.mode = facts.mode & 0o777
        if facts.type == "directory":
            info.type = tarfile.DIRTYPE
        else:
            info.size = facts.size
        self._size = self._left = info.size
        return self._deflate.compress(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def piece(self, data: bytes) -> bytes:
        """Add bytes."""
        data = data[: self._left]
        self._left -= len(data)
        return self._deflate.compress(data)

    def end(self) -> bytes:
        """End a file that may have become shorter since its size was told."""
        sent = bytearray()
        while self._left:
            sent += self.piece(bytes(min(self._left, 1 << 20)))
        return bytes(sent) + self._deflate.compress(bytes(-self._size % tarfile.BLOCKSIZE))

    def close(self) -> bytes:
        """End the archive."""
        return self._deflate.compress(bytes(2 * tarfile.BLOCKSIZE)) + self._deflate.flush()


class Sink(io.RawIOBase):
    """Keeps what is written until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = bytearray()

    def writable(self) -> bool:
        """Tell that this can be written to."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Keep bytes."""
        self._kept += data
        return len(data)

    def take(self) -> bytes:
        """Return what was kept, and keep it no longer."""
        kept, self._kept = bytes(self._kept), bytearray()
        return kept


class ZipPacker:
    """Makes a zip."""

    def __init__(self) -> None:
        self._sink = Sink()
        self._archive = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_DEFLATED)
        self._file: io.BufferedIOBase | None = None

    def begin(self, facts: FileFacts) -> bytes:
        """Begin a file, or note a directory. A name that is no UTF-8 is shown as best it can be."""
        is_file = facts.type == "file"
        name = os.fsencode(facts.path).decode("utf-8", "replace")
        seconds = min(max(facts.modified_ns // 10**9, OLDEST_ZIP), NEWEST_ZIP)
        moment = datetime.fromtimestamp(seconds, tz=UTC)
        info = zipfile.ZipInfo(name if is_file else f"{name}/", moment.timetuple()[:6])
        info.compress_type = zipfile.ZIP_DEFLATED if is_file else zipfile.ZIP_STORED
        info.external_attr = (facts.mode & 0o777 | (0o100000 if is_file else 0o040000)) << 16
        if is_file:
            self._file = self._archive.open(info, "w", force_zip64=facts.size >= 1 << 31)  # type: ignore[assignment]
        else:
            self._archive.writestr(info, b"")
        return self._sink.take()

    def piece(self, data: bytes) -> bytes:
        """Add bytes."""
        if self._file is not None:
            self._file.write(data)
        return self._sink.take()

    def end(self) -> bytes:
        """End a file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        return self._sink.take()

    def close(self) -> bytes:
        """End the archive."""
        self._archive.close()
        return self._sink.take()
