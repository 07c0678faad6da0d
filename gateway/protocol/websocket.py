"""The two framings of /api/kernels/{id}/channels: v1.kernel.websocket.jupyter.org and the legacy JSON one."""

from __future__ import annotations

import re
import struct
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Protocol

import orjson

from gateway.models import CHANNELS, Channel, Message, timestamp
from gateway.protocol.messages import (
    MAX_BUFFERS,
    USERNAME,
    VERSION,
    MalformedMessage,
    assemble,
    dumps,
    read_object,
)

V1 = "v1.kernel.websocket.jupyter.org"

_CHANNELS: dict[object, Channel] = {name: name for name in CHANNELS}
_V1_FIXED = 6  # offsets of the channel, the four JSON parts, and the end
_VERSION = re.compile(r"\d{1,3}(\.\d{1,3}){0,2}", re.ASCII)


class UnknownChannel(MalformedMessage):
    """A frame for a channel that no kernel has; Jupyter servers pass over it."""


class Framing(Protocol):
    """How messages lie in WebSocket frames."""

    def decode(self, data: bytes | str) -> Message:
        """Return the message of a frame: binary as bytes, text as str. Raises MalformedMessage."""
        ...

    def encode(self, message: Message) -> bytes | str:
        """Return the frame of a message, binary or text. Raises MalformedMessage for one that has none."""
        ...


def framing(subprotocol: str | None) -> Framing:
    """Return the framing that a negotiated subprotocol stands for; without one it is the legacy framing."""
    return V1Framing() if subprotocol == V1 else LegacyFraming()


class V1Framing:
    """Binary frames of little-endian u64 `n | off[0..n-1] | channel | four JSON parts | buffers`.

    `n` is 6 plus the number of buffers; offsets count from the frame's start, the last one is its length. The
    parts are those on the kernel's socket, byte for byte (jupyter_server, kernels/connection/base.py).
    """

    def decode(self, data: bytes | str) -> Message:
        """Return the message in a binary frame, its header completed with what kernels need."""
        if isinstance(data, str):
            raise MalformedMessage("A v1 frame is binary, and this one is text.")
        offsets = _offsets(data, "<Q", fixed=_V1_FIXED)
        if offsets[-1] != len(data):
            raise MalformedMessage("The last offset is not the frame's end.")
        channel, *parts = _cut(data, offsets)
        return _completed(assemble(_channel(channel.decode("ascii", "replace")), parts[:4], parts[4:]))

    def encode(self, message: Message) -> bytes:
        """Return the binary frame of a message; nothing in it is parsed."""
        parts = [
            message.channel.encode(),
            message.header,
            message.parent_header,
            message.metadata,
            message.content,
            *message.buffers,
        ]
        return _framed("<Q", parts, end=True)


class LegacyFraming:
    """One JSON text; with buffers a binary frame of big-endian u32 `n | off[0..n-1] | JSON | buffers`.

    Clients of this framing leave much out: date, channel (shell is meant), metadata, parent_header; and
    `buffers` is of any type in a text frame. Replies carry msg_id and msg_type at the top.
    """

    def decode(self, data: bytes | str) -> Message:
        """Return the message in a text or binary frame, what clients leave out being filled in."""
        buffers: list[bytes] = []
        text: bytes | str = data
        if isinstance(data, bytes):
            text, *buffers = _cut(data, [*_offsets(data, "!I", fixed=1), len(data)])
        frame, _ = read_object(text, "frame")
        parts = [_part(frame, name) for name in ("header", "parent_header", "metadata", "content")]
        named = frame.get("channel")
        channel: Channel = "shell" if named is None else _channel(named)
        return _completed(assemble(channel, parts, buffers))

    def encode(self, message: Message) -> bytes | str:
        """Return a text frame, or a binary one for a message with buffers.

        The parts are joined as they are, once they are seen to be strict JSON.
        """
        _, metadata = read_object(message.metadata, "metadata")
        _, content = read_object(message.content, "content")
        text = b"".join(
            (
                b'{"channel":"' + message.channel.encode() + b'","header":' + message.header,
                b',"msg_id":' + dumps(message.msg_id) + b',"msg_type":' + dumps(message.msg_type),
                b',"parent_header":' + message.parent_header + b',"metadata":' + metadata,
                b',"content":' + content + (b"}" if message.buffers else b',"buffers":[]}'),
            )
        )
        if message.buffers:
            return _framed("!I", [text, *message.buffers], end=False)
        return text.decode()


def _channel(name: object) -> Channel:
    channel = _CHANNELS.get(name) if isinstance(name, str) else None
    if channel is None:
        raise UnknownChannel("The channel is none of shell, control, stdin and iopub.")
    return channel


def _part(frame: dict[str, Any], name: str) -> bytes:
    value = frame.get(name)
    if value is None:
        return b"{}"
    if not isinstance(value, dict):
        raise MalformedMessage(f"The {name} is not a JSON object.")
    return dumps(value)


def _completed(message: Message) -> Message:
    """Give the header what kernels crash without; a header that has it all keeps its client's bytes.

    jupyter_client in the kernel takes a message without a version for one of protocol 4 and drops one whose
    version or date it cannot read; kernels in typed languages want all four fields to be texts.
    """
    fields = orjson.loads(message.header)
    missing: dict[str, str] = {}
    if not _is_date(fields.get("date")):
        missing["date"] = timestamp(datetime.now(UTC))
    version = fields.get("version")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        missing["version"] = VERSION
    if not isinstance(fields.get("session"), str):
        missing["session"] = ""
    if not isinstance(fields.get("username"), str):
        missing["username"] = USERNAME
    if missing:
        message.header = dumps(fields | missing)
    return message


def _is_date(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _offsets(data: bytes, unit: str, *, fixed: int) -> list[int]:
    """Return the offsets at a frame's start: the first is behind them, none falls or leaves the frame."""
    size = struct.calcsize(unit)
    if len(data) < size:
        raise MalformedMessage("The frame is too short.")
    (count,) = struct.unpack_from(unit, data)
    if not fixed <= count <= fixed + MAX_BUFFERS:
        raise MalformedMessage("The frame's number of parts is wrong.")
    start = size * (1 + count)
    if len(data) < start:
        raise MalformedMessage("The frame is too short for its offsets.")
    offsets = list(struct.unpack_from(f"{unit[0]}{count}{unit[1]}", data, size))
    if offsets[0] != start or offsets != sorted(offsets) or offsets[-1] > len(data):
        raise MalformedMessage("The frame's offsets are wrong.")
    return offsets


def _cut(data: bytes, offsets: list[int]) -> list[bytes]:
    return [data[start:end] for start, end in pairwise(offsets)]


def _framed(unit: str, parts: list[bytes], *, end: bool) -> bytes:
    """Return parts behind the offsets at which they start, and their end's where `end` is wanted."""
    count = len(parts) + end
    offsets = [struct.calcsize(unit) * (1 + count)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    table = struct.pack(f"{unit[0]}{1 + count}{unit[1]}", count, *offsets[:count])
    return b"".join((table, *parts))
