"""The notebook that `cellblock run` executes: read, recorded into cell by cell, written whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import nbformat

from gateway.cli.job import Cell
from gateway.errors import BadRequest
from gateway.models import timestamp

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from gateway.models import ExecutionResult


class Notebook:
    """A notebook file as nbformat 4, and where its executed copy goes (`job.Job`)."""

    shows_progress = True

    def __init__(self, node: Any, target: Path) -> None:
        self._node = node
        self._target = target
        self._runs = 0
        # What an earlier run left would be taken for this run's wherever this one stops early.
        for cell in self._node.cells:
            if cell.cell_type == "code":
                cell.outputs = []
                cell.execution_count = None
                cell.metadata.pop("execution", None)
                cell.metadata.pop("cellblock", None)

    @classmethod
    def read(cls, path: Path, target: Path) -> Notebook:
        """Read a notebook of any format version.

        Raises:
            BadRequest: the file cannot be read or is not a notebook.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise BadRequest(f"The notebook {path} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise BadRequest(f"The notebook {path} is not UTF-8 text.") from error
        invalid: dict[str, Exception] = {}
        try:
            # nbformat gives ids to cells that lack them, and warns of it: no news for who runs a notebook.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                node = nbformat.reads(text, as_version=4, capture_validation_error=invalid)  # type: ignore[no-untyped-call]
        except Exception as error:  # nbformat raises whatever its readers and converters meet
            raise BadRequest(f"The file {path} is not a notebook: {_first_line(error)}.") from error
        if invalid:
            reason = _first_line(next(iter(invalid.values())))
            raise BadRequest(f"The file {path} is not a valid notebook: {reason}.")
        return cls(node, target)

    @property
    def kernel_name(self) -> str | None:
        """The kernelspec that the notebook names."""
        name = self._node.metadata.get("kernelspec", {}).get("name")
        return str(name) if name else None

    @property
    def language(self) -> str | None:
        """The language that the notebook names."""
        metadata = self._node.metadata
        name = metadata.get("kernelspec", {}).get("language") or metadata.get("language_info", {}).get("name")
        return str(name).lower() if name else None

    def cells(self) -> list[Cell]:
        """Return the code cells to execute; empty ones and those tagged `skip-execution` are left out."""
        return [
            Cell(index, cell.source, "raises-exception" in _tags(cell))
            for index, cell in enumerate(self._node.cells)
            if cell.cell_type == "code" and cell.source.strip() and "skip-execution" not in _tags(cell)
        ]

    def record(self, cell: Cell, result: ExecutionResult, started: datetime, ended: datetime) -> None:
        """Put a result into its cell: outputs, count, times (where JupyterLab looks for them), status."""
        self._runs += 1
        node = self._node.cells[cell.index]
        node.outputs = [nbformat.from_dict(output) for output in result.outputs]  # type: ignore[no-untyped-call]
        node.execution_count = result.execution_count
        node.metadata["execution"] = {
            "iopub.execute_input": timestamp(started),
            "shell.execute_reply": timestamp(ended),
        }
        told = {"status": str(result.status), "duration_s": round(result.duration_s, 6)}
        if result.reason is not None:
            told["reason"] = str(result.reason)
        if result.truncated:
            told["truncated"] = True
        node.metadata["cellblock"] = told

    def save(self) -> Path | None:
        """Write the notebook in one step, unless nothing of it ran.

        A reader sees the old file or the new one, never half of it.
        """
        if self.cells() and not self._runs:
            return None
        target = self._target.resolve()
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            # A lone surrogate in an output becomes the JSON escape that it was.
            with temporary.open("x", encoding="utf-8", errors="backslashreplace") as file:
                text: str = nbformat.writes(self._node)  # type: ignore[no-untyped-call]
                file.write(text.rstrip("\n") + "\n")
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise BadRequest(f"The notebook {self._target} cannot be written: {error.strerror}.") from error
        return self._target


def _tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
