"""JSON-RPC 2.0 as this door speaks it: one object per frame, parameters by name, no batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.errors import BadRequest, GatewayError, NotFound

MAX_ID_CHARS = 128
LARGEST_ID = 1 << 53

Id = str | int


class NotJson(BadRequest):
    """The frame is not JSON."""


class NotARequest(BadRequest):
    """The frame is JSON and no request of JSON-RPC 2.0."""


class UnknownMethod(NotFound):
    """There is no such method."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request of the client's; without an id it is a notification, which is not answered."""

    id: Id | None
    method: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """The client's answer to a request of the gateway's: a result, or what went wrong."""

    id: str
    result: Any = None
    error: str | None = None


def parse(frame: str | bytes) -> Request | Answer:
    """Return what a frame is. Raises NotJson, NotARequest, BadRequest (parameters that are not by name)."""
    try:
        given = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        raise NotJson("The frame is not JSON.", reason=str(error)) from None
    if isinstance(given, list):
        raise NotARequest("Batches are not taken: send each request in a frame of its own.", reason="batch")
    if not isinstance(given, dict) or given.get("jsonrpc") != "2.0":
        raise NotARequest('A frame is an object with "jsonrpc": "2.0".', reason="jsonrpc")
    if "method" not in given and ("result" in given or "error" in given):
        return _answer(given)
    method, params = given.get("method"), given.get("params", {})
    if not isinstance(method, str):
        raise NotARequest("The method is a string.", reason="method")
    if not isinstance(params, dict):
        raise BadRequest("Parameters are given by name, in an object.", reason="params")
    return Request(identity(given) if "id" in given else None, method, params)


def identity(given: object) -> Id | None:
    """Return a request's id, as far as it has a good one. Raises NotARequest for any other."""
    found = given.get("id") if isinstance(given, dict) else None
    if isinstance(found, str) and len(found) <= MAX_ID_CHARS:
        return found
    if isinstance(found, int) and not isinstance(found, bool) and abs(found) <= LARGEST_ID:
        return found
    raise NotARequest(f"An id is an integer, or a string of at most {MAX_ID_CHARS} characters.", reason="id")


def id_of(frame: str | bytes) -> Id | None:
    """Return the id in a frame that is refused, or None where none can be made out."""
    try:
        return identity(orjson.loads(frame))
    except (orjson.JSONDecodeError, NotARequest):
        return None


def number(error: GatewayError) -> int:
    """Return JSON-RPC's number for an error: the standard's own, or -32000 and below by the HTTP status."""
    match error:
        case NotJson():
            return -32700
        case NotARequest():
            return -32600
        case UnknownMethod():
            return -32601
    match error.status:
        case 400:
            return -32602
        case 500:
            return -32603
    return -(32_000 + error.status - 400) if error.status < 500 else -(32_050 + error.status - 500)


def of_code(code: str, message: str, reason: str | None) -> GatewayError:
    """Return an error again that was kept as its code, message and reason."""
    error = GatewayError(message, reason=reason)
    error.code, error.status = code, _statuses(GatewayError).get(code, error.status)
    return error


def result(to: Id, body: bytes) -> str:
    """Return the frame that answers a request with a result, which is JSON already."""
    return _frame({"id": to, "result": orjson.Fragment(body)})


def failure(to: Id | None, error: GatewayError) -> str:
    """Return the frame that answers a request with an error."""
    data = {"code": error.code, "reason": error.reason, "retry_after_s": error.retry_after_s}
    return _frame({"id": to, "error": {"code": number(error), "message": error.message, "data": data}})


def notification(method: str, body: bytes) -> str:
    """Return the frame of a notification; its parameters are JSON already."""
    return _frame({"method": method, "params": orjson.Fragment(body)})


def request(to: str, method: str, body: bytes) -> str:
    """Return the frame of a request to the client; its parameters are JSON already."""
    return _frame({"id": to, "method": method, "params": orjson.Fragment(body)})


def _statuses(base: type[GatewayError]) -> dict[str, int]:
    found = {base.code: base.status}
    for kind in base.__subclasses__():
        if kind.__module__ == base.__module__:
            found |= _statuses(kind)
    return found


def _answer(given: dict[str, Any]) -> Answer:
    to, error = given.get("id"), given.get("error")
    if not isinstance(to, str) or ("result" in given) == (error is not None):
        raise NotARequest("An answer has the id that was given, and a result or an error.", reason="id")
    if error is None:
        return Answer(to, given["result"])
    said = error.get("message") if isinstance(error, dict) else None
    return Answer(to, error=said if isinstance(said, str) else "The tool failed and did not say why.")


def _frame(fields: dict[str, Any]) -> str:
    return orjson.dumps({"jsonrpc": "2.0", **fields}).decode()
