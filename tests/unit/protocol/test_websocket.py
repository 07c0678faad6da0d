"""The two WebSocket framings against jupyter_server's own, and against garbage."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from datetime import datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.session import Session
from jupyter_server.services.kernels.connection.base import (
    deserialize_binary_message,
    deserialize_msg_from_ws_v1,
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)

from gateway.models import CHANNELS, Channel, Message
from gateway.protocol.messages import MalformedMessage, Signer, make, to_frames
from gateway.protocol.websocket import V1, LegacyFraming, V1Framing, framing

HEADER = {
    "msg_id": "m",
    "msg_type": "execute_request",
    "username": "u",
    "session": "s",
    "date": "2026-01-02T03:04:05.678Z",
    "version": "5.4",
}
TEXT = json.dumps(HEADER).encode()

texts = st.text(max_size=20)
objects = st.dictionaries(texts, texts | st.integers(0, 2**60) | st.lists(texts, max_size=3), max_size=4)
buffer_lists = st.lists(st.binary(max_size=20), max_size=4)


def reply(body: bytes = b'{"status":"ok"}', buffers: list[bytes] | None = None) -> Message:
    """Return a kernel's reply to a request."""
    request = make("shell", "execute_request", {"code": "é"}, parent=None, session="s")
    message = make("shell", "execute_reply", {}, parent=request, session="k", metadata={"a": [1]})
    return replace(message, content=body, buffers=buffers or [])


def v1(channel: bytes, *parts: bytes) -> bytes:
    """Return a v1 frame as jupyter_server makes it."""
    frame: bytes = serialize_msg_to_ws_v1(list(parts), channel.decode("latin-1"))
    return frame


def table(unit: str, *numbers: int, rest: bytes = b"") -> bytes:
    """Return a frame that begins with these numbers."""
    return struct.pack(f"{unit[0]}{len(numbers)}{unit[1]}", *numbers) + rest


def legacy(**fields: object) -> str:
    """Return a text frame with these fields beside a good header."""
    return json.dumps({"header": HEADER, **fields})


def test_the_subprotocol_chooses_the_framing() -> None:
    """Only v1's own name selects it."""
    assert isinstance(framing(V1), V1Framing)
    assert isinstance(framing(None), LegacyFraming)
    assert isinstance(framing(""), LegacyFraming)


@given(st.sampled_from(CHANNELS), objects, objects, objects, buffer_lists)
def test_v1_reads_what_jupyter_server_writes(
    channel: Channel,
    parent: dict[str, object],
    metadata: dict[str, object],
    body: dict[str, object],
    buffers: list[bytes],
) -> None:
    """Every part of a complete message is taken over byte for byte."""
    parent["msg_id"] = "p"
    parts = [TEXT, *(json.dumps(part).encode() for part in (parent, metadata, body))]

    message = V1Framing().decode(v1(channel.encode(), *parts, *buffers))

    assert [message.header, message.parent_header, message.metadata, message.content] == parts
    assert (message.channel, message.buffers) == (channel, buffers)
    assert (message.msg_id, message.msg_type, message.parent_id) == ("m", "execute_request", "p")
    assert V1Framing().decode(V1Framing().encode(message)) == message


@given(buffer_lists, st.binary(max_size=30))
def test_v1_writes_what_jupyter_server_reads(buffers: list[bytes], body: bytes) -> None:
    """The parts arrive byte for byte, whatever the content is."""
    message = reply(body, buffers)

    channel, parts = deserialize_msg_from_ws_v1(V1Framing().encode(message))

    assert channel == "shell"
    assert parts == [message.header, message.parent_header, message.metadata, body, *buffers]
    assert V1Framing().encode(message) == v1(b"shell", *parts)


