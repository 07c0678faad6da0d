"""Which of a user's own directories a cell may be shown: never what holds keys, programs or other cells."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import gateway
from gateway.errors import BadRequest
from gateway.sandbox.users import CellUser
from gateway.sandbox.wire import Share

# below these are the system, what firejail replaces, or what everybody may write to
_SYSTEM = frozenset(
    {
        *("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "media", "mnt", "proc", "root"),
        *("run", "sbin", "sys", "tmp", "usr", "var"),
    }
)


def checked(share: Share, user: CellUser, closed: Iterable[Path]) -> Path:
    """Return a shared directory's path, if the user's cells may have it.

    Whatever is in `closed`, or holds it, is refused; to write, so is what the warden itself is run from.

    Raises:
        BadRequest: it is refused; the message says why.
    """
    path = Path(share.path)
    if path.resolve() != path:
        raise refusal(path, f"it is a link to {path.resolve()}, or not plain")
    if len(path.parts) < 3 or path.parts[1] in _SYSTEM:
        raise refusal(path, "only directories below /home, /srv, /opt or one of your own can be shared")
    if user.home.resolve().is_relative_to(path):
        raise refusal(path, "it holds your whole home, with keys and settings; use a directory in it")
    if any(part.startswith(".") for part in path.parts):
        raise refusal(path, "programs keep keys and settings in hidden directories")
    try:
        facts = path.stat()
    except OSError as error:
        raise refusal(path, f"it cannot be used ({error.strerror})") from error
    if not path.is_dir() or facts.st_uid != user.uid:
        raise refusal(path, f"it is no directory of {user.name}'s")
    programs = (Path(sys.prefix), Path(gateway.__file__).parent) if share.writable else ()
    for other in (*closed, *programs):
        real = other.resolve()
        if real.is_relative_to(path) or path.is_relative_to(real):
            raise refusal(path, f"{real} is part of what cells are made with")
    return path


def refusal(path: Path, why: str) -> BadRequest:
    """Return the error for a directory that is not shared."""
    return BadRequest(f"The directory {path} is not shared with cells: {why}.", reason="share_refused")
