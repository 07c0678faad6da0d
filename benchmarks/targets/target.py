"""What everything that is measured can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from benchmarks.wires.wire import Wire


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that was started; `session` is a further name of it where a door needs one."""

    id: str
    warm: bool = False
    session: str | None = None


class Target(Protocol):
    """Something that starts kernels and leads to them. Use as an async context manager.

    `doors` names the ways to a kernel, the one first that the workloads take where the way does not matter.
    `server` tells whether there is a server between, `keeps` whether kernels outlive a restart of it, and
    `warm` whether it starts kernels before it is asked, for which it is measured apart.
    """

    name: str
    doors: Sequence[str]
    server: bool
    keeps: bool
    warm: bool

    async def create(self, *, session: bool = False) -> Kernel:
        """Start a kernel, with a session for those doors that need one. It may not be ready yet."""
        ...

    async def delete(self, kernel: Kernel) -> None:
        """End a kernel."""
        ...

    def connect(self, kernel: Kernel, door: str) -> AbstractAsyncContextManager[Wire]:
        """Open a way to a kernel."""
        ...

    def parts(self) -> Mapping[str, Sequence[int]]:
        """Return the pids of the server's own processes, by what they are called."""
        ...

    def kernel_pids(self) -> Sequence[int]:
        """Return the pids of all processes of all kernels, with what makes and holds them."""
        ...

    async def restart(self) -> float:
        """Stop the server and start it again; return the seconds from its stop to its start."""
        ...