@pytest.mark.parametrize(
    "frame",
    [
        "",
        '{"header":{}}',
        b"",
        b"\x06",
        table("<Q", 0),
        table("<Q", 5, 48, 48, 48, 48, 48),
        table("<Q", 2**64 - 1),
        table("<Q", 2**63, 56),
        table("<Q", 2000, *[8 * 2001] * 2000),
        table("<Q", 6, 56, 56, 56, 56, 56),
        table("<Q", 6, 56, 61, 61, 61, 61, 2**64 - 1, rest=b"shell"),
        table("<Q", 6, 56, 2**64 - 1, 61, 61, 61, 61, rest=b"shell"),
        table("<Q", 6, 0, 5, 5, 5, 5, 61, rest=b"shell"),
        table("<Q", 6, 56, 61, 61, 58, 61, 61, rest=b"shell"),
        table("<Q", 6, 56, 61, 61, 61, 61, 61, rest=b"shell"),
        # a byte between offsets and channel, and a fall: messages but for the offsets
        table(
            "<Q", 6, 57, 62, *[62 + len(TEXT) + n for n in (0, 2, 4, 6)], rest=b"_shell" + TEXT + b"{}{}{}"
        ),
        table("<Q", 6, 56, 61, *[61 + len(TEXT) + n for n in (0, 2, 1, 6)], rest=b"shell" + TEXT + b"{}{}{}"),
        table("<Q", 6, 56, 61, 61, 61, 61, 61, rest=b"shell{}"),
        v1(b"shell", TEXT, b"{}", b"{}", b"{}")[:-1],
        v1(b"shell", TEXT, b"{}", b"{}", b"{}") + b"x",
        v1(b"shell", TEXT, b"{}", b"{}"),
        v1(b"", TEXT, b"{}", b"{}", b"{}"),
        v1(b"hb", TEXT, b"{}", b"{}", b"{}"),
        v1(b"SHELL", TEXT, b"{}", b"{}", b"{}"),
        v1(b"\xff", TEXT, b"{}", b"{}", b"{}"),
        v1(b"shell", b"", b"{}", b"{}", b"{}"),
        v1(b"shell", b"[]", b"{}", b"{}", b"{}"),
        v1(b"shell", b"{}", b"{}", b"{}", b"{}"),
        v1(b"shell", TEXT, b"", b"{}", b"{}"),
        v1(b"shell", TEXT, b"null", b"{}", b"{}"),
        v1(b"shell", b'{"msg_id":"m","msg_type":1}', b"{}", b"{}", b"{}"),
        v1(
            b"shell",
            b'{"msg_id":"m","msg_type":"t","a":' + b"[" * 900 + b"]" * 900 + b"}",
            b"{}",
            b"{}",
            b"{}",
        ),
        v1(b"shell", TEXT, b"{}", b"{}", b"{}", *[b""] * 1025),
    ],
)
def test_v1_garbage_is_malformed(frame: bytes | str) -> None:
    """Lying offsets, wrong channels and wrong headers raise MalformedMessage and nothing else."""
    with pytest.raises(MalformedMessage):
        V1Framing().decode(frame)


@given(st.binary(max_size=200))
def test_any_binary_frame_is_malformed_or_a_message(frame: bytes) -> None:
    """Random bytes never raise another exception, in either framing."""
    for kind in (V1Framing(), LegacyFraming()):
        with pytest.raises(MalformedMessage):
            kind.decode(frame)


@given(st.data(), st.sampled_from(["<Q", "!I"]))
def test_any_offsets_are_malformed_or_a_message(data: st.DataObject, unit: str) -> None:
    """A good frame with its offsets tampered with never raises another exception."""
    parts = [b"shell", TEXT, b"{}", b"{}", b"{}"] if unit == "<Q" else [legacy().encode(), b"ab"]
    count = len(parts) + (unit == "<Q")
    size = struct.calcsize(unit)
    total = size * (1 + count) + sum(map(len, parts))
    numbers = data.draw(st.lists(st.integers(0, total + 4), min_size=count, max_size=count))
    frame = table(unit, count, *numbers, rest=b"".join(parts))
    try:
        message = framing(V1 if unit == "<Q" else None).decode(frame)
    except MalformedMessage:
        return
    assert message.msg_id == "m"


