"""An issuer's signing keys: fetched, bounded, cached, and fetched anew when they rotate."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import jwt
import orjson
import structlog

from gateway.errors import IdentityUnavailable, Unauthorized

if TYPE_CHECKING:
    from gateway.ports import Clock
    from gateway.settings import OidcSettings

MAX_BYTES = 256 << 10
MAX_KEYS = 100
TIMEOUT_S = 5.0
# how soon the issuer may be asked again: for a key that nobody knew, and after it did not answer
UNKNOWN_S = 30.0
RETRY_S = 5.0
KINDS = {("RSA", ""): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}

log = structlog.get_logger(__name__)


class KeySet:
    """The keys of one issuer (RFC 7517), by key id and algorithm."""

    def __init__(self, http: aiohttp.ClientSession, settings: OidcSettings, clock: Clock) -> None:
        self._http = http
        self._settings = settings
        self._clock = clock
        self._keys: dict[tuple[str | None, str], jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._asked_at: float | None = None
        self._fetching = asyncio.Lock()

    async def key(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        """Return a key; without an id, the only one of that algorithm.

        Raises Unauthorized when the issuer has no such key, IdentityUnavailable when it does not answer and
        what is known is missing or too old.
        """
        if not self._is_fresh():
            await self._fetch(RETRY_S)
            if not self._is_fresh():
                raise IdentityUnavailable("The issuer of tokens does not answer.", retry_after_s=RETRY_S)
        found = self._find(kid, algorithm)
        if found is None:
            await self._fetch(UNKNOWN_S)
            found = self._find(kid, algorithm)
        if found is None:
            raise Unauthorized("The credential is missing or not valid.")
        return found

    def _is_fresh(self) -> bool:
        return (
            self._fetched_at is not None
            and self._clock.monotonic() - self._fetched_at < self._settings.keys_max_age_s
        )

    def _find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        if kid is not None:
            return self._keys.get((kid, algorithm))
        fitting = [key for (_, kind), key in self._keys.items() if kind == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    async def _fetch(self, wait_s: float) -> None:
        """Ask the issuer, unless it was asked less than `wait_s` ago; a failure leaves what is known."""
        began = self._clock.monotonic()
        async with self._fetching:
            asked = self._asked_at
            # whoever waited here for another's question takes its answer
            if asked is not None and (asked >= began or self._clock.monotonic() - asked < wait_s):
                return
            self._asked_at = self._clock.monotonic()
            try:
                self._keys = usable(await self._get(await self._url()))
                self._fetched_at = self._asked_at
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                log.warning("issuer_keys_not_fetched", issuer=self._settings.issuer, error=str(error))

    async def _url(self) -> str:
        """Return where the keys are, as OpenID Connect Discovery 1.0 says it."""
        if self._settings.jwks_url is not None:
            return self._settings.jwks_url
        issuer = self._settings.issuer or ""
        found = await self._get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        url = found.get("jwks_uri")
        if found.get("issuer") != issuer or not isinstance(url, str):
            raise ValueError("the discovery document is another issuer's, or names no keys")
        if issuer.startswith("https://") and not url.startswith("https://"):
            raise ValueError("the issuer's keys are not behind https")
        return url

    async def _get(self, url: str) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with self._http.get(url, allow_redirects=False, timeout=timeout) as response:
            if response.status != 200:
                raise ValueError(f"{url} answers with {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_chunked(16 << 10):
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError(f"{url} answers with more than {MAX_BYTES} bytes")
        parsed = orjson.loads(body)
        if not isinstance(parsed, dict):
            raise ValueError(f"{url} does not answer with an object")  # noqa: TRY004 - it is the value
        return parsed


def usable(document: dict[str, Any]) -> dict[tuple[str | None, str], jwt.PyJWK]:
    """Return a JWK set's public signing keys of the kinds that are taken; all others are passed over."""
    found: dict[tuple[str | None, str], jwt.PyJWK] = {}
    listed = document.get("keys")
    for data in listed[:MAX_KEYS] if isinstance(listed, list) else []:
        if not isinstance(data, dict):
            continue
        kind, kid = str(data.get("kty")), data.get("kid")
        algorithm = KINDS.get((kind, "" if kind == "RSA" else str(data.get("crv"))))
        names = (None, algorithm, "Ed25519" if algorithm == "EdDSA" else None)
        signs = data.get("use") in (None, "sig") and data.get("alg") in names
        if algorithm is None or not signs or not isinstance(kid, str | None):
            continue
        try:
            found[kid, algorithm] = jwt.PyJWK(data, algorithm)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            log.warning("issuer_key_not_usable", error=str(error))
    return found
