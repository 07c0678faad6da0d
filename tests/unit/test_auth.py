"""API keys are recognised, refused alike whatever is wrong, and forgotten in time."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from multidict import CIMultiDict

from gateway.auth import KeyRing, load_pepper, presented
from gateway.errors import BadRequest, ConfigurationError, Unauthorized
from gateway.models import Scope
from gateway.store import SqlStore

PEPPER = b"p" * 32
REFUSAL = "The credential is missing or not valid."


class HandClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.elapsed = 0.0

    def monotonic(self) -> float:
        """Return the seconds that were added."""
        return self.elapsed

    def now(self) -> datetime:
        """Return a fixed start plus the seconds that were added."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.elapsed)


class CountingStore(SqlStore):
    """A real store that counts the looks at keys."""

    looks = 0

    async def key(self, key_id):
        """Count, then look."""
        self.looks += 1
        return await super().key(key_id)


@pytest.fixture
async def store(tmp_path):
    """Return a store on a file of its own."""
    store = await CountingStore.open(tmp_path / "s" / "s.db")
    yield store
    await store.close()


@pytest.fixture
def clock():
    """Return a clock moved by hand."""
    return HandClock()


@pytest.fixture
def ring(store, clock):
    """Return a key ring over a real store."""
    return KeyRing(store, PEPPER, clock)


async def refused(ring: KeyRing, token: str) -> bool:
    """Tell whether a token is refused, in the one way."""
    with pytest.raises(Unauthorized) as caught:
        await ring.authenticate(token)
    return (caught.value.message, caught.value.reason) == (REFUSAL, None)


async def test_key_round_trip(ring, store, clock):
    """A token names its principal, key and scopes; the store has its keyed hash and nothing of the secret."""
    expiry = clock.now() + timedelta(days=1)
    token, record = await ring.create("alice", ["kernels", "execute"], expiry)

    principal = await ring.authenticate(token)

    prefix, key_id, secret = token.split("_", 2)
    assert (prefix, len(key_id), len(secret)) == ("cb", 12, 43)
    assert (principal.name, principal.key_id, principal.expires_at) == ("alice", key_id, expiry)
    assert principal.scopes == {Scope.KERNELS, Scope.EXECUTE}
    assert record == await store.key(key_id)
    assert record.secret_hash == hmac.new(PEPPER, secret.encode(), hashlib.sha256).hexdigest()
    assert secret not in repr(record)


async def test_every_failure_looks_the_same(ring, store, clock):
    """Malformed, unknown, wrong, expired and revoked are one refusal."""
    token, record = await ring.create("alice", ["kernels"])
    brief, _ = await ring.create("bob", ["kernels"], clock.now() + timedelta(seconds=5))
    wrong_end = token[:-1] + ("A" if token[-1] != "A" else "B")

    for bad in ["", "x", "cb_", token[:-1], token + "A", f" {token}", f"{token}\n", token.upper(), "\ud800"]:
        assert await refused(ring, bad)
    assert await refused(ring, wrong_end)
    assert await refused(ring, f"cb_{'0' * 12}_{token[-43:]}")
    assert await refused(KeyRing(store, b"q" * 32, clock), token), "another pepper"

    clock.elapsed = 5
    assert await refused(ring, brief)
    await store.revoke_key(record.id, clock.now())
    clock.elapsed = 6
    assert await refused(ring, token)


async def test_unknown_keys_cost_the_same_hash(ring, monkeypatch):
    """One keyed hash and one constant-time comparison are made for any token."""
    token, _ = await ring.create("alice", ["kernels"])
    counts = []
    digest, compare = hmac.new, hmac.compare_digest
    monkeypatch.setattr(hmac, "new", lambda *args: counts.append("hash") or digest(*args))
    monkeypatch.setattr(hmac, "compare_digest", lambda *args: counts.append("compare") or compare(*args))

    await ring.authenticate(token)
    assert counts == ["hash", "compare"]
    for bad in ["nonsense", f"cb_{'0' * 12}_{'A' * 43}"]:
        counts.clear()
        assert await refused(ring, bad)
        assert counts == ["hash", "compare"]


async def test_cache_spares_the_disk_and_ends(ring, store, clock):
    """Within a second the store is asked once; after it a revocation is seen."""
    token, record = await ring.create("alice", ["kernels"])
    for _ in range(5):
        await ring.authenticate(token)
    assert store.looks == 1

    await store.revoke_key(record.id, clock.now())
    clock.elapsed = 0.99
    await ring.authenticate(token)
    clock.elapsed = 1.0
    assert await refused(ring, token)
    assert store.looks == 2


async def test_expiry_is_exact_in_the_cache(ring, clock):
    """A cached key expires at its moment, not when the cache does."""
    token, _ = await ring.create("alice", ["kernels"], clock.now() + timedelta(seconds=0.5))
    await ring.authenticate(token)

    clock.elapsed = 0.5

    assert await refused(ring, token)


