"""Files of a kernel's home."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import quote

from gateway.client.paths import file_path, kernel_path
from gateway.client.transfers import Archive, Transfers
from gateway.client.views import FileEntry, FileListing, Unpacked
from gateway.errors import GatewayError, NotFound

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.client.transport import Transport

MAX_READ_BYTES = 64 << 20


class Files:
    """The homes of the caller's kernels. Paths are relative to the home.

    Writes that name what they expect, and those that a repeat would do twice, are sent once and never again.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._transfers = Transfers(transport)

    async def list(
        self,
        kernel_id: str,
        path: str = "",
        *,
        recursive: bool = False,
        limit: int | None = None,
        within_s: float | None = None,
    ) -> FileListing:
        """Return what is in a directory, and with `recursive` below it."""
        return await self._transport.json(
            FileListing,
            "GET",
            kernel_path(kernel_id, "files"),
            query={"path": path or None, "recursive": recursive or None, "limit": limit},
            within_s=within_s,
        )

    async def stat(self, kernel_id: str, path: str, *, within_s: float | None = None) -> FileEntry:
        """Return what is at a path, links not followed. Raises NotFound."""
        file_path(kernel_id, path)
        path = path.rstrip("/")
        directory = path.rpartition("/")[0]
        listing = await self.list(kernel_id, directory, within_s=within_s)
        wanted = quote(os.fsencode(path))
        for entry in listing.files:
            if entry.href == wanted:
                return entry
        if listing.truncated:
            raise GatewayError(f"The directory of {path} has more entries than the gateway lists.")
        raise NotFound(f"There is no such file: {path}")

    async def read(self, kernel_id: str, path: str, *, within_s: float | None = None) -> str:
        """Return a file's text; what is no UTF-8 becomes U+FFFD."""
        return (await self.read_bytes(kernel_id, path, within_s=within_s)).decode("utf-8", "replace")

    async def read_bytes(
        self,
        kernel_id: str,
        path: str,
        *,
        max_bytes: int = MAX_READ_BYTES,
        within_s: float | None = None,
    ) -> bytes:
        """Return a file's bytes. Raises PayloadTooLarge past `max_bytes`: `download` has no such bound."""
        return await self._transport.request(
            "GET", file_path(kernel_id, path), max_bytes=max_bytes, within_s=within_s
        )

    async def write(
        self,
        kernel_id: str,
        path: str,
        data: str | bytes,
        *,
        expected_sha256: str | None = None,
        expected_etag: str | None = None,
        new: bool = False,
        within_s: float | None = None,
    ) -> FileEntry:
        """Write a file whole or not at all, and return it with its sha256.

        Raises PreconditionFailed where the file is not the one that is expected, or, with `new`, is there.
        """
        content = data.encode() if isinstance(data, str) else data
        expected = {
            "X-Expected-Sha256": expected_sha256,
            "If-Match": expected_etag,
            "If-None-Match": "*" if new else None,
        }
        headers = {name: value for name, value in expected.items() if value is not None}
        return await self._transport.json(
            FileEntry,
            "PUT",
            file_path(kernel_id, path),
            headers=headers,
            data=lambda: content,
            again=not headers,
            within_s=within_s,
        )

    async def append(
        self, kernel_id: str, path: str, text: str, *, within_s: float | None = None
    ) -> FileEntry:
        """Write at the end of a file, made if need be. It is never repeated."""
        return await self._change(kernel_id, path, within_s, op="append", text=text)

    async def edit(
        self,
        kernel_id: str,
        path: str,
        old: str,
        new: str,
        *,
        expected_replacements: int = 1,
        within_s: float | None = None,
    ) -> FileEntry:
        """Replace a text that is in a file so many times. Raises Conflict, changing nothing, if not so."""
        return await self._change(
            kernel_id,
            path,
            within_s,
            op="edit",
            old=old,
            new=new,
            expected_replacements=expected_replacements,
        )

    async def mkdir(self, kernel_id: str, path: str, *, within_s: float | None = None) -> FileEntry:
        """Make a directory, and those above it."""
        return await self._change(kernel_id, path, within_s, op="mkdir")

    async def move(
        self, kernel_id: str, path: str, to: str, *, replace: bool = False, within_s: float | None = None
    ) -> FileEntry:
        """Rename within the home. Raises Conflict where something is there and `replace` is not said."""
        return await self._change(kernel_id, path, within_s, op="move", to=to, replace=replace)

    async def delete(
        self, kernel_id: str, path: str, *, recursive: bool = False, within_s: float | None = None
    ) -> None:
        """Remove a file or an empty directory, and with `recursive` all that is in it."""
        await self._transport.request(
            "DELETE",
            file_path(kernel_id, path),
            query={"recursive": recursive or None},
            within_s=within_s,
        )

    async def upload(
        self, kernel_id: str, source: Path, path: str, *, within_s: float | None = None
    ) -> FileEntry:
        """Send a local file of any size, without having it in memory. Raises OSError."""
        target = file_path(kernel_id, path)
        return self._transport.parse(FileEntry, await self._transfers.send("PUT", target, source, within_s))

    async def download(
        self, kernel_id: str, path: str, target: Path, *, within_s: float | None = None
    ) -> int:
        """Fetch a file of any size into a local one, and return its bytes' number.

        The local file appears when it is whole. A connection that breaks is taken up again where it broke, if
        the file is still the same. Raises OSError.
        """
        return await self._transfers.fetch(file_path(kernel_id, path), target, within_s=within_s)

    async def upload_archive(
        self,
        kernel_id: str,
        source: Path,
        path: str = "",
        *,
        kind: Archive = "tar.gz",
        within_s: float | None = None,
    ) -> Unpacked:
        """Send a local archive and unpack it into a directory. It is never repeated. Raises OSError."""
        query = {"path": path or None, "format": kind}
        target = kernel_path(kernel_id, "files-archive")
        answer = await self._transfers.send("POST", target, source, within_s, query=query)
        return self._transport.parse(Unpacked, answer)

    async def download_archive(
        self,
        kernel_id: str,
        target: Path,
        path: str = "",
        *,
        kind: Archive = "tar.gz",
        within_s: float | None = None,
    ) -> int:
        """Fetch a directory as a local archive, and return its bytes' number. Raises OSError."""
        return await self._transfers.fetch(
            kernel_path(kernel_id, "files-archive"),
            target,
            query={"path": path or None, "format": kind},
            within_s=within_s,
        )

    async def _change(self, kernel_id: str, path: str, within_s: float | None, **change: object) -> FileEntry:
        return await self._transport.json(
            FileEntry, "POST", file_path(kernel_id, path), change, within_s=within_s
        )
