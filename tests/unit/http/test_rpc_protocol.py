"""JSON-RPC's frames, errors and tool calls, without a socket."""

from __future__ import annotations

import json
from itertools import count
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest, GatewayError, LimitReached
from gateway.http.rpc.calls import ToolCalls
from gateway.http.rpc.feed import NOTIFICATIONS, Feed
from gateway.http.rpc.protocol import (
    Answer,
    NotARequest,
    NotJson,
    Request,
    UnknownMethod,
    failure,
    id_of,
    notification,
    number,
    of_code,
    parse,
    request,
    result,
)
from gateway.models.jobs import Event
from tests.docs.test_reference import kinds

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
KEYS = st.sampled_from(["jsonrpc", "id", "method", "params", "result", "error"])


def test_a_request() -> None:
    """A request has its id as it came, a name and parameters; without an id it is a notification."""
    assert parse('{"jsonrpc": "2.0", "id": 7, "method": "get", "params": {"a": 1}}') == Request(
        7, "get", {"a": 1}
    )
    assert parse(b'{"jsonrpc": "2.0", "method": "ping"}') == Request(None, "ping", {})


def test_an_answer() -> None:
    """An answer has a result, null included, or an error's message, whatever else the error is."""
    assert parse('{"jsonrpc": "2.0", "id": "gateway-1", "result": null}') == Answer("gateway-1")
    failed = parse('{"jsonrpc": "2.0", "id": "gateway-1", "error": {"code": 1, "message": "no"}}')
    assert failed == Answer("gateway-1", error="no")
    assert isinstance(failed, Answer)
    for odd in ("[]", "5", '{"message": 1}', '"x"', "false", "{}"):
        answer = parse('{"jsonrpc": "2.0", "id": "a", "error": ' + odd + "}")
        assert isinstance(answer, Answer)
        assert answer.error


FRAMES = st.dictionaries(KEYS, JSON | st.just("2.0"), max_size=6)


@given(st.binary(max_size=200) | FRAMES.map(lambda frame: json.dumps(frame).encode()))
def test_any_frame_is_told_apart(frame: bytes) -> None:
    """Whatever comes is a request, an answer or an error that the client is told."""
    try:
        parsed: object = parse(frame)
    except GatewayError as error:
        parsed = json.loads(failure(id_of(frame), error))["error"]["code"]

    assert isinstance(parsed, Request | Answer) or parsed in {-32700, -32600, -32602}


def test_every_error_has_a_number() -> None:
    """The gateway's errors have numbers of JSON-RPC's own, or of its range for servers."""
    for kind in kinds(GatewayError):
        error = kind("What went wrong.", reason="reason", retry_after_s=2)
        own = number(error)
        assert own in {-32602, -32603} or -32099 <= own <= -32000
        told = json.loads(failure("a", error))
        assert told["error"]["data"] == {"code": kind.code, "reason": "reason", "retry_after_s": 2}
        kept = of_code(kind.code, "What went wrong.", "reason")
        assert (kept.code, kept.status, number(kept)) == (kind.code, kind.status, own)
    assert [number(each("")) for each in (NotJson, NotARequest, UnknownMethod, BadRequest)] == [
        -32700,
        -32600,
        -32601,
        -32602,
    ]
    assert number(LimitReached("")) == -32029
    assert number(of_code("nothing", "", None)) == -32603


def test_frames() -> None:
    """What is sent is JSON-RPC 2.0, with bodies that are passed on as they are."""
    assert json.loads(result(1, b'{"a":null}')) == {"jsonrpc": "2.0", "id": 1, "result": {"a": None}}
    assert json.loads(notification("n", b"{}")) == {"jsonrpc": "2.0", "method": "n", "params": {}}
    assert json.loads(request("r", "m", b"{}")) == {"jsonrpc": "2.0", "id": "r", "method": "m", "params": {}}


def test_a_tool_call_is_answered_once() -> None:
    """An answer is for one call, once; what was withdrawn or never asked is nobody's."""
    numbers = count(1)
    calls = ToolCalls(lambda: f"gateway-{next(numbers)}")
    first, second, third = calls.put("e1", "a"), calls.put("e1", "b"), calls.put("e2", "c")

    assert calls.take(first) == ("e1", "a")
    assert calls.take(first) is None
    calls.withdraw("e1", "other")
    calls.withdraw("e1")
    assert calls.take(second) is None
    assert calls.take(third) == ("e2", "c")
    assert calls.take("gateway-99") is None


def test_every_event_has_a_notification() -> None:
    """No kind of event is without a name here."""
    assert set(NOTIFICATIONS) == set(cast("Any", Event.model_fields["type"].annotation).__args__)


@pytest.mark.parametrize("value", [1 << 70, -(1 << 63) - 1, 1e308, None, [None, {"a": None}], "\u2028", "\0"])
def test_any_json_of_a_kernel_is_told(value: Any) -> None:
    """What a kernel shows as JSON arrives whole, also numbers that few writers of JSON know."""
    event = Event(seq=3, type="display", data={"application/json": value})
    body = Feed(cast("Any", None), "e")._body(event)

    told = json.loads(notification("execution.output", body))["params"]
    assert told == {
        "execution_id": "e",
        "cursor": 3,
        "type": "display",
        "task": 0,
        "data": {"application/json": value},
    }
