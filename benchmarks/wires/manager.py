"""A kernel by jupyter_client's own client: what a local program without a server has."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from benchmarks.framing import Said, outcome_of
from benchmarks.outcome import Answer
from benchmarks.wires.wire import TIMEOUT_S

if TYPE_CHECKING:
    from jupyter_client.asynchronous.client import AsyncKernelClient


class JupyterClient:
    """An AsyncKernelClient with its channels open."""

    def __init__(self, client: AsyncKernelClient) -> None:
        self._client = client

    async def execute(self, code: str, timeout_s: float = TIMEOUT_S) -> Answer:
        """Run code until its reply and its idle status have come."""
        messages: list[dict[str, Any]] = []
        begun = time.perf_counter()
        async with asyncio.timeout(timeout_s):
            msg_id = self._client.execute(code)
            await self._follow(msg_id, messages)
        took_s = time.perf_counter() - begun
        return Answer(took_s, lambda: outcome_of(map(_said, messages), msg_id))

    async def _follow(self, msg_id: str, messages: list[dict[str, Any]]) -> None:
        idle = False
        while not idle:
            message = await self._client.get_iopub_msg()
            messages.append(message)
            ours = message["parent_header"].get("msg_id") == msg_id
            idle = (
                ours and message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
            )
        replied = False
        while not replied:
            message = await self._client.get_shell_msg()
            messages.append(message)
            replied = message["parent_header"].get("msg_id") == msg_id


def _said(message: dict[str, Any]) -> Said:
    parent = message["parent_header"].get("msg_id", "")
    buffers = [bytes(buffer) for buffer in message["buffers"]]
    return Said(message["msg_type"], parent, message["content"], buffers)
