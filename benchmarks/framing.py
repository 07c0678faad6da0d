"""Jupyter messages on the wire, in the three ways that the doors speak: v1, legacy JSON, and ZeroMQ parts.

Written for the benchmark alone: every target is spoken to by this same code, and none by its own.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from benchmarks.outcome import Outcome, digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

V1 = "v1.kernel.websocket.jupyter.org"
DELIMITER = b"<IDS|MSG>"


@dataclass(frozen=True, slots=True)
class Said:
    """A message of a kernel's; content and buffers as they came."""

    msg_type: str
    parent_id: str
    content: Any
    buffers: Sequence[bytes] = ()


class Framing(Protocol):
    """How messages lie in WebSocket frames; `protocols` is what to offer for it."""

    protocols: Sequence[str]

    def encode(self, header: dict[str, str], content: dict[str, object]) -> bytes | str:
        """Return the frame of a request on the shell channel."""
        ...

    def decode(self, frame: Any) -> Said:
        """Return the message of a frame."""
        ...


def request(msg_type: str, msg_id: str, session: str) -> dict[str, str]:
    """Return the header of a request."""
    return {
        "msg_id": msg_id,
        "session": session,
        "username": "benchmark",
        "date": datetime.now(UTC).isoformat(),
        "msg_type": msg_type,
        "version": "5.3",
    }


def execute_content(code: str) -> dict[str, object]:
    """Return the content of an execute_request."""
    return {
        "code": code,
        "silent": False,
        "store_history": True,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": True,
    }


class V1Framing:
    """Binary frames with an offset table: v1.kernel.websocket.jupyter.org."""

    protocols: Sequence[str] = (V1,)

    def encode(self, header: dict[str, str], content: dict[str, object]) -> bytes:
        """Return the frame of a request on the shell channel."""
        parts = [b"shell", orjson.dumps(header), b"{}", b"{}", orjson.dumps(content)]
        offset = 8 * (len(parts) + 2)
        offsets = [offset]
        for part in parts:
            offset += len(part)
            offsets.append(offset)
        return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)

    def decode(self, frame: bytes) -> Said:
        """Return the message of a frame."""
        count = struct.unpack_from("<Q", frame)[0]
        ends = struct.unpack_from(f"<{count}Q", frame, 8)
        parts = [frame[ends[i] : ends[i + 1]] for i in range(1, count - 1)]
        return _said(parts)


class LegacyFraming:
    """Jupyter's older framing: JSON as text, or JSON and buffers as a binary frame."""

    protocols: Sequence[str] = ()

    def encode(self, header: dict[str, str], content: dict[str, object]) -> str:
        """Return the frame of a request on the shell channel."""
        message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}}
        return orjson.dumps({**message, "content": content, "buffers": []}).decode()

    def decode(self, frame: bytes | str) -> Said:
        """Return the message of a frame."""
        buffers: list[bytes] = []
        if isinstance(frame, bytes):
            count = struct.unpack_from(">I", frame)[0]
            starts = (*struct.unpack_from(f">{count}I", frame, 4), len(frame))
            parts = [frame[starts[i] : starts[i + 1]] for i in range(count)]
            frame, buffers = parts[0].decode(), parts[1:]
        message = orjson.loads(frame)
        parent = message["parent_header"].get("msg_id", "")
        return Said(message["header"]["msg_type"], parent, message["content"], buffers)


class ZmqFraming:
    """Multipart messages as they lie on a kernel's sockets, signed with its key."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def encode(self, header: dict[str, str], content: dict[str, object]) -> list[bytes]:
        """Return the parts of a request."""
        parts = [orjson.dumps(header), b"{}", b"{}", orjson.dumps(content)]
        signature = hmac.new(self._key, b"".join(parts), "sha256").hexdigest().encode()
        return [DELIMITER, signature, *parts]

    def decode(self, frame: list[bytes]) -> Said:
        """Return the message of some parts. The signature is not checked: the floor is to be low."""
        return _said(frame[frame.index(DELIMITER) + 2 :])


def _said(parts: list[bytes]) -> Said:
    parent = orjson.loads(parts[1]).get("msg_id", "")
    return Said(orjson.loads(parts[0])["msg_type"], parent, orjson.loads(parts[3]), parts[4:])


def is_reply(said: Said, msg_id: str) -> bool:
    """Tell whether a message is the reply to an execution."""
    return said.msg_type == "execute_reply" and said.parent_id == msg_id


def is_idle(said: Said, msg_id: str) -> bool:
    """Tell whether a message says that an execution is over."""
    return (
        said.msg_type == "status" and said.parent_id == msg_id and said.content["execution_state"] == "idle"
    )


def outcome_of(messages: Iterable[Said], msg_id: str) -> Outcome:
    """Fold the messages of one execution, in the order in which they came."""
    streams: dict[str, list[str]] = {"stdout": [], "stderr": []}
    displays: list[str] = []
    buffers: list[str] = []
    result, status = None, "none"
    for said in messages:
        if said.parent_id != msg_id:
            continue
        if said.msg_type == "stream":
            streams[said.content["name"]].append(said.content["text"])
        elif said.msg_type == "display_data":
            displays.append(said.content["data"]["text/plain"])
        elif said.msg_type == "execute_result":
            result = said.content["data"]["text/plain"]
        elif said.msg_type == "execute_reply":
            status = said.content["status"]
        elif said.msg_type == "comm_msg":
            buffers += [digest(buffer) for buffer in said.buffers]
    joined = {name: "".join(texts) for name, texts in streams.items()}
    return Outcome(status, displays=tuple(displays), result=result, buffers=tuple(buffers), **joined)
