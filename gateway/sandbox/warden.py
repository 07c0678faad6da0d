"""The warden: the small process that makes cells, is the parent of all, and ends them.

It takes a dozen small validated requests from one unix socket, only from the gateway's uid or its own.
Cells outlive a gateway by its `keep_s`; then the warden ends them and itself. Should the warden die, its
keeper (keeper.py) ends every cell.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from pydantic import ValidationError

from gateway.errors import BadRequest, GatewayError, NotFound, SandboxUnavailable
from gateway.sandbox import files
from gateway.sandbox.cell import Cell
from gateway.sandbox.launch import Launcher
from gateway.sandbox.packets import Packets, close_all, peer_uid
from gateway.sandbox.profile import SandboxProfile
from gateway.sandbox.wire import (
    REQUEST,
    CellFacts,
    Claim,
    DeleteWorkspace,
    FileOrder,
    Hello,
    Launch,
    OnCell,
    Plain,
    Request,
    WardenFacts,
    WorkspaceRequest,
)
from gateway.sandbox.workspaces import Workspaces

log = logging.getLogger("cellblock.warden")

STARTING_S = 2.0

Answer = tuple[dict[str, Any], list[int]]
Body = Hello | Launch | Claim | OnCell | FileOrder | WorkspaceRequest | Plain


class Warden:
    """Serves one socket; `run` returns when told to stop or when no gateway came back in time."""

    def __init__(
        self,
        *,
        launcher: Launcher,
        workspaces: Workspaces,
        profiles: Mapping[str, SandboxProfile],
        listener: socket.socket,
        allowed_uids: frozenset[int],
        keep_s: float,
        facts: WardenFacts,
    ) -> None:
        self._launcher = launcher
        self._workspaces = workspaces
        self._facts = facts
        self._profiles = profiles
        self._listener = listener
        self._allowed_uids = allowed_uids
        self._keep_s = keep_s
        self._cells: dict[str, Cell] = {}
        self._talks: set[Packets] = set()
        self._tied: dict[Packets, set[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._alone: asyncio.TimerHandle | None = None
        self._answers: dict[str, Callable[[Any], Awaitable[Answer]]] = {
            "claim": self._claim,
            "seal": self._seal,
            "interrupt": self._interrupt,
            "pause": self._pause,
            "resume": self._resume,
            "usage": self._usage,
            "end": self._end,
            "adopt": self._adopt,
            "attend": self._attend,
        }

    async def run(self) -> None:
        """Serve until stopped, then end every cell."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._listener.setblocking(False)
        loop.add_reader(self._listener, self._accept)
        self._await_gateway()
        await self._stop.wait()
        # closed at once, so that a gateway that starts now asks for another warden
        loop.remove_reader(self._listener)
        self._listener.close()
        for talk in list(self._talks):
            talk.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(cell.end() for cell in self._cells.values()), return_exceptions=True)

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except OSError:
            return
        if peer_uid(connected) not in self._allowed_uids:
            log.warning("a connection from uid %d was refused", peer_uid(connected))
            connected.close()
            return
        talk = Packets(connected, lambda packet, fds: self._take(talk, packet, fds), lambda: self._left(talk))
        self._talks.add(talk)
        if self._alone:
            self._alone.cancel()
            self._alone = None

    def _left(self, talk: Packets) -> None:
        self._talks.discard(talk)
        for cell in self._tied.pop(talk, set()) & self._cells.keys():
            self._spawn(self._end_tied(cell))
        if not self._talks:
            self._await_gateway()

    def _await_gateway(self) -> None:
        # without cells there is nothing to keep; a starting gateway still needs a moment to connect
        wait = self._keep_s if self._cells else STARTING_S
        self._alone = asyncio.get_running_loop().call_later(wait, self._stop.set)

    def _take(self, talk: Packets, packet: dict[str, Any], descriptors: list[int] | None) -> None:
        descriptors = descriptors or []
        try:
            request = REQUEST.validate_python(packet)
        except ValidationError as error:
            close_all(descriptors)
            number = packet.get("id")
            wrong = BadRequest(f"The warden does not take this: {error.errors()[0]['msg']}.")
            talk.send({"id": number if isinstance(number, int) else -1, "error": wrong.body()})
            return
        self._spawn(self._answer(talk, request, descriptors))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, talk: Packets, request: Request, given: list[int]) -> None:
        try:
            answer, descriptors = await self._do(request.body, given)
        except GatewayError as error:
            if isinstance(error, SandboxUnavailable):
                log.error("%s", error.message)
            talk.send({"id": request.id, "error": error.body()})
        except Exception:
            log.exception("a request failed")
            talk.send({"id": request.id, "error": SandboxUnavailable("The warden failed.").body()})
        else:
            talk.send({"id": request.id, "answer": answer}, descriptors)
            if isinstance(request.body, FileOrder):
                # a cell's own descriptors stay; these are for who asked alone
                close_all(descriptors)
            if isinstance(request.body, Launch) and not talk.open:
                # who asked is gone and has no record of it: nobody would ever end it
                await self._end(OnCell(op="end", cell=answer["cell"]))
            elif isinstance(request.body, Launch) and request.body.order.tied:
                self._tied.setdefault(talk, set()).add(answer["cell"])
        finally:
            close_all(given)

    async def _do(self, body: Body, given: list[int]) -> Answer:
        if isinstance(body, FileOrder | WorkspaceRequest):
            return await self._on_file(body, given)
        match body:
            case Hello():
                self._keep_s = body.keep_s
                return self._facts.model_dump(), []
            case Launch():
                return await self._launch(body)
            case Claim() | OnCell():
                return await self._answers[body.op](body)
            case Plain(op="list"):
                return {"cells": list(self._cells)}, []
            case Plain():
                self._stop.set()
                return {}, []

    def _profile(self, name: str) -> SandboxProfile:
        profile = self._profiles.get(name)
        if profile is None:
            raise BadRequest(f"There is no sandbox profile {name!r}.")
        return profile

    async def _claim(self, body: Claim) -> Answer:
        cell = self._cell(body)
        self._launcher.claim(cell, body, self._profile(cell.profile))
        log.info("cell %s was claimed", cell.id)
        return facts(cell), []

    async def _launch(self, body: Launch) -> Answer:
        profile = self._profile(body.order.profile)
        cell = await self._launcher.launch(body.order, profile)
        self._cells[cell.id] = cell
        log.info("cell %s started, pid %d, landlock %d", cell.id, cell.kernel_pid, cell.landlock)
        return facts(cell), [cell.kernel_fd]

    def _cell(self, body: Claim | OnCell | FileOrder) -> Cell:
        cell = self._cells.get(body.cell)
        if cell is None:
            raise NotFound(f"There is no cell {body.cell}.", reason="no_cell")
        return cell

    async def _on_file(self, body: FileOrder | WorkspaceRequest, given: list[int]) -> Answer:
        if isinstance(body, WorkspaceRequest):
            return self._on_workspaces(body)
        home = self._cell(body).files
        if home is None:
            raise NotFound("The cell is not up.", reason="no_cell")
        return await files.answer(home, body, given)

    def _on_workspaces(self, body: WorkspaceRequest) -> Answer:
        if isinstance(body, DeleteWorkspace):
            self._workspaces.delete(body.owner, body.name)
            return {}, []
        return {"workspaces": [facts.model_dump() for facts in self._workspaces.list(body.owner)]}, []

    async def _adopt(self, body: OnCell) -> Answer:
        cell = self._cell(body)
        return facts(cell), [cell.kernel_fd]

    async def _attend(self, body: OnCell) -> Answer:
        cell = self._cell(body)
        if cell.attendant_fd < 0:
            raise NotFound("The cell has no attendant.", reason="no_attendant")
        cell.attended = True
        return {}, [cell.attendant_fd]

    async def _seal(self, body: OnCell) -> Answer:
        self._cell(body).seal()
        return {}, []

    async def _interrupt(self, body: OnCell) -> Answer:
        with contextlib.suppress(ProcessLookupError):
            self._cell(body).interrupt()
        return {}, []

    async def _pause(self, body: OnCell) -> Answer:
        self._cell(body).pause()
        return {}, []

    async def _resume(self, body: OnCell) -> Answer:
        self._cell(body).resume()
        return {}, []

    async def _usage(self, body: OnCell) -> Answer:
        return self._cell(body).usage().model_dump(), []

    async def _end_tied(self, cell: str) -> None:
        with contextlib.suppress(NotFound):
            await self._end(OnCell(op="end", cell=cell))

    async def _end(self, body: OnCell) -> Answer:
        cell = self._cell(body)
        ending = await cell.end()
        self._cells.pop(cell.id, None)
        log.info("cell %s ended, exit code %s, oom %s", cell.id, ending.exit_code, ending.oom)
        return ending.model_dump(), []


def facts(cell: Cell) -> dict[str, Any]:
    """Return what a gateway needs to talk to a cell's kernel."""
    return CellFacts(
        cell=cell.id,
        kernel_id=cell.kernel_id,
        connection=cell.connection,
        landlock=cell.landlock,
        age_s=time.monotonic() - cell.born,
        attended=cell.attended,
        pooled=cell.pooled,
    ).model_dump(mode="json")
