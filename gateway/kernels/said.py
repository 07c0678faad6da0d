"""What an attendant answers. It may be anybody's word: shapes and sizes are checked, nothing is believed."""

from __future__ import annotations

from pydantic import Field

from gateway.models import Frozen
from gateway.models.processes import CellProcess, FileSystem


class Done(Frozen):
    """It was done."""


class Started(Frozen):
    """A process was started."""

    pid: int = Field(ge=1)


class Known(Frozen):
    """A process that was started earlier; `code` is None while it runs, `sent` counts its output."""

    p: int = Field(ge=1)
    note: str = Field(max_length=32 << 10)
    pid: int = Field(ge=1)
    code: int | None = Field(ge=-128, le=255)
    sent: int = Field(ge=0)
    ended_at: float = Field(ge=0, le=1e11, allow_inf_nan=False)


class Listing(Frozen):
    """The processes that were started and are not forgotten."""

    processes: list[Known] = Field(max_length=200)


class Tree(Frozen):
    """Every process of the cell."""

    processes: list[CellProcess]


class View(Frozen):
    """The system as it looks from the cell."""

    hostname: str
    system: str
    python: str
    user: str
    home: str
    uptime_s: float
    processes: list[CellProcess]
    file_systems: list[FileSystem]
    packages: dict[str, str]
