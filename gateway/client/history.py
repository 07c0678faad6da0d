"""What was run through a client: kept, bounded, and exported."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson

from gateway.errors import BadRequest
from gateway.models import timestamp

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gateway.models import ExecutionResult

HIDDEN = "[secret]"
SHORTEST_SECRET = 4  # what is shorter would hide half of every text


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of code that ended: `path` instead of `code` where a file of the home was run."""

    code: str | None
    path: str | None
    status: str
    reason: str | None
    outputs: tuple[dict[str, Any], ...]
    execution_count: int | None
    kernel_id: str | None
    context: str | None
    started_at: str
    duration_s: float

    @property
    def source(self) -> str:
        """The code, or a comment that names the file."""
        return f"# file: {self.path}" if self.code is None else self.code


class History:
    """The last `most` pieces of code and what they gave, `max_bytes` of them at most: the oldest go first.

    Secrets are never in it: the client's key, the `secrets` that a kernel was created with and what `hide`
    was told are replaced wherever they stand as they are, in code or output.
    """

    def __init__(self, most: int = 1000, max_bytes: int = 64 << 20) -> None:
        self._most = most
        self._max_bytes = max_bytes
        self._entries: deque[tuple[Entry, int]] = deque()
        self._bytes = 0
        self._secrets: set[str] = set()

    @property
    def entries(self) -> Sequence[Entry]:
        """What is kept, oldest first."""
        return [entry for entry, _ in self._entries]

    def hide(self, secret: str) -> None:
        """Keep a value out of what is recorded from now on."""
        if len(secret) >= SHORTEST_SECRET:
            self._secrets.add(secret)

    def clear(self) -> None:
        """Forget everything but what is secret."""
        self._entries.clear()
        self._bytes = 0

    def add(
        self,
        code: str | None,
        result: ExecutionResult,
        *,
        path: str | None = None,
        status: str | None = None,
        kernel_id: str | None = None,
        context: str | None = None,
        started_at: str | None = None,
    ) -> None:
        """Record what a piece of code gave."""
        begun = datetime.fromtimestamp(time.time(), tz=UTC) - timedelta(seconds=result.duration_s)
        entry = Entry(
            code=code,
            path=path,
            status=status or str(result.status),
            reason=None if result.reason is None else str(result.reason),
            outputs=tuple(result.outputs),
            execution_count=result.execution_count,
            kernel_id=kernel_id,
            context=context,
            started_at=started_at or timestamp(begun),
            duration_s=result.duration_s,
        )
        entry = replace(
            entry, code=self._clean(entry.code), path=self._clean(path), outputs=self._clean(entry.outputs)
        )
        size = len(_line(entry))
        if size > self._max_bytes:
            entry = replace(entry, outputs=(_left_out(size),))
            size = len(_line(entry))
        self._entries.append((entry, size))
        self._bytes += size
        while len(self._entries) > self._most or (self._bytes > self._max_bytes and self._entries):
            self._bytes -= self._entries.popleft()[1]

    def export(self, path: Path) -> None:
        """Write it to a file: a notebook (`.ipynb`), a script (`.py`) or one JSON object a line (`.jsonl`).

        Raises:
            BadRequest: another suffix.
            OSError: the file cannot be written.
        """
        match path.suffix:
            case ".ipynb":
                text = self.notebook()
            case ".py":
                text = self.script()
            case ".jsonl":
                text = self.lines()
            case _:
                raise BadRequest("A history is exported to .ipynb, .py or .jsonl.", reason="suffix")
        path.write_text(text, encoding="utf-8", errors="backslashreplace")

    def lines(self) -> str:
        """Return it as JSON, an object a line."""
        return "".join(f"{_line(entry).decode()}\n" for entry in self.entries)

    def script(self) -> str:
        """Return the code as a script with a mark before each piece."""
        pieces = (
            f"# %% {entry.started_at} {entry.status}\n{entry.source.rstrip()}\n" for entry in self.entries
        )
        return "\n".join(pieces)

    def notebook(self) -> str:
        """Return it as a notebook, each piece a cell with its outputs."""
        import nbformat  # noqa: PLC0415 - it takes half a second, and few need it

        new = nbformat.v4
        notebook = new.new_notebook()  # type: ignore[no-untyped-call]
        for entry in self.entries:
            cell = new.new_code_cell(  # type: ignore[no-untyped-call]
                entry.source, execution_count=entry.execution_count
            )
            cell.outputs = [nbformat.from_dict(output) for output in entry.outputs]  # type: ignore[no-untyped-call]
            told = {name: asdict(entry)[name] for name in ("status", "reason", "started_at", "duration_s")}
            cell.metadata["cellblock"] = {name: value for name, value in told.items() if value is not None}
            notebook.cells.append(cell)
        text: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
        return text.rstrip("\n") + "\n"

    def _clean(self, value: Any) -> Any:
        """Return a JSON value with every secret replaced, in keys and values."""
        if isinstance(value, str):
            for secret in sorted(self._secrets, key=len, reverse=True):
                value = value.replace(secret, HIDDEN)
            return value
        if isinstance(value, dict):
            return {self._clean(key): self._clean(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._clean(part) for part in value)
        return value


def _line(entry: Entry) -> bytes:
    try:
        return orjson.dumps(asdict(entry))
    except TypeError:
        # a lone surrogate in an output becomes the escape that it was
        return orjson.dumps(_plain(asdict(entry)))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _left_out(size: int) -> dict[str, Any]:
    text = f"[cellblock: outputs of {size} bytes are not kept here]\n"
    return {"output_type": "stream", "name": "stderr", "text": text}
