"""Takes connections, so many in all and from one address; who has not asked yet makes room for who may."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import structlog

from gateway.http.protocol import Protocol

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from aiohttp import web

    from gateway.settings import ServerSettings

# when no connection can be had, such as for want of descriptors
RETRY_S = 0.1
TLS_SHUTDOWN_S = 2.0

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Guest:
    """One connection; `gone` is set when it has ended."""

    address: str
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    protocol: Protocol | None = None


class Listener:
    """Accepts from a listening socket and serves by aiohttp; TLS as `certificate` gives it at the time."""

    def __init__(
        self,
        listening: socket.socket,
        manager: web.Server,
        server: ServerSettings,
        certificate: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self._listening = listening
        self._manager = manager
        self._server = server
        self._certificate = certificate
        self._guests: Counter[str] = Counter()
        # in the order in which they came
        self._silent: dict[Guest, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept until cancelled; then nobody new comes in, and those who are in stay."""
        loop = asyncio.get_running_loop()
        self._listening.setblocking(False)
        try:
            while True:
                try:
                    accepted, peer = await loop.sock_accept(self._listening)
                except OSError as error:
                    log.warning("connection_not_accepted", error=error.strerror)
                    await asyncio.sleep(RETRY_S)
                    continue
                self._admit(accepted, neighbourhood(peer[0]))
        finally:
            self._listening.close()
            for guest in list(self._silent):
                self._dismiss(guest)

    def _admit(self, accepted: socket.socket, address: str) -> None:
        if not self._has_room(address):
            log.info("connection_refused", address=address, open=self._guests.total())
            accepted.close()
            return
        guest = Guest(address)
        self._guests[address] += 1
        self._silent[guest] = None
        guest.task = asyncio.create_task(self._serve(guest, accepted))
        self._tasks.add(guest.task)
        guest.task.add_done_callback(self._tasks.discard)

    def _has_room(self, address: str) -> bool:
        """Tell whether one more may come in; the one that has been silent for the longest goes for it."""
        server = self._server
        if not server.behind_proxy and self._guests[address] >= server.max_connections_per_address:
            silent = next((guest for guest in self._silent if guest.address == address), None)
            return self._dismiss(silent)
        if self._guests.total() >= server.max_connections:
            return self._dismiss(next(iter(self._silent), None))
        return True

    def _dismiss(self, guest: Guest | None) -> bool:
        if guest is None:
            return False
        self._leave(guest)
        if guest.protocol is not None and guest.protocol.transport is not None:
            guest.protocol.transport.abort()
        elif guest.task is not None:
            guest.task.cancel()
        return True

    async def _serve(self, guest: Guest, accepted: socket.socket) -> None:
        loop, certificate = asyncio.get_running_loop(), self._certificate()
        tls: dict[str, Any] = {}
        if certificate is not None:
            tls = {
                "ssl": certificate,
                "ssl_handshake_timeout": self._server.header_timeout_s,
                "ssl_shutdown_timeout": TLS_SHUTDOWN_S,
            }

        def connected() -> Protocol:
            guest.protocol = Protocol(
                self._manager,
                self._server,
                loop=loop,
                on_request=lambda: self._silent.pop(guest, None),
                on_lost=guest.gone.set,
            )
            return guest.protocol

        try:
            await loop.connect_accepted_socket(connected, accepted, **tls)
            await guest.gone.wait()
        except OSError as error:
            log.debug("connection_failed", address=guest.address, error=str(error))
        finally:
            self._leave(guest)

    def _leave(self, guest: Guest) -> None:
        """Count a guest no more; a second time changes nothing."""
        self._silent.pop(guest, None)
        if guest.address and self._guests[guest.address] > 0:
            self._guests[guest.address] -= 1
            if not self._guests[guest.address]:
                del self._guests[guest.address]
        guest.address = ""


def neighbourhood(address: str) -> str:
    """Return what one client has of addresses: an IPv4 address, or the /64 of an IPv6 one."""
    with suppress(ValueError):
        parsed = ip_address(address.partition("%")[0])
        if isinstance(parsed, IPv6Address):
            return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> 64 << 64))
    return address