@given(texts | objects.map(json.dumps) | st.builds(lambda value: legacy(channel=value), objects | texts))
def test_any_text_frame_is_malformed(frame: str) -> None:
    """Random texts, JSON without a header and made-up channels never raise another exception."""
    with pytest.raises(MalformedMessage):
        LegacyFraming().decode(frame)


@pytest.mark.parametrize(
    "frame",
    [
        "[]",
        "[" * 100_000,
        '{"header":',
        "{}",
        json.dumps({"header": []}),
        json.dumps({"header": {"msg_id": "m"}}),
        json.dumps({"header": {"msg_type": "t"}}),
        json.dumps({"header": HEADER | {"msg_id": 1}}),
        json.dumps({"header": HEADER | {"a": "x" * (64 << 10)}}),
        legacy(channel="heartbeat"),
        legacy(channel=1),
        legacy(channel=["shell"]),
        legacy(content="code"),
        legacy(content=[]),
        legacy(metadata=1),
        legacy(parent_header=[]),
        legacy(parent_header={"msg_id": 1}),
        legacy(content="DEEP").replace('"DEEP"', '{"a":' * 600 + "1" + "}" * 600),
        table("!I", 0),
        table("!I", 2**32 - 1),
        table("!I", 1, 8),
        table("!I", 1, 2**32 - 1, rest=b"{}"),
        table("!I", 1, 4, rest=legacy().encode()),
        table("!I", 1, 9, rest=b"_" + legacy().encode()),
        table("!I", 2, 12, 2**31, rest=legacy().encode()),
        table("!I", 1026, *[4 * 1027] * 1026),
        table("!I", 1, 8, rest=b"\xff\xff"),
    ],
)
def test_legacy_garbage_is_malformed(frame: bytes | str) -> None:
    """Wrong types, deep nesting and lying offsets raise MalformedMessage and nothing else."""
    with pytest.raises(MalformedMessage):
        LegacyFraming().decode(frame)


@pytest.mark.parametrize(
    "frame",
    [
        # smolagents: no channel, no date, no buffers
        {
            "header": {"msg_id": "m", "username": "a", "session": "x", "msg_type": "t", "version": "5.0"},
            "parent_header": {},
            "metadata": {},
            "content": {"code": "1"},
        },
        # Open WebUI: empty date, no buffers
        {
            "header": HEADER | {"msg_type": "t", "date": ""},
            "parent_header": {},
            "metadata": {},
            "content": {"code": "1"},
            "channel": "shell",
        },
        # AutoGen: buffers is a dict
        {
            "header": HEADER | {"msg_type": "t"},
            "parent_header": {},
            "metadata": {},
            "content": {"code": "1"},
            "channel": "shell",
            "buffers": {},
        },
        # others leave out or empty what they have no use for
        {
            "header": {"msg_id": "m", "msg_type": "t", "session": ""},
            "content": {"code": "1"},
            "channel": None,
        },
        {
            "header": {
                "msg_id": "m",
                "msg_type": "t",
                "version": 5,
                "session": 7,
                "username": None,
                "date": 0,
            },
            "content": {"code": "1"},
            "parent_header": None,
            "metadata": None,
            "buffers": [1, "x"],
        },
        {
            "header": HEADER | {"msg_type": "t", "date": "2026-99-99T00:00:00", "version": "x"},
            "content": {"code": "1"},
        },
    ],
)
def test_legacy_tolerates_what_real_clients_send(frame: dict[str, object]) -> None:
    """Each becomes a shell message that jupyter_client in the kernel takes, with all header fields texts."""
    message = LegacyFraming().decode(json.dumps(frame))

    kernel = Session(key=b"k")
    frames = to_frames(message, Signer(b"k"))
    read = kernel.deserialize(kernel.feed_identities(frames)[1])
    assert (message.channel, message.msg_id, message.msg_type) == ("shell", "m", "t")
    assert isinstance(read["header"]["date"], datetime)
    assert read["content"] == {"code": "1"}
    assert (read["metadata"], read["parent_header"], read["buffers"]) == ({}, {}, [])
    header = orjson.loads(message.header)
    assert all(isinstance(header[name], str) for name in ("date", "session", "username", "version"))
    assert header["version"].startswith("5.")


