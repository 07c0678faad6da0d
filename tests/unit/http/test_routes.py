"""Every route is in the table, has a rule, and keeps it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gateway.http.access import PUBLIC, Access, Rule
from gateway.http.app import drain
from gateway.http.route import Route
from gateway.http.routes import PLAIN_ROUTES, ROUTES
from gateway.models import ExecuteRequest
from gateway.models.jobs import JobRecord

GUARDED = [route for route in PLAIN_ROUTES if route.access.rule is not Rule.PUBLIC]
OWNED = [route for route in PLAIN_ROUTES if route.access.rule is Rule.OWNER]
CHANGING = [route for route in PLAIN_ROUTES if route.changes]
HOUR = timedelta(hours=1)
MISSING = "11111111-2222-3333-4444-555555555555"


def name(route: Route) -> str:
    """Name a route in the report."""
    return f"{route.method} {route.path}"


def filled(route: Route, **values: str) -> str:
    """Return the route's path with its parameters filled in."""
    return route.path.format(
        **{
            "kernel_id": MISSING,
            "session_id": MISSING,
            "name": "python3",
            "file": "x",
            "path": "x",
            "execution_id": MISSING,
            "call_id": "none",
            "what": "stdout",
            "process_id": "none",
            "pid": "1",
        }
        | values
    )


def body(route: Route) -> dict[str, object] | None:
    """Return a body that the route takes."""
    if route.body is ExecuteRequest:
        return {"code": "1"}
    return {"path": "a.ipynb", "type": "notebook"} if "sessions" in route.path and route.changes else None


async def test_router_holds_the_table_and_nothing_else(door):
    """What the router knows is what the table lists: no route can exist without a rule."""
    served = {(route.method, route.resource.canonical) for route in door.app.router.routes()}

    assert served == {(route.method, route.path) for route in ROUTES}


def test_only_harmless_routes_are_public():
    """What needs no credential is named here, so that a new public route is a decision."""
    assert {route.path for route in ROUTES if route.access is PUBLIC} == {
        "/healthz",
        "/readyz",
        "/api",
        "/api/openapi.json",
        "/api/docs",
        "/.well-known/oauth-protected-resource",
        "/.well-known/oauth-protected-resource/mcp",
    }
    assert len(GUARDED) + 7 == len(PLAIN_ROUTES)


def test_every_route_with_an_id_is_owned():
    """A path that names a kernel or session has the rule that it must be the caller's."""
    for route in ROUTES:
        for parameter in ("kernel_id", "session_id"):
            assert (f"{{{parameter}}}" in route.path) == (route.access.parameter == parameter), name(route)


@pytest.mark.parametrize("route", GUARDED, ids=name)
async def test_guarded_routes_want_a_credential(door, route):
    """Without a credential every route but the public ones is 401, with the challenge and the error body."""
    status, answer, headers = await door.call(route.method, filled(route), who=None)

    challenge = headers["WWW-Authenticate"]
    # MCP's clients learn from it how to get in; of others nobody asks for more
    assert (status, challenge.partition(" ")[0] if route.path == "/mcp" else challenge) == (401, "Bearer")
    assert route.method == "HEAD" or answer["code"] == "unauthorized"


@pytest.mark.parametrize("route", OWNED, ids=name)
async def test_what_is_anothers_is_what_does_not_exist(door, route):
    """A kernel or session of another's is 404, told apart from a missing one by nothing but its id."""
    _, session, _ = await door.call("POST", "/api/sessions", json={"path": "a.ipynb", "type": "notebook"})
    ids = {"kernel_id": session["kernel"]["id"], "session_id": session["id"], "execution_id": "a-job"}
    now = door.clock.now()
    await door.store.add_job(
        JobRecord(
            id="a-job", owner="alice", request_sha256="", status="ok", created_at=now, expires_at=now + HOUR
        )
    )
    before = len(door.host.kernels)

    theirs = await door.call(route.method, filled(route, **ids), who="bob", json=body(route))
    missing = await door.call(route.method, filled(route), who="bob", json=body(route))

    assert theirs[0] == missing[0] == 404
    ours = ids[route.access.parameter]
    if route.method != "HEAD":
        assert theirs[1]["message"].replace(ours, MISSING) == missing[1]["message"]
        assert theirs[1]["code"] == missing[1]["code"] == "not_found"
    assert len(door.host.kernels) == before
    assert not any(
        kernel.interrupts or kernel.restarts or kernel.sent for kernel in door.host.kernels.values()
    )


async def test_lists_show_what_is_the_callers(door):
    """Lists hold the caller's own, and everybody's for an admin."""
    await door.call("POST", "/api/sessions", json={"path": "a.ipynb", "type": "notebook"})

    for path in ("/api/kernels", "/api/sessions"):
        assert (await door.call("GET", path, who="bob"))[1] == []
        assert len((await door.call("GET", path))[1]) == 1
        assert len((await door.call("GET", path, who="root"))[1]) == 1


async def test_metrics_are_the_admins(door):
    """Metrics tell of everybody: only an admin sees them."""
    assert (await door.call("GET", "/metrics"))[0] == 403
    status, _, headers = await door.call("GET", "/metrics", who="root")
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")


async def test_execute_takes_its_scope(door):
    """A key without `execute` may start kernels and run nothing in them, by whichever door."""
    kernel = await door.kernel()

    status, answer, _ = await door.call(
        "POST", f"/api/kernels/{kernel.id}/execute", who="reader", json={"code": "1"}
    )
    assert (status, answer["reason"]) == (403, "missing_scope")
    assert (await door.call("GET", f"/api/kernels/{kernel.id}/channels", who="reader"))[0] == 403


async def test_an_unknown_rule_is_refused(door):
    """A rule that names nothing known lets nobody in."""
    route = next(route for route in ROUTES if route.path == "/api/me")
    odd = replace(route, access=Access(Rule.OWNER, "notebook_id"))
    from gateway.http.middleware import ROUTE_OF

    for known, other in door.app[ROUTE_OF].items():
        if other is route:
            door.app[ROUTE_OF][known] = odd

    assert (await door.call("GET", "/api/me"))[0] == 403


@pytest.mark.parametrize("route", CHANGING, ids=name)
async def test_draining_takes_no_new_work(door, route):
    """While the gateway drains, whatever changes something is 503 and reading goes on."""
    await drain(door.app)

    status, answer, headers = await door.call(route.method, filled(route), json=body(route))

    assert (status, answer["code"], headers["Retry-After"]) == (503, "shutting_down", "2")
    assert (await door.call("GET", "/api/kernels"))[0] == 200
