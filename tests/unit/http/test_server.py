"""The server's own routes, and the description of all of them."""

from __future__ import annotations

import re

from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.http.routes import ROUTES


async def test_public_routes(door):
    """Version and health need no credential."""
    assert (await door.call("GET", "/api", who=None))[:2] == (200, {"version": "0.0.test"})
    assert (await door.call("GET", "/healthz", who=None))[:2] == (200, {"status": "ok"})


async def test_status_is_the_callers_own(door):
    """The status counts the caller's kernels and sockets, not everybody's."""
    kernel = await door.kernel()
    async with door.channels(kernel.id):
        mine = (await door.call("GET", "/api/status"))[1]
        other = (await door.call("GET", "/api/status", who="bob"))[1]

    assert (mine["kernels"], mine["connections"]) == (1, 1)
    assert (other["kernels"], other["connections"]) == (0, 0)
    assert other["last_activity"] == other["started"] == "2026-01-01T00:16:40.000000Z"


async def test_me(door):
    """The identity is the key's; of the permissions asked for those are returned that the scopes give."""
    asked = '/api/me?permissions={"kernels":["read","execute","fly"],"contents":["read"]}'

    body = (await door.call("GET", asked))[1]
    reader = (await door.call("GET", asked, who="reader"))[1]

    assert (body["identity"]["username"], body["identity"]["initials"]) == ("alice", "A")
    assert body["permissions"] == {"kernels": ["read", "execute"], "contents": [], "updatable_fields": []}
    assert reader["permissions"]["kernels"] == ["read"]
    assert (await door.call("GET", "/api/me"))[1]["permissions"] == {"updatable_fields": []}


async def test_requests_are_counted_by_template(door):
    """The metrics name routes by their template, so that ids do not fill them."""
    await door.kernel()
    await door.call("GET", "/api/kernels/some-id")
    await door.call("GET", "/somewhere/else")

    async with door.client.get("/metrics", headers=door.bearer("root")) as answer:
        text = await answer.text()

    assert 'cellblock_requests_total{method="GET",route="/api/kernels/{kernel_id}",status="404"} 1.0' in text
    assert 'route="none",status="404"' in text
    assert "some" not in text


async def test_openapi_is_valid_and_complete(door):
    """The description is valid OpenAPI 3.1 and has every route, with errors and credentials."""
    status, document, _ = await door.call("GET", "/api/openapi.json", who=None)

    assert status == 200
    OpenAPIV31SpecValidator(document).validate()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in ROUTES}
    ids = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
    assert len(ids) == len(set(ids))
    execute = document["paths"]["/api/kernels/{kernel_id}/execute"]["post"]
    assert execute["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/ExecuteRequest")
    assert execute["security"] == [{"bearer": []}, {"token": []}, {"cookie": []}]
    assert document["paths"]["/api"]["get"]["security"] == []


async def test_the_page_needs_nothing_from_elsewhere(door):
    """The page's policy allows just its own script and style; it names no other place and has no handlers."""
    async with door.client.get("/api/docs") as answer:
        page, policy = await answer.text(), answer.headers["Content-Security-Policy"]

    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='", policy)
    assert re.search(r"style-src 'sha256-[A-Za-z0-9+/]{43}='", policy)
    assert "unsafe" not in policy
    assert not re.search(r"https?://|\bon\w+=|style=|<script |<link ", page)
