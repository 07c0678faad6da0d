"""What the result-block door takes and shows: otari's code-execution contract, version 1."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from gateway.models import Model

Command = Literal["view", "create", "str_replace", "insert", "undo_edit"]


class Growing(BaseModel):
    """A body of a contract that grows: fields that it does not name are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class NewSession(Growing):
    """The body of POST /sessions: how long it may live; less where the gateway's own limits are lower."""

    idle_timeout_seconds: int | None = Field(None, ge=1)
    max_lifetime_seconds: int | None = Field(None, ge=1)


class Session(Model):
    """A session, and the times that are in force. `created_at` in seconds since 1970."""

    session_id: str
    idle_timeout_seconds: int | None = None
    max_lifetime_seconds: int | None = None
    created_at: float


class Code(Growing):
    """The input of `code_execution`."""

    code: str = Field(min_length=1, max_length=8 << 20)


class Shell(Growing):
    """The input of `bash_code_execution`."""

    command: str = Field(min_length=1, max_length=64 << 10)


class Editor(Growing):
    """The input of `text_editor_code_execution`."""

    command: Command
    path: str = Field(min_length=1, max_length=4096)
    file_text: str | None = None
    old_str: str | None = None
    new_str: str | None = None
    insert_line: int | None = Field(None, ge=0)
    view_range: tuple[int, int] | None = None


class ToolCall(Growing):
    """What the tool calls have in common."""

    timeout_seconds: int | None = Field(None, ge=1)
    tool_use_id: str | None = Field(None, max_length=256)


class CodeCall(ToolCall):
    """Code for the session's kernel."""

    tool: Literal["code_execution"]
    input: Code


class ShellCall(ToolCall):
    """A command beside it."""

    tool: Literal["bash_code_execution"]
    input: Shell


class EditorCall(ToolCall):
    """A look at a file, or a change of one."""

    tool: Literal["text_editor_code_execution"]
    input: Editor


class AnyCall(RootModel[Annotated[CodeCall | ShellCall | EditorCall, Field(discriminator="tool")]]):
    """The body of POST /sessions/{name}/exec."""


class OutputFile(Model):
    """A file that came of it; `file_id` is its path, which `GET …/files?path=` takes."""

    type: str = "code_execution_output"
    file_id: str
    filename: str


class Outcome(Model):
    """What a call gave. Code that failed has another `return_code` than 0, and the reason on `stderr`."""

    type: str = "code_execution_result"
    stdout: str = ""
    stderr: str = ""
    return_code: int = 0
    content: list[OutputFile] = Field(default_factory=list)


class ResultBlock(Model):
    """The outcome under the name of the tool that ran."""

    type: str
    tool_use_id: str
    content: Outcome


class Answer(Model):
    """The answer to a tool call."""

    tool_use_id: str
    execution_time_ms: int
    result_block: ResultBlock


class FileEntry(Model):
    """A file of the session's home; `modified_at` in seconds since 1970."""

    path: str
    size_bytes: int
    modified_at: float


class Files(Model):
    """A directory's files."""

    files: list[FileEntry]


class Stored(Model):
    """A file that was written."""

    path: str
    size_bytes: int
