"""One route: its method and path, who may use it, what goes in and what comes out."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from gateway.errors import GatewayError
from gateway.http.access import Access
from gateway.models import Door, Principal

if TYPE_CHECKING:
    from pydantic import BaseModel

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ErrorStyle = Callable[[web.Request, GatewayError], web.Response]
Credential = Callable[[web.Request], Awaitable[Principal]]


@dataclass(frozen=True)
class Route:
    """One route. `responses` maps a success status to a model, to a media type, or to None for no body.

    `streams` names media types that the first of them may have instead.

    `errors` renders what is refused or fails, and `credential` tells who asks, where the door has ways of its
    own; else errors have the gateway's one shape, and credentials come as Jupyter's clients send them.
    """

    method: str
    path: str
    handler: Handler
    access: Access
    summary: str
    responses: Mapping[int, type[BaseModel] | str | None]
    tag: str
    body: type[BaseModel] | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    streams: str | None = None
    door: Door = "rest"
    errors: ErrorStyle | None = None
    credential: Credential | None = None

    @property
    def changes(self) -> bool:
        """Tell whether the method may change something."""
        return self.method not in {hdrs.METH_GET, hdrs.METH_HEAD}

    @property
    def upgrades(self) -> bool:
        """Tell whether it turns its connection into a WebSocket."""
        return 101 in self.responses

    @property
    def pattern(self) -> str:
        """Return the path as the router takes it: a final `{path}` may hold slashes."""
        return re.sub(r"\{path\}$", "{path:(?s:.+)}", self.path)
