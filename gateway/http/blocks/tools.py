"""The three tools of result blocks, over the services: code, a command, a text editor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import BadRequest, Conflict, NotFound, PayloadTooLarge, PreconditionFailed
from gateway.http.blocks.views import CodeCall, EditorCall, Outcome, OutputFile, ShellCall
from gateway.models import ExecuteRequest, ExecutionStatus, Scope
from gateway.models.processes import CommandRun
from gateway.protocol.narration import clean
from gateway.services.files import Expected, pieces_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.http.blocks.views import Editor
    from gateway.http.context import Context
    from gateway.models import Origin, Principal

# As a shell has them for what was ended by a time limit, SIGINT and SIGKILL.
CODES = {
    ExecutionStatus.OK: 0,
    ExecutionStatus.TIMEOUT: 124,
    ExecutionStatus.INTERRUPTED: 130,
    ExecutionStatus.DEAD: 137,
}
LONGEST_COMMAND_S = 3600.0


class Tools:
    """The tools of one session: of a kernel, for who asks."""

    def __init__(self, ctx: Context, principal: Principal, origin: Origin, kernel_id: str) -> None:
        self._ctx = ctx
        self._who = principal
        self._origin = origin
        self._kernel_id = kernel_id

    async def run(self, call: CodeCall | ShellCall | EditorCall) -> Outcome:
        """Return what a call gives; its own failure is an outcome. Raises GatewayError if it cannot run."""
        if isinstance(call, EditorCall):
            return await self._edit(call.input)
        looks = self._who.has(Scope.FILES)
        before = await self._ctx.artifacts.look(self._who, self._kernel_id) if looks else {}
        outcome = await (self._code(call) if isinstance(call, CodeCall) else self._shell(call))
        if looks:
            made = await self._ctx.artifacts.since(self._who, self._kernel_id, before)
            outcome.content = [
                OutputFile(file_id=each.path, filename=each.path.rpartition("/")[2]) for each in made.files
            ]
        return outcome

    async def _code(self, call: CodeCall) -> Outcome:
        request = ExecuteRequest(code=call.input.code, timeout_s=call.timeout_seconds, stop_on_error=False)
        result = await self._ctx.executions.run(self._who, self._kernel_id, request, origin=self._origin)
        told = [
            str(output["data"]["text/plain"])
            for output in result.outputs
            if output.get("output_type") == "execute_result" and "text/plain" in output["data"]
        ]
        stderr = result.stderr + (f"{clean(result.error)}\n" if result.error else "")
        if result.reason is not None:
            stderr += f"[cellblock] The kernel died: {result.reason}.\n"
        return Outcome(
            stdout=result.stdout + "".join(f"{value}\n" for value in told),
            stderr=stderr,
            return_code=CODES.get(result.status, 1),
        )

    async def _shell(self, call: ShellCall) -> Outcome:
        limit_s = min(float(call.timeout_seconds or 60), LONGEST_COMMAND_S)
        request = CommandRun(command=call.input.command, timeout_s=limit_s)
        result = await self._ctx.processes.run(self._who, self._kernel_id, request)
        if result.status == "timeout":
            note = f"[cellblock] The time limit of {limit_s:g} s is over.\n"
            return Outcome(stdout=result.stdout, stderr=result.stderr + note, return_code=124)
        code = 1 if result.exit_code is None else result.exit_code
        return Outcome(
            stdout=result.stdout, stderr=result.stderr, return_code=code if code >= 0 else 128 - code
        )

    async def _edit(self, wanted: Editor) -> Outcome:
        try:
            return Outcome(stdout=await self._edited(wanted))
        except (NotFound, Conflict, PreconditionFailed, PayloadTooLarge, BadRequest) as error:
            if error.code == "kernel_dead":
                raise
            return Outcome(stderr=f"{error.message}\n", return_code=1)

    async def _edited(self, wanted: Editor) -> str:
        """Carry out an editor's command and return what it shows. Raises BadRequest for what it lacks."""
        files, who, kernel_id, path = self._ctx.files, self._who, self._kernel_id, wanted.path
        match wanted.command:
            case "view":
                return await self._view(wanted)
            case "create":
                text = _given(wanted.file_text, "file_text")
                await files.write(who, kernel_id, path, _whole(text), Expected())
            case "str_replace":
                old, new = _given(wanted.old_str, "old_str"), (wanted.new_str or "").encode()
                await files.edit(who, kernel_id, path, old, new, replacements=1)
            case "insert":
                await self._insert(wanted)
            case _:
                raise BadRequest("Earlier versions of files are not kept: undo_edit does nothing here.")
        return ""

    async def _view(self, wanted: Editor) -> str:
        facts = await self._ctx.files.stat(self._who, self._kernel_id, wanted.path)
        if facts.type == "directory":
            walk = await self._ctx.files.walk(self._who, self._kernel_id, wanted.path, depth=2, limit=1000)
            return "".join(f"{each.path}\n" for each in walk.entries)
        text, _ = await self._text(wanted.path)
        if wanted.view_range is None:
            return text
        first, last = wanted.view_range
        lines = text.splitlines(keepends=True)
        if not 1 <= first <= len(lines) or (last != -1 and last < first):
            raise BadRequest(f"The file has lines 1 to {len(lines)}.", reason="view_range")
        return "".join(lines[first - 1 : None if last == -1 else last])

    async def _insert(self, wanted: Editor) -> None:
        text, version = await self._text(wanted.path)
        added = _given(wanted.new_str, "new_str").decode()
        lines = text.splitlines(keepends=True)
        if wanted.insert_line is None or wanted.insert_line > len(lines):
            raise BadRequest(f"A line is inserted after one of 0 to {len(lines)}.", reason="insert_line")
        before, after = "".join(lines[: wanted.insert_line]), "".join(lines[wanted.insert_line :])
        before += "\n" if before and not before.endswith("\n") else ""
        added += "\n" if not added.endswith("\n") else ""
        # not over what somebody else has written meanwhile
        await self._ctx.files.write(
            self._who,
            self._kernel_id,
            wanted.path,
            _whole((before + added + after).encode()),
            Expected(version),
        )

    async def _text(self, path: str) -> tuple[str, str]:
        most = self._ctx.settings.files.max_edit_bytes
        async with self._ctx.files.reading(self._who, self._kernel_id, path) as file:
            if file.facts.size > most:
                raise PayloadTooLarge(f"The file has more than {most} bytes (files.max_edit_bytes).")
            raw = b"".join([piece async for piece in pieces_of(file, 0, file.facts.size)])
        try:
            return raw.decode(), file.facts.version
        except UnicodeDecodeError:
            raise BadRequest("The file is not UTF-8 text.", reason="path") from None


def _given(text: str | None, name: str) -> bytes:
    if text is None:
        raise BadRequest(f"The field {name} is missing.", reason=name)
    return text.encode("utf-8", "replace")


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    yield content
