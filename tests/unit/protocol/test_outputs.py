"""The collector against nbclient's rules, nbformat's schema, and a hostile kernel."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import nbformat
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from gateway.models import DeathReason, ExecutionStatus, Message
from gateway.protocol.messages import make
from gateway.protocol.outputs import Collector

if TYPE_CHECKING:
    from gateway.models import Channel, ExecutionResult

REQUEST = make("shell", "execute_request", {"code": ""}, parent=None, session="s")
OTHER = make("shell", "execute_request", {"code": ""}, parent=None, session="s")


def message(
    kind: str, fields: dict[str, Any], channel: Channel = "iopub", parent: Message = REQUEST, **more: Any
) -> Message:
    """Return a message as a kernel sends it."""
    return replace(make(channel, kind, fields, parent=parent, session="k", **more), authored=False)


def stream(text: str, name: str = "stdout") -> Message:
    """Return a piece of a stream."""
    return message("stream", {"name": name, "text": text})


def display(value: object, display_id: object = None, kind: str = "display_data", **more: Any) -> Message:
    """Return a display of a text."""
    transient = {} if display_id is None else {"display_id": display_id}
    return message(kind, {"data": {"text/plain": value}, "metadata": {}, "transient": transient, **more})


def reply(status: str = "ok", **fields: Any) -> Message:
    """Return the reply to the request."""
    return message("execute_reply", {"status": status, **fields}, channel="shell")


IDLE = message("status", {"execution_state": "idle"})


def collector(max_bytes: int = 1 << 20) -> Collector:
    """Return a collector of the request's messages."""
    return Collector(REQUEST.msg_id, max_bytes=max_bytes, started=10.0)


def collect(*messages: Message, max_bytes: int = 1 << 20) -> ExecutionResult:
    """Return the result of messages, valid as nbformat."""
    fold = collector(max_bytes)
    for one in messages:
        fold.feed(one)
    result = fold.result(11.5)
    nbformat.validate(new_notebook(cells=[new_code_cell(outputs=nbformat.from_dict(result.outputs))]))
    result.model_dump_json()
    return result


def test_folds_a_whole_execution() -> None:
    """Streams merge by name in order, displays and the result follow, counts and times are kept."""
    result = collect(
        message("status", {"execution_state": "busy"}),
        message("execute_input", {"code": "", "execution_count": 3}),
        stream("a\r"),
        stream("b"),
        stream("warn", "stderr"),
        stream("c"),
        display("shown"),
        display("4", kind="execute_result", execution_count=3),
        reply(execution_count=3),
        IDLE,
    )

    assert result.status is ExecutionStatus.OK
    assert result.outputs == [
        {"output_type": "stream", "name": "stdout", "text": "a\rb"},
        {"output_type": "stream", "name": "stderr", "text": "warn"},
        {"output_type": "stream", "name": "stdout", "text": "c"},
        {"output_type": "display_data", "data": {"text/plain": "shown"}, "metadata": {}},
        {"output_type": "execute_result", "data": {"text/plain": "4"}, "metadata": {}, "execution_count": 3},
    ]
    assert (result.stdout, result.stderr) == ("a\rbc", "warn")
    assert (result.execution_count, result.duration_s, result.truncated) == (3, 1.5, False)
    assert (result.error, result.reason) == (None, None)


@pytest.mark.parametrize("order", [(reply(), IDLE), (IDLE, reply())])
def test_ends_with_reply_and_idle_in_any_order(order: tuple[Message, Message]) -> None:
    """Neither the reply nor idle alone is the end."""
    fold = collector()

    assert [fold.feed(one) for one in (stream("x"), *order)] == [False, False, True]


def test_what_has_come_stays() -> None:
    """A kernel that turns busy again, or replies twice, changes neither the end nor the status."""
    fold = collector()
    fold.feed(IDLE)
    fold.feed(message("status", {"execution_state": "busy"}))

    assert fold.feed(reply())
    assert fold.feed(reply("error", **ERROR))
    assert fold.result(11.0).status is ExecutionStatus.OK


