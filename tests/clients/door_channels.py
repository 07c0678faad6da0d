"""Doors over Jupyter's WebSocket, in both framings."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, ClassVar

import aiohttp

from tests.clients.door import Door, Failure, Outcome, refused_by_name
from tests.gateway import text_of

if TYPE_CHECKING:
    from gateway.models import Message
    from tests.gateway import Channels

GOES_ON = "the kernel goes on, as Jupyter's does, and what it says is kept for who comes back"


class Asked:
    """An execution over a socket."""

    def __init__(self, channels: Channels, msg_id: str) -> None:
        self._channels = channels
        self._msg_id = msg_id

    async def cancel(self) -> None:
        """Interrupt the kernel."""
        await self._channels.send("control", "interrupt_request", {})

    async def disconnect(self) -> None:
        """Cut the connection."""
        await self._channels.socket.close()

    async def outcome(self) -> Outcome:
        """Wait for the reply and the idle status."""
        return told(await self._channels.until_done(self._msg_id, timeout=60))


class ChannelsV1(Door):
    """GET /api/kernels/{kernel_id}/channels in v1.kernel.websocket.jupyter.org."""

    name = "channels: v1"
    without: ClassVar = {"disconnect": GOES_ON}
    v1 = True

    async def start(self, code: str, *, timeout_s: float | None = None) -> Asked:
        """Send an execute_request."""
        if self._channels is None or self._channels.socket.closed:
            made = self.side.channels(await self.kernel_id(), v1=self.v1, session_id=self.name.split()[-1])
            self._channels = await self.held.enter_async_context(made)
        return Asked(self._channels, await self._channels.execute(code, timeout_s=timeout_s))

    async def opened(self) -> None:
        """Open nothing yet: the socket is the kernel's."""
        self._channels: Channels | None = None

    async def foreign(self, handle: str) -> object:
        """Try to open a socket to it."""
        with contextlib.suppress(aiohttp.WSServerHandshakeError):
            async with self.side.channels(handle, v1=self.v1):
                return "open"
        async with self.side.http.get(f"/api/kernels/{handle}/channels") as response:
            return response.status, await response.text()


class ChannelsLegacy(ChannelsV1):
    """The same in Jupyter's older framing."""

    name = "channels: legacy"
    v1 = False


def told(messages: list[Message]) -> Outcome:
    """Return the outcome that an execution's messages tell of. Raises Refused."""
    contents: list[tuple[str, Any]] = [(m.msg_type, json.loads(m.content)) for m in messages]
    results = tuple(c["data"] for kind, c in contents if kind in {"display_data", "execute_result"})
    reply = next(c for kind, c in contents if kind == "execute_reply")
    reasons = [json.loads(m.metadata).get("cellblock", {}).get("reason") for m in messages]
    status, error = reply["status"], None
    if status == "error":
        if refusal := refused_by_name(reply["ename"]):
            raise refusal
        error = Failure(reply["ename"], reply["evalue"])
        if reply["evalue"].startswith("The time limit of"):
            status = "timeout"
        elif reply["ename"] == "KeyboardInterrupt":
            status = "interrupted"
        elif any(reasons):
            status = "dead"
    return Outcome(
        status,
        text_of(messages),
        text_of(messages, "stderr"),
        results,
        error,
        reason=next(filter(None, reasons), None),
    )
