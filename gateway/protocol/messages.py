"""Frames of the Jupyter wire protocol ⇄ `Message`. Kernels are hostile: all is bounded, verified, checked."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson

from gateway.models import Channel, Message, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DELIMITER = b"<IDS|MSG>"
VERSION = "5.3"
USERNAME = "cellblock"

# What clients ask of a kernel (Jupyter messaging 5.5); whatever else they send is not passed on.
REQUESTS = frozenset(
    {
        "execute_request",
        "complete_request",
        "inspect_request",
        "history_request",
        "is_complete_request",
        "kernel_info_request",
        "comm_info_request",
        "comm_open",
        "comm_msg",
        "comm_close",
        "input_reply",
        "interrupt_request",
        "shutdown_request",
        "debug_request",
        "create_subshell_request",
        "delete_subshell_request",
        "list_subshell_request",
        "usage_request",
    }
)

MAX_IDENTS = 16
MAX_BUFFERS = 1024
MAX_HEADER_BYTES = 64 << 10
MAX_ID_CHARS = 256
# A parsed value may take 40 times the bytes of its JSON, so the number of values has a bound of its own.
MAX_VALUES = 1_000_000
FEW_VALUES = 1000
# The repair of JSON that only lenient parsers take goes through the slow parser.
MAX_REPAIR_BYTES = 4 << 20
STREAM_PIECE_BYTES = 512 << 10

_STRING = re.compile(rb'"[^"]*"')


class MalformedMessage(ValueError):
    """The bytes are not a Jupyter message; the text says why in one sentence and quotes none of them."""


class Signer:
    """Signs and verifies messages with a kernel's key: HMAC-SHA256, hex (Jupyter wire protocol)."""

    def __init__(self, key: bytes) -> None:
        if not key:
            raise ValueError("The signing key is empty.")
        self._keyed = hmac.new(key, digestmod=hashlib.sha256)

    def sign(self, parts: Sequence[bytes]) -> bytes:
        """Return the signature of header, parent header, metadata and content; buffers are not signed."""
        digest = self._keyed.copy()
        for part in parts:
            digest.update(part)
        return digest.hexdigest().encode()

    def verify(self, signature: bytes, parts: Sequence[bytes]) -> bool:
        """Tell in constant time whether a signature is the parts' own."""
        return hmac.compare_digest(signature, self.sign(parts))


def parse(frames: Sequence[bytes], channel: Channel, signer: Signer, *, max_bytes: int) -> Message:
    """Return the message of one multipart receive: idents, delimiter, signature, four JSON parts, buffers.

    Only the two headers are parsed, and only once the signature holds.

    Raises MalformedMessage: anything else; never another exception, whatever the frames are.
    """
    if len(frames) > MAX_IDENTS + 6 + MAX_BUFFERS:
        raise MalformedMessage("The message has too many frames.")
    if sum(map(len, frames)) > max_bytes:
        raise MalformedMessage(f"The message is larger than {max_bytes} bytes.")
    try:
        start = frames.index(DELIMITER, 0, MAX_IDENTS + 1) + 1
    except ValueError:
        raise MalformedMessage("The message has no delimiter frame.") from None
    if len(frames) < start + 5:
        raise MalformedMessage("The message lacks frames after its delimiter.")
    parts = frames[start + 1 : start + 5]
    if not signer.verify(frames[start], parts):
        raise MalformedMessage("The message's signature is wrong.")
    return assemble(channel, parts, frames[start + 5 :])


def assemble(channel: Channel, parts: Sequence[bytes], buffers: Sequence[bytes]) -> Message:
    """Return a message of four JSON parts and buffers, of which only the headers are parsed and checked.

    Raises MalformedMessage: too many buffers, or a header that does not say who the message is.
    """
    if len(buffers) > MAX_BUFFERS:
        raise MalformedMessage(f"The message has more than {MAX_BUFFERS} buffers.")
    header, parent_header, metadata, content = parts
    own, parent = _fields(header, "header"), _fields(parent_header, "parent header")
    return Message(
        channel=channel,
        header=header,
        parent_header=parent_header,
        metadata=metadata,
        content=content,
        msg_id=_short(own.get("msg_id"), "msg_id"),
        msg_type=_short(own.get("msg_type"), "msg_type"),
        parent_id=_short(parent["msg_id"], "parent's msg_id") if parent.get("msg_id", "") != "" else "",
        buffers=list(buffers),
    )


def to_frames(message: Message, signer: Signer) -> list[bytes]:
    """Return the frames to send: delimiter, fresh signature, the four JSON parts as they are, buffers."""
    parts = [message.header, message.parent_header, message.metadata, message.content]
    return [DELIMITER, signer.sign(parts), *parts, *message.buffers]


def make(
    channel: Channel,
    msg_type: str,
    content: Mapping[str, Any],
    *,
    parent: Message | None,
    session: str,
    username: str = USERNAME,
    metadata: Mapping[str, Any] | None = None,
    msg_id: str | None = None,
) -> Message:
    """Author a message of the gateway's own, in reply to `parent` if there is one.

    Raises MalformedMessage: the content or metadata cannot be JSON (a lone surrogate in a text, for one).
    """
    header = {"msg_id": msg_id or uuid4().hex, "msg_type": msg_type, "username": username, "session": session}
    header |= {"date": timestamp(datetime.now(UTC)), "version": VERSION}
    return Message(
        channel=channel,
        header=dumps(header),
        parent_header=b"{}" if parent is None else parent.header,
        metadata=dumps(dict(metadata or {})),
        content=dumps(dict(content)),
        msg_id=header["msg_id"],
        msg_type=msg_type,
        parent_id="" if parent is None else parent.msg_id,
        authored=True,
    )


