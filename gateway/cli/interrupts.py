"""What Ctrl-C and kill do to `cellblock run`."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Self

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from types import TracebackType

    from gateway.client import KernelConnection


class Interrupts:
    """Turns signals into an orderly end of the current task. Use as a context manager.

    The first Ctrl-C interrupts the kernel that is working, the second leaves; so does the first where no
    kernel works yet, and any SIGTERM or SIGHUP. `exit_code` is 128 + the signal, or None before any came.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._connection: KernelConnection | None = None
        self._interruption: asyncio.Task[None] | None = None
        self._cleaning = False
        self._signals = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup's wish
            self._signals.append(signal.SIGHUP)

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        for number in self._signals:
            self._loop.add_signal_handler(number, self._take, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._signals:
            self._loop.remove_signal_handler(number)

    def watch(self, connection: KernelConnection) -> None:
        """From now on the first Ctrl-C goes to this kernel."""
        self._connection = connection

    def clean_up(self) -> None:
        """From now on signals change nothing: what remains is short, bounded and has to be done."""
        self._cleaning = True

    def _take(self, number: signal.Signals) -> None:
        first, self.exit_code = self.exit_code is None, self.exit_code or 128 + number
        if self._cleaning:
            return
        if first and number is signal.SIGINT and self._connection is not None:
            self._interruption = asyncio.create_task(self._interrupt(self._connection))
        else:
            self._leave()

    async def _interrupt(self, connection: KernelConnection) -> None:
        try:
            await connection.interrupt()
        except GatewayError:
            self._leave()

    def _leave(self) -> None:
        if self._task is not None:
            self._task.cancel()
