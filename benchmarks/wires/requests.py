"""Doors of Cellblock's own that take one HTTP request per execution: REST and MCP."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.outcome import Answer, Outcome
from benchmarks.wires.wire import TIMEOUT_S

if TYPE_CHECKING:
    import aiohttp


class Rest:
    """POST /api/kernels/{id}/execute, and POST /api/executions where no kernel is named."""

    def __init__(self, http: aiohttp.ClientSession, kernel_id: str | None, kernel: str = "") -> None:
        self._http = http
        self._path = "/api/executions" if kernel_id is None else f"/api/kernels/{kernel_id}/execute"
        self._where = {"kernel": kernel} if kernel_id is None else {}

    async def execute(self, code: str, timeout_s: float = TIMEOUT_S) -> Answer:
        """Run code by one request."""
        body = orjson.dumps({"code": code, **self._where})
        begun = time.perf_counter()
        async with asyncio.timeout(timeout_s), self._http.post(self._path, data=body) as response:
            answered = await response.read()
        return Answer(time.perf_counter() - begun, lambda: _of_notebook(answered))


class Mcp:
    """The tool execute_code over streamable HTTP, with no session of the protocol's."""

    def __init__(self, http: aiohttp.ClientSession, session_id: str) -> None:
        self._http = http
        self._session_id = session_id

    async def execute(self, code: str, timeout_s: float = TIMEOUT_S) -> Answer:
        """Run code by one call of the tool."""
        arguments = {"code": code, "session_id": self._session_id}
        params = {"name": "execute_code", "arguments": arguments}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        begun = time.perf_counter()
        async with (
            asyncio.timeout(timeout_s),
            self._http.post("/mcp", data=orjson.dumps(call), headers=headers) as response,
        ):
            answered = await response.read()
        return Answer(time.perf_counter() - begun, lambda: _of_tool(answered))


def _of_notebook(answered: bytes) -> Outcome:
    said = orjson.loads(answered)
    result = said.get("result", said)
    if not isinstance(result, dict) or "outputs" not in result:
        raise ConnectionError(f"the gateway answered {answered[:300]!r}")
    outcome = Outcome(status=result["status"])
    for output in result["outputs"]:
        outcome = outcome.with_output(output)
    return outcome


def _of_tool(answered: bytes) -> Outcome:
    lines = [line.removeprefix(b"data:") for line in answered.splitlines() if line.startswith(b"data:")]
    said: dict[str, Any] = orjson.loads(lines[-1] if lines else answered)
    if "result" not in said or "structuredContent" not in said["result"]:
        raise ConnectionError(f"the gateway answered {answered[:300]!r}")
    told = said["result"]["structuredContent"]
    results = [result["text/plain"] for result in told["results"]]
    return Outcome(told["status"], told["stdout"], told["stderr"], result=results[-1] if results else None)
