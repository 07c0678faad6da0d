"""A process that was started beside a kernel, as this side knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from gateway.kernels.ring import OutputRing
from gateway.models import Frozen
from gateway.models.processes import Process

# what is kept and shown of a command line
SHOWN_WORDS, SHOWN_CHARACTERS = 32, 800


class Note(Frozen):
    """What the attendant keeps of a process for whoever talks to it next."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    argv: tuple[Annotated[str, Field(max_length=SHOWN_CHARACTERS + 1)], ...] = Field(
        max_length=SHOWN_WORDS + 1
    )
    started_at: str = Field(max_length=40)


@dataclass(slots=True)
class Tracked:
    """A process that was started; its pid is 0 until that is known. `failed`: its end was not seen."""

    number: int
    note: Note
    pid: int
    ring: OutputRing
    exit_code: int | None = None
    ended_at: str | None = None
    failed: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wake who waits for something new."""
        self.news.set()
        self.news = asyncio.Event()

    def model(self) -> Process:
        """Return the process as the API shows it."""
        return Process(
            id=self.note.id,
            pid=self.pid,
            argv=self.note.argv,
            state="ended" if self.ended_at else "running",
            exit_code=self.exit_code,
            started_at=self.note.started_at,
            ended_at=self.ended_at,
        )


def shown(argv: Sequence[str]) -> tuple[str, ...]:
    """Return as much of a command line as is kept and shown; an ellipsis stands for the rest."""
    words: list[str] = []
    room = SHOWN_CHARACTERS
    for word in argv:
        if len(words) == SHOWN_WORDS or len(word) > room:
            return (*words, f"{word[:room]}…")
        words.append(word)
        room -= len(word)
    return tuple(words)
