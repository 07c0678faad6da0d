"""What `cellblock run` shows: outputs as they come, and how far it is."""

from __future__ import annotations

import base64
import re
import struct
import sys
from typing import TYPE_CHECKING, Any, Self, TextIO

from gateway.models import ExecutionResult, ExecutionStatus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from rich.progress import Progress

# Everything that a terminal acts on, apart from colours, newlines, tabs and carriage returns: an output
# is somebody else's text and must not retitle the window, fill the clipboard or rewrite earlier lines.
_COLOUR = r"\x1b\[[0-9;:]*m"
_ACTIVE = re.compile(
    rf"({_COLOUR})"
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # other CSI sequences
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC, DCS, SOS, PM, APC strings
    r"|\x1b[ -/]*[0-~]?"  # two-character escapes
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
_COLOURS = re.compile(_COLOUR)
_SOURCE_LINES = 8
_LONGEST_LINE = 16_384


def harmless(text: str) -> str:
    """Return text without what a terminal would act on; colours stay."""
    return _ACTIVE.sub(lambda match: match[1] or "", text)


def describe(data: Mapping[str, Any]) -> str:
    """Return a MIME bundle as text: an image by kind and size, else its plain text, else its types."""
    for mime, value in data.items():
        if mime.startswith("image/"):
            return f"[{mime}{_size(mime, value)}]"
    plain = data.get("text/plain")
    if plain is not None:
        return "".join(map(str, plain)) if isinstance(plain, list) else str(plain)
    return f"[{', '.join(data)}]" if data else ""


def _size(mime: str, value: Any) -> str:
    """Return " WxH" of a base64 PNG or GIF, from its first bytes; nothing when they do not say."""
    if mime not in ("image/png", "image/gif") or not isinstance(value, str):
        return ""
    try:
        head = base64.b64decode("".join(value[:64].split())[:32], validate=True)
    except ValueError:
        return ""
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) >= 24:
        width, height = struct.unpack(">II", head[16:24])
    elif head[:4] == b"GIF8" and len(head) >= 10:
        width, height = struct.unpack("<HH", head[6:10])
    else:
        return ""
    return f" {width}x{height}"


class Screen:
    """Prints outputs to stdout and stderr; with `cells` also progress: a bar on a terminal, else lines."""

    def __init__(self, cells: int | None = None) -> None:
        self._cells = cells
        self._done = 0
        self._pending: dict[TextIO, str] = {}
        self._bar: Progress | None = None
        for file in (sys.stdout, sys.stderr):
            reconfigure = getattr(file, "reconfigure", None)
            if reconfigure is not None:  # a text that the terminal's encoding lacks is no reason to stop
                reconfigure(errors="backslashreplace")

    def __enter__(self) -> Self:
        if self._cells and sys.stderr.isatty():
            self._bar = _bar()
            self._bar.add_task("starting a kernel", total=self._cells)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        if self._bar is not None:
            self._bar.stop()

    def begin(self, source: str) -> None:
        """Say that a cell starts."""
        if self._bar is not None:
            lines = harmless(source).splitlines()
            shown = lines[:_SOURCE_LINES] + (["…"] if len(lines) > _SOURCE_LINES else [])
            self._bar.console.print("\n".join(f"│ {line}" for line in shown), style="dim", markup=False)
            self._bar.update(self._bar.task_ids[0], description=f"cell {self._done + 1}")

    def show(self, kind: str, content: Mapping[str, Any]) -> None:
        """Print one iopub message's content when it is an output; a kernel may have put anything there."""
        if kind == "stream":
            file = sys.stderr if content.get("name") == "stderr" else sys.stdout
            self._write(file, str(content.get("text", "")))
        elif kind in {"execute_result", "display_data"}:
            data = content.get("data")
            text = describe(data) if isinstance(data, dict) else ""
            if text:
                self._write(sys.stdout, f"{text}\n")
        elif kind == "error":
            lines = content.get("traceback")
            text = "\n".join(map(str, lines)) if isinstance(lines, list) else ""
            text = text or f"{content.get('ename')}: {content.get('evalue')}"
            self._write(sys.stderr, f"{text}\n" if sys.stderr.isatty() else f"{_COLOURS.sub('', text)}\n")

    def end(self, result: ExecutionResult) -> None:
        """Say how a cell ended."""
        self._done += 1
        self._flush()
        how = str(result.status) + (f" ({result.reason})" if result.reason else "")
        if self._cells is None:
            if result.status not in (ExecutionStatus.OK, ExecutionStatus.ERROR):
                self.say(f"cellblock: the execution ended: {how}")
            return
        line = f"[{self._done}/{self._cells}] cell {self._done} … {how} {result.duration_s:.1f}s"
        if self._bar is None:
            self._write(sys.stderr, f"{line}\n")
        else:
            style = "green" if result.status is ExecutionStatus.OK else "red"
            self._bar.console.print(line, style=style, markup=False, highlight=False)
            self._bar.advance(self._bar.task_ids[0])

    def say(self, text: str) -> None:
        """Print one sentence on stderr."""
        self._flush()
        self._write(sys.stderr, f"{text}\n")

    def _write(self, file: TextIO, text: str) -> None:
        if not file.isatty():
            file.write(text)
            file.flush()
        elif self._bar is None:
            file.write(harmless(text))
            file.flush()
        else:
            # Above a live bar only whole lines can be printed; the rest waits for its newline, for a while.
            whole, newline, rest = (self._pending.pop(file, "") + harmless(text)).rpartition("\n")
            if newline:
                _print_above(self._bar, whole)
            if len(rest) > _LONGEST_LINE:
                _print_above(self._bar, rest)
            elif rest:
                self._pending[file] = rest

    def _flush(self) -> None:
        for text in self._pending.values():
            if self._bar is not None:
                _print_above(self._bar, text)
        self._pending.clear()


def _print_above(bar: Progress, text: str) -> None:
    from rich.text import Text  # noqa: PLC0415 - only where a bar is shown

    bar.console.print(Text.from_ansi(text), soft_wrap=True)


def _bar() -> Progress:
    from rich.console import Console  # noqa: PLC0415 - only where a bar is shown
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
