"""Wire frames against jupyter_client's own Session, and against everything that a hostile kernel may send."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jupyter_client.session import Session

from gateway.protocol import messages
from gateway.protocol.messages import (
    DELIMITER,
    MAX_VALUES,
    MalformedMessage,
    Signer,
    content,
    count_values,
    make,
    parse,
    split_stream,
    to_frames,
)

if TYPE_CHECKING:
    from gateway.models import Message

KEY = b"0b1c2d"
SIGNER = Signer(KEY)
LARGE = 1 << 20

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def session() -> Session:
    """Return jupyter_client's side of the wire."""
    return Session(key=KEY, session="s", username="u")


def signed(header: bytes, parent: bytes = b"{}", metadata: bytes = b"{}", body: bytes = b"{}") -> list[bytes]:
    """Return frames with a good signature."""
    parts = [header, parent, metadata, body]
    return [DELIMITER, SIGNER.sign(parts), *parts]


def header(**fields: object) -> bytes:
    """Return a header with these fields."""
    return json.dumps({"msg_id": "m", "msg_type": "status", **fields}).encode()


def stream(text: str, name: object = "stdout") -> Message:
    """Return a stream message in reply to a request."""
    parent = make("shell", "execute_request", {"code": ""}, parent=None, session="s")
    return make("iopub", "stream", {"name": name, "text": text}, parent=parent, session="k")


def test_reads_what_jupyter_client_writes() -> None:
    """A message serialized by jupyter_client keeps its bytes, ids, buffers and parent."""
    parent = session().msg("execute_request")
    message = session().msg("stream", {"name": "stdout", "text": "é"}, parent=parent)
    frames = [*session().serialize(message, ident=[b"topic", b"other"]), b"\x00buffer", b""]

    read = parse(frames, "iopub", SIGNER, max_bytes=LARGE)

    assert (read.msg_id, read.msg_type) == (message["msg_id"], "stream")
    assert read.parent_id == parent["msg_id"]
    assert [read.header, read.parent_header, read.metadata, read.content] == frames[4:8]
    assert read.buffers == [b"\x00buffer", b""]
    assert not read.authored
    assert content(read) == {"name": "stdout", "text": "é"}


def test_writes_what_jupyter_client_reads() -> None:
    """A message of ours is signed and shaped as jupyter_client's Session demands."""
    request = make("shell", "execute_request", {"code": "1"}, parent=None, session="abc")
    reply = make("shell", "execute_reply", {"status": "ok"}, parent=request, session="k", metadata={"a": 1})

    read = session().deserialize(session().feed_identities(to_frames(reply, SIGNER))[1])

    assert read["header"]["version"] == "5.3"
    assert isinstance(read["header"]["date"], datetime)
    assert read["header"]["session"] == "k"
    assert read["parent_header"]["msg_id"] == request.msg_id == reply.parent_id
    assert read["parent_header"]["session"] == "abc"
    assert (read["metadata"], read["content"]) == ({"a": 1}, {"status": "ok"})
    assert reply.authored
    assert request.msg_id != reply.msg_id


def test_survives_its_own_round_trip() -> None:
    """Frames of a message parse into the same message."""
    message = replace(stream("x"), buffers=[b"a", b""], authored=False)

    assert parse(to_frames(message, SIGNER), "iopub", SIGNER, max_bytes=LARGE) == message


def test_make_refuses_what_is_not_json() -> None:
    """A lone surrogate, which no UTF-8 can carry, is an error that names itself."""
    with pytest.raises(MalformedMessage):
        make("shell", "execute_request", {"code": "\ud800"}, parent=None, session="s")


def test_a_signer_needs_a_key() -> None:
    """An empty key would make every message acceptable, so it is refused."""
    with pytest.raises(ValueError, match="empty"):
        Signer(b"")


