"""A kernel's messages as events of an execution, for readers who do not know Jupyter's protocol."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gateway.protocol.messages import MalformedMessage, content
from gateway.protocol.outputs import bundle_of, count_of

if TYPE_CHECKING:
    from gateway.models import ExecutionError, Message
    from gateway.models.jobs import EventType

    Told = tuple[EventType, dict[str, Any]]

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")
# Frames of what runs the code and not of the code itself.
_FOREIGN = re.compile(r"^File .*(site-packages|dist-packages|/lib/python3)")


def tell(message: Message) -> Told | None:
    """Return the event that a message of an execution is, by its type and fields; None where it is none.

    The kernel is hostile: what cannot be read is a gap of its size.
    """
    if message.channel != "iopub":
        return None
    try:
        return _told(message.msg_type, message)
    except MalformedMessage:
        return "gap", {"bytes": len(message.content)}


def _told(kind: str, message: Message) -> Told | None:
    match kind:
        case "stream":
            fields = content(message)
            text = fields.get("text")
            if not isinstance(text, str):
                raise MalformedMessage("The stream's text is not a text.")
            return ("stderr" if fields.get("name") == "stderr" else "stdout"), {"text": text}
        case "display_data" | "execute_result" | "update_display_data":
            fields = content(message)
            bundle = bundle_of(fields, message)
            shown: dict[str, Any] = {"data": bundle.data, "metadata": bundle.metadata}
            if bundle.display_id is not None:
                shown["display_id"] = bundle.display_id
            if kind == "execute_result":
                return "result", {**shown, "execution_count": count_of(fields)}
            return ("display" if kind == "display_data" else "update_display"), shown
        case "clear_output":
            return "clear", {"wait": content(message).get("wait") is True}
        case "error":
            fields = content(message)
            lines = fields.get("traceback")
            return "error", {
                "ename": _text(fields.get("ename")),
                "evalue": _text(fields.get("evalue")),
                "traceback": [line for line in lines if isinstance(line, str)]
                if isinstance(lines, list)
                else [],
            }
        case _:
            return None


def clean(error: ExecutionError) -> str:
    """Return an error as a person reads it: no colours, and of its frames only those of the code itself."""
    parts = [_ANSI.sub("", part).strip("\n") for part in error.traceback]
    kept = [part for part in parts if part and not _FOREIGN.match(part) and set(part) != {"-"}]
    text = "\n".join(kept)
    last = f"{error.ename}: {error.evalue}".rstrip(": ")
    return text if last and last in text else f"{text}\n{last}".strip()


def shorten(text: str, most: int) -> str:
    """Return a text of at most about `most` characters: its head, a mark that tells what is cut, its tail."""
    if len(text) <= most:
        return text
    head, tail = most * 2 // 3, most // 3
    return f"{text[:head]}\n[cellblock: {len(text) - head - tail} characters cut]\n{text[-tail:]}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
