"""JWTs against a real issuer on loopback, with real keys: what is taken, and all that is not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.auth import Authenticators, KeyRing, OidcAuthenticator, connect
from gateway.auth.jwks import RETRY_S, UNKNOWN_S
from gateway.auth.oidc import principal_name
from gateway.clock import SystemClock
from gateway.errors import BadRequest, IdentityUnavailable, Unauthorized
from gateway.models import DEFAULT_SCOPES, Scope
from tests.doubles import ManualClock, MemoryStore
from tests.issuer import AUDIENCE, Issuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """A running issuer."""
    made = Issuer()
    async with made.server:
        yield made


@pytest.fixture
async def oidc(issuer: Issuer) -> AsyncIterator[OidcAuthenticator]:
    """An authenticator that trusts the issuer."""
    async with connect(issuer.settings(), SystemClock()) as made:
        yield made


def part(value: Any) -> str:
    """Encode one part of a JWT."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize("kid", ["rsa-1", "ec-1", "ed-1"])
async def test_good_tokens(issuer, oidc, kid):
    """A token that the issuer signed, by any of the three algorithms, is its subject's, with its scopes."""
    principal = await oidc.authenticate(issuer.token(kid))

    assert principal.name == "jwt.alice"
    assert principal.scopes == {Scope.KERNELS, Scope.EXECUTE}
    assert principal.key_id.startswith("jwt.")
    assert await oidc.valid(principal)


async def test_scopes_are_mapped(issuer):
    """Words of the chosen claim grant what the settings say; unknown words and other shapes grant nothing."""
    chosen = issuer.settings(scopes_claim="groups", scopes={"lab": ("kernels",), "ops": ("admin",)})
    async with connect(chosen, SystemClock()) as oidc:

        async def scopes(groups: Any) -> set[Scope]:
            return set((await oidc.authenticate(issuer.token(groups=groups))).scopes)

        assert await scopes(["lab", "ops", "x"]) == {Scope.KERNELS, Scope.ADMIN}
        assert await scopes("lab") == {Scope.KERNELS}
        for none in (None, [], {}, 1, True, [["lab"]], "admin kernels"):
            assert await scopes(none) == set()


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": int(time.time()) - 60},
        {"exp": None},
        {"exp": "soon"},
        {"exp": 10**30},
        {"nbf": int(time.time()) + 600},
        {"iat": int(time.time()) + 600},
        {"aud": "another"},
        {"aud": ["another", "third"]},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"sub": None},
        {"sub": ""},
    ],
)
async def test_wrong_claims(issuer, oidc, claims):
    """A token that has expired, is not valid yet, or is for or from somebody else, is refused."""
    with pytest.raises(Unauthorized):
        await oidc.authenticate(issuer.token(**claims))


async def test_forged_signatures(issuer, oidc):
    """No algorithm but those of the settings, no key but the issuer's: no "none", no HMAC by a public key."""
    rsa_key, ec_key = issuer.private["rsa-1"][1], issuer.private["ec-1"][1]
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    good = issuer.token()
    claims, pem = (
        good.split(".")[1],
        rsa_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )
    hs = f"{part({'alg': 'HS256', 'kid': 'rsa-1', 'typ': 'JWT'})}.{claims}"
    mac = part(hmac.new(pem, hs.encode(), hashlib.sha256).digest())
    # a set that offers a symmetric key does not make HMAC a choice either
    issuer.extra.append({"kty": "oct", "k": part(b"k" * 32), "kid": "oct-1"})
    forged = [
        f"{part({'alg': 'none', 'kid': 'rsa-1'})}.{claims}.",
        f"{part({'alg': 'None'})}.{claims}.{part(b'x')}",
        f"{hs}.{mac}",
        issuer.token("oct-1", key=b"k" * 32, alg="HS256"),
        issuer.token(key=stranger),
        issuer.token(key=rsa_key, alg="RS512"),
        issuer.token(key=rsa_key, alg="PS256"),
        issuer.token("rsa-1", key=ec_key, alg="ES256"),
        issuer.token("ec-1", key=rsa_key, alg="RS256"),
        issuer.token(headers={"jwk": {"kty": "RSA"}, "jku": "https://evil.example/keys"}, key=stranger),
        issuer.token(headers={"crit": ["b64"], "b64": True}),
        good[:-8] + "AAAAAAAA",
        good.replace(claims, part({"iss": issuer.url, "aud": AUDIENCE, "sub": "root", "exp": 1 << 33})),
    ]

    for token in forged:
        with pytest.raises(Unauthorized):
            await oidc.authenticate(token)
    assert (await oidc.authenticate(good)).name == "jwt.alice"


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_short_keys_are_refused(issuer, oidc):
    """An RSA key of 1024 bits signs nothing, though the issuer lists it."""
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    issuer.private["weak"] = ("RS256", weak)

    with pytest.raises(Unauthorized):
        await oidc.authenticate(issuer.token("weak"))


