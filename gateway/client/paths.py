"""Paths of the API: what a caller names becomes a part of one only where it cannot lead elsewhere."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

from gateway.errors import BadRequest, NotFound

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._:@-]{0,127}")


def kernel_path(kernel_id: str, *rest: str) -> str:
    """Return the path of a kernel, or of something below it. Raises NotFound for what is no id."""
    return "/".join(("api/kernels", checked(kernel_id, "Kernel"), *rest))


def execution_path(execution_id: str, *rest: str) -> str:
    """Return the path of an execution, or of something below it. Raises NotFound for what is no id."""
    return "/".join(("api/executions", checked(execution_id, "Execution"), *rest))


def context_path(name: str, *rest: str) -> str:
    """Return the path of a context, or of something below it. Raises NotFound for what is no name."""
    return "/".join(("api/contexts", checked_name(name, "Context"), *rest))


def file_path(kernel_id: str, path: str) -> str:
    """Return the path of a file in a kernel's home; `path` may hold bytes as `os.fsdecode` has them.

    Raises:
        NotFound: the kernel's id is none.
        BadRequest: the path is not one below the home.
    """
    parts = path.rstrip("/").split("/")
    if any(part in {"", ".", ".."} for part in parts):
        raise BadRequest("A path is relative to the home, without empty parts, '.' or '..'.", reason="path")
    return kernel_path(kernel_id, "files", quote(os.fsencode("/".join(parts))))


def checked(value: str, what: str) -> str:
    """Return an id as it is. Raises NotFound for what is none."""
    if not _ID.fullmatch(value):
        raise NotFound(f"{what} does not exist: {value}")
    return value


def checked_name(value: str, what: str) -> str:
    """Return a name, ready for a path. Raises NotFound for what is none."""
    if not _NAME.fullmatch(value):
        raise NotFound(f"{what} does not exist: {value}")
    return quote(value, safe="")
