"""JSON Web Tokens of an OpenID Connect issuer: who they speak for, and what they may do."""

from __future__ import annotations

import hashlib
import re
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import jwt

from gateway.auth.jwks import KeySet
from gateway.errors import Unauthorized
from gateway.models import Principal, Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.ports import Clock
    from gateway.settings import OidcSettings

MAX_TOKEN_BYTES = 8 << 10
# No key may be made for a name with one of these prefixes (see keys.py), so nobody is two principals.
LITERAL, HASHED = "jwt.", "jwt-"
_FITS = re.compile(r"[A-Za-z0-9._@-]{1,60}", re.ASCII)
# what PyJWT lets through of a hostile token's JSON, beside its own errors
_MALFORMED = (
    jwt.PyJWTError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class OidcAuthenticator:
    """Turn JWTs into principals (`ports.Authenticator`), by signature, issuer, audience and times."""

    def __init__(self, keys: KeySet, settings: OidcSettings, clock: Clock) -> None:
        self._keys = keys
        self._settings = settings
        self._clock = clock

    async def authenticate(self, token: str) -> Principal:
        """Return whom a token speaks for.

        Raises Unauthorized, which never tells what is wrong, and IdentityUnavailable.
        """
        try:
            claims = await self._claims(token)
            return Principal(
                name=principal_name(claims[self._settings.principal_claim]),
                key_id=f"jwt.{hashlib.sha256(token.encode()).hexdigest()[:16]}",
                scopes=self._scopes(claims.get(self._settings.scopes_claim)),
                expires_at=datetime.fromtimestamp(int(claims["exp"]) + self._settings.leeway_s, UTC),
            )
        except _MALFORMED:
            raise Unauthorized("The credential is missing or not valid.") from None

    async def valid(self, principal: Principal) -> bool:
        """Tell whether a token has not expired; nothing else can be asked about one."""
        return principal.expires_at is not None and self._clock.now() < principal.expires_at

    async def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_BYTES:
            raise ValueError("the token is too long")
        header = jwt.get_unverified_header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        # the list is ours, never the token's: no "none", and no HMAC keyed with a public key
        if algorithm not in self._settings.algorithms or not isinstance(kid, str | None) or "crit" in header:
            raise ValueError("the token's header is not one of ours")
        key = await self._keys.key(kid, algorithm)
        claims: dict[str, Any] = jwt.decode(
            token,
            key=key.key,
            algorithms=[algorithm],
            issuer=self._settings.issuer,
            audience=self._settings.audience,
            leeway=self._settings.leeway_s,
            options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
        )
        return claims

    def _scopes(self, granted: object) -> frozenset[Scope]:
        words = granted.split() if isinstance(granted, str) else granted
        if not isinstance(words, list):
            return frozenset()
        found = (self._settings.scopes.get(word, ()) for word in words if isinstance(word, str))
        return frozenset(scope for scopes in found for scope in scopes)


@asynccontextmanager
async def connect(settings: OidcSettings, clock: Clock) -> AsyncIterator[OidcAuthenticator]:
    """Give an authenticator for the issuer that the settings name, with a connection of its own to it."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        yield OidcAuthenticator(KeySet(http, settings, clock), settings, clock)


def principal_name(claim: object) -> str:
    """Return the principal of a claim: `jwt.` and the claim where that fits, else `jwt-` and its hash.

    Two claims never give the same name, and no API key has such a name. Raises ValueError.
    """
    if not isinstance(claim, str) or not claim:
        raise ValueError("the claim names nobody")
    if _FITS.fullmatch(claim):
        return LITERAL + claim
    return HASHED + hashlib.sha256(claim.encode()).hexdigest()[:48]
