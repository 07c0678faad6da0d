"""API keys: made, recognised, and looked at again."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from gateway.errors import BadRequest, ConfigurationError, Unauthorized
from gateway.models import KeyRecord, Principal, Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from gateway.ports import Clock, Store

COOKIE = "cellblock_token"
PEPPER_BYTES = 32

_TOKEN = re.compile(r"cb_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
_CACHED_KEYS = 1024
_NO_HASH = "0" * 64
# the names of those who come with a JWT
_RESERVED = ("jwt.", "jwt-")


class KeyRing:
    """Make API keys and tell whose they are (`ports.Authenticator`).

    A token is `cb_<12 hex of id>_<43 characters of secret>`; the store has HMAC-SHA256(pepper, secret) only.
    """

    def __init__(self, store: Store, pepper: bytes, clock: Clock, cache_s: float = 1.0) -> None:
        self._store = store
        self._pepper = pepper
        self._clock = clock
        self._cache_s = cache_s
        self._cache: dict[str, tuple[float, KeyRecord]] = {}

    async def create(
        self, principal: str, scopes: Iterable[str], expires_at: datetime | None = None
    ) -> tuple[str, KeyRecord]:
        """Make a key; return its token, which cannot be had again, and what is kept of it.

        Raises BadRequest when the name, a scope or the expiry is no good, and StoreUnavailable.
        """
        now = self._clock.now()
        if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now):
            raise BadRequest("The expiry must lie in the future and have a time zone.")
        if principal.startswith(_RESERVED):
            raise BadRequest("Names that begin with jwt. or jwt- are those of tokens' principals.")
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        granted = _scopes(scopes)
        try:
            record = KeyRecord(
                id=key_id,
                principal=principal,
                scopes=granted,
                secret_hash=self._hash(secret),
                created_at=now,
                expires_at=expires_at,
            )
        except ValidationError as error:
            raise BadRequest(
                "A key's name must be 1 to 64 letters, digits or . _ @ - and begin with a letter or digit."
            ) from error
        await self._store.add_key(record)
        return f"cb_{key_id}_{secret}", record

    async def authenticate(self, token: str) -> Principal:
        """Return whose token this is.

        Raises Unauthorized, which never tells what is wrong, and StoreUnavailable.
        """
        match = _TOKEN.fullmatch(token)
        key_id, secret = match.groups() if match else ("", "")
        # Hashed and compared whether or not there is such a key, so that the work tells nothing.
        secret_hash = self._hash(secret)
        record = await self._record(key_id) if key_id else None
        right = hmac.compare_digest(secret_hash, record.secret_hash if record else _NO_HASH)
        if record is None or not right or not self._live(record):
            raise Unauthorized("The credential is missing or not valid.")
        return Principal(
            name=record.principal, key_id=record.id, scopes=record.scopes, expires_at=record.expires_at
        )

    async def valid(self, principal: Principal) -> bool:
        """Tell whether a principal's key still holds, by a fresh look. Raises StoreUnavailable."""
        record = await self._fresh(principal.key_id)
        return record is not None and self._live(record)

    def _hash(self, secret: str) -> str:
        """Return the keyed hash of a secret, in hex."""
        return hmac.new(self._pepper, secret.encode(), hashlib.sha256).hexdigest()

    def _live(self, record: KeyRecord) -> bool:
        """Tell whether a key is neither revoked nor expired."""
        return record.revoked_at is None and (
            record.expires_at is None or self._clock.now() < record.expires_at
        )

    async def _record(self, key_id: str) -> KeyRecord | None:
        """Return a key as it was no longer than `cache_s` ago."""
        cached = self._cache.get(key_id)
        if cached is not None and self._clock.monotonic() - cached[0] < self._cache_s:
            return cached[1]
        return await self._fresh(key_id)

    async def _fresh(self, key_id: str) -> KeyRecord | None:
        """Return a key as the store has it now, and remember it: misses are not, so guesses evict nothing."""
        asked = self._clock.monotonic()
        record = await self._store.key(key_id)
        self._cache.pop(key_id, None)
        if record is not None:
            self._cache[key_id] = (asked, record)
            if len(self._cache) > _CACHED_KEYS:
                del self._cache[next(iter(self._cache))]
        return record


def _scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes of these names. Raises BadRequest, naming the unknown ones."""
    wanted = set(names)
    known = ", ".join(Scope)
    if unknown := sorted(wanted - set(Scope)):
        raise BadRequest(f"Unknown scopes: {', '.join(map(repr, unknown))}. The scopes are {known}.")
    if not wanted:
        raise BadRequest(f"A key needs at least one scope. The scopes are {known}.")
    return frozenset(map(Scope, wanted))


def presented(headers: Mapping[str, str], query: Mapping[str, str], cookies: Mapping[str, str]) -> str | None:
    """Return the token that a request carries: in `?token=`, else in `Authorization`, else in the cookie.

    `headers` must ignore the case of names, as aiohttp's do; the scheme is `token` or `Bearer`. An empty
    value counts as absent, because Jupyter clients without a token send `Authorization: token `.
    """
    scheme, _, credential = headers.get("Authorization", "").strip().partition(" ")
    header = credential.strip() if scheme.lower() in {"token", "bearer"} else ""
    return query.get("token") or header or cookies.get(COOKIE) or None


def load_pepper(path: Path) -> bytes:
    """Return the key of the keys' hashes; make it, for its owner's eyes only, when there is none.

    Two processes may do so at once: both return the same. Blocks for a moment, on the disk.
    Raises ConfigurationError when the file cannot be read or made, is open to others, or is not 32 bytes.
    """
    try:
        with suppress(FileNotFoundError):
            return _read_pepper(path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Linked when it is whole, so that nobody reads half a pepper; mkstemp is O_EXCL and 0600.
        descriptor, draft = tempfile.mkstemp(prefix=".pepper-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(PEPPER_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                path.hardlink_to(draft)
        finally:
            Path(draft).unlink()
        return _read_pepper(path)
    except OSError as error:
        raise ConfigurationError(f"The pepper {path} cannot be read or made: {error.strerror}.") from error


def _read_pepper(path: Path) -> bytes:
    """Read the pepper and make sure of it."""
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        pepper = file.read(PEPPER_BYTES + 1)
    if mode & 0o077:
        raise ConfigurationError(f"The pepper {path} is open to other users; its mode must be 0600.")
    if len(pepper) != PEPPER_BYTES:
        raise ConfigurationError(
            f"The pepper {path} is damaged: it is not {PEPPER_BYTES} bytes. No key is valid without it."
        )
    return pepper
