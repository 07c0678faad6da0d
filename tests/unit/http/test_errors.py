"""Whatever goes wrong, the answer has one shape and tells nothing of the inside."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from gateway.errors import LimitReached, SandboxUnavailable

SHAPE = {"message", "reason", "code"}


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"),
    [
        ("GET", "/api/nothing", {}, 404, "not_found"),
        ("PUT", "/api/kernels", {}, 405, "method_not_allowed"),
        ("POST", "/api/kernels", {"data": b"{"}, 400, "bad_request"),
        ("POST", "/api/kernels", {"data": b"[]"}, 400, "bad_request"),
        ("POST", "/api/kernels", {"data": b'"python3"'}, 400, "bad_request"),
        ("POST", "/api/kernels", {"data": b"\xff"}, 400, "bad_request"),
        ("POST", "/api/kernels", {"data": b"[" * 4000}, 400, "bad_request"),
        ("POST", "/api/kernels", {"data": b"x", "headers": {"Content-Encoding": "gzip"}}, 400, "bad_request"),
        ("POST", "/api/kernels", {"json": {"name": 3}}, 400, "bad_request"),
        ("POST", "/api/kernels", {"json": {"env": {"KERNEL_A": 1}}}, 400, "bad_request"),
        ("POST", "/api/kernels", {"json": {"name": "ruby"}}, 404, "unknown_kernelspec"),
        ("POST", "/api/kernels", {"data": b"x" * 5000}, 413, "payload_too_large"),
        ("POST", "/api/sessions", {}, 400, "bad_request"),
        ("POST", "/api/sessions", {"json": {"path": "a"}}, 400, "bad_request"),
        ("GET", "/api/me?permissions=[", {}, 400, "bad_request"),
        ("GET", "/api/kernelspecs/ruby", {}, 404, "unknown_kernelspec"),
        ("GET", "/kernelspecs/python3/..%2f..%2fetc%2fpasswd", {}, 404, "not_found"),
    ],
)
async def test_errors_have_one_shape(door, *, method, path, sent, status, code):
    """Bad requests of every kind get their status and the JSON body of errors, and start nothing."""
    answered, body, headers = await door.call(method, path, **sent)

    assert (answered, body["code"]) == (status, code)
    assert set(body) == SHAPE
    assert body["message"]
    assert headers["Content-Type"].startswith("application/json")
    assert status != 405 or headers["Allow"] == "GET,POST"
    assert not door.host.kernels


async def test_a_chunked_body_is_bounded_too(door):
    """A body without a declared length is cut off at the limit."""

    async def endless():
        for _ in range(64):
            yield b" " * 1024

    status, body, _ = await door.call("POST", "/api/kernels", data=endless())

    assert (status, body["code"]) == (413, "payload_too_large")


async def test_the_wrong_field_is_named(door):
    """The first wrong field is named; its value is not repeated."""
    kernel = await door.kernel()
    path = f"/api/kernels/{kernel.id}/execute"

    _, unknown, _ = await door.call("POST", path, json={"code": "1", "cod": "hunter2"})
    _, wrong, _ = await door.call("POST", path, json={"code": "1", "timeout_s": "hunter2"})
    _, missing, _ = await door.call("POST", path)

    assert (unknown["reason"], wrong["reason"], missing["reason"]) == ("cod", "timeout_s", "code")
    assert "hunter2" not in str([unknown, wrong])


async def test_retry_after_is_whole_seconds(door):
    """An error that passes by itself says when to try again, rounded up."""
    door.host.failure = LimitReached("Full.", reason="max_kernels", retry_after_s=1.2)
    status, body, headers = await door.call("POST", "/api/kernels")

    assert (status, body["reason"], headers["Retry-After"]) == (429, "max_kernels", "2")


async def test_no_sandbox_is_503(door):
    """Without a confined cell there is no kernel, and the answer says so."""
    door.host.failure = SandboxUnavailable("firejail is missing.")
    status, body, _ = await door.call("POST", "/api/kernels")

    assert (status, body["code"]) == (503, "sandbox_unavailable")


async def test_crashes_tell_nothing(door):
    """An unexpected exception is 500 for the client and a traceback in the log, under the request's id."""
    kernel = await door.kernel()
    door.host.stubborn.add(kernel.id)

    with capture_logs() as lines:
        status, body, headers = await door.call("DELETE", f"/api/kernels/{kernel.id}")

    assert (status, body["code"]) == (500, "internal_error")
    assert "does not end" not in str(body)
    (crash,) = [line for line in lines if line["event"] == "request_crashed"]
    assert crash["exc_info"]
    assert headers["X-Request-Id"]


async def test_request_ids(door):
    """A well-formed request id is kept, any other replaced."""
    kept = await door.call("GET", "/api", headers={"X-Request-Id": "a.B-9_"})
    made = await door.call("GET", "/api", headers={"X-Request-Id": "a b"})

    assert kept[2]["X-Request-Id"] == "a.B-9_"
    assert len(made[2]["X-Request-Id"]) == 32


async def test_the_access_line_has_no_query(door):
    """The access line says what was asked, by whom and how it ended; a token in the query is not in it."""
    token = door.tokens["alice"]
    with capture_logs() as lines:
        await door.call("GET", f"/api/kernels?token={token}", who=None)

    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["method"], line["path"], line["status"], line["principal"]) == (
        "GET",
        "/api/kernels",
        200,
        "alice",
    )
    assert token not in str(lines)


async def test_every_answer_is_protected(door):
    """Answers of every kind carry the headers that browsers are to obey."""
    for path in ("/api", "/api/kernels", "/nothing"):
        headers = (await door.call("GET", path))[2]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'self'"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"] == "cellblock"
