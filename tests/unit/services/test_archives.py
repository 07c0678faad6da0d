"""Archives: what others make is read whole, what is made here others read, and what is hostile is refused."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import zipfile
import zlib

import pytest

from gateway.errors import BadRequest, PayloadTooLarge
from gateway.models import FileFacts
from gateway.services.packing import packer
from gateway.services.unpacking import Bounds, Entry, entries

BOUNDS = Bounds(entries=100, total_bytes=64 << 20, file_bytes=48 << 20)


def read(data: bytes, kind: str, bounds: Bounds = BOUNDS) -> dict[str, bytes | None]:
    """Unpack an archive into a dictionary: None is a directory."""
    found: dict[str, bytes | None] = {}
    for entry, pieces in entries(io.BytesIO(data), kind, bounds, len(data)):  # type: ignore[arg-type]
        assert isinstance(entry, Entry)
        found[entry.path] = None if entry.size is None else b"".join(pieces)
    return found


def tarred(members: dict[str, bytes], form: int) -> bytes:
    """Make a tar as the standard library does."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_odd_letters(form: int) -> None:
    """Names of both of tar's extensions arrive, however long, and blocks of any length."""
    members = {
        "/".join(["directory"] * 20) + "/" + "f" * 200: b"long",
        "ünï☃": b"x" * 511,
        "empty": b"",
        "block": b"x" * 512,
        "more": b"x" * 300_000,
    }
    assert read(gzip.compress(tarred(members, form)), "tar.gz") == members


def test_gzip_of_several_members() -> None:
    """A gzip file that was made in parts is one archive."""
    whole = tarred({"a": b"1" * 5000, "b": b"2"}, tarfile.PAX_FORMAT)
    parts = gzip.compress(whole[:700]) + gzip.compress(whole[700:]) + bytes(100)
    assert read(parts, "tar.gz") == {"a": b"1" * 5000, "b": b"2"}


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_every_cut_is_noticed(kind: str) -> None:
    """An archive that ends anywhere before its content does is refused, never read in part."""
    data = made(kind, {"a": bytes(range(256)) * 20, "b": b"x" * 3000})
    assert set(read(data, kind)) == {"a", "b"}
    for end in range(0, len(data) - 40, 7):
        with pytest.raises(BadRequest):
            read(data[:end], kind)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_any_damage_is_an_error_of_ours(kind: str) -> None:
    """Whatever single byte is changed, the archive is read or refused; nothing else is raised."""
    data = made(kind, {"a": b"abc" * 50, "b/c": b"x" * 90})
    plain = zlib.decompress(data, wbits=31) if kind == "tar.gz" else data
    for at in range(0, min(len(plain), 1400), 3):
        for value in (0, 0x2F, 0xFF):
            changed = plain[:at] + bytes([value]) + plain[at + 1 :]
            with contextlib.suppress(BadRequest, PayloadTooLarge):
                read(zlib.compress(changed, 1, wbits=31) if kind == "tar.gz" else changed, kind)


def test_bounds() -> None:
    """Entries, one file and all together are bounded, and so is how much a little may become."""
    members = {f"f{number}": b"x" * 1000 for number in range(5)}
    data = made("tar.gz", members)
    assert read(data, "tar.gz", Bounds(5, 1 << 20, 1000)) == members
    for tight in (Bounds(4, 1 << 20, 1000), Bounds(5, 4999, 1000), Bounds(5, 1 << 20, 999)):
        for kind in ("tar.gz", "zip"):
            with pytest.raises(PayloadTooLarge):
                read(made(kind, members), kind, tight)
    with pytest.raises(PayloadTooLarge) as caught:
        read(made("zip", {"zeros": bytes(40 << 20)}), "zip")
    assert caught.value.reason == "bomb"


def test_a_file_that_became_shorter() -> None:
    """What a tar has promised of a file is made up with zeros, so that all behind it can be read."""
    archive = packer("tar.gz")
    data = archive.begin(facts("short", 2_000_000)) + archive.piece(b"x" * 10) + archive.end()
    data += (
        archive.begin(facts("next", 4)) + archive.piece(b"next and more") + archive.end() + archive.close()
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        short, following = opened.extractfile("short"), opened.extractfile("next")
        assert short is not None
        assert following is not None
        assert (short.read(), following.read()) == (b"x" * 10 + bytes(1_999_990), b"next")


def test_a_name_that_is_no_text() -> None:
    """Bytes that are no UTF-8 come through a tar as they are, and through a zip as they can be shown."""
    name = "caf\udce9"
    assert read(made("tar.gz", {name: b"x"}), "tar.gz") == {name: b"x"}
    with zipfile.ZipFile(io.BytesIO(made("zip", {name: b"x"}))) as opened:
        assert opened.namelist() == ["caf\N{REPLACEMENT CHARACTER}"]


def facts(path: str, size: int) -> FileFacts:
    """Return the facts of a file with times and a mode that no archive can hold."""
    return FileFacts(path, "file", size, 0o106755, -(1 << 62), "v")


def made(kind: str, members: dict[str, bytes]) -> bytes:
    """Make an archive as the gateway does."""
    archive = packer(kind)  # type: ignore[arg-type]
    data = b""
    for name, content in members.items():
        data += archive.begin(facts(name, len(content)))
        for start in range(0, len(content), 100_000):
            data += archive.piece(content[start : start + 100_000])
        data += archive.end()
    return data + archive.close()