def content(message: Message) -> dict[str, Any]:
    """Parse a message's content: NaN becomes null, bytes that are not UTF-8 become replacement characters.

    Raises MalformedMessage: the content is no JSON object, is nested too deeply or has too many values.
    """
    return read_object(message.content, "content")[0]


def wanted_timeout(request: Message) -> float | None:
    """Return the deadline in seconds that a request's metadata asks for: `{"cellblock": {"timeout_s": 5}}`.

    Raises:
        MalformedMessage: there is one, and it is no positive number.
    """
    if b'"cellblock"' not in request.metadata:
        return None
    asked = read_object(request.metadata, "metadata")[0]["cellblock"]
    wanted = asked.get("timeout_s") if isinstance(asked, dict) else None
    if wanted is None:
        return None
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 < wanted < math.inf:
        raise MalformedMessage("The metadata's timeout_s is not a positive number.")
    return float(wanted)


def split_stream(message: Message, limit: int = STREAM_PIECE_BYTES) -> list[Message]:
    """Return a large `stream` message as several whose texts take `limit` bytes at most, escapes included.

    Clients close sockets over frames of 1 MiB. The pieces have the same parent and metadata, a msg_id each,
    and no character is cut. Every other message comes back as it is, alone.
    """
    if len(message.content) <= limit or message.msg_type != "stream":
        return [message]
    try:
        fields = content(message)
    except MalformedMessage:
        return [message]
    name, text = fields.get("name"), fields.get("text")
    if not isinstance(name, str) or not isinstance(text, str) or len(name) > MAX_ID_CHARS:
        return [message]
    # Only texts are taken over: a kernel may nest other fields too deeply to be written again.
    header = {key: value for key, value in orjson.loads(message.header).items() if isinstance(value, str)}
    pieces = []
    for piece in _pieces(text, limit):
        header["msg_id"] = uuid4().hex
        body = b'{"name":' + dumps(name) + b',"text":' + piece + b"}"
        pieces.append(replace(message, header=dumps(header), content=body, msg_id=header["msg_id"]))
    return pieces or [message]


def read_object(raw: bytes | str, what: str) -> tuple[dict[str, Any], bytes]:
    """Parse a JSON object of a stranger's, boundedly; return it, and its bytes as strict JSON in UTF-8.

    What lenient parsers take is repaired: NaN and infinities become null, bytes that are not UTF-8 and lone
    surrogates become replacement characters.

    Raises MalformedMessage: `what` is no JSON object, is nested too deeply or has too many values.
    """
    data = raw if isinstance(raw, bytes) else raw.encode("utf-8", "replace")
    if _separators(data) > MAX_VALUES and count_values(data) > MAX_VALUES:
        raise MalformedMessage(f"The {what} has more than {MAX_VALUES} values.")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value, data = _repaired(data, what)
    if not isinstance(value, dict):
        raise MalformedMessage(f"The {what} is not a JSON object.")
    return value, data


def count_values(raw: bytes) -> int:
    """Return an upper bound of the values in a JSON text, in linear time and without parsing it."""
    found = _separators(raw)
    if found <= FEW_VALUES:
        return found
    # Punctuation in strings does not count: without escapes, a string runs from quote to quote.
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = bare.count(b'"')
    return quotes // 2 if quotes > 2 * MAX_VALUES else _separators(_STRING.sub(b"", bare))


def dumps(value: object) -> bytes:
    """Write strict JSON.

    Raises MalformedMessage: the value cannot be JSON, or is nested too deeply.
    """
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise MalformedMessage("The message cannot be written as JSON.") from error


def _fields(raw: bytes, what: str) -> dict[str, Any]:
    if len(raw) > MAX_HEADER_BYTES:
        raise MalformedMessage(f"The {what} is larger than {MAX_HEADER_BYTES} bytes.")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise MalformedMessage(f"The {what} is not JSON.") from None
    if not isinstance(value, dict):
        raise MalformedMessage(f"The {what} is not a JSON object.")
    return value


def _short(value: object, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS:
        raise MalformedMessage(f"The {what} is not a text of 1 to {MAX_ID_CHARS} characters.")
    return value


def _separators(raw: bytes) -> int:
    return raw.count(b",") + raw.count(b":") + raw.count(b"[") + raw.count(b"{") + 1


def _repaired(raw: bytes, what: str) -> tuple[Any, bytes]:
    text = raw.decode("utf-8", "replace")
    try:
        return orjson.loads(text), text.encode()
    except orjson.JSONDecodeError:
        if len(raw) > MAX_REPAIR_BYTES:
            raise MalformedMessage(f"The {what} is not JSON.") from None
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite, parse_int=_integer)
        strict = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        return orjson.loads(strict), strict
    except (ValueError, RecursionError):
        raise MalformedMessage(f"The {what} is not JSON.") from None


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _integer(digits: str) -> int | None:
    # Beyond a double's range strict parsers refuse it.
    return int(digits) if len(digits) <= 300 else None


def _pieces(text: str, limit: int) -> Iterator[bytes]:
    """Cut a text into JSON strings."""
    start = 0
    while start < len(text):
        size = max(1, limit)
        while len(piece := orjson.dumps(text[start : start + size])) - 2 > limit and size > 1:
            size //= 2
        yield piece
        start += size
