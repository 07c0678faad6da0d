"""Progress: the end of what came so far, told to a caller at intervals."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.toolbox.tool import Report

SHOWN_CHARS = 2000


class Tail:
    """The last of a text that grows."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, text: str) -> None:
        """Append."""
        self._text = (self._text + text[-SHOWN_CHARS:])[-SHOWN_CHARS:]

    def __str__(self) -> str:
        return self._text


@asynccontextmanager
async def reporting(report: Report | None, every_s: float) -> AsyncIterator[Tail]:
    """Give a tail to fill; it is reported every so many seconds while the body runs, if anybody listens."""
    tail = Tail()
    if report is None:
        yield tail
        return
    task = asyncio.create_task(_report(report, every_s, tail))
    try:
        yield tail
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _report(report: Report, every_s: float, tail: Tail) -> None:
    # progress is a courtesy: nobody fails for want of it
    with suppress(Exception):
        while True:
            await asyncio.sleep(every_s)
            await report(str(tail))
