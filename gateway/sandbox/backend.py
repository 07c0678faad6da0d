"""What stands between the launcher and the program that makes a cell: firejail or bubblewrap."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.errors import ConfigurationError, SandboxUnavailable
from gateway.models import Limits
from gateway.sandbox.profile import SandboxProfile
from gateway.sandbox.users import CellUser

# What hosted code interpreters call the home, and their users' code with them: a link to it in every cell
# where one can be made.
ALIAS = Path("/home/user")


@dataclass(frozen=True, slots=True)
class CellPaths:
    """The host's directories that one cell gets: `home` becomes its home, `ipc` stays writable where it is.

    All others are shown read-only where they are; `boot` is the boot step's file or its directory. With a
    `share`, which may lie in the user's real home, that is empty otherwise and `home` stays where it is, too.
    """

    home: Path
    ipc: Path
    environment: Path | None
    boot: Path
    read_only_shares: tuple[Path, ...] = ()
    share: Path | None = None
    share_writable: bool = False


@dataclass(frozen=True, slots=True)
class Invocation:
    """How to start one cell: a command, its own environment, and the descriptors that it inherits.

    Who takes it owns the descriptors, and closes them once the command was started.
    """

    command: list[str]
    environment: Mapping[str, str]
    descriptors: tuple[int, ...] = ()


def version(program: Path, backend: str) -> tuple[int, int, int]:
    """Return which version of a backend a program says it is. Blocks for some milliseconds.

    Raises:
        SandboxUnavailable: it cannot be run, or what it prints is not that backend's.
    """
    reason = f"{backend}_missing"
    command = [str(program), "--version"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False, env={}
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise SandboxUnavailable(f"{program} cannot be run: {error}.", reason=reason) from error
    found = re.match(rf"{backend} (?:version )?(\d+)\.(\d+)\.(\d+)", done.stdout)
    if done.returncode or not found:
        raise SandboxUnavailable(f"{program} does not say its version.", reason=reason)
    return int(found[1]), int(found[2]), int(found[3])


def check_there(path: Path, what: str) -> None:
    """Refuse a path that is a link, or not there: a cell is shown what was named, and nothing else."""
    if path.resolve() != path:
        raise ConfigurationError(f"The {what} {path} is a link to {path.resolve()}; give that path.")
    if not path.exists():
        raise ConfigurationError(f"The {what} {path} does not exist.")


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