def test_ignores_what_is_not_its_own() -> None:
    """Other executions' messages and messages in the wrong channel change nothing."""
    fold = collector()
    for stranger in (
        message("stream", {"name": "stdout", "text": "x"}, parent=OTHER),
        message("execute_reply", {"status": "ok"}, channel="shell", parent=OTHER),
        message("status", {"execution_state": "idle"}, parent=OTHER),
        message("stream", {"name": "stdout", "text": "x"}, channel="shell"),
        message("status", {"execution_state": "idle"}, channel="shell"),
        message("execute_reply", {"status": "ok"}, channel="iopub"),
        message("execute_reply", {"status": "ok"}, channel="control"),
        message("inspect_reply", {"status": "ok"}, channel="shell"),
        message("comm_msg", {"data": {}}),
    ):
        assert fold.feed(stranger) is False

    result = fold.result(9.0)
    assert (result.outputs, result.status, result.duration_s) == ([], ExecutionStatus.DEAD, 0.0)


def test_an_early_result_has_what_there_is() -> None:
    """Without a reply the execution counts as dead and keeps its outputs."""
    result = collect(stream("so far"))

    assert (result.status, result.stdout) == (ExecutionStatus.DEAD, "so far")


ERROR = {"ename": "ValueError", "evalue": "no", "traceback": ["line 1", "line 2"]}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"status": "ok"}, ExecutionStatus.OK),
        ({"status": "error", **ERROR}, ExecutionStatus.ERROR),
        ({"status": "error", **ERROR, "ename": "KeyboardInterrupt"}, ExecutionStatus.INTERRUPTED),
        ({"status": "aborted"}, ExecutionStatus.ABORTED),
        ({"status": "abort"}, ExecutionStatus.ABORTED),
        ({"status": "fine"}, ExecutionStatus.ERROR),
        ({"status": ["ok"]}, ExecutionStatus.ERROR),
        ({}, ExecutionStatus.ERROR),
    ],
)
def test_the_reply_gives_the_status(fields: dict[str, Any], status: ExecutionStatus) -> None:
    """Whatever is not known to be good is an error."""
    assert collect(message("execute_reply", fields, channel="shell"), IDLE).status is status


def test_an_unreadable_reply_still_ends_the_execution() -> None:
    """Nobody hangs on a reply of garbage."""
    fold = collector()
    fold.feed(IDLE)

    assert fold.feed(replace(reply(), content=b"]"))
    assert fold.result(11.0).status is ExecutionStatus.ERROR


def test_an_error_is_an_output_and_a_field() -> None:
    """The iopub error is kept as nbformat's output and as the result's error."""
    result = collect(message("error", ERROR), reply("error", **ERROR), IDLE)

    assert result.outputs == [{"output_type": "error", **ERROR}]
    assert result.error is not None
    assert result.error.model_dump() == ERROR


def test_the_replys_error_serves_where_iopub_had_none() -> None:
    """A silent execution tells its error in the reply alone."""
    result = collect(reply("error", **ERROR), IDLE)

    assert result.error is not None
    assert (result.error.ename, result.outputs) == ("ValueError", [])


@pytest.mark.parametrize(
    ("reason", "status"),
    [("timeout", ExecutionStatus.TIMEOUT), ("oom", ExecutionStatus.DEAD), ("shutdown", ExecutionStatus.DEAD)],
)
def test_the_gateways_reply_tells_of_the_death(reason: str, status: ExecutionStatus) -> None:
    """The reason is read from a trusted reply, and stands against the kernel's own before or after it."""
    forged = message(
        "execute_reply", {"status": "ok"}, channel="shell", metadata={"cellblock": {"reason": "oom"}}
    )
    true = message(
        "execute_reply",
        {"status": "error", **ERROR},
        channel="shell",
        metadata={"cellblock": {"reason": reason}},
    )
    fold = collector()
    fold.feed(forged)
    assert fold.result(11.0).status is ExecutionStatus.OK
    assert fold.result(11.0).reason is None

    fold.feed(true, trusted=True)
    fold.feed(forged)

    assert (fold.result(11.0).status, fold.result(11.0).reason) == (status, DeathReason(reason))