async def test_guesses_evict_nothing_and_the_cache_is_bounded(ring, store, monkeypatch):
    """Unknown ids are not remembered; known ones only up to the bound."""
    monkeypatch.setattr("gateway.auth.keys._CACHED_KEYS", 3)
    tokens = [(await ring.create("alice", ["kernels"]))[0] for _ in range(5)]
    for token in tokens:
        await ring.authenticate(token)
    for number in range(10):
        assert await refused(ring, f"cb_{number:012x}_{'A' * 43}")
    store.looks = 0

    for token in tokens[2:]:
        await ring.authenticate(token)
    assert store.looks == 0
    await ring.authenticate(tokens[0])
    assert store.looks == 1
    assert len(ring._cache) == 3


async def test_valid_looks_afresh(ring, store, clock):
    """An open socket's principal is seen as revoked or expired at once, and the cache learns of it."""
    token, record = await ring.create("alice", ["kernels"])
    brief, _ = await ring.create("bob", ["kernels"], clock.now() + timedelta(seconds=5))
    principal, short_lived = await ring.authenticate(token), await ring.authenticate(brief)
    assert await ring.valid(principal)
    assert await ring.valid(short_lived)

    await store.revoke_key(record.id, clock.now())
    assert not await ring.valid(principal)
    assert await refused(ring, token), "within the cache's second"
    clock.elapsed = 5
    assert not await ring.valid(short_lived)
    assert not await ring.valid(principal.model_copy(update={"key_id": "0" * 12}))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("alice", ["kernels", "sudo", "root"]), "Unknown scopes: 'root', 'sudo'."),
        (("alice", []), "at least one scope"),
        (("", ["kernels"]), "name must be"),
        (("../x", ["kernels"]), "name must be"),
        (("a" * 65, ["kernels"]), "name must be"),
        (("alice", ["kernels"], datetime(2025, 1, 1, tzinfo=UTC)), "expiry"),
        (("alice", ["kernels"], datetime(2027, 1, 1)), "time zone"),  # noqa: DTZ001
    ],
)
async def test_bad_keys_are_not_made(ring, store, arguments, says):
    """A wrong name, scope or expiry is said, and nothing is kept."""
    with pytest.raises(BadRequest) as caught:
        await ring.create(*arguments)

    assert says in caught.value.message
    assert await store.keys() == []


@pytest.mark.parametrize(
    ("headers", "query", "cookies", "token"),
    [
        ({}, {}, {}, None),
        ({"Authorization": "token abc"}, {}, {}, "abc"),
        ({"authorization": "BEARER   abc "}, {}, {}, "abc"),
        ({"Authorization": "Basic abc"}, {}, {}, None),
        ({"Authorization": "abc"}, {}, {}, None),
        ({"Authorization": "token "}, {}, {}, None),
        ({"Authorization": "token"}, {}, {"cellblock_token": "c"}, "c"),
        ({"Authorization": "token h"}, {"token": "q"}, {"cellblock_token": "c"}, "q"),
        ({"Authorization": "token h"}, {"token": ""}, {"cellblock_token": "c"}, "h"),
        ({}, {}, {"cellblock_token": ""}, None),
    ],
)
def test_presented(headers, query, cookies, token):
    """The query wins over the header, the header over the cookie; empty is absent."""
    assert presented(CIMultiDict(headers), query, cookies) == token


def test_pepper_is_made_once_and_private(tmp_path):
    """The first call makes 32 random bytes for the owner alone, the second reads them; no draft is left."""
    path = tmp_path / "gateway" / "pepper"

    pepper = load_pepper(path)

    assert len(pepper) == 32
    assert load_pepper(path) == pepper != load_pepper(tmp_path / "other")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["pepper"]


async def test_pepper_is_one_for_racing_processes(tmp_path):
    """Processes that start together end with the same pepper."""
    code = (
        "import sys, pathlib; from gateway.auth import load_pepper; sys.stdin.readline();"
        "print(load_pepper(pathlib.Path(sys.argv[1])).hex())"
    )
    processes = [
        await asyncio.create_subprocess_exec(
            *[sys.executable, "-c", code, str(tmp_path / "p")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    printed = await asyncio.gather(*(process.communicate(b"\n") for process in processes))

    assert {out.decode().strip() for out, _ in printed} == {load_pepper(tmp_path / "p").hex()}
    assert [file.name for file in tmp_path.iterdir()] == ["p"]


def test_bad_pepper_is_refused(tmp_path):
    """A pepper that is short, open to others or no file is an error that names it, and stays as it is."""
    path = tmp_path / "pepper"
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="not 32 bytes"):
        load_pepper(path)

    path.write_bytes(PEPPER)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="0600"):
        load_pepper(path)
    assert path.read_bytes() == PEPPER

    with pytest.raises(ConfigurationError, match="cannot be read or made"):
        load_pepper(path / "below-a-file")
