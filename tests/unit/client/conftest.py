"""A real HTTP server that answers as a test has written down, and remembers what it was asked."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.client import Client
from gateway.client.retry import Retry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

TOKEN = "cb_0123456789ab_secret"
DROP = object()


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Scripted:
    """The server: each path has its answers, and the last one of them stays."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._answers: defaultdict[tuple[str, str], deque[Any]] = defaultdict(deque)
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        """The server's URL."""
        return str(self.server.make_url("/")).rstrip("/")

    def on(self, method: str, path: str, *answers: Any) -> None:
        """Answer with these, in turn: JSON, a response, a coroutine function of the request, or DROP."""
        self._answers[method, path].extend(answers)

    def asked_for(self, method: str, path: str) -> list[Asked]:
        """Return the requests of a method and path."""
        return [asked for asked in self.asked if (asked.method, asked.path) == (method, path)]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.asked.append(
            Asked(request.method, request.path, dict(request.query), dict(request.headers), body)
        )
        answers = self._answers[request.method, request.path]
        if answers:
            answer = answers.popleft() if len(answers) > 1 else answers[0]
        else:
            answer = refusal(404, "not_found")
        if answer is DROP:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if callable(answer):
            answer = await answer(request)
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.json_response(answer)


def refusal(status: int, code: str, message: str = "No.", **headers: str) -> Any:
    """Return what answers with an error, as a gateway does."""

    async def answer(_: web.Request) -> web.Response:
        body = {"message": message, "reason": None, "code": code}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body, status=status, headers=named)

    return answer


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    """A running server."""
    script = Scripted()
    async with script.server:
        yield script


@pytest.fixture
async def client(scripted: Scripted) -> AsyncIterator[Client]:
    """A client of it that waits no longer than a test can."""
    client = Client(scripted.url, TOKEN)
    client._transport.retry = Retry(first_s=0.01, longest_s=0.05)
    async with client:
        yield client
