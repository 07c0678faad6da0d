"""What stands between the launcher and the program that makes a cell: firejail or bubblewrap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.models import Limits
from gateway.sandbox.profile import SandboxProfile
from gateway.sandbox.users import CellUser


@dataclass(frozen=True, slots=True)
class CellPaths:
    """The host's directories that one cell gets: `home` becomes its home, `ipc` stays writable where it is.

    All others are shown read-only where they are; `boot` is the boot step's file or its directory.
    """

    home: Path
    ipc: Path
    environment: Path | None
    boot: Path
    read_only_shares: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Invocation:
    """How to start one cell: a command, its own environment, and the descriptors that it inherits.

    Who takes it owns the descriptors, and closes them once the command was started.
    """

    command: list[str]
    environment: Mapping[str, str]
    descriptors: tuple[int, ...] = ()


class Backend(Protocol):
    """A program that makes cells."""

    @property
    def shm(self) -> str:
        """Return where the tmpfs is mounted that holds a cell's /dev/shm."""
        ...

    def invocation(
        self,
        profile: SandboxProfile,
        paths: CellPaths,
        argv: Sequence[str],
        *,
        user: CellUser,
        limits: Limits,
        leash: int,
    ) -> Invocation:
        """Return what starts `argv` in a cell of the user's; its processes keep the descriptor `leash`.

        Raises:
            ConfigurationError: a path cannot be had in a cell.
        """
        ...

    def become(self, user: CellUser) -> Callable[[], None]:
        """Return the last step of root's launch before the exec: how the program gets to be the user's."""
        ...
