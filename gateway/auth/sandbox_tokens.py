"""Tokens of sandboxes: made of a secret and the sandbox's name, so that none has to be kept anywhere."""

from __future__ import annotations

import hashlib
import hmac


class DerivedTokens:
    """Derives the token of each sandbox (`ports.sandboxes.SandboxTokens`) from the gateway's pepper.

    The same token can be said again to its owner, and one of a sandbox that has ended is still told from a
    wrong one. Who has the store alone has none.
    """

    def __init__(self, pepper: bytes) -> None:
        self._key = hmac.new(pepper, b"tokens of sandboxes", hashlib.sha256).digest()

    def token(self, sandbox_id: str) -> str:
        """Return a sandbox's token."""
        return "cbs_" + hmac.new(self._key, sandbox_id.encode(), hashlib.sha256).hexdigest()

    def right(self, sandbox_id: str, token: str) -> bool:
        """Tell whether a token is this sandbox's, whether or not there is such a sandbox."""
        return hmac.compare_digest(self.token(sandbox_id).encode(), token.encode("utf-8", "replace"))
