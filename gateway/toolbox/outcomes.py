"""What a tool tells of an execution: texts that fit into a conversation, results, and where the rest is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gateway.models import Model
from gateway.protocol.narration import shorten
from gateway.toolbox.resources import file_uri, text_uri
from gateway.toolbox.results import fitted, json_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.models.jobs import Event, JobView, TaskResult

# times the size of one text
CALLS = 10


class Failure(Model):
    """An exception that the code raised. `traceback` has no colours, and the code's own frames only."""

    ename: str
    evalue: str
    traceback: str


class MadeFile(Model):
    """A file of the home that was made or changed; `uri` reads it as a resource of MCP's."""

    path: str
    size: int
    change: Literal["made", "changed"]
    uri: str | None = None


class PendingCall(Model):
    """A call of the code's to a tool that was offered, which waits for answer_tool_calls."""

    call_id: str
    name: str
    arguments: dict[str, Any]


class TextPart(Model):
    """A part of a full text: characters from `offset` on; `next_offset` is where the next begins."""

    what: Literal["stdout", "stderr", "error", "result"]
    text: str
    offset: int
    next_offset: int | None = None
    total: int


class Outcome(Model):
    """What became of an execution; what does not apply is left out."""

    execution_id: str
    session_id: str | None = None
    status: Literal[
        "queued",
        "running",
        "ok",
        "error",
        "timeout",
        "interrupted",
        "aborted",
        "dead",
        "cancelled",
        "failed",
        "lost",
        "tool_call_required",
    ] = Field(description="How it ended, or that it has not.")
    reason: str | None = Field(None, description="Why, such as oom, where that has a name.")
    execution_count: int | None = None
    stdout: str = ""
    stderr: str = ""
    truncated: bool = Field(False, description="Texts are cut; get_execution with offset has them in full.")
    results: list[dict[str, Any]] = Field(
        default_factory=list, description="What was displayed and returned: by media type."
    )
    error: Failure | None = None
    failure: str | None = Field(None, description="What kept the code from being run at all.")
    duration_ms: int | None = None
    artifacts: list[MadeFile] = Field(default_factory=list, description="Files that were made or changed.")
    tool_calls: list[PendingCall] | None = Field(None, description="Calls that wait for answer_tool_calls.")
    cursor: int | None = Field(None, description="Give it to get_execution to get what comes after this.")
    full_texts: list[str] | None = Field(
        None, description="Where texts that are cut are in full, as resources of MCP's."
    )
    text: TextPart | None = Field(None, description="The part of a full text that was asked for.")


class Teller:
    """Makes outcomes of executions, cut to what the settings say."""

    def __init__(self, text_chars: int, image_bytes: int) -> None:
        self.text_chars = text_chars
        self._image_bytes = image_bytes

    def tell(self, view: JobView, session_id: str | None) -> Outcome:
        """Tell of an execution: of its end, or of the events that its view has."""
        outcome = Outcome(
            execution_id=view.id,
            session_id=session_id or view.context,
            status=view.status.value,
            reason=view.reason,
            failure=view.failure.message if view.failure else None,
        )
        if view.result is not None:
            self._ended(outcome, view.result)
        elif view.events is not None:
            self._under_way(outcome, view.events)
        if not view.status.ended:
            outcome.cursor = view.cursor
            calls = self._calls(view.pending_calls)
            if calls:
                outcome.status, outcome.tool_calls = "tool_call_required", calls
        return outcome

    def _ended(self, outcome: Outcome, result: TaskResult) -> None:
        outcome.execution_count = result.execution_count
        outcome.stdout, outcome.stderr = result.stdout, result.stderr
        outcome.duration_ms = round(result.duration_s * 1000)
        if result.error is not None:
            traceback = result.clean or "\n".join(result.error.traceback)
            outcome.error = Failure(ename=result.error.ename, evalue=result.error.evalue, traceback=traceback)
        outcome.results = self._results(each.get("data") for each in result.outputs)
        if result.artifacts is not None and outcome.session_id is not None:
            outcome.artifacts = [
                MadeFile(
                    path=made.path,
                    size=made.size,
                    change=made.change,
                    uri=file_uri(outcome.session_id, made.href),
                )
                for made in result.artifacts.files
            ]
        outcome.truncated = result.truncated
        self._cut(outcome)

    def _under_way(self, outcome: Outcome, events: Iterable[Event]) -> None:
        told = list(events)
        outcome.stdout = "".join(event.text or "" for event in told if event.type == "stdout")
        outcome.stderr = "".join(event.text or "" for event in told if event.type == "stderr")
        outcome.results = self._results(event.data for event in told)
        outcome.truncated = any(event.type == "gap" for event in told)
        self._cut(outcome)
        # there is more to come, and these are of its end
        outcome.full_texts = None

    def _cut(self, outcome: Outcome) -> None:
        """Cut the texts, and tell where the full ones are."""
        full = []
        for what in ("stdout", "stderr"):
            whole = getattr(outcome, what)
            short = shorten(whole, self.text_chars)
            setattr(outcome, what, short)
            full += [what] if short != whole else []
        if outcome.error is not None:
            told = outcome.error.model_dump()
            short_error = {name: shorten(text, self.text_chars) for name, text in told.items()}
            outcome.error = Failure(**short_error)
            full += ["error"] if short_error != told else []
        if full:
            outcome.truncated = True
            outcome.full_texts = [text_uri(outcome.execution_id, what) for what in full]

    def _results(self, bundles: Iterable[dict[str, Any] | None]) -> list[dict[str, Any]]:
        return fitted(bundles, text_chars=self.text_chars, image_bytes=self._image_bytes)

    def _calls(self, waiting: Iterable[Event]) -> list[PendingCall]:
        """Return the calls that wait; those past CALLS times a text come once the first are answered."""
        calls: list[PendingCall] = []
        left = CALLS * self.text_chars
        for event in waiting:
            size = json_size(event.arguments)
            left -= size or 0
            if calls and left < 0:
                break
            arguments = event.arguments or {} if size is not None else {}
            calls.append(PendingCall(call_id=event.call_id or "", name=event.name or "", arguments=arguments))
        return calls
