"""Credentials are taken in every form; hosts and pages that should not be here are not."""

from __future__ import annotations

import pytest
from aiohttp import WSServerHandshakeError

from gateway.auth import COOKIE
from tests.unit.http.conftest import opened

EVIL = {"Origin": "http://evil.example"}
FRIEND = "https://lab.example"


@pytest.mark.parametrize("form", ["Bearer {}", "token {}", "TOKEN {}", "bearer {}"])
async def test_header_forms(door, form):
    """Both schemes are taken, whatever their case."""
    headers = {"Authorization": form.format(door.tokens["alice"])}
    assert (await door.call("GET", "/api/kernels", who=None, headers=headers))[0] == 200


async def test_query_and_cookie(door):
    """A key may come in the query, which wins, or in the cookie."""
    token = door.tokens["alice"]
    query = f"/api/kernels?token={token}"
    cookie = {"Cookie": f"{COOKIE}={token}"}

    assert (await door.call("GET", query, who=None, headers={"Authorization": "token "}))[0] == 200
    assert (await door.call("GET", "/api/kernels", who=None, headers=cookie))[0] == 200
    assert (await door.call("GET", "/api/kernels?token=junk"))[0] == 401


async def test_foreign_pages_cannot_use_the_cookie(door):
    """A foreign page's request is refused when a cookie is its credential, and changes nothing."""
    cookie = {"Cookie": f"{COOKIE}={door.tokens['alice']}"}
    own = {"Origin": f"http://127.0.0.1:{door.client.port}"}

    assert (await door.call("POST", "/api/kernels", who=None, headers=cookie | EVIL))[0] == 403
    assert (await door.call("POST", "/api/kernels", who=None, headers=cookie | {"Origin": "null"}))[0] == 403
    assert not door.host.kernels
    assert (await door.call("POST", "/api/kernels", who=None, headers=cookie | own))[0] == 201


async def test_a_foreign_page_with_a_key_reads_nothing(door):
    """A request with a key of its own is served, and a browser does not show its answer to a foreign page."""
    status, _, headers = await door.call("GET", "/api/kernels", headers=EVIL)

    assert status == 200
    assert "Access-Control-Allow-Origin" not in headers


async def test_foreign_sockets_are_refused(door):
    """A WebSocket that a foreign page opens is refused before the upgrade, whatever its credential."""
    kernel = await door.kernel()

    with pytest.raises(WSServerHandshakeError) as refused:
        await door.channels(kernel.id, headers=EVIL)

    assert refused.value.status == 403
    assert kernel.subscribers == 0


async def test_allowed_origins_are_let_in():
    """An allowed origin's page may read answers, open sockets, and is asked for by its host name."""
    async with opened(allow_origins=(FRIEND,)) as door:
        status, _, headers = await door.call("GET", "/api/kernels", headers={"Origin": FRIEND})
        assert (status, headers["Access-Control-Allow-Origin"], headers["Vary"]) == (200, FRIEND, "Origin")
        assert "Access-Control-Allow-Origin" not in (await door.call("GET", "/api", headers=EVIL))[2]
        assert (await door.call("GET", "/api", headers={"Host": "lab.example"}))[0] == 200

        kernel = await door.kernel()
        async with door.channels(kernel.id, headers={"Origin": FRIEND}):
            assert kernel.connections == 1


async def test_preflight_needs_no_credential(door):
    """OPTIONS is answered on every path without a credential, and allows no unknown origin."""
    for path in ("/api/kernels", "/api/kernels/x/interrupt", "/nothing"):
        async with door.client.options(path, headers=EVIL) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
            assert "x-xsrftoken" in answer.headers["Access-Control-Allow-Headers"]
            assert "DELETE" in answer.headers["Access-Control-Allow-Methods"]
            assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8888", "127.0.0.1.evil.example", ""])
async def test_rebound_names_are_refused(door, host):
    """A gateway on loopback answers to no other name: a rebound DNS name gets 403 everywhere."""
    assert (await door.call("GET", "/api", headers={"Host": host}))[0] == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8888", "[::1]", "[::1]:8888"])
async def test_loopback_names_are_taken(door, host):
    """Every name of loopback is taken, with or without a port."""
    assert (await door.call("GET", "/api", headers={"Host": host}))[0] == 200


async def test_any_host_where_it_listens_to_all():
    """A gateway that is bound to the network answers to the names that the network gives it."""
    async with opened(host="0.0.0.0") as door:
        assert (await door.call("GET", "/api", headers={"Host": "gateway.example"}))[0] == 200
