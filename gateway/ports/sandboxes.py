"""What the use cases of sandboxes need beside kernels: tokens of their own."""

from __future__ import annotations

from typing import Protocol


class SandboxTokens(Protocol):
    """The tokens of sandboxes: each is good for one of them."""

    def token(self, sandbox_id: str) -> str:
        """Return a sandbox's token."""
        ...

    def right(self, sandbox_id: str, token: str) -> bool:
        """Tell whether a token is this sandbox's, whether or not there is such a sandbox."""
        ...
