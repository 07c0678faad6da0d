"""What came of an execution, said the same way whatever door it came by, so that it can be compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SHOWN = 60


class WrongOutcome(Exception):
    """An execution gave something else than it must: no figure is taken from it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All output of one execution. Streams are joined, as servers may cut them where they like."""

    status: str = "ok"
    stdout: str = ""
    stderr: str = ""
    displays: tuple[str, ...] = ()
    result: str | None = None
    buffers: tuple[str, ...] = ()

    def must_be(self, expected: Outcome) -> None:
        """Raise WrongOutcome unless it is equal in every part."""
        for part in self.__slots__:
            got, want = getattr(self, part), getattr(expected, part)
            if got != want:
                raise WrongOutcome(f"{part} is {_short(got)} and must be {_short(want)}")

    def with_output(self, output: dict[str, Any]) -> Outcome:
        """Return it with one output more, given as a notebook has it."""
        kind = output["output_type"]
        if kind == "stream":
            name = output["name"]
            return replace(self, **{name: getattr(self, name) + output["text"]})
        if kind == "execute_result":
            return replace(self, result=output["data"]["text/plain"])
        if kind == "display_data":
            return replace(self, displays=(*self.displays, output["data"]["text/plain"]))
        return replace(self, status="error")


@dataclass(frozen=True, slots=True)
class Answer:
    """How long an execution took, and what came of it, which is read only after the clock has stopped."""

    took_s: float
    read: Callable[[], Outcome]

    def checked(self, expected: Outcome) -> float:
        """Return the seconds. Raises WrongOutcome where anything else came than was expected."""
        self.read().must_be(expected)
        return self.took_s


def digest(data: bytes | memoryview) -> str:
    """Return the hash by which a binary buffer is compared."""
    return hashlib.sha256(data).hexdigest()


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} parts, {repr(value[:2])[:SHOWN]}"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]} ({len(text)} long)"
