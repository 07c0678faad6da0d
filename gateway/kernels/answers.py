"""What the gateway says in a kernel's place: answers to requests that no kernel will answer, and notices."""

from __future__ import annotations

from dataclasses import replace

import orjson

from gateway.kernels.replay import Gap
from gateway.models import DeathReason, ExecutionState, ExecutionStatus, Limits, Message
from gateway.protocol.messages import MalformedMessage, content, dumps, make

_NO_REPLY = frozenset({"comm_open", "comm_msg", "comm_close"})


def explain(reason: DeathReason, limits: Limits) -> str:
    """Say in a sentence why a kernel ended."""
    return {
        DeathReason.OOM: f"The kernel used up its {limits.memory_bytes >> 20} MiB of memory and was killed.",
        DeathReason.CPU: "The kernel used up its CPU time and was killed.",
        DeathReason.TIMEOUT: "The execution ran out of time, did not stop when interrupted, and was killed.",
        DeathReason.CRASHED: "The kernel crashed.",
        DeathReason.KILLED: "The kernel was killed.",
        DeathReason.CULLED: "The kernel was idle or old beyond its limits and was ended.",
        DeathReason.SHUTDOWN: "The kernel was shut down.",
    }[reason]


def for_dead(request: Message, reason: DeathReason, text: str, session: str) -> list[Message]:
    """Answer a request in full for a kernel that died: error and idle on iopub, and the reply, in order."""
    name = f"Kernel{reason.value.capitalize()}"
    error = {"ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
    metadata = {"cellblock": {"reason": reason.value}}
    answers = []
    if request.msg_type == "execute_request":
        answers.append(make("iopub", "error", error, parent=request, session=session, metadata=metadata))
    if request.msg_type not in _NO_REPLY:
        content = {"status": "error", "execution_count": 0, **error}
        kind = request.msg_type.removesuffix("_request") + "_reply"
        answers.append(
            make(request.channel, kind, content, parent=request, session=session, metadata=metadata)
        )
    answers.append(status(ExecutionState.IDLE, request, session))
    return answers


def timed_out(answer: Message, timeout_s: float) -> Message:
    """Return the kernel's answer to an interrupt with whose interrupt it was, and why, for who reads it.

    Many clients show an error and nothing else: an IPython kernel's is a KeyboardInterrupt without a word.
    """
    marked = replace(answer, metadata=dumps({"cellblock": {"reason": DeathReason.TIMEOUT.value}}))
    try:
        said = content(answer)
    except MalformedMessage:
        return marked
    if said.get("ename") != "KeyboardInterrupt" or said.get("evalue"):
        return marked
    said["evalue"] = f"The time limit of {timeout_s:g} s is over."
    if isinstance(lines := said.get("traceback"), list):
        last = lines.pop() if lines and isinstance(lines[-1], str) else "KeyboardInterrupt:"
        lines.append(f"{last.rstrip()} {said['evalue']}")
    return replace(marked, content=dumps(said))


def status(state: ExecutionState, parent: Message | None, session: str) -> Message:
    """Return a status message."""
    return make("iopub", "status", {"execution_state": state.value}, parent=parent, session=session)


def status_of(reply: Message) -> ExecutionStatus:
    """Return how an execution ended by the kernel's own word; what cannot be read is an error."""
    try:
        said = content(reply)
    except MalformedMessage:
        return ExecutionStatus.ERROR
    if said.get("status") == "ok":
        return ExecutionStatus.OK
    if said.get("status") in {"aborted", "abort"}:
        return ExecutionStatus.ABORTED
    interrupted = said.get("ename") == "KeyboardInterrupt"
    return ExecutionStatus.INTERRUPTED if interrupted else ExecutionStatus.ERROR


def stops_on_error(request: Message) -> bool:
    """Tell whether a failure of this execution takes what waits behind it along (the protocol's default)."""
    try:
        return content(request).get("stop_on_error", True) is not False
    except MalformedMessage:
        return True


def in_subshell(request: Message) -> bool:
    """Tell whether a request names a subshell (JEP 91), where it runs beside the others."""
    if b'"subshell_id"' not in request.header:
        return False
    return orjson.loads(request.header).get("subshell_id") is not None


def aborted(request: Message, session: str) -> list[Message]:
    """Answer an execution that will not run, as a kernel answers those behind an error."""
    reply = make("shell", "execute_reply", {"status": "aborted"}, parent=request, session=session)
    return [reply, status(ExecutionState.IDLE, request, session)]


def for_policy(request: Message, name: str, text: str, session: str) -> list[Message]:
    """Answer an execution that the kernel shall not see, as a kernel answers one that raises."""
    error = {"ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
    reply = {"status": "error", "execution_count": 0, **error}
    return [
        status(ExecutionState.BUSY, request, session),
        make("iopub", "error", error, parent=request, session=session),
        make("shell", "execute_reply", reply, parent=request, session=session),
        status(ExecutionState.IDLE, request, session),
    ]


def for_limit(request: Message, text: str, session: str) -> list[Message]:
    """Answer a request that the kernel would not take."""
    error = {"ename": "LimitReached", "evalue": text, "traceback": [text]}
    kind = request.msg_type.removesuffix("_request") + "_reply"
    reply = make(request.channel, kind, {"status": "error", **error}, parent=request, session=session)
    return [reply, status(ExecutionState.IDLE, request, session)]


def state_of(status: Message) -> str | None:
    """Return the execution state that a status message tells; None where it cannot be read."""
    try:
        state = content(status).get("execution_state")
    except MalformedMessage:
        return None
    return state if isinstance(state, str) else None


def code_of(request: Message) -> str:
    """Return the code of an execute_request; empty where it has none."""
    try:
        code = content(request).get("code")
    except MalformedMessage:
        return ""
    return code if isinstance(code, str) else ""


def notice(text: str, parent: Message | None, session: str, *, cut: bool = False) -> Message:
    """Return a line on stderr, said by the gateway; `cut` tells programs that output is missing there."""
    content = {"name": "stderr", "text": f"[cellblock] {text}\n"}
    metadata = {"cellblock": {"truncated": True}} if cut else {}
    return make("iopub", "stream", content, parent=parent, session=session, metadata=metadata)


def missing(gap: Gap, session: str) -> Message:
    """Return the notice that stands where output was let go of before its client came back."""
    text = f"{gap.size} bytes of output were lost while this client was not connected."
    said = notice(text, None, session, cut=True)
    return replace(said, parent_header=gap.parent_header, parent_id=gap.parent_id, offset=gap.offset)
