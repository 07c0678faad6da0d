"""Messages of the gateway's own to one client: notes where output is missing, answers to what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.protocol.messages import dumps, make

if TYPE_CHECKING:
    from gateway.errors import GatewayError
    from gateway.models import Message

CUT = "[cellblock: output cut: this connection reads too slowly]\n"
NOT_SHOWN = "[cellblock: output left out: this client cannot take what is binary, too large or not JSON]\n"


def note(about: Message, text: str) -> Message:
    """Author a line on stderr that clients show where the output of `about` would stand."""
    made = make("iopub", "stream", {"name": "stderr", "text": text}, parent=None, session="")
    return replace(made, parent_header=about.parent_header, parent_id=about.parent_id)


def hollow(reply: Message) -> Message:
    """Author an error in the place of a reply that its client cannot take, so that nobody waits for it."""
    content = _error("MessageNotEncodable", "This client cannot take the kernel's reply.")
    return replace(
        reply, metadata=b"{}", content=dumps({"status": "error"} | content), buffers=[], authored=True
    )


def refusal(request: Message, error: GatewayError) -> list[Message]:
    """Author what a kernel would say to a request that fails: busy, error, reply, idle."""
    content = _error(type(error).__name__, error.message)
    answers = [make("iopub", "status", {"execution_state": "busy"}, parent=request, session="")]
    if request.msg_type == "execute_request":
        answers.append(make("iopub", "error", content, parent=request, session=""))
    if request.msg_type.endswith("_request"):
        kind = request.msg_type.removesuffix("_request") + "_reply"
        reply = {"status": "error"} | content
        answers.append(make(request.channel, kind, reply, parent=request, session=""))
    return [*answers, make("iopub", "status", {"execution_state": "idle"}, parent=request, session="")]


def _error(name: str, text: str) -> dict[str, str | list[str]]:
    return {"ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