@pytest.mark.parametrize(
    "metadata", [{}, {"cellblock": 1}, {"cellblock": {}}, {"cellblock": {"reason": "bored"}}]
)
def test_a_trusted_reply_without_a_reason_is_an_ordinary_one(metadata: dict[str, Any]) -> None:
    """Only a known reason changes the status."""
    fold = collector()
    fold.feed(message("execute_reply", {"status": "ok"}, channel="shell", metadata=metadata), trusted=True)

    assert (fold.result(11.0).status, fold.result(11.0).reason) == (ExecutionStatus.OK, None)


def test_a_deadline_met_by_interrupt_is_a_timeout() -> None:
    """The KeyboardInterrupt that the deadline caused is reported as the timeout that it is."""
    fold = collector()
    fold.feed(reply("error", ename="KeyboardInterrupt", evalue="", traceback=[]))
    fold.mark_timeout()

    result = fold.result(11.0)
    assert (result.status, result.reason) == (ExecutionStatus.TIMEOUT, DeathReason.TIMEOUT)
    assert result.error is not None


ids = st.sampled_from([None, "a", "b"])
events = st.one_of(
    st.builds(stream, st.text("xé", min_size=1, max_size=3), st.sampled_from(["stdout", "stderr"])),
    st.builds(display, st.text("12", max_size=2), ids),
    st.builds(display, st.text("34", max_size=2), ids, st.just("execute_result"), execution_count=st.just(1)),
    st.builds(display, st.text("56", max_size=2), ids, st.just("update_display_data")),
    st.builds(lambda wait: message("clear_output", {"wait": wait}), st.booleans()),
    st.just(message("error", ERROR)),
)


@given(st.lists(events, max_size=12))
def test_outputs_are_nbclients(messages: list[Message]) -> None:
    """Displays, updates in place and both kinds of clear_output end as nbclient has them."""
    notebook = new_notebook(cells=[new_code_cell()])
    client = NotebookClient(notebook)
    client.clear_before_next_output = False
    for one in messages:
        client.process_message(
            {
                "msg_type": one.msg_type,
                "header": json.loads(one.header),
                "parent_header": {},
                "content": json.loads(one.content),
            },
            notebook.cells[0],
            0,
        )
    merged: list[dict[str, Any]] = []
    for output in notebook.cells[0].outputs:
        if merged and output.output_type == "stream" and merged[-1].get("name") == output.name:
            merged[-1]["text"] += output.text
        else:
            merged.append(dict(output))

    assert collect(*messages).outputs == merged


def test_a_cleared_result_is_whole_again() -> None:
    """What was cut before clear_output is not shown, so nothing counts as cut."""
    result = collect(
        stream("x" * 5000), message("clear_output", {"wait": True}), stream("end"), max_bytes=1024
    )

    assert (result.stdout, result.truncated) == ("end", False)


def test_a_long_stream_keeps_head_and_tail() -> None:
    """The cut is marked with its exact size, and both ends are the stream's own."""
    text = "".join(f"{number}\n" for number in range(100_000))
    result = collect(
        *(stream(text[i : i + 999]) for i in range(0, len(text), 999)), reply(), IDLE, max_bytes=4096
    )

    head, rest = result.stdout.split("\n[cellblock: ")
    size, tail = rest.split(" bytes of output cut]\n")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) == 3072
    assert len(tail) == 1024
    assert int(size) == len(text) - 4096
    assert result.truncated
    assert [output["output_type"] for output in result.outputs] == ["stream"]


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.text(max_size=400)), max_size=40))
def test_no_stream_loses_a_byte_in_silence(pieces: list[tuple[str, str]]) -> None:
    """Kept and cut bytes add up to what was printed, for each stream, with no character cut in two."""
    result = collect(*(stream(text, name) for name, text in pieces), max_bytes=1024)

    for name, got in (("stdout", result.stdout), ("stderr", result.stderr)):
        printed = "".join(text for stream_name, text in pieces if stream_name == name)
        head, cut, tail = got, 0, ""
        if "\n[cellblock: " in got:
            head, rest = got.split("\n[cellblock: ")
            number, tail = rest.split(" bytes of output cut]\n")
            cut = int(number)
        assert printed.startswith(head)
        assert printed.endswith(tail)
        assert len((head + tail).encode()) + cut == len(printed.encode())
        assert cut == 0 or result.truncated
    assert len(result.stdout.encode()) + len(result.stderr.encode()) <= 1024 + 2 * 60


