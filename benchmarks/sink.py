"""A plain aiohttp server that takes a file and gives it back: `python -m benchmarks.sink PORT DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path

from aiohttp import web


async def put(request: web.Request) -> web.Response:
    """Write the body to the file as it comes."""
    with request.app[FILE].open("wb") as file:
        async for chunk in request.content.iter_any():
            file.write(chunk)
    return web.Response(status=201)


async def get(request: web.Request) -> web.StreamResponse:
    """Send the file."""
    return web.FileResponse(request.app[FILE])


async def up(request: web.Request) -> web.Response:  # noqa: ARG001 - a handler's signature
    """Tell that it runs."""
    return web.Response()


FILE = web.AppKey("file", Path)

if __name__ == "__main__":
    app = web.Application(client_max_size=1 << 30)
    app[FILE] = Path(sys.argv[2], "file")
    app.add_routes([web.put("/file", put), web.get("/file", get), web.get("/up", up)])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
