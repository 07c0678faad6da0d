"""Credentials: API keys of the gateway's own and JWTs of an OpenID Connect issuer, turned into principals."""

from gateway.auth.keys import COOKIE, KeyRing, load_pepper, presented
from gateway.auth.oidc import OidcAuthenticator, connect
from gateway.auth.sandbox_tokens import DerivedTokens
from gateway.auth.tokens import Authenticators

__all__ = [
    "COOKIE",
    "Authenticators",
    "DerivedTokens",
    "KeyRing",
    "OidcAuthenticator",
    "connect",
    "load_pepper",
    "presented",
]
