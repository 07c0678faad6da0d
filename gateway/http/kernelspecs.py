"""Kernelspecs and the few files of theirs that front ends show."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.errors import NotFound, UnknownKernelSpec
from gateway.http.access import PRINCIPAL
from gateway.http.context import context, reply
from gateway.http.route import Route
from gateway.http.views import SpecList, SpecView

if TYPE_CHECKING:
    from gateway.models import KernelSpec

RESOURCE = re.compile(r"kernel\.(?:js|css)|logo-[A-Za-z0-9_-]{1,64}\.(?:png|svg|jpe?g|gif)")
MAX_RESOURCE_BYTES = 1 << 20
MAX_AGE_S = 30 * 24 * 3600
CONTENT_TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
}


async def list_specs(request: web.Request) -> web.Response:
    """List the kernelspecs that may be started."""
    # jupyter_server as a gateway's client joins its URL wrongly when KERNEL_USERNAME is set: it asks
    # for one kernelspec as `/api/kernelspecs?user=<user>/<name>`.
    _, slash, name = request.query.get("user", "").rpartition("/")
    if slash:
        return await _one(request, name)
    kernels = context(request).kernels
    views = {name: await _view(spec) for name, spec in (await kernels.specs()).items()}
    return reply(SpecList(default=kernels.default_spec(), kernelspecs=views))


async def get_spec(request: web.Request) -> web.Response:
    """Show one kernelspec."""
    return await _one(request, request.match_info["name"])


async def get_resource(request: web.Request) -> web.Response:
    """Serve a kernelspec's logo, kernel.js or kernel.css."""
    spec, name = await _spec(request, request.match_info["name"]), request.match_info["file"]
    content = None
    if RESOURCE.fullmatch(name):
        content = await asyncio.to_thread(_read, Path(spec.resource_dir, name))
    if content is None:
        raise NotFound(f"The kernelspec {spec.name} has no file {name}.")
    response = web.Response(body=content, content_type=CONTENT_TYPES[Path(name).suffix])
    if response.content_type == "image/png":
        response.headers["Cache-Control"] = f"private, max-age={MAX_AGE_S}"
    return response


async def _one(request: web.Request, name: str) -> web.Response:
    return reply(await _view(await _spec(request, name)))


async def _spec(request: web.Request, name: str) -> KernelSpec:
    spec = (await context(request).kernels.specs()).get(name)
    if spec is None:
        raise UnknownKernelSpec(f"There is no kernelspec {name}.")
    return spec


async def _view(spec: KernelSpec) -> SpecView:
    names = await asyncio.to_thread(_resources, spec.resource_dir)
    urls = {
        (Path(name).stem if name.startswith("logo-") else name): f"/kernelspecs/{spec.name}/{name}"
        for name in names
    }
    return SpecView.of(spec, urls)


def _resources(directory: str) -> list[str]:
    """Return the names of a kernelspec's files that may be served."""
    try:
        with os.scandir(directory) as entries:
            return sorted(
                entry.name
                for entry in entries
                if RESOURCE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            )
    except OSError:
        return []


def _read(path: Path) -> bytes | None:
    """Read a small regular file that is no symlink; None for anything else."""
    try:
        with open(path, "rb", opener=_open) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_RESOURCE_BYTES:
                return None
            return file.read(MAX_RESOURCE_BYTES)
    except OSError:
        return None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


SPEC_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/kernelspecs",
        list_specs,
        PRINCIPAL,
        "List the kernelspecs that may be started.",
        {200: SpecList},
        "kernelspecs",
    ),
    Route(
        "GET",
        "/api/kernelspecs/{name}",
        get_spec,
        PRINCIPAL,
        "Show a kernelspec.",
        {200: SpecView},
        "kernelspecs",
    ),
    *(
        Route(
            method,
            "/kernelspecs/{name}/{file}",
            get_resource,
            PRINCIPAL,
            "Fetch a kernelspec's logo, kernel.js or kernel.css.",
            {200: "application/octet-stream"},
            "kernelspecs",
        )
        for method in ("GET", "HEAD")
    ),
)
