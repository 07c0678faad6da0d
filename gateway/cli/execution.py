"""Executes cells one by one in a kernel of a gateway, and says how it went."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.cli.interrupts import Interrupts
from gateway.cli.screen import Screen
from gateway.client import Client, ConnectionLost, KernelConnection
from gateway.errors import GatewayError
from gateway.models import ExecutionResult, ExecutionStatus, Message
from gateway.protocol.messages import MalformedMessage, content

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gateway.cli.job import Cell, Job

SUCCESS, CODE_FAILED, TIMED_OUT = 0, 1, 124
DELETE_S = 15.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a job is run: on which kernel, how long a cell may take, what a failure means."""

    kernel: str | None = None
    kernel_id: str | None = None
    timeout_s: float | None = None
    allow_errors: bool = False
    keep: bool = False


async def execute(job: Job, url: str, key: str, options: Options) -> int:
    """Run a job and return the exit code: success, the code failed, took too long, or a signal.

    Raises:
        GatewayError: the gateway failed, not the code. What ran before is saved all the same.
    """
    cells = job.cells()
    with Interrupts() as interrupts, Screen(len(cells) if job.shows_progress else None) as screen:
        try:
            async with Client(url, key, retries=0) as client:
                execution = Execution(client, screen, interrupts, job, options)
                if options.kernel_id is not None:
                    return await execution.run(cells, options.kernel_id)
                name = options.kernel or await choose_kernel(client, job.kernel_name, job.language)
                async with own_kernel(client, name, interrupts, screen, keep=options.keep) as kernel_id:
                    return await execution.run(cells, kernel_id)
        except asyncio.CancelledError:
            if interrupts.exit_code is None:
                raise
            return interrupts.exit_code
        finally:
            saved = job.save()
            if saved is not None:
                screen.say(f"Wrote {saved}")


class Execution:
    """Runs cells in order until one fails."""

    def __init__(
        self, client: Client, screen: Screen, interrupts: Interrupts, job: Job, options: Options
    ) -> None:
        self._client = client
        self._screen = screen
        self._interrupts = interrupts
        self._job = job
        self._options = options

    async def run(self, cells: Sequence[Cell], kernel_id: str) -> int:
        """Return the exit code: success, the code failed, or it took too long.

        Raises:
            GatewayError: the gateway failed, not the code.
        """
        async with self._client.kernels.session(kernel_id) as connection:
            self._interrupts.watch(connection)
            for cell in cells:
                result = await self._cell(connection, cell)
                if self._interrupts.exit_code is not None:
                    return self._interrupts.exit_code
                if result.status is ExecutionStatus.TIMEOUT:
                    return TIMED_OUT
                allowed = cell.may_raise or self._options.allow_errors
                if result.status is not ExecutionStatus.OK and not (
                    result.status is ExecutionStatus.ERROR and allowed
                ):
                    return CODE_FAILED
        return SUCCESS

    async def _cell(self, connection: KernelConnection, cell: Cell) -> ExecutionResult:
        self._screen.begin(cell.source)
        started = datetime.now(UTC)
        try:
            result = await connection.run(
                cell.source, timeout_s=self._options.timeout_s, on_message=self._show
            )
        except ConnectionLost as lost:
            self._job.record(cell, lost.result, started, datetime.now(UTC))
            raise
        self._job.record(cell, result, started, datetime.now(UTC))
        self._screen.end(result)
        return result

    def _show(self, message: Message) -> None:
        if message.channel == "iopub":
            with contextlib.suppress(MalformedMessage):  # the result has a mark in its place
                self._screen.show(message.msg_type, content(message))


@contextlib.asynccontextmanager
async def own_kernel(
    client: Client, name: str | None, interrupts: Interrupts, screen: Screen, *, keep: bool
) -> AsyncIterator[str]:
    """Start a kernel, yield its id, and delete it whatever happens, unless it shall be kept."""
    creation = asyncio.ensure_future(client.kernels.create(name))
    try:
        kernel = await asyncio.shield(creation)
    except asyncio.CancelledError:
        # The gateway is making it already: wait for the answer, so as not to leave it behind.
        await _delete(client, (await creation).id, screen)
        raise
    try:
        yield kernel.id
    finally:
        interrupts.clean_up()
        if keep:
            screen.say(f"The kernel {kernel.id} keeps running.")
        else:
            await _delete(client, kernel.id, screen)


async def _delete(client: Client, kernel_id: str, screen: Screen) -> None:
    try:
        async with asyncio.timeout(DELETE_S):
            await client.kernels.delete(kernel_id)
    except (GatewayError, TimeoutError) as error:
        screen.say(f"cellblock: the kernel {kernel_id} may be left running: {str(error) or 'no answer'}")


async def choose_kernel(client: Client, name: str | None, language: str | None) -> str | None:
    """Return the kernelspec for a notebook: the one it names, else the default of the same language.

    Notebooks carry the names of their authors' environments, which are seldom those of the gateway.

    Raises:
        GatewayError: the gateway has no kernel for the notebook.
    """
    if name is None:
        return None
    specs = await client.kernelspecs.list()
    if name in specs.kernelspecs:
        return name
    default = specs.kernelspecs.get(specs.default)
    if default is not None and language in (None, default.spec.language.lower()):
        return specs.default
    known = ", ".join(sorted(specs.kernelspecs))
    raise GatewayError(f"The notebook asks for the kernel {name!r}; give --kernel with one of: {known}.")