@pytest.mark.parametrize("character", ["é", "€", "😀"])
@pytest.mark.parametrize("max_bytes", [1024, 1025, 1026, 1027, 1030, 1031])
def test_no_character_is_cut_in_two(character: str, max_bytes: int) -> None:
    """Head and tail end between characters, wherever the bound falls."""
    result = collect(*[stream(character * 333)] * 10, max_bytes=max_bytes)

    head, tail = result.stdout.split("\n[cellblock: ")
    assert set(head) == {character}
    assert set(tail.split("]\n")[1]) == {character}


def test_a_display_that_does_not_fit_leaves_a_mark() -> None:
    """The mark stands where the display would have, and smaller outputs after it are kept."""
    large = display("x" * 5000)
    result = collect(stream("before"), large, display("small"), stream("after"), max_bytes=2048)

    assert [output.get("text") or output["data"]["text/plain"] for output in result.outputs] == [
        "before",
        f"[cellblock: {len(large.content)} bytes of output cut]",
        "small",
        "after",
    ]
    assert result.truncated


def test_a_picture_after_a_flood_is_kept() -> None:
    """Output after the cut goes to the tail: the last display and error of a noisy cell are seen."""
    result = collect(
        *[stream("x" * 1000)] * 50,
        display("plot"),
        message("error", ERROR),
        stream("y" * 100),
        max_bytes=8192,
    )

    assert [output["output_type"] for output in result.outputs] == [
        "stream",
        "display_data",
        "error",
        "stream",
    ]
    assert result.stdout.endswith("y" * 100)


def test_evicted_displays_are_counted() -> None:
    """Displays that the tail loses are told of by a mark."""
    result = collect(*[stream("x" * 1000)] * 5, *[display("plot")] * 100, max_bytes=4096)

    texts = [output["data"]["text/plain"] for output in result.outputs if "data" in output]
    assert "bytes of output cut]" in texts[0]
    assert texts[-1] == "plot"
    assert len(texts) < 20


def test_a_display_that_was_cut_is_forgotten() -> None:
    """What the tail has lost no longer counts, so that a later display is kept."""
    body = orjson.dumps({"data": {"application/json": [[]] * 60_000}, "metadata": {}})
    shown = replace(display(""), content=body)
    result = collect(stream("x" * (1 << 20)), *[shown] * 20, display("last"), max_bytes=1 << 20)

    assert result.outputs[-1]["data"] == {"text/plain": "last"}
    assert "application/json" in result.outputs[-2]["data"]


def test_streams_alone_cannot_pass_the_number_of_outputs() -> None:
    """Writing to stdout and stderr in turn makes 10,000 outputs at most, the last one kept."""
    result = collect(*[stream("o"), stream("e", "stderr")] * 6000, stream("end"))

    assert 9_900 < len(result.outputs) <= 10_000
    assert result.stdout.endswith("end")
    assert result.truncated


def test_updates_are_charged_wherever_they_show() -> None:
    """One display shown many times cannot grow past the bound by an update."""
    shown = [display("1", "id") for _ in range(30)]
    result = collect(*shown, display("x" * 1000, "id", "update_display_data"), max_bytes=4096)

    assert len(result.model_dump_json()) < 8192
    assert "bytes of output cut" in result.outputs[0]["data"]["text/plain"]
    assert result.truncated


def test_a_huge_error_is_cut_and_told() -> None:
    """An error larger than the bound keeps its name and loses its traceback."""
    huge = {"ename": "E" * 9999, "evalue": "v" * 99_999, "traceback": ["t" * 999_999]}
    result = collect(message("error", huge), reply("error", **huge), IDLE, max_bytes=16 << 10)

    assert result.error is not None
    assert result.error.ename == "E" * 256
    assert "bytes of output cut" in result.error.traceback[0]
    assert result.outputs[0]["output_type"] == "error"
    assert result.truncated
    assert len(result.model_dump_json()) < 16 << 10