def test_signature_is_the_protocols() -> None:
    """Our signature is jupyter_client's, and no other passes."""
    parts = [b"{}", b"{}", b"{}", b'{"a":1}']

    assert SIGNER.sign(parts) == session().sign(parts)
    assert SIGNER.verify(SIGNER.sign(parts), parts)
    assert not SIGNER.verify(b"", parts)
    assert not SIGNER.verify(b"\xff\xfe", parts)
    assert not SIGNER.verify(SIGNER.sign(parts), [*parts[:3], b'{"a":2}'])


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"x"] * 5,
        [DELIMITER],
        signed(header())[:5],
        [b"i"] * 17 + signed(header()),
        [b"i"] * 100_000,
        [DELIMITER, b"", header(), b"{}", b"{}", b"{}"],
        [DELIMITER, b"0" * 64, header(), b"{}", b"{}", b"{}"],
        signed(header()) + [b""] * 1025,
        [*signed(header()), b"x" * LARGE],
        signed(header(a="x" * (64 << 10))),
        signed(header(), parent=b'{"a":"' + b"x" * (64 << 10) + b'"}'),
        signed(b""),
        signed(b"null"),
        signed(b"[]"),
        signed(b'"m"'),
        signed(b"{"),
        signed(b"\xff\xfe"),
        signed(b'\xef\xbb\xbf{"msg_id":"m","msg_type":"t"}'),
        signed(b'{"msg_id":"\xff","msg_type":"t"}'),
        signed(b'{"msg_id":"\\ud800","msg_type":"t"}'),
        signed(b'{"msg_id":"m","msg_type":"t","a":NaN}'),
        signed(b'{"msg_id":"m","msg_type":"t","a":1e999}'),
        signed(b'{"msg_id":"m","msg_type":"t","a":' + b"1" * 5000 + b"}"),
        signed(b'{"a":' * 9000),
        signed(b"[" * 60_000),
        signed(b'{"msg_type":"t"}'),
        signed(b'{"msg_id":"m"}'),
        signed(header(msg_id=1)),
        signed(header(msg_id=None)),
        signed(header(msg_id="")),
        signed(header(msg_id=["m"])),
        signed(header(msg_id="m" * 257)),
        signed(header(msg_type={})),
        signed(header(msg_type="t" * 257)),
        signed(header(), parent=b"null"),
        signed(header(), parent=b""),
        signed(header(), parent=b"[1]"),
        signed(header(), parent=b'{"msg_id":1}'),
        signed(header(), parent=b'{"msg_id":null}'),
        signed(header(), parent=b'{"msg_id":"' + b"p" * 257 + b'"}'),
    ],
)
def test_hostile_frames_are_malformed(frames: list[bytes]) -> None:
    """Whatever is not a message raises MalformedMessage and nothing else."""
    with pytest.raises(MalformedMessage):
        parse(frames, "iopub", SIGNER, max_bytes=LARGE)


def test_the_bounds_themselves_are_inside() -> None:
    """16 idents, 1024 buffers, ids of 256 characters and a total of exactly max_bytes are taken."""
    frames = [b"i"] * 16 + signed(header(msg_id="é" * 256)) + [b""] * 1024

    read = parse(frames, "iopub", SIGNER, max_bytes=sum(map(len, frames)))

    assert read.msg_id == "é" * 256
    assert len(read.buffers) == 1024
    with pytest.raises(MalformedMessage):
        parse(frames, "iopub", SIGNER, max_bytes=sum(map(len, frames)) - 1)


def test_metadata_and_content_stay_unparsed() -> None:
    """Content that is no JSON at all passes through parse: it is the reader's business."""
    read = parse(signed(header(), metadata=b"\xff", body=b"]"), "iopub", SIGNER, max_bytes=LARGE)

    assert (read.metadata, read.content, read.parent_id) == (b"\xff", b"]", "")


def test_nothing_is_parsed_before_the_signature_holds() -> None:
    """Of two faults, the signature's is the one reported."""
    with pytest.raises(MalformedMessage, match="signature"):
        parse([DELIMITER, b"no", b"[" * 9999, b"", b"", b""], "iopub", SIGNER, max_bytes=LARGE)


@given(st.lists(st.binary(max_size=40) | st.just(DELIMITER), max_size=12))
def test_any_frames_give_a_message_or_malformed(frames: list[bytes]) -> None:
    """Random frames never raise another exception."""
    with pytest.raises(MalformedMessage):
        parse(frames, "shell", SIGNER, max_bytes=LARGE)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_signed_headers_give_a_message_or_malformed(own: bytes, parent: bytes) -> None:
    """Random bytes under a good signature never raise another exception."""
    with pytest.raises(MalformedMessage):
        parse(signed(own, parent), "shell", SIGNER, max_bytes=LARGE)


@given(json_values, json_values)
def test_any_json_headers_give_a_message_or_malformed(own: object, parent: object) -> None:
    """Random JSON in the headers gives a message with short texts, or MalformedMessage."""
    own = {"msg_id": own, "msg_type": "t"}
    frames = signed(json.dumps(own).encode(), json.dumps({"msg_id": parent}).encode())
    try:
        read = parse(frames, "shell", SIGNER, max_bytes=LARGE)
    except MalformedMessage:
        assert not isinstance(own["msg_id"], str) or not own["msg_id"] or not isinstance(parent, str)
    else:
        assert (read.msg_id, read.parent_id) == (own["msg_id"], parent)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"a":NaN,"b":-Infinity,"c":[1e999]}', {"a": None, "b": None, "c": [None]}),
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        (b'{"a":"\\ud800"}', {"a": "?"}),
        (b'{"a":' + b"9" * 400 + b"}", {"a": None}),
    ],
)
def test_content_repairs_what_lenient_parsers_take(raw: bytes, expected: object) -> None:
    """NaN, stray bytes and lone surrogates, which real kernels send, do not lose the message."""
    assert content(replace(stream(""), content=raw)) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
        b"[" * 200_000,
        b'{"a":NaN,"b":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"a":[' + b"[]," * MAX_VALUES + b"1]}",
        b'{"a":NaN,"b":"' + b"x" * (5 << 20) + b'"}',
    ],
)
def test_hostile_content_is_malformed(raw: bytes) -> None:
    """Content that is no object, too deep, too many or too costly to repair raises MalformedMessage."""
    with pytest.raises(MalformedMessage):
        content(replace(stream(""), content=raw))


