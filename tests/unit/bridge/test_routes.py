"""Who asked what: every request is remembered until it is answered in full, and no longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gateway.bridge import answers
from gateway.bridge.routes import Routes
from gateway.bridge.sockets import Incoming
from gateway.errors import LimitReached
from gateway.protocol.messages import content, make

if TYPE_CHECKING:
    from gateway.models import Channel, Message

WHY = answers.error("ConnectionLost", "It was lost.")


def ask(channel: Channel = "shell", kind: str = "execute_request", client: bytes = b"me") -> Incoming:
    """Return a request of a client's."""
    body = {"code": "x" * 1000}
    return Incoming([client], make(channel, kind, body, parent=None, session=client.decode()))


def said(request: Message, channel: Channel, kind: str, **body: Any) -> Message:
    """Return what a kernel says to a request."""
    return make(channel, kind, body, parent=request, session="kernel")


def idle(request: Message) -> Message:
    """Return the idle status for a request."""
    return said(request, "iopub", "status", execution_state="idle")


@pytest.mark.parametrize("idle_first", [True, False])
def test_an_execution_is_over_with_reply_and_idle(idle_first: bool) -> None:
    """Whichever of the two comes first, the second ends it."""
    routes, incoming = Routes(), ask()
    request = incoming.message
    routes.add(incoming, 1)
    last = [said(request, "shell", "execute_reply", status="ok"), idle(request)]

    for message in reversed(last) if idle_first else last:
        assert routes.get(request.msg_id) is not None
        asked = routes.note(message)
        assert asked is not None
        assert asked.identity == [b"me"]
    assert len(routes) == 0


def test_control_is_over_with_its_reply() -> None:
    """No idle is waited for on control."""
    routes, incoming = Routes(), ask("control", "debug_request")
    routes.add(incoming, 1)
    routes.note(said(incoming.message, "control", "debug_reply"))

    assert len(routes) == 0


def test_comm_messages_are_over_when_idle() -> None:
    """They have no reply, and may ask for input before they are done."""
    routes, incoming = Routes(), ask(kind="comm_msg")
    routes.add(incoming, 1)
    question = routes.note(said(incoming.message, "stdin", "input_request", prompt="?"))
    assert question is not None
    assert question.identity == [b"me"]
    routes.note(idle(incoming.message))

    assert len(routes) == 0


def test_a_question_is_no_reply() -> None:
    """An input_request leaves the execution open."""
    routes, incoming = Routes(), ask()
    routes.add(incoming, 1)
    routes.note(said(incoming.message, "stdin", "input_request", prompt="?"))
    routes.note(idle(incoming.message))

    assert len(routes) == 1


def test_nobody_asked() -> None:
    """What belongs to no request of ours goes to nobody in particular."""
    assert Routes().note(idle(ask().message)) is None


def test_there_is_a_bound() -> None:
    """More requests than that are refused, and what was taken stays."""
    routes = Routes(most=2)
    first = routes.add(ask(), 1)
    routes.add(ask(), 1)
    with pytest.raises(LimitReached):
        routes.add(ask(), 1)
    assert routes.get(first.request.msg_id) is first
    routes.forget(first)
    routes.add(ask(), 1)


def test_contents_are_not_kept() -> None:
    """Of a request only the headers stay in memory."""
    asked = Routes().add(ask(), 1)

    assert asked.request.content == b"{}"
    assert asked.request.header


def test_what_is_older_than_a_connection() -> None:
    """What was asked before the connection of the moment can be listed, oldest first."""
    routes = Routes()
    old = [routes.add(ask(), 1), routes.add(ask(), 2)]
    routes.add(ask(), 3)

    assert routes.older_than(3) == old


def test_the_rest_of_an_answer_that_was_lost_whole() -> None:
    """Error, reply and idle, in this order."""
    asked = Routes().add(ask(), 1)
    rest = answers.rest_of(asked, WHY)

    assert [message.msg_type for message in rest] == ["error", "execute_reply", "status"]
    assert content(rest[1]) | WHY == content(rest[1])
    assert {message.parent_id for message in rest} == {asked.request.msg_id}


def test_the_rest_of_an_answer_whose_reply_was_lost() -> None:
    """An execution that was seen to end without an error has succeeded, with its own count."""
    routes, incoming = Routes(), ask()
    asked = routes.add(incoming, 1)
    routes.note(said(incoming.message, "iopub", "execute_input", code="x", execution_count=7))
    routes.note(idle(incoming.message))
    [reply] = answers.rest_of(asked, WHY)

    assert content(reply)["status"] == "ok"
    assert content(reply)["execution_count"] == 7


def test_the_rest_of_an_answer_after_an_error() -> None:
    """An error that was shown is not shown again, and the reply tells of failure."""
    routes, incoming = Routes(), ask()
    asked = routes.add(incoming, 1)
    routes.note(said(incoming.message, "iopub", "error", ename="E", evalue="", traceback=[]))
    routes.note(idle(incoming.message))
    [reply] = answers.rest_of(asked, WHY)

    assert content(reply)["status"] == "error"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("execute_request", ["status", "error", "execute_reply", "status"]),
        ("complete_request", ["status", "complete_reply", "status"]),
        ("comm_msg", ["status", "status"]),
    ],
)
def test_a_refusal_is_whole(kind: str, expected: list[str]) -> None:
    """A request that no kernel sees is answered as a kernel would: busy first, idle last."""
    said = answers.refusal(ask(kind=kind).message, WHY)

    assert [message.msg_type for message in said] == expected
    assert content(said[0])["execution_state"] == "busy"
    assert content(said[-1])["execution_state"] == "idle"


def test_a_refusal_says_when_to_come_back() -> None:
    """Retry-After is part of what the user reads."""
    assert answers.error_of(LimitReached("Too many kernels.", retry_after_s=30))["evalue"] == (
        "Too many kernels. Try again in 30 s."
    )


def test_kernel_info_without_a_kernel() -> None:
    """It is no error: clients that are told of one would never send the execution that tells more."""
    said = answers.kernel_info(ask(kind="kernel_info_request").message, "python", "why")

    assert content(said[1])["status"] == "ok"
    assert content(said[1])["language_info"]["name"] == "python"
    assert content(said[1])["banner"] == "why"
