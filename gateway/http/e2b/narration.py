"""What a kernel says of an execution, as the lines that E2B's SDKs read."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import orjson

from gateway.models import timestamp
from gateway.protocol.messages import MalformedMessage, content
from gateway.protocol.narration import tell
from gateway.protocol.outputs import count_of

if TYPE_CHECKING:
    from gateway.errors import GatewayError
    from gateway.models import Message
    from gateway.ports import Clock

FORMATS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "application/vnd.e2b.data+json": "data",
    "application/vnd.e2b.chart+json": "chart",
}
KEEPALIVE = b'{"type":"keepalive"}\n'
END = b'{"type":"end_of_execution"}\n'
UNEXPECTED_END = b'{"type":"unexpected_end_of_execution"}\n'
CUT = "\n[cellblock: output left out here, because it is not read fast enough]\n"


class Narration:
    """The lines of one execution that wait to be written: at most `max_bytes` of output.

    Past that output is left out until half of it has been read, with a line on stderr in its place; errors
    and the execution's number are always kept.
    """

    def __init__(self, clock: Clock, max_bytes: int) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._cutting = False
        self.news = asyncio.Event()

    def deliver(self, message: Message) -> None:
        """Take a message of the execution's."""
        if message.channel == "iopub" and message.msg_type == "execute_input":
            try:
                count = count_of(content(message))
            except MalformedMessage:
                return
            self._put({"type": "number_of_executions", "execution_count": count})
            return
        told = tell(message)
        if told is None:
            return
        kind, fields = told
        match kind:
            case "stdout" | "stderr":
                self._output(self._text(kind, fields["text"]))
            case "display" | "result":
                self._output(shown(fields["data"], main=kind == "result"))
            case "error":
                self._put(
                    {
                        "type": "error",
                        "name": fields["ename"],
                        "value": fields["evalue"],
                        "traceback": "\n".join(fields["traceback"]),
                    }
                )
            case "gap":
                self._output(self._text("stderr", f"[cellblock: {fields['bytes']} bytes cannot be shown]\n"))

    def fail(self, error: GatewayError) -> None:
        """Say why nothing more will come, to a client that has been sent something already."""
        self._put({"type": "error", "name": error.code, "value": error.message, "traceback": error.message})

    def take(self) -> bytes:
        """Return the lines that wait, some of many."""
        taken, size = [], 0
        while self._lines and size < 1 << 20:
            taken.append(self._lines.popleft())
            size += len(taken[-1])
        self._bytes -= size
        if not self._lines:
            self.news.clear()
        return b"".join(taken)

    def _text(self, stream: str, text: str) -> dict[str, Any]:
        return {"type": stream, "text": text, "timestamp": timestamp(self._clock.now())}

    def _output(self, line: dict[str, Any]) -> None:
        if self._bytes > self._max_bytes * (0.5 if self._cutting else 1.0):
            if not self._cutting:
                self._cutting = True
                self._put(self._text("stderr", CUT))
            return
        self._cutting = False
        self._put(line)

    def _put(self, line: dict[str, Any]) -> None:
        data = orjson.dumps(line) + b"\n"
        self._lines.append(data)
        self._bytes += len(data)
        self.news.set()


def shown(data: dict[str, Any], *, main: bool) -> dict[str, Any]:
    """Return a mime bundle as a result: the formats that E2B names, all others as extra."""
    line: dict[str, Any] = {"type": "result", "is_main_result": main}
    extra = {mime: value for mime, value in data.items() if mime not in FORMATS}
    line |= {FORMATS[mime]: value for mime, value in data.items() if mime in FORMATS}
    text = line.get("text")
    # as E2B has it: a text's own quotes are not shown
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] == "'":
        line["text"] = text[1:-1]
    if extra:
        line["extra"] = extra
    return line
