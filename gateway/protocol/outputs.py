"""Fold the messages of one execution into an `ExecutionResult`."""

from __future__ import annotations

from typing import Any

from gateway.models import DeathReason, ExecutionError, ExecutionResult, ExecutionStatus, Message
from gateway.protocol.messages import MalformedMessage, content, count_values, dumps, read_object
from gateway.protocol.transcript import Bundle, Transcript, mark

# Serializers refuse nesting beyond 254; a result has a few levels of its own.
MAX_DEPTH = 100
# What is kept of an error too large for the outputs.
MAX_ENAME_CHARS = 256
MAX_EVALUE_CHARS = 2048

_OUTPUTS = {"stream", "display_data", "execute_result", "update_display_data", "error"}
_DISPLAYS = {"display_data", "execute_result"}


class Collector:
    """Collects what one execute_request gave, from its first message until its reply and status idle.

    The kernel is hostile: every field is checked, what is kept is bounded by `max_bytes` (see `Transcript`),
    and output that cannot be read leaves a mark. `started` is monotonic seconds.
    """

    def __init__(self, msg_id: str, *, max_bytes: int, started: float) -> None:
        self._msg_id = msg_id
        self._max_bytes = max_bytes
        self._started = started
        self._transcript = Transcript(max_bytes)
        self._clear_before_next = False
        self._idle = False
        self._replied = False
        self._told = False
        self._timed_out = False
        self._shortened = False
        self._status = ExecutionStatus.DEAD
        self._reason: DeathReason | None = None
        self._error: ExecutionError | None = None
        self._execution_count: int | None = None

    def feed(self, message: Message, *, trusted: bool = False) -> bool:
        """Take a message of any execution and channel; tell whether this one's reply and idle have both come.

        `trusted` says that the gateway made the message: only then is the reason of a death read from it.
        """
        if message.parent_id == self._msg_id:
            if message.channel == "iopub":
                self._take_output(message)
                # said by the gateway where it dropped output
                self._shortened = self._shortened or (trusted and b'"truncated":true' in message.metadata)
            elif message.channel == "shell" and message.msg_type == "execute_reply":
                self._take_reply(message, trusted=trusted)
        return self._idle and self._replied

    def mark_timeout(self) -> None:
        """Note that the deadline ended the execution, whatever its reply says."""
        self._timed_out = True

    def result(self, now: float) -> ExecutionResult:
        """Return what there is at monotonic second `now`; an execution without a reply counts as dead."""
        outputs = self._transcript.outputs()
        texts = {"stdout": "", "stderr": ""}
        for name in texts:
            texts[name] = "".join(output["text"] for output in outputs if output.get("name") == name)
        return ExecutionResult(
            status=ExecutionStatus.TIMEOUT if self._timed_out else self._status,
            reason=DeathReason.TIMEOUT if self._timed_out else self._reason,
            stdout=texts["stdout"],
            stderr=texts["stderr"],
            outputs=outputs,
            error=self._error,
            execution_count=self._execution_count,
            duration_s=max(0.0, now - self._started),
            truncated=self._transcript.truncated or self._shortened,
        )

    def _take_reply(self, message: Message, *, trusted: bool) -> None:
        # The gateway's word stands against a reply that the kernel gave before it died, or gives after.
        if self._told or (self._replied and not trusted):
            return
        self._replied = True
        try:
            fields = content(message)
        except MalformedMessage:
            fields = {}
        self._count(fields)
        status = fields.get("status")
        if status == "ok":
            self._status = ExecutionStatus.OK
        elif status in ("aborted", "abort"):
            self._status = ExecutionStatus.ABORTED
        elif fields.get("ename") == "KeyboardInterrupt":
            self._status = ExecutionStatus.INTERRUPTED
        else:
            self._status = ExecutionStatus.ERROR
        if status == "error" and self._error is None:
            self._error, _ = self._read_error(fields, len(message.content))
        if trusted:
            self._told = True
            self._reason = _reason(message)
            if self._reason is DeathReason.TIMEOUT:
                self._status = ExecutionStatus.TIMEOUT
            elif self._reason is not None:
                self._status = ExecutionStatus.DEAD

    def _take_output(self, message: Message) -> None:
        kind, size = message.msg_type, len(message.content)
        if size > self._max_bytes and kind in _DISPLAYS:
            # it would not fit, so it need not be read
            self._clear_if_due()
            self._transcript.cut(size)
            return
        try:
            fields = content(message)
            if kind == "status":
                self._idle = self._idle or fields.get("execution_state") == "idle"
            elif kind == "execute_input":
                self._count(fields)
            elif kind == "clear_output":
                self._clear_before_next = fields.get("wait") is True
                if not self._clear_before_next:
                    self._transcript.clear()
            elif kind == "update_display_data":
                self._transcript.update(bundle_of(fields, message))
            elif kind in _OUTPUTS:
                self._append(kind, fields, message)
        except MalformedMessage:
            if kind in _OUTPUTS:
                self._clear_if_due()
                self._transcript.cut(size)

    def _append(self, kind: str, fields: dict[str, Any], message: Message) -> None:
        if kind == "stream":
            text = fields.get("text")
            if not isinstance(text, str):
                raise MalformedMessage("The stream's text is not a text.")
            self._clear_if_due()
            self._transcript.stream("stderr" if fields.get("name") == "stderr" else "stdout", text)
        elif kind == "error":
            self._error, size = self._read_error(fields, len(message.content))
            self._clear_if_due()
            self._transcript.error({"output_type": "error", **self._error.model_dump()}, size)
        else:
            shown: dict[str, Any] = {"output_type": kind}
            bundle = bundle_of(fields, message)
            if kind == "execute_result":
                self._count(fields)
                shown["execution_count"] = count_of(fields)
            self._clear_if_due()
            self._transcript.display(bundle, shown)

    def _clear_if_due(self) -> None:
        if self._clear_before_next:
            self._clear_before_next = False
            self._transcript.clear()

    def _count(self, fields: dict[str, Any]) -> None:
        count = count_of(fields)
        if count is not None:
            self._execution_count = count

    def _read_error(self, fields: dict[str, Any], size: int) -> tuple[ExecutionError, int]:
        """Return an error and its bytes: one larger than a quarter of all loses its traceback."""
        ename, evalue, lines = (fields.get(name) for name in ("ename", "evalue", "traceback"))
        error = ExecutionError(
            ename=ename if isinstance(ename, str) else "",
            evalue=evalue if isinstance(evalue, str) else "",
            traceback=[line for line in lines if isinstance(line, str)] if isinstance(lines, list) else [],
        )
        if size > self._max_bytes // 4:
            error.ename, error.evalue = error.ename[:MAX_ENAME_CHARS], error.evalue[:MAX_EVALUE_CHARS]
            error.traceback = [mark(size)]
            size = len(error.model_dump_json())
            self._shortened = True
        return error, size


