"""What the gateway's own API keys look like, for detect-secrets."""

from __future__ import annotations

import re
from typing import ClassVar

from detect_secrets.plugins.base import RegexBasedDetector


class CellblockKeyDetector(RegexBasedDetector):
    """Finds a whole API key of Cellblock's."""

    secret_type = "Cellblock API key"
    denylist: ClassVar[list[re.Pattern[str]]] = [re.compile(r"\bcb_[0-9a-f]{12}_[A-Za-z0-9_-]{43}\b")]
