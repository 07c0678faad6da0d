"""A kernel's messages as events, whatever the kernel sends."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.models import ExecutionError, Message
from gateway.models.jobs import Event
from gateway.protocol.messages import make
from gateway.protocol.narration import clean, shorten, tell


def said(msg_type: str, content: dict[str, Any], channel: str = "iopub") -> Message:
    """Return a message of a kernel's."""
    return make(channel, msg_type, content, parent=None, session="s")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("msg_type", "content", "event"),
    [
        ("stream", {"name": "stdout", "text": "a"}, ("stdout", {"text": "a"})),
        ("stream", {"name": "stderr", "text": "a"}, ("stderr", {"text": "a"})),
        ("stream", {"name": "other", "text": "a"}, ("stdout", {"text": "a"})),
        (
            "display_data",
            {"data": {"text/plain": "x"}, "metadata": {}, "transient": {"display_id": "d"}},
            ("display", {"data": {"text/plain": "x"}, "metadata": {}, "display_id": "d"}),
        ),
        (
            "execute_result",
            {"data": {"text/plain": "x"}, "metadata": {}, "execution_count": 3},
            ("result", {"data": {"text/plain": "x"}, "metadata": {}, "execution_count": 3}),
        ),
        ("clear_output", {"wait": True}, ("clear", {"wait": True})),
        (
            "error",
            {"ename": "E", "evalue": "v", "traceback": ["t", 5]},
            ("error", {"ename": "E", "evalue": "v", "traceback": ["t"]}),
        ),
        ("status", {"execution_state": "busy"}, None),
        ("execute_input", {"code": "1"}, None),
        ("comm_msg", {"data": {}}, None),
    ],
)
def test_what_is_told(msg_type: str, content: dict[str, Any], event: object) -> None:
    """Each kind of output is an event of its own; what is no output is none."""
    assert tell(said(msg_type, content)) == event


def test_replies_are_no_events() -> None:
    """Only iopub tells what came of code."""
    assert tell(said("stream", {"name": "stdout", "text": "a"}, "shell")) is None


@pytest.mark.parametrize(
    ("msg_type", "content"),
    [
        ("stream", {"name": "stdout", "text": 5}),
        ("stream", {"name": "stdout"}),
        ("display_data", {"data": [], "metadata": {}}),
        ("display_data", {"data": {"a": {}}, "metadata": 5}),
    ],
)
def test_what_cannot_be_read_is_a_gap(msg_type: str, content: dict[str, Any]) -> None:
    """Output that is not as it should be is told as a gap of its size."""
    message = said(msg_type, content)

    assert tell(message) == ("gap", {"bytes": len(message.content)})


@given(st.binary(max_size=200), st.sampled_from(["stream", "display_data", "execute_result", "error"]))
def test_any_bytes(content: bytes, msg_type: str) -> None:
    """Whatever bytes a content has, what is told can be sent as JSON."""
    message = said(msg_type, {})
    message.content = content

    told = tell(message)

    assert told is not None
    orjson.dumps(Event(seq=1, type=told[0], **told[1]).wire())


def test_halves_of_characters() -> None:
    """A text with half a character in it, as JSON escapes allow, can be sent on."""
    message = said("stream", {})
    message.content = b'{"name": "stdout", "text": "a\\ud800b"}'

    told = tell(message)

    assert told is not None
    orjson.dumps(Event(seq=1, type=told[0], **told[1]).wire())


def test_a_clean_error() -> None:
    """Colours, rules and frames of libraries go; the code's own frames and the last line stay."""
    error = ExecutionError(
        ename="ValueError",
        evalue="no",
        traceback=[
            "\x1b[0;31m---------------\x1b[0m",
            "\x1b[0;31mValueError\x1b[0m  Traceback (most recent call last)",
            "Cell \x1b[0;32mIn[1]\x1b[0m, line 1\n----> 1 f()",
            "File /srv/x/lib/python3.11/site-packages/lib.py:3, in f()\n  3 raise",
            "\x1b[0;31mValueError\x1b[0m: no",
        ],
    )

    assert clean(error) == (
        "ValueError  Traceback (most recent call last)\nCell In[1], line 1\n----> 1 f()\nValueError: no"
    )


def test_an_error_without_a_traceback() -> None:
    """Its name and value are all there is."""
    assert clean(ExecutionError(ename="E", evalue="v", traceback=[])) == "E: v"
    assert clean(ExecutionError(ename="", evalue="", traceback=[])) == ""


@given(st.text(max_size=500), st.integers(min_value=10, max_value=300))
def test_shortened_texts(text: str, most: int) -> None:
    """A text within the bound stays as it is; another keeps head and tail, and tells what is cut."""
    short = shorten(text, most)

    if len(text) <= most:
        assert short == text
    else:
        assert short.startswith(text[: most // 2])
        assert short.endswith(text[-(most // 3) :])
        assert "characters cut]" in short