async def test_garbage(issuer, oidc):
    """Garbage of any size and shape is refused, and nothing else happens."""
    deep = part(b'{"alg":"RS256","kid":"rsa-1","x":' + b"[" * 3000 + b"]" * 3000 + b"}")
    for token in (
        "",
        ".",
        "..",
        "a.b.c",
        "x" * 100_000,
        f"{'A' * 50_000}.A.A",
        f"{deep}.e30.AAAA",
        "é.é.é",
        "\0.\0.\0",
    ):
        with pytest.raises(Unauthorized):
            await oidc.authenticate(token)
    for header in ([], 1, None, {"alg": ["RS256"]}, {"alg": "RS256", "kid": {}}, {"alg": "RS256", "kid": 1}):
        with pytest.raises(Unauthorized):
            await oidc.authenticate(f"{part(header)}.{part({})}.{part(b'x')}")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
    )
)
def test_any_claim_is_refused_or_a_name(value):
    """Whatever JSON a claim holds, the mapping refuses it or gives a name that is a principal's."""
    try:
        name = principal_name(value)
    except ValueError:
        return
    assert name.startswith(("jwt.", "jwt-"))
    assert len(name) <= 64


def test_names_do_not_collide():
    """What fits is kept; what does not is hashed, under a prefix that no literal has."""
    assert principal_name("alice@example.org") == "jwt.alice@example.org"
    hashed = principal_name("auth0|1234")
    names = {
        principal_name(claim) for claim in ("a:b", "a/b", "A:b", "é", "x" * 61, "x" * 62, hashed, hashed[4:])
    }

    assert hashed.startswith("jwt-")
    assert len(names) == 8
    assert all(name.startswith("jwt.jwt-") for name in [principal_name(hashed)])


async def test_keys_cannot_have_their_names():
    """No API key is made for a name that a token's principal could have."""
    ring = KeyRing(MemoryStore(), b"p" * 32, ManualClock())

    for name in ("jwt.alice", "jwt-0123"):
        with pytest.raises(BadRequest):
            await ring.create(name, DEFAULT_SCOPES)


