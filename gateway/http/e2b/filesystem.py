"""filesystem.Filesystem of E2B's in-sandbox service, for the home of a sandbox."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pydantic import Field

from gateway.errors import LimitReached, NotOffered
from gateway.http.bodies import read_model
from gateway.http.context import context, principal
from gateway.http.e2b.files import first_kernel
from gateway.http.e2b.paths import in_home, shown
from gateway.http.e2b.views import Body

if TYPE_CHECKING:
    from gateway.models import FileFacts

KINDS = {"file": "FILE_TYPE_FILE", "directory": "FILE_TYPE_DIRECTORY", "link": "FILE_TYPE_SYMLINK"}
MODES = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "link": stat.S_IFLNK}
MAX_DEPTH = 64


class OnPath(Body):
    """A request about one path."""

    path: str = Field("", max_length=4096)


class ListDirectory(OnPath):
    """The request of ListDir."""

    depth: int = Field(1, ge=0)


class Move(Body):
    """The request of Move."""

    source: str = Field(max_length=4096)
    destination: str = Field(max_length=4096)


async def stat_entry(request: web.Request) -> web.Response:
    """Show what is at a path."""
    path = in_home((await read_model(request, OnPath)).path)
    facts = await context(request).files.stat(principal(request), await first_kernel(request), path)
    return web.json_response({"entry": entry(facts)})


async def list_directory(request: web.Request) -> web.Response:
    """List a directory, some levels of it. Raises LimitReached when it holds more than may be listed."""
    wanted = await read_model(request, ListDirectory)
    depth = min(max(1, wanted.depth), MAX_DEPTH)
    found = await context(request).files.walk(
        principal(request), await first_kernel(request), in_home(wanted.path), depth=depth, limit=None
    )
    if found.truncated:
        raise LimitReached(
            f"There are more than {len(found.entries)} entries (files.max_entries): list less of it.",
            reason="entries",
        )
    return web.json_response({"entries": [entry(facts) for facts in found.entries]})


async def make_directory(request: web.Request) -> web.Response:
    """Make a directory, and those above it."""
    path = in_home((await read_model(request, OnPath)).path)
    facts = await context(request).files.mkdir(principal(request), await first_kernel(request), path)
    return web.json_response({"entry": entry(facts)})


async def move_entry(request: web.Request) -> web.Response:
    """Rename something; what is there already is replaced."""
    wanted = await read_model(request, Move)
    facts = await context(request).files.move(
        principal(request),
        await first_kernel(request),
        in_home(wanted.source),
        in_home(wanted.destination),
        replace=True,
    )
    return web.json_response({"entry": entry(facts)})


async def remove_entry(request: web.Request) -> web.Response:
    """Remove a file, or a directory with all that is in it."""
    path = in_home((await read_model(request, OnPath)).path)
    await context(request).files.remove(principal(request), await first_kernel(request), path, recursive=True)
    return web.json_response({})


async def watch(request: web.Request) -> web.StreamResponse:  # noqa: ARG001 - a handler
    """Say that directories are not watched. Raises NotOffered, always."""
    raise NotOffered("Directories cannot be watched here: list them.", reason="e2b")


def entry(facts: FileFacts) -> dict[str, Any]:
    """Return a file's facts as E2B's EntryInfo in JSON."""
    path = os.fsencode(facts.path).decode("utf-8", "replace")
    return {
        "name": path.rpartition("/")[2] or "user",
        "type": KINDS.get(facts.type, "FILE_TYPE_UNSPECIFIED"),
        "path": shown(path),
        "size": str(facts.size),
        "mode": facts.mode,
        "permissions": stat.filemode(MODES.get(facts.type, 0) | facts.mode),
        "owner": "user",
        "group": "user",
        "modifiedTime": moment(facts.modified_ns),
    }


def moment(nanoseconds: int) -> str:
    """Return a file's time as JSON has it; a process of the cell's may have set any time at all."""
    seconds, rest = divmod(nanoseconds, 10**9)
    try:
        found = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return "1970-01-01T00:00:00Z"
    return f"{found:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z" if found.year >= 1000 else "1970-01-01T00:00:00Z"
