"""Archives from outside, read with suspicion: plain files and directories only, all sizes counted.

The standard library reads whole headers and directories of any size into memory, so tar is read here
block by block, and a zip's directory is measured before `zipfile` sees it. All this blocks.
"""

from __future__ import annotations

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Literal

from gateway.errors import BadRequest, PayloadTooLarge

PIECE = 256 << 10
BLOCK = tarfile.BLOCKSIZE
MAX_NAME, MAX_PART, MAX_DEPTH = 1024, 255, 32
MAX_EXTENSION = 64 << 10
# more than ordinary data compresses; what is small may be as tight as it likes
MAX_RATIO, RATIO_FROM = 200, 32 << 20
ZIP_END = struct.Struct("<4s4H2LH")
ZIP_END_MAGIC, ZIP64_LOCATOR, ZIP64_LOCATOR_SIZE = b"PK\5\6", b"PK\6\7", 20
ZIP_ENTRY_BYTES = 512
ENCRYPTED = 1

Format = Literal["tar.gz", "zip"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an archive may hold: entries, and bytes when unpacked, all together and in one file."""

    entries: int
    total_bytes: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in an archive. `size` is what its pieces add up to; None says that it is a directory."""

    path: str
    size: int | None
    executable: bool


Item = tuple[Entry, Iterator[bytes]]


class Tally:
    """Counts what comes out of an archive. Raises PayloadTooLarge at what is too much."""

    def __init__(self, bounds: Bounds, packed_bytes: int) -> None:
        self._bounds = bounds
        self._most = bounds.total_bytes
        if packed_bytes * MAX_RATIO < self._most:
            self._most = min(self._most, max(RATIO_FROM, packed_bytes * MAX_RATIO))
        self._entries = 0
        self._bytes = 0

    def entry(self, size: int) -> None:
        """Count one entry that says that it is so large."""
        self._entries += 1
        if self._entries > self._bounds.entries:
            raise PayloadTooLarge(f"The archive has more than {self._bounds.entries} entries.")
        if size > self._bounds.file_bytes:
            raise PayloadTooLarge(f"The archive has a file larger than {self._bounds.file_bytes} bytes.")

    def add(self, count: int) -> None:
        """Count unpacked bytes."""
        self._bytes += count
        if self._bytes > self._most:
            raise PayloadTooLarge(f"The archive unpacks to more than {self._most} bytes.", reason="bomb")


def entries(archive: IO[bytes], kind: Format, bounds: Bounds, packed_bytes: int) -> Iterator[Item]:
    """Yield what is in an archive, each with its bytes, which must be read before the next is asked for.

    Raises:
        BadRequest: it is malformed, or holds a link, a device, or a name that leads elsewhere.
        PayloadTooLarge: it holds too much.
    """
    tally = Tally(bounds, packed_bytes)
    with _whole():
        for entry, pieces in _zip(archive, tally, bounds) if kind == "zip" else _tar(archive, tally):
            yield entry, _read(pieces)


def _read(pieces: Iterator[bytes]) -> Iterator[bytes]:
    with _whole():
        yield from pieces


@contextmanager
def _whole() -> Iterator[None]:
    """Turn what a damaged archive raises into BadRequest."""
    try:
        yield
    except (zlib.error, zipfile.BadZipFile, tarfile.HeaderError, EOFError) as error:
        raise BadRequest(f"The archive is damaged: {error}.", reason="archive") from None
    except (LookupError, NotImplementedError, RuntimeError, OverflowError, ValueError, struct.error) as error:
        raise BadRequest("The archive is damaged.", reason="archive") from error


def checked(name: str) -> str:
    """Return an entry's path. Raises BadRequest for one that leads out, in a way any system knows."""
    names = [part for part in name.split("/") if part not in {"", "."}]
    odd = ".." in names or "\\" in name or "\0" in name or name[1:2] == ":"
    long = len(names) > MAX_DEPTH or len(os.fsencode(name)) > MAX_NAME
    long = long or any(len(os.fsencode(part)) > MAX_PART for part in names)
    if name.startswith("/") or odd or long or not names:
        raise BadRequest(f"The archive has an entry called {name[:100]!a}.", reason="archive_name")
    return "/".join(names)


class Inflated:
    """The bytes in a gzip stream, read in order."""

    def __init__(self, packed: IO[bytes], tally: Tally) -> None:
        self._packed = packed
        self._tally = tally
        self._inflate = zlib.decompressobj(wbits=31)
        self._ready = b""

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes, fewer only at the end."""
        parts, missing = [], size
        while missing and (self._ready or self._more()):
            part, self._ready = self._ready[:missing], self._ready[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _more(self) -> bool:
        while not self._ready:
            if self._inflate.eof:
                # a gzip file may have several members; padding of zeros ends it
                rest = self._inflate.unused_data or self._packed.read(PIECE)
                if not rest.strip(b"\0"):
                    return False
                self._inflate = zlib.decompressobj(wbits=31)
            else:
                rest = self._inflate.unconsumed_tail or self._packed.read(PIECE)
                if not rest:
                    raise EOFError("it ends too early")
            self._ready = self._inflate.decompress(rest, PIECE)
            self._tally.add(len(self._ready))
        return True


def _tar(archive: IO[bytes], tally: Tally) -> Iterator[Item]:
    source = Inflated(archive, tally)
    said: dict[str, str] = {}
    while header := source.read(BLOCK):
        if not header.strip(b"\0"):
            return
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if info.type in {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME}:
            extension = _extension(source, info)
            if info.type == tarfile.XHDTYPE:
                said |= _pax(extension)
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                said["path"] = extension.split(b"\0")[0].decode("utf-8", "surrogateescape")
            continue
        # any such word of pax's makes the content a description of holes
        if any(word.startswith("GNU.sparse") for word in said):
            raise BadRequest("The archive has a sparse file.", reason="archive_type")
        name, size = said.get("path", info.name), int(said.get("size", info.size))
        said = {}
        is_file = info.type != tarfile.DIRTYPE and not name.endswith("/")
        if info.type not in {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE}:
            raise BadRequest(
                f"The archive has a link or a special file: {name[:100]!a}.", reason="archive_type"
            )
        if size < 0 or (not is_file and size):
            raise BadRequest("The archive is damaged.", reason="archive")
        tally.entry(size)
        if not is_file and name.strip("./") == "":
            continue
        entry = Entry(checked(name), size if is_file else None, bool(info.mode & 0o100))
        yield entry, _tar_pieces(source, size)


def _tar_pieces(source: Inflated, size: int) -> Iterator[bytes]:
    left = size
    while left:
        piece = source.read(min(PIECE, left))
        if not piece:
            raise EOFError("it ends too early")
        left -= len(piece)
        yield piece
    source.read(-size % BLOCK)


def _extension(source: Inflated, info: tarfile.TarInfo) -> bytes:
    if not 0 <= info.size <= MAX_EXTENSION:
        raise BadRequest("The archive has a header that is too large.", reason="archive")
    data = source.read(info.size)
    source.read(-info.size % BLOCK)
    return data


def _pax(data: bytes) -> dict[str, str]:
    """Return the words of a pax header: lines of `LENGTH WORD=VALUE`."""
    said = {}
    while data.strip(b"\0"):
        length, space, _ = data[:8].partition(b" ")
        if not space or not length.isdigit() or not len(length) + 3 < int(length) <= len(data):
            raise BadRequest("The archive has a damaged header.", reason="archive")
        record, data = data[len(length) + 1 : int(length)], data[int(length) :]
        word, _, value = record.removesuffix(b"\n").partition(b"=")
        said[word.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    return said


def _zip(archive: IO[bytes], tally: Tally, bounds: Bounds) -> Iterator[Item]:
    _measure(archive, bounds)
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.flag_bits & ENCRYPTED:
                raise BadRequest("The archive is encrypted.", reason="archive_type")
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise BadRequest(
                    f"The archive has a link or a special file: {info.filename[:100]!a}.",
                    reason="archive_type",
                )
            if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise BadRequest("The archive is compressed as is not taken.", reason="archive_type")
            tally.entry(info.file_size)
            is_file = not info.is_dir()
            # `orig_filename`: zipfile cuts a name at a zero
            entry = Entry(
                checked(info.orig_filename),
                info.file_size if is_file else None,
                bool((info.external_attr >> 16) & 0o100),
            )
            yield entry, _zip_pieces(opened, info, tally) if is_file else iter(())


def _zip_pieces(opened: zipfile.ZipFile, info: zipfile.ZipInfo, tally: Tally) -> Iterator[bytes]:
    left = info.file_size
    with opened.open(info) as file:
        while piece := file.read(PIECE):
            tally.add(len(piece))
            left -= len(piece)
            yield piece
    if left:
        raise EOFError("a file is not as long as it says")


def _measure(archive: IO[bytes], bounds: Bounds) -> None:
    """Refuse a zip whose directory is larger than its entries can need, before it is read as a whole."""
    length = archive.seek(0, 2)
    archive.seek(max(0, length - ZIP_END.size - ZIP64_LOCATOR_SIZE))
    tail = archive.read()
    end = tail[-ZIP_END.size :]
    if len(end) < ZIP_END.size or not end.startswith(ZIP_END_MAGIC) or not end.endswith(b"\0\0"):
        raise BadRequest("That is no zip archive, or one with a comment.", reason="archive")
    if tail[: -ZIP_END.size].startswith(ZIP64_LOCATOR):
        raise BadRequest("Zip64 archives are not taken; use tar.gz.", reason="archive")
    _, _, _, _, entry_count, directory_bytes, _, _ = ZIP_END.unpack(end)
    if entry_count > bounds.entries or directory_bytes > bounds.entries * ZIP_ENTRY_BYTES:
        raise PayloadTooLarge(f"The archive has more than {bounds.entries} entries.")
    archive.seek(0)
