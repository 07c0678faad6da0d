"""The server's own routes, and the description of all of them."""

from __future__ import annotations

import re

from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.errors import KernelStartFailed
from gateway.http.app import drain
from gateway.http.routes import PLAIN_ROUTES


async def test_public_routes(door):
    """Version and health need no credential."""
    assert (await door.call("GET", "/api", who=None))[:2] == (200, {"version": "0.0.test"})
    assert (await door.call("GET", "/healthz", who=None))[:2] == (200, {"status": "ok"})


async def test_ready_needs_no_credential_and_costs_one_trial(door):
    """Readiness is everybody's to ask, and who asks again is answered from the last trial."""
    for _ in range(10):
        status, body, _ = await door.call("GET", "/readyz", who=None)
        assert (status, body["status"], body["checks"]["cell"]) == (200, "ready", "ok")

    assert (door.host.trials, door.host.starts) == (1, 0)


async def test_not_ready(door):
    """What is not ready is 503 in the one shape of errors, with when to ask again, and no detail."""
    door.host.failure = KernelStartFailed("The kernel said: /etc/passwd", reason="crashed")

    status, body, headers = await door.call("GET", "/readyz", who=None)

    assert (status, body["code"], body["reason"]) == (503, "kernel_start_failed", "crashed")
    assert "passwd" not in body["message"]
    assert 1 <= int(headers["Retry-After"]) <= 5


async def test_a_draining_gateway_is_not_ready(door):
    """Once the gateway drains it is not ready, whatever it was, and no cell is tried."""
    await drain(door.app)

    status, body, _ = await door.call("GET", "/readyz", who=None)

    assert (status, body["code"], door.host.trials) == (503, "shutting_down", 0)
    assert (await door.call("GET", "/healthz", who=None))[0] == 200


async def test_doors_and_refusals_are_counted(door):
    """Requests count at their door, and what is answered with an error by its code."""
    kernel = await door.kernel()
    await door.call("GET", "/api/kernels/none")
    await door.call("GET", "/nowhere")
    async with door.channels(kernel.id) as socket:
        await socket.send_str("{}")
        await socket.receive()
    text = door.metrics.render().decode()

    assert 'cellblock_door_requests_total{door="rest"} 3.0' in text
    assert 'cellblock_door_requests_total{door="websocket"} 1.0' in text
    assert 'cellblock_refusals_total{code="not_found"} 2.0' in text


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
    assert described == {(route.method, route.path) for route in PLAIN_ROUTES}
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
