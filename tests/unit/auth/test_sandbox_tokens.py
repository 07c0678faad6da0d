"""Tokens of sandboxes: one for each, made of the gateway's secret."""

from __future__ import annotations

from gateway.auth import DerivedTokens


def test_tokens():
    """A token is the same each time, and right for its sandbox, by its gateway's pepper, alone."""
    tokens, others = DerivedTokens(b"p" * 32), DerivedTokens(b"q" * 32)
    token = tokens.token("a" * 20)
    assert token == DerivedTokens(b"p" * 32).token("a" * 20)
    assert tokens.right("a" * 20, token)
    assert not tokens.right("b" * 20, token)
    assert not others.right("a" * 20, token)
    assert not any(
        tokens.right("a" * 20, wrong) for wrong in ("", token[:-1], token + "0", "\udc80é", "x" * 9999)
    )
