"""The gateway's end of the conversation with the warden."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gateway.errors import (
    BadRequest,
    Conflict,
    GatewayError,
    InsufficientStorage,
    NotFound,
    PayloadTooLarge,
    PreconditionFailed,
    SandboxUnavailable,
)
from gateway.models import Limits, Usage, WorkspaceFacts
from gateway.sandbox.packets import Packets, connect
from gateway.sandbox.wire import (
    MAX_PACKET,
    CellFacts,
    Claim,
    DeleteWorkspace,
    Ending,
    FileOrder,
    Hello,
    Launch,
    LaunchOrder,
    ListWorkspaces,
    OnCell,
    Plain,
    WardenFacts,
)

REVIVAL_TRIES, REVIVAL_S = 100, 0.1

_KNOWN = {
    kind.code: kind
    for kind in (
        BadRequest,
        Conflict,
        InsufficientStorage,
        NotFound,
        PayloadTooLarge,
        PreconditionFailed,
        SandboxUnavailable,
    )
}


def failure(body: Mapping[str, Any]) -> GatewayError:
    """Return the error that a warden's answer tells of."""
    kind = _KNOWN.get(str(body.get("code")), SandboxUnavailable)
    return kind(body.get("message", ""), reason=body.get("reason"))


class WardenLink:
    """Asks the warden behind a socket; connects when needed, and again after the warden was restarted.

    An answer is waited for `answer_s` seconds, and that of a start `start_s` more. What was asked in vain
    stays asked: a warden that goes on does it then, and ends what it starts for nobody.
    """

    def __init__(self, path: Path, *, keep_s: float, answer_s: float = 10.0, start_s: float = 20.0) -> None:
        self._path = path
        self._keep_s = keep_s
        self._answer_s = answer_s
        self._start_s = start_s
        self._packets: Packets | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._revival: asyncio.Task[None] | None = None
        self._closed = False
        self._facts: WardenFacts | None = None

    async def connect(self) -> None:
        """Open the conversation, if it is not open. Raises SandboxUnavailable when no warden answers."""
        if self._packets and self._packets.open:
            return
        try:
            connected = connect(self._path)
        except OSError as error:
            raise SandboxUnavailable(
                f"The warden does not answer: {error.strerror}.", reason="warden_gone"
            ) from error
        self._packets = packets = Packets(connected, self._answered, self._lost)
        try:
            answer, _ = await self._ask(Hello(keep_s=self._keep_s))
        except SandboxUnavailable:
            # not begun, so the next one begins it anew
            packets.close()
            raise
        self._facts = WardenFacts.model_validate(answer)

    async def facts(self) -> WardenFacts:
        """Return what the warden said of itself. Raises SandboxUnavailable when no warden answers."""
        await self.connect()
        assert self._facts is not None  # noqa: S101 - a conversation begins with it
        return self._facts

    async def launch(self, order: LaunchOrder) -> tuple[CellFacts, int]:
        """Start a cell; return its facts and the kernel's pidfd, which is the caller's to close.

        Raises:
            SandboxUnavailable: there is no confined cell to be had.
            BadRequest: the order is not one that the warden takes.
        """
        return await self._cell(Launch(order=order))

    async def claim(self, cell: str, *, kernel_id: str, limits: Limits, age_s: float) -> CellFacts:
        """Make a pooled cell a kernel's, with limits that are at most its own; return its facts.

        Raises:
            Conflict: it is somebody's already, or its limits cannot be lowered so far.
            SandboxUnavailable: a limit cannot be set; end it.
        """
        body = Claim(cell=cell, kernel_id=kernel_id, limits=limits, age_s=age_s)
        answer, _ = await self._ask_open(body)
        return CellFacts.model_validate(answer)

    async def adopt(self, cell: str) -> tuple[CellFacts, int]:
        """Return a live cell's facts and the kernel's pidfd. Raises NotFound."""
        return await self._cell(OnCell(op="adopt", cell=cell))

    async def cells(self) -> Sequence[str]:
        """List the live cells."""
        answer, _ = await self._ask_open(Plain(op="list"))
        return [str(cell) for cell in answer["cells"]]

    async def seal(self, cell: str) -> None:
        """Take the ipc directory from a cell, once its sockets are connected."""
        await self._ask_open(OnCell(op="seal", cell=cell))

    async def interrupt(self, cell: str) -> None:
        """Send SIGINT to a cell's kernel."""
        await self._ask_open(OnCell(op="interrupt", cell=cell))

    async def pause(self, cell: str) -> None:
        """Freeze a cell."""
        await self._ask_open(OnCell(op="pause", cell=cell))

    async def resume(self, cell: str) -> None:
        """Let a frozen cell go on."""
        await self._ask_open(OnCell(op="resume", cell=cell))

    async def attend(self, cell: str) -> int:
        """Return this side's end of the socket to a cell's attendant, which is the caller's to close.

        Raises NotFound; its reason is `no_attendant` where the cell has none.
        """
        _, descriptors = await self._ask_open(OnCell(op="attend", cell=cell))
        return descriptors[0]

    async def usage(self, cell: str) -> Usage:
        """Return what a cell uses."""
        answer, _ = await self._ask_open(OnCell(op="usage", cell=cell))
        return Usage.model_validate(answer)

    async def end(self, cell: str) -> Ending:
        """Kill a cell as a whole and learn how it had ended. Raises NotFound."""
        answer, _ = await self._ask_open(OnCell(op="end", cell=cell))
        return Ending.model_validate(answer)

    async def workspaces(self, owner: str) -> list[WorkspaceFacts]:
        """List the workspaces of an owner, given by hash."""
        answer, _ = await self._ask_open(ListWorkspaces(owner=owner))
        return [WorkspaceFacts.model_validate(facts) for facts in answer["workspaces"]]

    async def delete_workspace(self, owner: str, name: str) -> None:
        """Delete a workspace. Raises NotFound, Conflict while a cell has it."""
        await self._ask_open(DeleteWorkspace(owner=owner, name=name))

    async def on_file(
        self, order: FileOrder, descriptors: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        """Do something to a file of a cell's home; the descriptors that come back are the caller's to close.

        Raises:
            GatewayError: what stands against it; NotFound with the reason `no_cell` when the cell is gone.
        """
        await self.connect()
        return await self._ask(order, descriptors)

    async def stop(self) -> None:
        """Tell the warden to end every cell and itself."""
        await self._ask_open(Plain(op="stop"))

    def close(self) -> None:
        """End the conversation; the warden keeps the cells for its grace."""
        self._closed = True
        if self._revival:
            self._revival.cancel()
        if self._packets:
            self._packets.close()

    async def _cell(self, body: BaseModel) -> tuple[CellFacts, int]:
        answer, descriptors = await self._ask_open(body)
        return CellFacts.model_validate(answer), descriptors[0]

    async def _ask_open(self, body: BaseModel) -> tuple[dict[str, Any], list[int]]:
        await self.connect()
        return await self._ask(body)

    async def _ask(
        self, body: BaseModel, descriptors: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        packets = self._packets
        if packets is None or not packets.open:
            raise SandboxUnavailable("The warden is gone.", reason="warden_gone")
        number = next(self._numbers)
        packet = {"id": number, "body": body.model_dump(mode="json")}
        if len(str(packet)) > MAX_PACKET - 1024:
            raise BadRequest("The kernel's environment and arguments are too large.")
        answer: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        packets.send(packet, descriptors)
        patience_s = self._answer_s + (self._start_s if isinstance(body, Launch) else 0.0)
        try:
            await asyncio.wait({answer}, timeout=patience_s)
        except asyncio.CancelledError:
            if answer.done() and answer.exception() is None:
                # it came in the moment of the cancellation: nobody else will close or end it
                self._unclaimed(*answer.result())
            raise
        finally:
            self._waiting.pop(number, None)
        if not answer.done():
            raise SandboxUnavailable(
                f"The warden did not answer within {patience_s:g} s.", reason="warden_timeout"
            )
        return answer.result()

    def _answered(self, packet: dict[str, Any], descriptors: list[int] | None) -> None:
        waiting = self._waiting.get(packet.get("id", -1))
        if waiting is None or waiting.done() or descriptors is None:
            self._unclaimed(packet.get("answer") or {}, descriptors or [])
            if waiting and not waiting.done():
                waiting.set_exception(
                    SandboxUnavailable("The gateway has no descriptors left.", reason="no_descriptors")
                )
        elif "error" in packet:
            waiting.set_exception(failure(packet["error"]))
        else:
            waiting.set_result((packet["answer"], descriptors))

    def _unclaimed(self, answer: dict[str, Any], descriptors: list[int]) -> None:
        """Let go of an answer whose asker was cancelled: a cell started for nobody must not live on."""
        for descriptor in descriptors:
            os.close(descriptor)
        cell = answer.get("cell")
        if cell and self._packets:
            body = OnCell(op="end", cell=cell)
            self._packets.send({"id": next(self._numbers), "body": body.model_dump(mode="json")})

    def _lost(self) -> None:
        gone: GatewayError = SandboxUnavailable("The warden is gone.", reason="warden_gone")
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(gone)
        if not self._closed and (self._revival is None or self._revival.done()):
            self._revival = asyncio.get_running_loop().create_task(self._revive())

    async def _revive(self) -> None:
        """Find the warden that its keeper starts anew: without a gateway it would end itself soon."""
        for _ in range(REVIVAL_TRIES):
            await asyncio.sleep(REVIVAL_S)
            with contextlib.suppress(SandboxUnavailable):
                await self.connect()
                return
