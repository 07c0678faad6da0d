"""Where a request comes from: the Host it names, the Origin of the page that made it."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from gateway.errors import Forbidden

if TYPE_CHECKING:
    from gateway.settings import ServerSettings

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
EXPOSED = (
    "Location, Retry-After, X-Request-Id, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, "
    "Mcp-Session-Id, WWW-Authenticate"
)
ALLOWED = (
    "accept, content-type, authorization, x-xsrftoken, "
    "mcp-protocol-version, mcp-session-id, mcp-method, mcp-name"
)
METHODS = "GET, HEAD, PUT, POST, PATCH, DELETE, OPTIONS"


class Origins:
    """The origins and host names that this gateway accepts."""

    def __init__(self, server: ServerSettings) -> None:
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in server.allow_origins)
        self._hosts: frozenset[str] | None = None
        if _is_loopback(server.host):
            bound = f"[{server.host}]" if ":" in server.host else server.host
            # A proxy in front passes its own name on; it is known by the origins that are allowed.
            named = {_hostname(urlsplit(origin).netloc) for origin in self._allowed}
            self._hosts = LOOPBACK_NAMES | {bound.lower()} | named
        if server.hosts:
            self._hosts = (self._hosts or frozenset()) | {name.lower() for name in server.hosts}

    def check_host(self, request: web.Request) -> None:
        """Refuse a Host that is none of the known names: DNS rebinding. Raises Forbidden."""
        if self._hosts is not None and _hostname(request.headers.get(hdrs.HOST, "")) not in self._hosts:
            raise Forbidden("This gateway does not answer for that Host.", reason="host")

    def check_origin(self, request: web.Request, *, by_cookie: bool, always: bool = False) -> None:
        """Refuse a foreign page's WebSocket, and its request when a cookie is all that speaks for it.

        With `always` all of its requests are refused.

        Raises Forbidden when the Origin is neither this host's nor an allowed one.
        """
        foreign = hdrs.ORIGIN in request.headers and not self.is_known(request)
        if foreign and (
            always or by_cookie or request.headers.get(hdrs.UPGRADE, "").lower().strip() == "websocket"
        ):
            raise Forbidden("Pages of that origin may not use this gateway.", reason="origin")

    def is_known(self, request: web.Request) -> bool:
        """Tell whether the request's Origin is an allowed one or this very host."""
        if self.allowed(request) is not None:
            return True
        scheme, netloc, *_ = urlsplit(request.headers.get(hdrs.ORIGIN, ""))
        if request.secure and scheme != "https":
            # a page that came in clear may be anybody's on the way
            return False
        return _authority(netloc) == _authority(request.headers.get(hdrs.HOST, "")) != ""

    def allowed(self, request: web.Request) -> str | None:
        """Return the request's Origin if the settings allow it."""
        origin = request.headers.get(hdrs.ORIGIN)
        return origin if origin is not None and origin.lower() in self._allowed else None

    def preflight(self) -> web.Response:
        """Answer an OPTIONS request, which needs no credential; `headers` says who may read it."""
        return web.Response(
            headers={
                "Access-Control-Allow-Headers": ALLOWED,
                "Access-Control-Allow-Methods": METHODS,
                "Access-Control-Max-Age": "600",
            }
        )

    def headers(self, request: web.Request) -> dict[str, str]:
        """Return the headers that let an allowed origin's page read the answer."""
        if not self._allowed:
            return {}
        headers = {"Vary": "Origin"}
        origin = self.allowed(request)
        if origin is not None:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = EXPOSED
        return headers


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _hostname(netloc: str) -> str:
    """Return a netloc without its port, IPv6 addresses with their brackets."""
    if netloc.startswith("["):
        return netloc.partition("]")[0].lower() + "]"
    return netloc.partition(":")[0].lower()


def _authority(netloc: str) -> str:
    """Return a netloc without a scheme's default port."""
    return netloc.lower().removesuffix(":80").removesuffix(":443")
