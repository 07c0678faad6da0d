"""An OpenID Connect issuer on loopback, with real keys."""

from __future__ import annotations

import time
from typing import Any

import jwt
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gateway.settings import OidcSettings

AUDIENCE = "cellblock"


class Issuer:
    """An identity provider on loopback: discovery, keys, and tokens."""

    def __init__(self) -> None:
        self.private = {
            "rsa-1": ("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
            "ec-1": ("ES256", ec.generate_private_key(ec.SECP256R1())),
            "ed-1": ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
        }
        self.extra: list[Any] = []
        self.fetches = 0
        self.broken = False
        self.padding = ""
        self.claimed_issuer: str | None = None
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/keys", self._keys)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        """The issuer's URL."""
        return str(self.server.make_url("")).rstrip("/")

    def token(
        self,
        kid: str | None = "rsa-1",
        *,
        key: Any = None,
        alg: str | None = None,
        headers: Any = None,
        **claims: Any,
    ) -> str:
        """Return a signed token; a claim of None is left out."""
        known = self.private.get(kid or "rsa-1", ("RS256", None))
        body = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "alice",
            "exp": int(time.time()) + 300,
            "scope": "openid cellblock:kernels cellblock:execute",
        } | claims
        named = {} if kid is None else {"kid": kid}
        return jwt.encode(
            {name: value for name, value in body.items() if value is not None},
            key or known[1],
            algorithm=alg or known[0],
            headers=named | (headers or {}),
        )

    def settings(self, **more: Any) -> OidcSettings:
        """Return settings that trust this issuer."""
        given: dict[str, Any] = {"algorithms": ("RS256", "ES256", "EdDSA")} | more
        return OidcSettings(issuer=self.url, audience=AUDIENCE, **given)

    async def _discovery(self, _request: web.Request) -> web.Response:
        return web.json_response({"issuer": self.claimed_issuer or self.url, "jwks_uri": f"{self.url}/keys"})

    async def _keys(self, _request: web.Request) -> web.Response:
        self.fetches += 1
        if self.broken:
            return web.Response(status=500)
        keys = [self._public(kid, *entry) for kid, entry in self.private.items()]
        return web.json_response({"keys": [*keys, *self.extra], "padding": self.padding})

    def _public(self, kid: str, alg: str, private: Any) -> dict[str, Any]:
        made: Any = jwt.get_algorithm_by_name(alg)
        public: dict[str, Any] = made.to_jwk(private.public_key(), as_dict=True)
        return public | {"kid": kid, "use": "sig"}
