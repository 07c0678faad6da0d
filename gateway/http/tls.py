"""The gateway's certificate: loaded, and loaded anew when its files change, while connections go on."""

from __future__ import annotations

import asyncio
import ssl
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from gateway.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.settings import TlsSettings

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

Signature = tuple[tuple[int, int, int], ...]

log = structlog.get_logger(__name__)


class Certificates:
    """What new connections are met with. A connection keeps what it was met with."""

    def __init__(self, settings: TlsSettings) -> None:
        """Load the files. Blocks, on the disk. Raises ConfigurationError."""
        self._settings = settings
        self._seen = self._signature()
        self._context = load(settings)
        self._told = asyncio.Event()

    def context(self) -> ssl.SSLContext:
        """Return what the next connection is met with."""
        return self._context

    def reload(self) -> None:
        """Have the files loaded anew, soon."""
        self._told.set()

    async def watch(self) -> None:
        """Load the files when told to, or when they have changed; what is wrong with new ones is logged."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.check_interval_s):
                    await self._told.wait()
            told = self._told.is_set()
            self._told.clear()
            await self._look(told=told)

    async def _look(self, *, told: bool) -> None:
        seen = await asyncio.to_thread(self._signature)
        if not told and seen == self._seen:
            return
        try:
            self._context = await asyncio.to_thread(load, self._settings)
            log.info("certificate_loaded")
        except ConfigurationError as error:
            log.error("certificate_not_loaded", error=error.message)
        # a broken pair is not tried again until it changes: it may be half written
        self._seen = seen

    def _signature(self) -> Signature:
        found = []
        for path in (self._settings.cert, self._settings.key, self._settings.client_ca):
            with suppress(OSError):
                if path is not None:
                    facts = path.stat()
                    found.append((facts.st_ino, facts.st_mtime_ns, facts.st_size))
        return tuple(found)


def load(settings: TlsSettings) -> ssl.SSLContext:
    """Return a context of the files in the settings. Blocks, on the disk. Raises ConfigurationError."""
    if settings.cert is None or settings.key is None:
        raise ConfigurationError("TLS needs server.tls.cert and server.tls.key.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[settings.min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        _check_private(settings.key)
        context.load_cert_chain(settings.cert, settings.key, password=_no_password)
        if settings.client_ca is not None:
            context.load_verify_locations(settings.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"The certificate {settings.cert}, its key or client_ca is no good: {error.reason or error}."
        ) from error
    except OSError as error:
        place = error.filename or f"{settings.cert}, {settings.key} or server.tls.client_ca"
        raise ConfigurationError(f"{place} cannot be read: {error.strerror}.") from error
    return context


def _check_private(key: Path) -> None:
    if stat.S_IMODE(key.stat().st_mode) & 0o007:
        raise ConfigurationError(f"The key {key} is open to other users; its mode must be 0640 or less.")


def _no_password() -> str:
    # without this OpenSSL asks on the terminal
    raise ConfigurationError("The key of the certificate must not have a passphrase.")
