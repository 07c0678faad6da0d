"""Paths as E2B's SDKs write them: relative ones and those below /home/user mean the home."""

from __future__ import annotations

from posixpath import normpath

from gateway.errors import BadRequest

HOME = "/home/user"


def in_home(path: str) -> str:
    """Return a path relative to the home. Raises BadRequest for one that is elsewhere."""
    plain = _relative(path)
    if plain is None:
        raise BadRequest(
            f"{path[:200]!r} is outside of {HOME}: only there are files read and written but by commands.",
            reason="path",
        )
    return plain


def directory(path: str | None) -> str:
    """Return where something shall begin: relative to the home where it is there, else absolute."""
    plain = _relative(path or "")
    return (path or "") if plain is None else plain


def shown(path: str) -> str:
    """Return a path of the home as the SDKs show it."""
    return f"{HOME}/{path}" if path else HOME


def _relative(path: str) -> str | None:
    if path in {"", "~", "."}:
        return ""
    if not path.startswith("/"):
        path = f"{HOME}/{path.removeprefix('~/')}"
    whole = normpath(path)
    if whole == HOME:
        return ""
    return whole.removeprefix(HOME + "/") if whole.startswith(HOME + "/") else None
