"""Kernels: started, looked at, used and ended."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp

from gateway.client.connection import KernelConnection
from gateway.client.failures import error_of
from gateway.client.paths import kernel_path
from gateway.errors import Conflict, NotFound
from gateway.models import ExecuteRequest, ExecutionResult, Kernel, Usage
from gateway.protocol import websocket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.client.history import History
    from gateway.client.transport import Transport

EXECUTE_SLACK_S = 60.0  # what a gateway may need beside the code's own time: interrupt, grace, restart


class Kernels:
    """The kernels that the key may see."""

    def __init__(self, transport: Transport, history: History) -> None:
        self._transport = transport
        self._history = history

    async def list(self, *, within_s: float | None = None) -> Sequence[Kernel]:
        """Return the kernels, oldest first."""
        return await self._transport.json(list[Kernel], "GET", "api/kernels", within_s=within_s)

    async def create(
        self,
        name: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        limits: Mapping[str, float] | None = None,
        workspace: str | None = None,
        kernel_id: str | None = None,
        within_s: float | None = None,
    ) -> Kernel:
        """Start a kernel of a kernelspec (the gateway's default when None) and return it when it answers.

        `kernel_id` is the UUID that it shall have; one is chosen here otherwise, so that a request whose
        answer got lost can be repeated and starts no second kernel. Values of `secrets` stay out of the
        history.
        """
        wanted = kernel_id or str(uuid.uuid4())
        body: dict[str, Any] = {"name": name, "kernel_id": wanted, "workspace": workspace}
        for field, values in (("env", env), ("secrets", secrets), ("limits", limits)):
            body[field] = None if values is None else dict(values)
        for value in (secrets or {}).values():
            self._history.hide(value)
        body = {field: value for field, value in body.items() if value is not None}
        try:
            return await self._transport.json(
                Kernel, "POST", "api/kernels", body, again=True, within_s=within_s
            )
        except Conflict:
            if kernel_id is not None:
                raise
            # nobody else knows the id: if it is there, an earlier try came to something
            with suppress(NotFound):
                return await self.get(wanted, within_s=within_s)
            raise

    async def get(self, kernel_id: str, *, within_s: float | None = None) -> Kernel:
        """Return one kernel."""
        return await self._transport.json(Kernel, "GET", kernel_path(kernel_id), within_s=within_s)

    async def interrupt(self, kernel_id: str, *, within_s: float | None = None) -> None:
        """Interrupt what a kernel runs."""
        await self._transport.request("POST", kernel_path(kernel_id, "interrupt"), within_s=within_s)

    async def restart(self, kernel_id: str, *, within_s: float | None = None) -> Kernel:
        """Restart a kernel under the same id and return it."""
        path = kernel_path(kernel_id, "restart")
        return await self._transport.json(Kernel, "POST", path, within_s=within_s)

    async def pause(self, kernel_id: str, *, within_s: float | None = None) -> Kernel:
        """Freeze a kernel, and the clocks of its deadlines, and return it."""
        path = kernel_path(kernel_id, "pause")
        return await self._transport.json(Kernel, "POST", path, within_s=within_s)

    async def resume(self, kernel_id: str, *, within_s: float | None = None) -> Kernel:
        """Let a paused kernel go on and return it."""
        path = kernel_path(kernel_id, "resume")
        return await self._transport.json(Kernel, "POST", path, within_s=within_s)

    async def delete(self, kernel_id: str, *, within_s: float | None = None) -> None:
        """End a kernel and everything that it started."""
        await self._transport.request("DELETE", kernel_path(kernel_id), within_s=within_s)

    async def usage(self, kernel_id: str, *, within_s: float | None = None) -> Usage:
        """Return what a kernel's cell uses, now and at most so far."""
        return await self._transport.json(Usage, "GET", kernel_path(kernel_id, "usage"), within_s=within_s)

    async def execute(
        self, kernel_id: str, code: str, timeout_s: float | None = None, *, within_s: float | None = None
    ) -> ExecutionResult:
        """Run code in a kernel and return everything it gave; its own failure is a status, not an error.

        The gateway ends the execution after `timeout_s` seconds, or after its own limit when None. The
        request is never repeated: `executions.run` is what survives a broken connection.
        """
        body = ExecuteRequest(code=code, timeout_s=timeout_s).model_dump(exclude_defaults=True)
        result = await self._transport.json(
            ExecutionResult,
            "POST",
            kernel_path(kernel_id, "execute"),
            body,
            attempt_s=None if timeout_s is None else timeout_s + EXECUTE_SLACK_S,
            within_s=within_s,
        )
        self._history.add(code, result, kernel_id=kernel_id)
        return result

    def session(self, kernel_id: str, *, current: bool = False) -> KernelConnection:
        """Return a connection to a kernel's channels, to be entered with `async with`.

        With `current` it brings the output of what runs now from its start: see `KernelConnection.messages`.
        """
        return KernelConnection(
            lambda session_id: self.channels(kernel_id, session_id, current=current),
            lambda: self.interrupt(kernel_id),
            lambda code, result: self._history.add(code, result, kernel_id=kernel_id),
        )

    async def channels(
        self, kernel_id: str, session_id: str, *, current: bool = False
    ) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket to a kernel's channels; one that is open with the same session id is replaced.

        What was missed under that session id comes first; with `current`, all of what runs now.
        """
        query = {"session_id": session_id, "replay": "current" if current else None}
        try:
            return await self._transport.connect(kernel_path(kernel_id, "channels"), query, websocket.V1)
        except aiohttp.WSServerHandshakeError as error:
            # A refused handshake has no body for us; the same question by REST gives the reason.
            await self.get(kernel_id)
            raise error_of(error.status, error.message, b"") from error