async def test_key_rotation(issuer):
    """A new key is found when a token names it, at most once per 30 seconds; one that is gone is refused."""
    clock = ManualClock()
    async with connect(issuer.settings(keys_max_age_s=600), clock) as oidc:
        await oidc.authenticate(issuer.token())
        issuer.private["rsa-2"] = ("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048))
        old, new = issuer.token(), issuer.token("rsa-2")
        del issuer.private["rsa-1"]

        for _ in range(5):
            with pytest.raises(Unauthorized):
                await oidc.authenticate(new)
        assert issuer.fetches == 1
        clock.advance(UNKNOWN_S + 1)
        assert (await oidc.authenticate(new)).name == "jwt.alice"
        with pytest.raises(Unauthorized):
            await oidc.authenticate(old)
        assert issuer.fetches == 2


async def test_stale_keys_are_refused(issuer):
    """When the issuer does not answer, its keys hold for their age and no longer; then it is 503."""
    clock = ManualClock()
    async with connect(issuer.settings(keys_max_age_s=100), clock) as oidc:
        await oidc.authenticate(issuer.token())
        issuer.broken = True
        clock.advance(99)
        await oidc.authenticate(issuer.token())
        clock.advance(2)
        for _ in range(3):
            with pytest.raises(IdentityUnavailable):
                await oidc.authenticate(issuer.token())
        assert issuer.fetches == 2

        issuer.broken = False
        clock.advance(RETRY_S + 1)
        assert (await oidc.authenticate(issuer.token())).name == "jwt.alice"


@pytest.mark.parametrize("fault", ["huge", "foreign", "gone"])
async def test_an_issuer_that_misbehaves(issuer, fault):
    """An endless key set, another issuer's discovery document, or nobody there: no token is taken."""
    token, chosen = issuer.token(), issuer.settings()
    if fault == "huge":
        issuer.padding = "x" * (1 << 20)
    elif fault == "foreign":
        issuer.claimed_issuer = "https://evil.example"
    else:
        chosen = issuer.settings(jwks_url="http://127.0.0.1:1/keys")

    async with connect(chosen, SystemClock()) as oidc:
        with pytest.raises(IdentityUnavailable):
            await oidc.authenticate(token)


async def test_unusable_keys_are_passed_over(issuer, oidc):
    """Keys that are broken, for encryption or of other kinds do not keep the good ones from being used."""
    issuer.extra += [
        {"kty": "RSA", "kid": "bad", "n": "!!", "e": "AQAB"},
        {"kty": "EC", "crv": ["P-256"], "kid": "list"},
        {"kty": "RSA", "use": ["sig"], "alg": [], "kid": {}},
        {"kty": {}},
        {"kty": "EC", "crv": "secp256k1", "kid": "k1"},
        "text",
        None,
    ]

    assert (await oidc.authenticate(issuer.token("ec-1"))).name == "jwt.alice"


async def test_a_token_without_a_key_id(issuer, oidc):
    """It is taken when the issuer has one key of its algorithm, and refused when there is a choice."""
    key = issuer.private["rsa-1"][1]
    assert (await oidc.authenticate(issuer.token(None, key=key))).name == "jwt.alice"

    issuer.private["rsa-2"] = ("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    async with connect(issuer.settings(), SystemClock()) as later:
        with pytest.raises(Unauthorized):
            await later.authenticate(issuer.token(None, key=key))


async def test_expiry_ends_validity(issuer):
    """A principal of a token holds until the token expires, leeway included."""
    async with connect(issuer.settings(leeway_s=0), SystemClock()) as oidc:
        principal = await oidc.authenticate(issuer.token(exp=int(time.time()) + 2))
        assert await oidc.valid(principal)
        assert not await oidc.valid(principal.model_copy(update={"expires_at": None}))

    clock = ManualClock()  # at the beginning of 2026: long before the token's end
    async with connect(issuer.settings(), clock) as oidc:
        assert await oidc.valid(principal)
        clock.advance(400 * 86_400)
        assert not await oidc.valid(principal)


async def test_keys_and_tokens_side_by_side(issuer, oidc):
    """Both kinds of credentials are taken, told apart by their shape, and looked at again by their kind."""
    ring = KeyRing(MemoryStore(), b"p" * 32, SystemClock())
    both = Authenticators(ring, oidc)
    token, record = await ring.create("alice", DEFAULT_SCOPES)

    by_key, by_token = await both.authenticate(token), await both.authenticate(issuer.token())

    assert (by_key.name, by_token.name) == ("alice", "jwt.alice")
    assert await both.valid(by_key)
    assert await both.valid(by_token)
    assert not await both.valid(by_key.model_copy(update={"key_id": "0" * 12}))
    for garbage in ("", "cb_0_0", "a.b", "a.b.c", record.id):
        with pytest.raises(Unauthorized):
            await both.authenticate(garbage)
