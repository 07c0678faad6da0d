"""Tools of whoever runs this code: `cellblock.call("name", argument=value)`, or `cellblock.tools.name(...)`.

A call blocks until the tool has answered; `await cellblock.acall(...)` does not, and any number may wait at
the same time, from threads and forked processes as well. What goes wrong is a `ToolError` with a code.
"""

from __future__ import annotations

import json
import socket
from typing import Any

__all__ = ["ToolError", "acall", "call", "tools"]

_DOOR = "\0cellblock"
_MOST = 64 << 20


class ToolError(Exception):
    """What a tool answered instead of a result: `code` is a short word, `message` a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


def call(name: str, /, **arguments: Any) -> Any:
    """Call a tool and return its result. Raises ToolError."""
    line = _line(name, arguments)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(_DOOR)
            connection.sendall(line)
            with connection.makefile("rb") as answer:
                return _result(answer.readline(_MOST))
        except OSError as error:
            raise _absent(error) from None


async def acall(name: str, /, **arguments: Any) -> Any:
    """Call a tool without blocking, and return its result. Raises ToolError."""
    import asyncio

    line = _line(name, arguments)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with connection:
        try:
            while True:
                try:
                    connection.connect(_DOOR)
                    break
                except BlockingIOError:
                    # as many as may are waiting already, and nobody tells when there is room
                    await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=_MOST)
            try:
                writer.write(line)
                return _result(await reader.readline())
            finally:
                writer.close()
        except OSError as error:
            raise _absent(error) from None


class _Tools:
    """Tools as functions: `tools.name(argument=value)`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def tool(**arguments: Any) -> Any:
            return call(name, **arguments)

        tool.__name__ = tool.__qualname__ = name
        tool.__doc__ = f"Call the tool {name!r} and return its result. Raises ToolError."
        return tool


tools = _Tools()


def _line(name: str, arguments: dict[str, Any]) -> bytes:
    try:
        text = json.dumps({"name": name, "arguments": arguments}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolError("bad_request", f"The arguments are no JSON: {error}") from None
    return text.encode() + b"\n"


def _result(line: bytes) -> Any:
    if not line.endswith(b"\n"):
        raise ToolError("no_answer", "The call was broken off.")
    answer = json.loads(line)
    if "error" in answer:
        raise ToolError(answer["error"]["code"], answer["error"]["message"])
    return answer.get("result")


def _absent(error: OSError) -> ToolError:
    if isinstance(error, ConnectionRefusedError):
        return ToolError("no_tools", "Nobody offers tools to this kernel.")
    return ToolError("no_answer", f"The call was broken off: {error.strerror}.")
