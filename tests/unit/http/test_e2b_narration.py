"""E2B's lines of an execution: what they are made of, and what happens when nobody reads them."""

from __future__ import annotations

import json
from typing import Any

from gateway.http.e2b.files import file_name
from gateway.http.e2b.narration import Narration, shown
from gateway.http.e2b.paths import directory, in_home
from gateway.models import Message
from gateway.protocol.messages import make
from tests.doubles import ManualClock


def said(kind: str, content: dict[str, Any]) -> Message:
    """Return a message of a kernel's."""
    return make("iopub", kind, content, parent=None, session="test")


def stream(text: str) -> Message:
    """Return a piece of output."""
    return said("stream", {"name": "stdout", "text": text})


def lines(narration: Narration) -> list[dict[str, Any]]:
    """Return the lines that wait."""
    taken = b""
    while more := narration.take():
        taken += more
    return [json.loads(line) for line in taken.splitlines()]


def test_what_a_kernel_says_becomes_lines():
    """Each message becomes the line that the SDKs read; what they do not know has none."""
    narration = Narration(ManualClock(), 1 << 20)
    for message in (
        said("status", {"execution_state": "busy"}),
        said("execute_input", {"code": "1", "execution_count": 3}),
        stream("out"),
        said(
            "execute_result",
            {"data": {"text/plain": "'a'", "x/y": "z"}, "metadata": {}, "execution_count": 3},
        ),
        said("error", {"ename": "E", "evalue": "v", "traceback": ["a", "b"]}),
        said("stream", {"name": "stdout", "text": 5}),
    ):
        narration.deliver(message)
    number, out, result, error, gap = lines(narration)
    assert number == {"type": "number_of_executions", "execution_count": 3}
    assert (out["type"], out["text"]) == ("stdout", "out")
    assert result == {"type": "result", "is_main_result": True, "text": "a", "extra": {"x/y": "z"}}
    assert error == {"type": "error", "name": "E", "value": "v", "traceback": "a\nb"}
    assert gap["type"] == "stderr"


def test_a_reader_that_is_too_slow():
    """Past the bound output is left out with one mark; errors are kept, and what comes after reading."""
    narration = Narration(ManualClock(), 10_000)
    for _ in range(1000):
        narration.deliver(stream("x" * 100))
    narration.deliver(said("error", {"ename": "E", "evalue": "", "traceback": []}))
    seen = lines(narration)
    assert sum(len(json.dumps(line)) for line in seen) < 13_000
    assert [line["type"] for line in seen if line["type"] != "stdout"] == ["stderr", "error"]
    narration.deliver(stream("again"))
    assert [line["text"] for line in lines(narration)] == ["again"]


def test_quotes_of_a_text():
    """A text's own quotes are not shown, as E2B has it; those of something else are."""
    assert shown({"text/plain": "'it'"}, main=True)["text"] == "it"
    assert shown({"text/plain": "'"}, main=True)["text"] == "'"
    assert shown({"text/plain": '"it"'}, main=False)["text"] == '"it"'


def test_paths():
    """Relative paths and those below /home/user mean the home, and nothing leads out of it."""
    for path in ("a/b", "/home/user/a/b", "~/a/b", "./a/./b", "/home/user/x/../a/b"):
        assert in_home(path) == "a/b"
    assert {in_home(path) for path in ("", ".", "~", "/home/user", "/home/user/")} == {""}
    assert [directory(path) for path in (None, "/tmp", "/home/user/x", "..")] == ["", "/tmp", "x", ".."]


def test_names_of_parts():
    """The name of a form's part is taken as it was meant, a path from the root included."""
    assert file_name('form-data; name="file"; filename="/home/user/a b"') == "/home/user/a b"
    assert file_name('form-data; name="file"; filename="a%22b%0D%0A"') == 'a"b\r\n'
    assert file_name('form-data; name="file"') is None
