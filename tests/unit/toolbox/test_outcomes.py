"""What is told of an execution fits into a conversation, and says what is missing."""

from __future__ import annotations

import base64
import functools
from typing import Any

import pytest

from gateway.models import ExecutionError, ExecutionStatus
from gateway.models.jobs import Event, JobStatus, JobView, TaskResult
from gateway.toolbox.files import _up_to_a_character
from gateway.toolbox.outcomes import Teller
from gateway.toolbox.resources import file_uri

TELLER = Teller(text_chars=1000, image_bytes=100)


def ended(**fields: Any) -> JobView:
    """Return an execution that has ended with this result."""
    result = TaskResult(status=ExecutionStatus.OK, duration_s=0.1, **fields)
    return JobView(id="j", status=JobStatus.OK, created_at="", result=result)


def shown(*bundles: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is told of displays."""
    outputs = [{"output_type": "display_data", "data": bundle, "metadata": {}} for bundle in bundles]
    return TELLER.tell(ended(outputs=outputs), None).results


def test_texts_are_cut_and_said_to_be() -> None:
    """Streams and tracebacks keep head and tail; a text that fits is left alone."""
    error = ExecutionError(ename="E", evalue="v" * 5000, traceback=["t" * 5000])
    outcome = TELLER.tell(ended(stdout="a" * 600 + "b" * 600, stderr="c", error=error), "s")

    assert outcome.truncated
    assert outcome.stdout.startswith("aaa")
    assert outcome.stdout.endswith("bbb")
    assert "characters cut" in outcome.stdout
    assert outcome.stderr == "c"
    assert outcome.error is not None
    assert len(outcome.error.evalue) < 1100
    assert not TELLER.tell(ended(stdout="a" * 1000), None).truncated


def test_images_have_room_of_their_own() -> None:
    """Images that fit are there; those that do not are said to be left out, and text goes on."""
    image = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * 52).decode()
    first, second = shown({"image/png": image, "text/plain": "x"}, {"image/png": image, "text/plain": "y"})

    assert first == {"text/plain": "x", "image/png": image}
    assert second == {"text/plain": "y", "image/png": "[cellblock: 80 characters left out]"}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("image/png", "no base64!"),
        ("image/png", base64.b64encode(b"<script>").decode()),
        ("image/jpeg", base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()),
        ("image/png", {"a": 1}),
        ("image/png", "ü"),
        ("application/json", functools.reduce(lambda inner, _: [inner], range(250), 0)),
    ],
)
def test_what_is_not_what_it_is_said_to_be(kind: str, value: object) -> None:
    """A kernel may claim anything: what no host could show is left out, and the rest goes on."""
    [result] = shown({kind: value, "text/plain": "x"})

    assert result["text/plain"] == "x"
    assert result[kind].startswith("[cellblock: left out")


def test_results_are_bounded_together() -> None:
    """However many there are, all texts have a room together; unknown media types are left out."""
    results = shown(*({"text/html": "h" * 900, "application/x": "?"} for _ in range(100)))

    assert sum(len(text) for result in results for text in result.values()) < 5000
    assert results[0] == {"text/html": "h" * 900}
    assert "left out" in results[-1]["text/html"]


def test_lists_of_lines() -> None:
    """Nbformat's lists of lines are texts."""
    assert shown({"text/plain": ["a\n", "b"]}) == [{"text/plain": "a\nb"}]
    assert shown({"application/json": {"a": [1]}}) == [{"application/json": {"a": [1]}}]


def test_under_way() -> None:
    """What runs is told by its events, with where to go on, and the calls that wait."""
    events = [
        Event(seq=4, type="stdout", text="one"),
        Event(seq=5, type="stderr", text="two"),
        Event(seq=6, type="result", data={"text/plain": "3"}),
    ]
    view = JobView(id="j", status=JobStatus.RUNNING, created_at="", events=events, cursor=6)
    outcome = TELLER.tell(view, None)
    assert (outcome.status, outcome.stdout, outcome.stderr, outcome.cursor) == ("running", "one", "two", 6)
    assert outcome.results == [{"text/plain": "3"}]

    call = Event(seq=7, type="tool_call", call_id="c", name="add", arguments={"a": 1})
    asking = TELLER.tell(view.model_copy(update={"pending_calls": [call]}), None)
    assert asking.status == "tool_call_required"
    assert [each.call_id for each in asking.tool_calls or ()] == ["c"]


def test_calls_that_wait_have_room_together() -> None:
    """The first call is always there; more come as far as there is room, and the others afterwards."""
    calls = [
        Event(seq=n, type="tool_call", call_id=str(n), name="add", arguments={"a": "x" * 6000})
        for n in range(5)
    ]
    view = JobView(id="j", status=JobStatus.RUNNING, created_at="", pending_calls=calls)

    assert [each.call_id for each in TELLER.tell(view, None).tool_calls or ()] == ["0"]


def test_addresses_of_files() -> None:
    """A path's own slashes stay, and everything else is encoded already."""
    assert file_uri("s/x", "a/%C3%BC.txt") == "cellblock://sessions/s%2Fx/files/a/%C3%BC.txt"


def test_texts_end_with_a_character() -> None:
    """A part of a text never ends within a character, unless it has no other."""
    whole = "aü€😀".encode()

    for end in range(1, len(whole) + 1):
        part = _up_to_a_character(whole[:end])
        assert part
        assert whole.startswith(part)
        assert part.decode()
    assert _up_to_a_character(b"\xf0\x9f") == b"\xf0\x9f"
    assert _up_to_a_character(b"\xff") == b"\xff"
