"""What the bridge says itself: reasons, and answers to requests that no kernel will answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.protocol.messages import MalformedMessage, content, make

if TYPE_CHECKING:
    from gateway.bridge.routes import Asked
    from gateway.errors import GatewayError
    from gateway.models import Message

PROTOCOL = "5.3"


def notice(text: str, request: Message | None) -> Message:
    """Return a line on stderr; clients show it where the output of `request` stands."""
    return make(
        "iopub", "stream", {"name": "stderr", "text": f"[cellblock] {text}\n"}, parent=request, session=""
    )


def status(state: str, request: Message | None) -> Message:
    """Return a status message."""
    return make("iopub", "status", {"execution_state": state}, parent=request, session="")


def reply(request: Message, body: dict[str, Any]) -> Message:
    """Return the reply to a request."""
    kind = request.msg_type.removesuffix("_request") + "_reply"
    return make(request.channel, kind, body, parent=request, session="")


def error(name: str, text: str) -> dict[str, Any]:
    """Return the three fields by which Jupyter tells of an error."""
    return {"ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}


def error_of(failure: GatewayError) -> dict[str, Any]:
    """Return those fields for an error of the gateway's, or of the way to it."""
    text = failure.message
    if failure.retry_after_s:
        text += f" Try again in {failure.retry_after_s:.0f} s."
    return error(type(failure).__name__, text)


def said_by(message: Message) -> dict[str, Any] | None:
    """Return those fields of a reply that tells of an error; None for any other."""
    try:
        said = content(message)
    except MalformedMessage:
        return None
    if said.get("status") != "error":
        return None
    trace = said.get("traceback")
    lines = [str(line) for line in trace] if isinstance(trace, list) else []
    return {"ename": str(said.get("ename")), "evalue": str(said.get("evalue")), "traceback": lines}


def refusal(request: Message, why: dict[str, Any]) -> list[Message]:
    """Return all that is said to a request that will not run: busy, error, reply, idle."""
    said = [status("busy", request)]
    if request.msg_type == "execute_request":
        said.append(make("iopub", "error", why, parent=request, session=""))
    if request.msg_type.endswith("_request"):
        said.append(reply(request, {"status": "error", "execution_count": 0, **why}))
    return [*said, status("idle", request)]


def rest_of(asked: Asked, why: dict[str, Any]) -> list[Message]:
    """Return what is missing of the answer to a request whose answer, or a part of it, was lost.

    An execution that ended without an error in sight is told to have succeeded.
    """
    said = []
    ended_well = asked.idle and not asked.failed
    if asked.executes and not asked.replied and not ended_well and not asked.failed:
        said.append(make("iopub", "error", why, parent=asked.request, session=""))
    if asked.wants_reply and not asked.replied:
        if ended_well and asked.executes:
            body = {"status": "ok", "user_expressions": {}, "payload": []}
        else:
            body = {"status": "error", **why}
        said.append(reply(asked.request, {**body, "execution_count": asked.execution_count or 0}))
    if not asked.idle:
        said.append(status("idle", asked.request))
    return said


def kernel_info(request: Message, language: str, banner: str) -> list[Message]:
    """Return the answer to a kernel_info_request: there is no kernel, and clients shall ask it all the same.

    A client that is told of an error here would never send the execution by which its user learns more.
    """
    body = {
        "status": "ok",
        "protocol_version": PROTOCOL,
        "implementation": "cellblock",
        "implementation_version": "0",
        "language_info": {"name": language, "version": "", "mimetype": "text/plain", "file_extension": ""},
        "banner": banner,
        "help_links": [],
    }
    return [status("busy", request), reply(request, body), status("idle", request)]
