"""A small real HTTP server that speaks the gateway's contract, for the client and the commands above it.

Its kernels execute a language of their own, a statement a line: `print X` and `warn X` write a line to stdout
or stderr, `raise X` raises X, `sleep S` can be interrupted, `stubborn S` cannot, `show` displays a picture,
`die REASON` ends the kernel, `close CODE REASON` closes the socket; anything else has itself as its result.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer

from gateway.errors import BadRequest, GatewayError, NotFound, Unauthorized, UnknownKernelSpec
from gateway.models import ExecuteRequest, ExecutionState, Kernel, Limits, Message
from gateway.protocol.messages import content, make, wanted_timeout
from gateway.protocol.outputs import Collector
from gateway.protocol.websocket import V1, framing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TOKEN = "cb_0123456789ab_secret"
PICTURE = base64.b64encode(
    b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480) + b"\x08\x02\x00\x00\x00"
).decode()


class FakeKernel:
    """A kernel: what it ran, and the statement that an interrupt ends."""

    def __init__(self, name: str) -> None:
        self.id = str(uuid4())
        self.name = name
        self.count = 0
        self.ran: list[str] = []
        self.interrupted = asyncio.Event()

    def model(self) -> dict[str, Any]:
        """Return the REST model, as a newer gateway would show it: with a field that nobody knows yet."""
        kernel = Kernel(
            id=self.id,
            name=self.name,
            last_activity="2026-01-01T00:00:00.000000Z",
            execution_state=ExecutionState.IDLE,
            connections=0,
            owner="alice",
            profile="default",
            started_at="2026-01-01T00:00:00.000000Z",
            executions=self.count,
            limits=Limits(),
        )
        model = kernel.model_dump(mode="json")
        return model | {"colour": "green", "limits": model["limits"] | {"gpus": 1}}

    async def stopped(self, seconds: float, deadline: float | None) -> bool:
        """Sleep, and tell whether an interrupt or the deadline came first."""
        wait = seconds if deadline is None else min(seconds, deadline)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.interrupted.wait(), wait)
        return self.interrupted.is_set() or wait < seconds

    async def execute(  # noqa: C901 - one branch a verb
        self,
        request: Message,
        send: Callable[[Message], Awaitable[None]],
        close: Callable[[int, str], Awaitable[None]],
    ) -> None:
        """Run an execute_request and send what comes of it."""

        async def iopub(kind: str, body: dict[str, Any]) -> None:
            await send(make("iopub", kind, body, parent=request, session="k"))

        code = content(request)["code"]
        self.count += 1
        self.ran.append(code)
        self.interrupted.clear()
        reply: dict[str, Any] = {"status": "ok", "execution_count": self.count}
        metadata: dict[str, Any] = {}
        await iopub("status", {"execution_state": "busy"})
        await iopub("execute_input", {"code": code, "execution_count": self.count})
        for statement in code.splitlines():
            verb, _, rest = statement.partition(" ")
            failure: tuple[str, str] | None = None
            if verb in {"print", "warn"}:
                name = "stdout" if verb == "print" else "stderr"
                await iopub("stream", {"name": name, "text": f"{rest}\n"})
            elif verb == "show":
                data = {"text/plain": "<Figure>", "image/png": PICTURE}
                await iopub("display_data", {"data": data, "metadata": {}})
            elif verb in {"raise", "die"}:
                failure = (rest, "on purpose")
                metadata = {"cellblock": {"reason": rest}} if verb == "die" else {}
            elif verb == "sleep":
                if await self.stopped(float(rest), wanted_timeout(request)):
                    failure = ("KeyboardInterrupt", "")
                    metadata = {} if self.interrupted.is_set() else {"cellblock": {"reason": "timeout"}}
            elif verb == "stubborn":
                await asyncio.sleep(float(rest))
            elif verb == "close":
                status, _, reason = rest.partition(" ")
                await close(int(status), reason)
                return
            else:
                data = {"text/plain": statement}
                await iopub("execute_result", {"data": data, "metadata": {}, "execution_count": self.count})
            if failure is not None:
                error = {
                    "ename": failure[0],
                    "evalue": failure[1],
                    "traceback": [f"\x1b[31m{failure[0]}\x1b[0m"],
                }
                await iopub("error", error)
                reply |= {"status": "error", **error}
                break
        await send(make("shell", "execute_reply", reply, parent=request, session="k", metadata=metadata))
        await iopub("status", {"execution_state": "idle"})


class FakeGateway:
    """The server. `kernels` are those that live, `seen` all that ever did; `start_s` delays new ones."""

    def __init__(self) -> None:
        self.kernels: dict[str, FakeKernel] = {}
        self.seen: list[FakeKernel] = []
        self.start_s = 0.0
        self.starting = asyncio.Event()
        app = web.Application(middlewares=[_door])
        app.router.add_get("/api/kernelspecs", self._specs)
        app.router.add_get("/api/kernels", self._list)
        app.router.add_post("/api/kernels", self._create)
        app.router.add_get("/api/kernels/{id}", self._show)
        app.router.add_delete("/api/kernels/{id}", self._delete)
        app.router.add_post("/api/kernels/{id}/{verb:interrupt|restart|execute}", self._act)
        app.router.add_get("/api/kernels/{id}/channels", self._channels)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        """The server's URL."""
        return str(self.server.make_url("/")).rstrip("/")

    def add(self, name: str = "python3") -> FakeKernel:
        """Make a kernel."""
        kernel = FakeKernel(name)
        self.kernels[kernel.id] = kernel
        self.seen.append(kernel)
        return kernel

    def _kernel(self, request: web.Request) -> FakeKernel:
        try:
            return self.kernels[request.match_info["id"]]
        except KeyError:
            raise NotFound(f"Kernel does not exist: {request.match_info['id']}") from None

    async def _specs(self, _request: web.Request) -> web.Response:
        def entry(name: str, language: str) -> dict[str, Any]:
            spec = {"argv": ["x"], "env": {}, "display_name": name, "language": language, "metadata": {}}
            return {"name": name, "spec": spec, "resources": {}}

        specs = {"python3": entry("python3", "python"), "bash": entry("bash", "bash")}
        return web.json_response({"default": "python3", "kernelspecs": specs})

    async def _list(self, _request: web.Request) -> web.Response:
        return web.json_response([kernel.model() for kernel in self.kernels.values()])

    async def _create(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read() or b"{}")
        name = body.get("name", "python3")
        if name == "teapot":
            return web.json_response(
                {"message": "Short and stout.", "code": "teapot", "reason": "tea"}, status=418
            )
        if name == "proxy":
            return web.Response(text="<html>upstream</html>", status=502)
        if name not in {"python3", "bash"}:
            raise UnknownKernelSpec(f"No kernelspec {name!r}.", reason=name)
        self.starting.set()
        await asyncio.sleep(self.start_s)
        return web.json_response(self.add(name).model(), status=201)

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._kernel(request).model())

    async def _delete(self, request: web.Request) -> web.Response:
        del self.kernels[self._kernel(request).id]
        return web.Response(status=204)

    async def _act(self, request: web.Request) -> web.Response:
        kernel, verb = self._kernel(request), request.match_info["verb"]
        if verb == "interrupt":
            kernel.interrupted.set()
            return web.Response(status=204)
        if verb == "restart":
            kernel.count = 0
            return web.json_response(kernel.model())
        wanted = ExecuteRequest.model_validate_json(await request.read())
        asked = make("shell", "execute_request", {"code": wanted.code}, parent=None, session="rest")
        collector = Collector(asked.msg_id, max_bytes=1 << 20, started=0.0)

        async def send(message: Message) -> None:
            collector.feed(message)

        async def close(code: int, reason: str) -> None:
            raise BadRequest("close is for sockets")

        await kernel.execute(asked, send, close)
        return web.json_response(collector.result(1.0).model_dump(mode="json") | {"colour": "green"})

    async def _channels(self, request: web.Request) -> web.WebSocketResponse:
        kernel = self._kernel(request)
        assert request.query["session_id"]
        socket = web.WebSocketResponse(protocols=(V1,))
        await socket.prepare(request)
        frames = framing(V1)

        async def send(message: Message) -> None:
            frame = frames.encode(message)
            assert isinstance(frame, bytes)
            with suppress(ConnectionError):
                await socket.send_bytes(frame)

        async def close(code: int, reason: str) -> None:
            await socket.close(code=code, message=reason.encode())

        # Somebody else's output: a client must not take it for its own.
        stranger = make("shell", "execute_request", {"code": ""}, parent=None, session="other")
        await send(
            make("iopub", "stream", {"name": "stdout", "text": "not yours\n"}, parent=stranger, session="k")
        )
        running: set[asyncio.Task[None]] = set()
        async for frame in socket:
            if frame.type is WSMsgType.BINARY:
                task = asyncio.create_task(kernel.execute(frames.decode(frame.data), send, close))
                running.add(task)
                task.add_done_callback(running.discard)
        for task in running:
            task.cancel()
        return socket


@web.middleware
async def _door(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Unauthorized("The credential is missing or not valid.")
        response: web.StreamResponse = await handler(request)
    except GatewayError as error:
        return web.json_response(error.body(), status=error.status)
    return response
