"""What `cellblock run` runs: cells, and what becomes of their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from gateway.models import ExecutionResult


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of code to execute: `index` is its place among the notebook's cells."""

    index: int
    source: str
    may_raise: bool = False


class Job(Protocol):
    """Cells to run in order."""

    @property
    def shows_progress(self) -> bool:
        """Tell whether each cell's end is said, beside its outputs."""
        ...

    @property
    def kernel_name(self) -> str | None:
        """The kernelspec that the job names, if any."""
        ...

    @property
    def language(self) -> str | None:
        """The language that the job names, if any, in lower case."""
        ...

    def cells(self) -> Sequence[Cell]:
        """Return what is to be executed."""
        ...

    def record(self, cell: Cell, result: ExecutionResult, started: datetime, ended: datetime) -> None:
        """Take a cell's result, also of one that ran partly."""
        ...

    def save(self) -> Path | None:
        """Keep what was recorded, and return where. Raises BadRequest when it cannot be written."""
        ...


class Script:
    """One piece of code, whose outputs are shown and not kept."""

    shows_progress = False
    kernel_name: str | None = None
    language: str | None = None

    def __init__(self, source: str) -> None:
        self._source = source

    def cells(self) -> Sequence[Cell]:
        """Return the code as one cell."""
        return [Cell(0, self._source)]

    def record(self, cell: Cell, result: ExecutionResult, started: datetime, ended: datetime) -> None:
        """Forget the result: it has been shown."""

    def save(self) -> Path | None:
        """Keep nothing."""
        return None
