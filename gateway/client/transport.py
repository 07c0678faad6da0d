"""Requests to one gateway with one key: sent, tried again where that is safe, and parsed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack
from urllib.parse import urlencode

import aiohttp
import orjson
from pydantic import TypeAdapter, ValidationError
from yarl import URL

from gateway.client.failures import GatewayUnreachable, NoAnswer, error_of, reason_of
from gateway.errors import BadRequest, GatewayError, NotFound, PayloadTooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

    from gateway.client.retry import Retry

T = TypeVar("T")

CONNECT_S = 10.0
REQUEST_S = 120.0  # a kernel may take a minute to start on a loaded machine
SILENCE_S = 60.0  # of a stream, which says at least every few seconds that it lives
HEARTBEAT_S = 30.0
MAX_FRAME_BYTES = 64 << 20
MAX_ANSWER_BYTES = 256 << 20
MAX_REFUSAL_BYTES = 1 << 20
REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})

Query = Mapping[str, str | int | float | bool | None]


class How(TypedDict, total=False):
    """What may be said of a request beside its method, path and body: see `Transport.request`."""

    query: Query | None
    headers: Mapping[str, str] | None
    data: Callable[[], Any] | None
    again: bool | None
    attempt_s: float | None
    within_s: float | None
    max_bytes: int


class Transport:
    """The connection pool of a client. Use as an async context manager."""

    def __init__(self, url: str, token: str, retry: Retry) -> None:
        self.base = base_url(url)
        self.retry = retry
        self._headers = {"Authorization": f"Bearer {token}"}
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(headers=self._headers)
        # aiohttp sends GET, PUT and DELETE a second time by itself, and has no public switch for it
        self._http._retry_connection = False  # noqa: SLF001
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        data: Callable[[], Any] | None = None,
        again: bool | None = None,
        attempt_s: float | None = REQUEST_S,
        within_s: float | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> bytes:
        """Make a request and return the answer's body.

        `body` is sent as JSON, or what `data` returns, anew for each try. It is tried again if `again` says
        so, or the method does when that is None. One try takes `attempt_s` at most, all of them `within_s`.

        Raises:
            GatewayError: what the gateway answered; GatewayUnreachable, or NoAnswer when it took too long.
        """
        content = data if data is not None else _json(body)

        async def attempt() -> bytes:
            opened = self.open(
                method, path, query=query, headers=headers, data=content, total_s=attempt_s or within_s
            )
            async with opened as response:
                return await self._read(response, max_bytes)

        if again is None:
            again = method in REPEATABLE
        return await self._within(within_s, self._repeated(attempt, method, again=again))

    async def json(self, kind: type[T], method: str, path: str, body: object = None, **how: Unpack[How]) -> T:
        """Make a request like `request` does, and return the answer as a model."""
        return self.parse(kind, await self.request(method, path, body, **how))

    @contextlib.asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        data: Callable[[], Any] | None = None,
        total_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make a request, once, and yield the answer before its body is read; without `total_s` it may last.

        Raises:
            GatewayError: as in `request`, also for a connection that breaks while the answer is read.
        """
        timeout = aiohttp.ClientTimeout(
            total=total_s, sock_connect=CONNECT_S, sock_read=SILENCE_S if total_s is None else None
        )
        content = None if data is None else data()
        try:
            async with self._session().request(
                method,
                self.url(path, query),
                data=content,
                headers={"Content-Type": "application/json", **(headers or {})},
                timeout=timeout,
                allow_redirects=False,  # a redirected key may end anywhere
            ) as response:
                if not 200 <= response.status < 300:
                    retry_after = response.headers.get("Retry-After")
                    answer = await self._read(response, MAX_REFUSAL_BYTES)
                    raise error_of(response.status, response.reason, answer, retry_after)
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.unreachable(error) from error

    async def connect(self, path: str, query: Query, protocol: str) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket. Raises WSServerHandshakeError where it is refused, and GatewayUnreachable."""
        try:
            async with asyncio.timeout(REQUEST_S):
                return await self._session().ws_connect(
                    self.url(path, query),
                    protocols=(protocol,),
                    heartbeat=HEARTBEAT_S,
                    max_msg_size=MAX_FRAME_BYTES,
                )
        except aiohttp.WSServerHandshakeError:
            raise
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.unreachable(error) from error

    def parse(self, kind: type[T], answer: bytes) -> T:
        """Return an answer as a model; fields that it does not know are ignored. Raises GatewayError."""
        try:
            return TypeAdapter(kind).validate_json(answer, extra="ignore")
        except ValidationError as error:
            raise GatewayError(
                f"What answers at {self.base} is not a Cellblock gateway, or one of another version."
            ) from error

    def url(self, path: str, query: Query | None = None) -> URL:
        """Return the URL of a path that is percent-encoded already; None in a query is left out."""
        url = self.base.joinpath(path, encoded=True)
        given = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in (query or {}).items()
            if value is not None
        }
        # names of files are bytes, here as os.fsdecode has them
        return URL(f"{url}?{urlencode(given, errors='surrogateescape')}", encoded=True) if given else url

    def unreachable(self, error: Exception) -> GatewayUnreachable:
        """Say in one sentence why there is no answer."""
        reason = "it does not answer" if isinstance(error, TimeoutError) else reason_of(error)
        # what took too long as a whole is not asked again; a connection that hangs is one that broke
        slow = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError)
        kind = NoAnswer if slow else GatewayUnreachable
        return kind(f"The gateway at {self.base} cannot be reached: {reason}.")

    async def _repeated(self, attempt: Callable[[], Awaitable[bytes]], method: str, *, again: bool) -> bytes:
        loop = asyncio.get_running_loop()
        failed_at: float | None = None
        tried = 0
        while True:
            try:
                return await attempt()
            except NotFound:
                if method == "DELETE" and tried:  # an earlier try did it, and its answer got lost
                    return b""
                raise
            except GatewayError as error:
                failed_at = failed_at or loop.time()
                wait_s = self.retry.wait_s(tried, loop.time() - failed_at, error) if again else None
                if wait_s is None:
                    raise
            tried += 1
            await asyncio.sleep(wait_s)

    async def _within(self, seconds: float | None, work: Awaitable[bytes]) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError as error:
            raise NoAnswer(f"The gateway at {self.base} did not answer within {seconds:g} s.") from error

    async def _read(self, response: aiohttp.ClientResponse, most: int) -> bytes:
        taken = bytearray()
        async for piece in response.content.iter_any():
            taken += piece
            if len(taken) > most:
                raise PayloadTooLarge(f"The gateway's answer is larger than {most} bytes.")
        return bytes(taken)

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("use the client as an async context manager")
        return self._http


def base_url(url: str) -> URL:
    """Return a gateway's URL. Raises BadRequest, without repeating it: it may hold a password."""
    try:
        base = URL(url)
        plain = base.scheme in {"http", "https"} and base.host and base.port
    except ValueError:
        plain = False
    if not plain or base.user is not None or base.query_string or base.fragment:
        raise BadRequest("The gateway's URL must look like http://127.0.0.1:8888.")
    return base


def _json(body: object) -> Callable[[], bytes] | None:
    if body is None:
        return None
    try:
        content = orjson.dumps(body)
    except TypeError as error:
        raise BadRequest("What is sent is not JSON, or its text is not valid Unicode.") from error
    return lambda: content
