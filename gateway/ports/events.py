"""Telling others what happened."""

from __future__ import annotations

from typing import Protocol

from gateway.models.notices import Notice


class Notifier(Protocol):
    """Somebody who passes notices on to an operator's own programs."""

    @property
    def listens(self) -> bool:
        """Whether anybody wants notices at all: for nobody none need be made."""
        ...

    def tell(self, event: Notice) -> None:
        """Take a notice. Neither blocks nor raises; one that cannot be passed on is counted and dropped."""
        ...
