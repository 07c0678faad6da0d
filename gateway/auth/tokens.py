"""One authenticator for every credential that is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.auth.oidc import HASHED, LITERAL

if TYPE_CHECKING:
    from gateway.models import Principal
    from gateway.ports import Authenticator


class Authenticators:
    """Ask whose shape a credential has (`ports.Authenticator`): keys have no dot, JWTs have two."""

    def __init__(self, keys: Authenticator, tokens: Authenticator) -> None:
        self._keys = keys
        self._tokens = tokens

    async def authenticate(self, token: str) -> Principal:
        """Return whose token this is. Raises Unauthorized, StoreUnavailable, IdentityUnavailable."""
        return await (self._tokens if token.count(".") == 2 else self._keys).authenticate(token)

    async def valid(self, principal: Principal) -> bool:
        """Tell whether the credential behind a principal still holds. Raises StoreUnavailable."""
        by_token = principal.name.startswith((LITERAL, HASHED))
        return await (self._tokens if by_token else self._keys).valid(principal)
