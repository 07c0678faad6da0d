"""Doors over plain HTTP: `execute` on a kernel, and executions in their four ways of being answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, ClassVar

import aiohttp

from tests.clients.door import Door, Failure, Outcome, Refused, from_result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping


async def checked(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return an answer's JSON. Raises Refused."""
    body: dict[str, Any] = await response.json()
    if not response.ok:
        raise Refused(body["code"], body["reason"])
    return body


class Request:
    """A request that runs in a task and a connection of its own, so that it can be cut off."""

    def __init__(
        self, ask: Coroutine[Any, Any, Outcome], cancel: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._task = asyncio.create_task(ask)
        self._cancel = cancel

    async def cancel(self) -> None:
        """End it by the door's own means."""
        await self._cancel()

    async def disconnect(self) -> None:
        """Cut the connection."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def outcome(self) -> Outcome:
        """Wait for its end."""
        return await self._task


class Execute(Door):
    """POST /api/kernels/{kernel_id}/execute."""

    name = "REST execute"

    async def start(self, code: str, *, timeout_s: float | None = None) -> Request:
        """Post the code."""
        kernel_id = await self.kernel_id()
        body = {"code": code} | ({"timeout_s": timeout_s} if timeout_s else {})

        async def ask() -> Outcome:
            async with self.side.http.post(f"/api/kernels/{kernel_id}/execute", json=body) as response:
                return from_result(await checked(response))

        async def cancel() -> None:
            path = f"/api/kernels/{kernel_id}/executions"
            [running] = await self.side.json("GET", path)
            await self.side.json("POST", f"{path}/{running['id']}/interrupt", status=204)

        return Request(ask(), cancel)

    async def foreign(self, handle: str) -> object:
        """Execute in it, and look at it."""
        said = []
        for method, end in (("POST", "/execute"), ("GET", ""), ("GET", "/executions")):
            body = {"code": "1"} if method == "POST" else None
            async with self.side.http.request(method, f"/api/kernels/{handle}{end}", json=body) as response:
                said.append((response.status, await response.text()))
        return said


class Executions(Door):
    """POST /api/executions, answered at the end."""

    name = "executions: wait"
    mode = "wait"
    accept = "application/json"

    async def start(self, code: str, *, timeout_s: float | None = None) -> Request:
        """Submit the code."""
        body: dict[str, Any] = {"code": code, "kernel_id": await self.kernel_id(), "mode": self.mode}
        if timeout_s:
            body["timeout_s"] = timeout_s

        async def ask() -> Outcome:
            async with self.side.http.post(
                "/api/executions", json=body, headers={"Accept": self.accept}
            ) as response:
                if not response.ok:
                    await checked(response)
                return await self.answered(response)

        return Request(ask(), self._cancel)

    async def answered(self, response: aiohttp.ClientResponse) -> Outcome:
        """Return the outcome that a good answer has."""
        return shown(await response.json())

    async def handle(self) -> str:
        """Return the newest execution."""
        await self.run("1")
        return str((await self._newest())["id"])

    def nowhere(self) -> str:
        """Return an id that no execution has."""
        return "0" * 32

    async def foreign(self, handle: str) -> object:
        """Look at it, follow it, interrupt it, end it."""
        said = []
        path = f"/api/executions/{handle}"
        for method, end in (("GET", ""), ("GET", "/events"), ("POST", "/interrupt"), ("DELETE", "")):
            async with self.side.http.request(method, f"{path}{end}") as response:
                said.append((response.status, await response.text()))
        return said

    async def _newest(self) -> dict[str, Any]:
        newest: dict[str, Any] = (await self.side.json("GET", "/api/executions"))[0]
        return newest

    async def _cancel(self) -> None:
        path = f"/api/executions/{(await self._newest())['id']}"
        async with self.side.http.delete(path) as response:
            assert response.ok, await response.text()


class Ndjson(Executions):
    """POST /api/executions, streamed as one JSON object per line."""

    name = "executions: NDJSON"
    mode = "stream"
    accept = "application/x-ndjson"

    async def answered(self, response: aiohttp.ClientResponse) -> Outcome:
        """Fold the events."""
        return fold([event async for event in self.events(response)])

    async def events(self, response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a stream."""
        assert response.content_type == self.accept
        async for line in lines(response):
            if line.strip():
                yield json.loads(line)


class Sse(Ndjson):
    """POST /api/executions, streamed as server-sent events."""

    name = "executions: SSE"
    accept = "text/event-stream"

    async def events(self, response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a stream; comments are keepalives."""
        assert response.content_type == self.accept
        async for line in lines(response):
            if line.startswith("data:"):
                yield json.loads(line[5:])


class Job(Executions):
    """POST /api/executions as a job, asked after until it has ended."""

    name = "executions: job"
    mode = "job"
    without: ClassVar = {"disconnect": "a job goes on without its caller"}

    async def answered(self, response: aiohttp.ClientResponse) -> Outcome:
        """Poll."""
        assert response.status == 202
        path = f"/api/executions/{(await response.json())['id']}"
        while True:
            view = await self.side.json("GET", f"{path}?wait_s=5")
            if view["status"] not in {"queued", "running"}:
                return shown(view)


def shown(view: Mapping[str, Any]) -> Outcome:
    """Return the outcome that an execution shows. Raises Refused."""
    if view["failure"]:
        raise Refused(view["failure"]["code"], view["failure"]["reason"])
    return from_result(view["result"], status=view["status"])


async def lines(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """Yield the lines of a stream, however long they are."""
    rest = b""
    async for piece in response.content.iter_any():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode()
    assert not rest, "the stream ends in the middle of a line"


def fold(events: Iterable[Mapping[str, Any]]) -> Outcome:
    """Return the outcome that a stream of events tells of: the last must be its end. Raises Refused."""
    text = {"stdout": "", "stderr": ""}
    results: list[Mapping[str, Any]] = []
    error = None
    truncated = False
    last: Mapping[str, Any] = {}
    for event in events:
        kind = event["type"]
        if kind in text:
            text[kind] += event["text"]
        elif kind in {"display", "result"}:
            results.append(event["data"])
        elif kind == "error":
            error = Failure(event["ename"], event["evalue"])
        elif kind == "gap":
            truncated = True
        last = event
    assert last["type"] == "ended", last
    if last["status"] == "failed":
        raise Refused(last["reason"], None)
    return Outcome(
        last["status"],
        **text,
        results=tuple(results),
        error=error,
        truncated=truncated,
        reason=last.get("reason"),
    )
