"""The open sockets of this gateway: counted, replaced, closed when a credential ends, drained at the end."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

import structlog

from gateway.errors import StoreUnavailable
from gateway.http.connection import EXPIRED
from gateway.http.outbox import NORMAL, Close

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.models import Principal
    from gateway.ports import Authenticator
    from gateway.telemetry import Metrics

SERVICE_RESTART = 1012

Key = tuple[str, str, str]  # kernel id, principal's name, the client's session_id

log = structlog.get_logger(__name__)


class OpenSocket(Protocol):
    """A client's socket of any door."""

    @property
    def principal(self) -> Principal:
        """Whose it is."""
        ...

    def close(self, close: Close, *, flush: bool = False) -> None:
        """Close it, after what is queued or at once; a client that does not help is cut off then."""
        ...


class Sockets:
    """Knows every open socket."""

    def __init__(self, authenticator: Authenticator, metrics: Metrics, *, poll_s: float = 1.0) -> None:
        self._authenticator = authenticator
        self._gauge = metrics.sockets
        self._poll_s = poll_s
        self._open: set[OpenSocket] = set()
        self._named: dict[Key, OpenSocket] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False

    @contextmanager
    def opened(self, connection: OpenSocket, key: Key | None) -> Iterator[None]:
        """Hold a connection while it is open; one of the same key before it is closed with 1000."""
        if key is not None:
            stale = self._named.get(key)
            if stale is not None:
                stale.close(Close(NORMAL, "Replaced by a newer connection of the same session."))
            self._named[key] = connection
        self._open.add(connection)
        self._empty.clear()
        self._gauge.inc()
        try:
            yield
        finally:
            self._gauge.dec()
            self._open.discard(connection)
            if key is not None and self._named.get(key) is connection:
                del self._named[key]
            if not self._open:
                self._empty.set()

    async def watch(self) -> None:
        """Look at the credentials behind the open sockets, over and over, until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self._check()
            except StoreUnavailable as error:
                log.warning("credentials_not_checked", error=error.message)
            except Exception:  # a revoked key must not stay open because of one bad look
                log.exception("credentials_not_checked")

    async def drain(self, within_s: float) -> None:
        """Close every socket with 1012, which clients take for "come back soon", and let no new one in."""
        self.draining = True
        goodbye = Close(SERVICE_RESTART, "The gateway is restarting.")
        for connection in list(self._open):
            connection.close(goodbye, flush=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), within_s)
        for connection in list(self._open):
            connection.close(goodbye)

    async def _check(self) -> None:
        for principal in {connection.principal for connection in self._open}:
            if await self._authenticator.valid(principal):
                continue
            for connection in [each for each in self._open if each.principal == principal]:
                connection.close(EXPIRED)