def test_v1_completes_a_header_and_keeps_the_rest_of_it() -> None:
    """A missing date is added; what the client said stays, fields unknown to us included."""
    fields = {
        "msg_id": "m",
        "msg_type": "t",
        "username": "",
        "session": "",
        "version": "5.5",
        "subshell_id": "z",
    }

    message = V1Framing().decode(v1(b"control", json.dumps(fields).encode(), b"{}", b"{}", b"{}"))

    header = orjson.loads(message.header)
    assert datetime.fromisoformat(header.pop("date")).tzinfo is not None
    assert header == fields


def test_legacy_text_keeps_nan_of_python_clients() -> None:
    """Python's json writes NaN, which stock servers take; it reaches the kernel as null."""
    message = LegacyFraming().decode('{"header":' + TEXT.decode() + ',"content":{"x":NaN}}')

    assert message.content == b'{"x":null}'


@given(objects, objects, buffer_lists)
def test_legacy_reads_what_jupyter_server_writes(
    metadata: dict[str, object], body: dict[str, object], buffers: list[bytes]
) -> None:
    """Text and binary frames give the same values as went in."""
    frame = {"header": HEADER, "parent_header": {"msg_id": "p"}, "metadata": metadata, "content": body}
    frame["channel"] = "stdin"

    for message in (
        LegacyFraming().decode(serialize_binary_message(frame | {"buffers": buffers})),
        LegacyFraming().decode(json.dumps(frame | {"buffers": []})),
    ):
        assert orjson.loads(message.header) == HEADER
        assert orjson.loads(message.metadata) == metadata
        assert orjson.loads(message.content) == body
        assert (message.channel, message.parent_id) == ("stdin", "p")
    assert LegacyFraming().decode(serialize_binary_message(frame | {"buffers": buffers})).buffers == buffers


@given(objects, buffer_lists)
def test_legacy_writes_what_clients_read(body: dict[str, object], buffers: list[bytes]) -> None:
    """Without buffers it is one JSON text, ids at its top; with them it is jupyter_server's binary frame."""
    message = reply(orjson.dumps(body), buffers)

    frame = LegacyFraming().encode(message)

    read = json.loads(frame) if isinstance(frame, str) else deserialize_binary_message(frame)
    assert isinstance(frame, bytes) == bool(buffers)
    assert set(read) == {
        "channel",
        "header",
        "msg_id",
        "msg_type",
        "parent_header",
        "metadata",
        "content",
        "buffers",
    }
    assert (read["channel"], read["msg_id"], read["msg_type"]) == ("shell", message.msg_id, "execute_reply")
    assert read["header"]["msg_id"] == message.msg_id
    assert read["parent_header"]["msg_id"] == message.parent_id
    assert (read["metadata"], read["content"], read["buffers"]) == ({"a": [1]}, body, buffers)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"data":{"a":NaN,"b":[-Infinity]}}', {"data": {"a": None, "b": [None]}}),
        (b'{"text":"\xff\xe9"}', {"text": "\ufffd\ufffd"}),
        (b'{"text":"\\udc80"}', {"text": "?"}),
    ],
)
def test_legacy_text_frames_stay_strict_json(body: bytes, expected: object) -> None:
    """What lenient kernels write is repaired, so that a browser's JSON.parse takes the frame."""
    frame = LegacyFraming().encode(reply(body))

    assert isinstance(frame, str)
    assert orjson.loads(frame)["content"] == expected


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{", b'{}, "channel": "x"', b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"],
)
def test_legacy_refuses_what_would_break_the_frame(body: bytes) -> None:
    """Content or metadata that is no JSON object cannot smuggle fields into the frame."""
    with pytest.raises(MalformedMessage):
        LegacyFraming().encode(reply(body))
    with pytest.raises(MalformedMessage):
        LegacyFraming().encode(replace(reply(), metadata=body))
