"""What the gateway shows, where it is no noun of gateway.models. Fields of a newer gateway are ignored."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class SpecDetail(View):
    """The part of a kernel.json that a client shows."""

    display_name: str
    language: str


class SpecEntry(View):
    """One kernelspec that may be started, and the files that front ends show of it: paths by name."""

    name: str
    spec: SpecDetail
    resources: dict[str, str] = {}


class KernelSpecs(View):
    """The kernelspecs that may be started, by name, and the name used when a request names none."""

    default: str
    kernelspecs: dict[str, SpecEntry]


class FileEntry(View):
    """What is at a path of a home; `href` is the path percent-encoded, exact also where it is no UTF-8."""

    path: str
    href: str
    type: Literal["file", "directory", "link", "other"]
    size: int
    executable: bool
    modified_at: str
    etag: str
    sha256: str | None = None


class FileListing(View):
    """A directory's entries; `truncated` says that there are more."""

    files: list[FileEntry]
    truncated: bool


class Unpacked(View):
    """What came out of an archive; `size` in bytes."""

    files: int
    directories: int
    size: int


class Identity(View):
    """Who a key belongs to."""

    username: str
    name: str
    display_name: str


class Me(View):
    """Who the caller is, and which of the permissions that were asked for it has."""

    identity: Identity
    permissions: dict[str, list[str]]


class Health(View):
    """That the gateway's process answers."""

    status: str


class Ready(View):
    """That kernels can be had, and what was checked."""

    status: str
    checks: dict[str, str]


class Status(View):
    """The caller's own share of the gateway: open sockets, kernels, and the last of their activities."""

    connections: int
    kernels: int
    last_activity: str
    started: str