def _reason(message: Message) -> DeathReason | None:
    """Return the death that a reply of the gateway's own tells of in its metadata."""
    try:
        told = read_object(message.metadata, "metadata")[0]["cellblock"]["reason"]
        return DeathReason(told)
    except (KeyError, TypeError, ValueError):
        return None


def count_of(fields: dict[str, Any]) -> int | None:
    """Return the execution count that a message tells, if it is one."""
    count = fields.get("execution_count")
    return count if type(count) is int and count >= 0 else None


def bundle_of(fields: dict[str, Any], message: Message) -> Bundle:
    """Return what a display shows, checked. Raises MalformedMessage."""
    data, metadata, transient = fields.get("data"), fields.get("metadata", {}), fields.get("transient")
    if not isinstance(data, dict) or not isinstance(metadata, dict):
        raise MalformedMessage("The display's data or metadata is not a JSON object.")
    if not _shallow([data, metadata]):
        raise MalformedMessage(f"The display is nested more than {MAX_DEPTH} levels deep.")
    display_id = transient.get("display_id") if isinstance(transient, dict) else None
    return Bundle(
        data={kind: _mime_value(kind, value) for kind, value in data.items()},
        metadata=metadata,
        size=len(message.content),
        values=count_values(message.content),
        display_id=display_id if isinstance(display_id, str) and display_id else None,
    )


def _mime_value(kind: str, value: object) -> object:
    """Return a value that nbformat takes: for types other than JSON a text, or a list of them."""
    if isinstance(value, str) or kind == "application/json" or kind.endswith("+json"):
        return value
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return value
    return dumps(value).decode()


def _shallow(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return True
    return False