@pytest.mark.parametrize(
    "one",
    [stream("x"), stream("x", "stderr"), display("x"), message("error", ERROR), display("x" * 9999)],
    ids=["stdout", "stderr", "display", "error", "mark"],
)
def test_the_number_of_outputs_is_bounded(one: Message) -> None:
    """A kernel that alternates outputs gets 10,000 of them, and a mark."""
    fold = collector(1 << 20)
    other = display("y", "id")
    for _ in range(11_000):
        fold.feed(other)
        fold.feed(one)

    result = fold.result(11.0)
    assert len(result.outputs) <= 10_000
    assert result.truncated
    assert len(result.model_dump_json()) < 3 << 20


def test_marks_do_not_pile_up_past_the_bound() -> None:
    """Many displays that do not fit end in few marks."""
    result = collect(*[display("x" * 5000)] * 3000, max_bytes=1024)

    assert len(result.model_dump_json()) < 4096


@pytest.mark.parametrize(
    "hostile",
    [
        message("stream", {"name": "stdout", "text": 1}),
        message("stream", {"name": "stdout"}),
        message("display_data", {"data": []}),
        message("display_data", {"data": {"a": 1}, "metadata": []}),
        message("execute_result", {}),
        replace(display(""), content=b"["),
        replace(display(""), content=b'{"data":{"a":' + b"[" * 800 + b"]" * 800 + b'},"metadata":{}}'),
        replace(display(""), content=b'{"data":{"application/json":' + b"[" * 200 + b"]" * 200 + b"}}"),
        replace(display(""), content=b'{"data":{},"metadata":{"a":' + b"[" * 200 + b"]" * 200 + b"}}"),
        replace(display(""), content=b'{"data":{"application/json":[' + b"[]," * 1_100_000 + b"1]}}"),
    ],
)
def test_unreadable_output_leaves_a_mark(hostile: Message) -> None:
    """Output of wrong types, or nested too deeply to be written again, is marked and does no harm."""
    result = collect(hostile, stream("after"), max_bytes=64 << 20)

    assert result.outputs[0]["data"] == {
        "text/plain": f"[cellblock: {len(hostile.content)} bytes of output cut]"
    }
    assert (result.stdout, result.truncated) == ("after", True)


def test_values_count_over_all_displays() -> None:
    """Many displays of tiny values cannot hold much more memory than their bytes."""
    body = orjson.dumps({"data": {"application/json": [[]] * 60_000}, "metadata": {}})
    fold = collector(64 << 20)
    for _ in range(30):
        fold.feed(replace(display(""), content=body))

    result = fold.result(11.0)
    assert sum("application/json" in output["data"] for output in result.outputs) == 8
    assert result.truncated


@pytest.mark.parametrize("count", [True, -1, 1.5, "3", None, [], {}])
def test_the_execution_count_is_a_number_or_nothing(count: object) -> None:
    """A count of another type is left out, here and in the outputs."""
    result = collect(
        display("x", kind="execute_result", execution_count=count), reply(execution_count=count), IDLE
    )

    assert result.execution_count is None
    assert result.outputs[0]["execution_count"] is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["name", "text", "data", "metadata", "transient", "execution_count", "ename", "traceback", "wait"]
KINDS = ["stream", "display_data", "execute_result", "update_display_data", "error", "clear_output", "status"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*KINDS, "execute_input", "execute_reply", "unknown"]),
            st.dictionaries(
                st.sampled_from(FIELDS),
                json_values | st.just({"display_id": "a"}) | st.just("ok"),
                max_size=5,
            ),
        ),
        max_size=8,
    )
)
def test_any_content_folds_into_a_valid_result(messages: list[tuple[str, dict[str, Any]]]) -> None:
    """Whatever types a kernel puts into its messages, the result is valid nbformat and JSON."""
    collect(
        *(
            message(kind, fields, channel="shell" if kind == "execute_reply" else "iopub")
            for kind, fields in messages
        ),
        max_bytes=1024,
    )
