"""One HTTP exchange handed from aiohttp to an ASGI application: a whole body in, a stream out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from aiohttp import hdrs, web
from aiohttp.client_exceptions import ClientConnectionResetError

Event = MutableMapping[str, Any]
Application = Callable[
    [Event, Callable[[], Awaitable[Event]], Callable[[Event], Awaitable[None]]], Awaitable[None]
]

# What is between the client and us alone, and what tells whose the request is: the guard has seen that.
HELD_BACK = frozenset({b"authorization", b"cookie", b"connection", b"transfer-encoding", b"upgrade"})
# What aiohttp says itself of an answer.
OWN = frozenset({b"connection", b"transfer-encoding", b"content-length", b"date", b"server", b"keep-alive"})


class Exchange:
    """A request whose body was read, and the answer that an application gives.

    `extra` goes into the scope's state. When the client goes away, the application is told by
    `http.disconnect`, or cancelled with the handler that runs it, whichever comes first.
    """

    def __init__(self, request: web.Request, body: bytes, extra: Mapping[str, Any]) -> None:
        self._request = request
        self._body: bytes | None = body
        self._extra = extra
        self._gone = asyncio.Event()
        self._begun: web.StreamResponse | None = None
        self._prepared = False
        self._whole: web.Response | None = None

    async def run(self, application: Application, headers: Mapping[str, str]) -> web.StreamResponse:
        """Run the application to its end and return its answer; `headers` are added to it.

        Raises RuntimeError when the application gives none.
        """
        self._added = headers
        await application(self._scope(), self._receive, self._send)
        if self._whole is not None:
            return self._whole
        if self._begun is None:
            raise RuntimeError("the application gave no answer")
        if self._prepared and not self._gone.is_set():
            with suppress(ClientConnectionResetError):
                await self._begun.write_eof()
        return self._begun

    def _scope(self) -> Event:
        request = self._request
        headers = [(name.lower(), value) for name, value in request.raw_headers]
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": f"{request.version.major}.{request.version.minor}",
            "method": request.method,
            "scheme": request.scheme,
            "path": request.path,
            "raw_path": request.rel_url.raw_path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name, value) for name, value in headers if name not in HELD_BACK],
            "client": None,
            "server": None,
            "state": dict(self._extra),
        }

    async def _receive(self) -> Event:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self._begun = web.StreamResponse(status=event["status"])
            for name, value in event.get("headers", ()):
                if bytes(name).lower() not in OWN:
                    self._begun.headers.add(bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
            self._begun.headers.update(self._added)
        elif event["type"] == "http.response.body" and self._begun is not None:
            await self._write(self._begun, bytes(event.get("body", b"")), more=event.get("more_body", False))

    async def _write(self, begun: web.StreamResponse, body: bytes, *, more: bool) -> None:
        if not more and not self._prepared:
            self._whole = web.Response(status=begun.status, body=body, headers=begun.headers)
            return
        if self._gone.is_set():
            return
        try:
            if not self._prepared:
                self._prepared = True
                # what waits for more must not wait in a proxy
                begun.headers.setdefault("X-Accel-Buffering", "no")
                begun.headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
                await begun.prepare(self._request)
            if body:
                await begun.write(body)
        except ClientConnectionResetError:
            self._gone.set()