def test_small_bytes_cannot_become_much_memory() -> None:
    """A message of 30 MB of empty lists is refused before it takes a gigabyte of objects."""
    hostile = replace(stream(""), content=b'{"a":[' + b"[]," * 10_000_000 + b"1]}")
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            content(hostile)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


def test_punctuation_in_a_text_is_not_counted() -> None:
    """A long print of CSV lines is one value, escapes and quotes included."""
    text = '1,2,3,4,5,6,7,8,9,[\\"\n' * 250_000

    assert content(stream(text))["text"] == text


@given(json_values)
@example({'\\"': ['\\\\"', ",,,,"] * 2000})
@example(["\\", *range(2000), "\\"])
@example([[[]] * 3000, "a" * 10, {"x": {}}])
def test_counting_never_counts_too_few(value: object) -> None:
    """The cheap count is an upper bound of the values that a parser makes."""

    def values(item: object) -> int:
        if isinstance(item, dict):
            return 1 + sum(map(values, item.values()))
        return 1 + sum(map(values, item)) if isinstance(item, list) else 1

    assert count_values(orjson.dumps(value)) >= values(value)


@given(st.text(max_size=200), st.integers(6, 50))
def test_a_stream_is_split_without_loss(text: str, limit: int) -> None:
    """The pieces' texts join to the whole text, each fits, and each is a message of its own."""
    message = stream(text)

    pieces = split_stream(message, limit)

    assert "".join(content(piece)["text"] for piece in pieces) == text
    assert len({piece.msg_id for piece in pieces}) == len(pieces)
    for piece in pieces:
        assert (piece.parent_id, piece.parent_header) == (message.parent_id, message.parent_header)
        assert (piece.channel, piece.msg_type, piece.metadata) == ("iopub", "stream", message.metadata)
        assert content(piece)["name"] == "stdout"
        assert parse(to_frames(piece, SIGNER), "iopub", SIGNER, max_bytes=LARGE).msg_id == piece.msg_id
        if text:
            assert len(content(piece)["text"].encode()) <= limit
            assert len(orjson.dumps(content(piece)["text"])) <= limit + 2


def test_a_large_stream_makes_few_frames_below_a_mebibyte() -> None:
    """20 MB of lines become pieces that every client takes, and not thousands of them."""
    pieces = split_stream(stream(("x" * 99 + "\n") * 200_000))

    assert len(pieces) < 100
    assert all(len(piece.content) < 1 << 20 for piece in pieces)


def test_other_messages_are_not_split() -> None:
    """Small streams, other types and malformed streams come back as they are."""
    small = stream("short")
    other = make("iopub", "display_data", {"data": {"text/plain": "x" * 600_000}}, parent=None, session="s")
    unreadable = replace(small, content=b"[" * 600_000)
    odd = stream("x" * 600_000, name=["stdout"])

    for message in (small, other, unreadable, odd):
        assert split_stream(message) == [message]


def test_splitting_survives_a_hostile_header() -> None:
    """A header nested as deep as parsers allow does not break the writing of the pieces' headers."""
    deep = header(msg_type="stream", a=0).replace(b"0", b"[" * 1000 + b"]" * 1000)
    frames = signed(deep, body=orjson.dumps({"name": "stdout", "text": "x" * 600_000}))

    pieces = split_stream(parse(frames, "iopub", SIGNER, max_bytes=LARGE))

    assert len(pieces) == 2


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [({}, None), ({"cellblock": {}}, None), ({"cellblock": {"timeout_s": 5}}, 5.0), ({"cellblock": 1}, None)],
)
def test_a_request_may_ask_for_a_deadline(metadata: dict[str, object], wanted: float | None) -> None:
    """`metadata.cellblock.timeout_s` of a request is its deadline in seconds."""
    request = messages.make("shell", "execute_request", {}, parent=None, session="s", metadata=metadata)

    assert messages.wanted_timeout(request) == wanted


@pytest.mark.parametrize("timeout_s", [0, -1, True, "5", []])
def test_a_deadline_that_is_no_positive_number_is_malformed(timeout_s: object) -> None:
    """Nothing but a positive finite number of seconds is taken for a deadline."""
    asked = {"cellblock": {"timeout_s": timeout_s}}
    request = messages.make("shell", "execute_request", {}, parent=None, session="s", metadata=asked)

    with pytest.raises(messages.MalformedMessage):
        messages.wanted_timeout(request)
