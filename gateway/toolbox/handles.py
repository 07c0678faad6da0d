"""Handles of sessions: names of contexts that nobody can guess, made here, looked up at every call."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from gateway.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from gateway.models import Principal
    from gateway.models.jobs import ContextView
    from gateway.services.contexts import ContextService

SessionId = Annotated[
    str, Field(min_length=1, max_length=128, description="The session, as create_session returned it.")
]


class Handles:
    """Leads from a handle to what it stands for."""

    def __init__(self, contexts: ContextService) -> None:
        self._contexts = contexts

    @staticmethod
    def new() -> str:
        """Make a handle: 160 random bits."""
        return f"s-{secrets.token_hex(20)}"

    async def find(self, principal: Principal, session_id: str) -> ContextView:
        """Return a session of the principal's, which counts as used. Raises Forbidden, NotFound."""
        try:
            return await self._contexts.keep_alive(principal, session_id)
        except (NotFound, BadRequest):
            # what is no handle at all tells no more than one that has expired
            raise NotFound(
                "There is no such session, or it has expired. Make one with create_session.", reason="session"
            ) from None
