"""Serves requests by the table of methods: checked, recorded, counted and logged, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from gateway.errors import GatewayError
from gateway.http.bodies import parsed
from gateway.http.rpc.protocol import NotARequest, UnknownMethod
from gateway.http.rpc.registry import METHODS
from gateway.http.witness import REFUSALS, failing
from gateway.models import AuditAction, AuditEvent
from gateway.origin import acting

if TYPE_CHECKING:
    from collections.abc import Collection

    from gateway.http.context import Context
    from gateway.http.rpc.method import Call, Method
    from gateway.http.rpc.protocol import Id, Request

PATH = "/api/rpc"
GONE = "499"  # the client left before the answer

log = structlog.get_logger(__name__)


class Requests:
    """The requests of one connection."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._served = 0
        self._refused = 0

    def told(self) -> dict[str, int]:
        """Return how many there were, and how many came to nothing, for the record of the socket's end."""
        return {"requests": self._served, "refused": self._refused}

    def check_id(self, given: Request, running: Collection[Id | None]) -> None:
        """Refuse a request whose id one that is under way has. Raises NotARequest."""
        if given.id is not None and given.id in running:
            raise NotARequest("A request with this id is under way.", reason="id")

    def refused(self, call: Call, error: GatewayError) -> None:
        """Count and record a frame that did not come as far as a method."""
        with acting(call.origin):
            self._failed(error, "none", changes=True, kernel_id=None)
            self._count("none", str(error.status))

    async def serve(self, call: Call, given: Request) -> bytes:
        """Return the result of a request, as JSON. Raises GatewayError."""
        method = METHODS.get(given.method)
        name, status, began = method.name if method else "none", GONE, self._ctx.clock.monotonic()
        names = {"request_id": call.origin.request_id}
        with acting(call.origin), structlog.contextvars.bound_contextvars(**names):
            try:
                body = await self._run(call, method, given)
                status = "200"
            except GatewayError as error:
                status = str(error.status)
                kernel_id = given.params.get("kernel_id")
                self._failed(
                    error,
                    name,
                    changes=method is not None and method.changes,
                    kernel_id=kernel_id if isinstance(kernel_id, str) else None,
                )
                raise
            finally:
                self._count(name, status)
                seconds = round(self._ctx.clock.monotonic() - began, 6)
                who = call.principal.name
                log.info("rpc_request", method=name, status=int(status), duration_s=seconds, principal=who)
        return body

    async def _run(self, call: Call, method: Method | None, given: Request) -> bytes:
        if method is None:
            raise UnknownMethod(f"There is no method {given.method[:64]!r}.", reason="method")
        try:
            answer = await method.handler(call, parsed(method.params, given.params))
        except GatewayError:
            raise
        except Exception as error:
            log.exception("request_crashed", method=method.name)
            raise GatewayError("The gateway failed in an unexpected way; its log says more.") from error
        if method.changes:
            # what is acknowledged is recorded
            await self._ctx.audit.written()
        return b"null" if answer is None else answer.model_dump_json().encode()

    def _count(self, name: str, status: str) -> None:
        self._served += 1
        self._ctx.metrics.door_requests.labels("rpc").inc()
        self._ctx.metrics.requests.labels(PATH, name, status).inc()

    def _failed(self, error: GatewayError, name: str, *, changes: bool, kernel_id: str | None) -> None:
        """Record that somebody was refused, and any request to change something that came to nothing."""
        self._refused += 1
        self._ctx.metrics.refused(error)
        if error.recorded or not (changes or error.status in REFUSALS):
            return
        event = AuditEvent(
            action=AuditAction.REQUEST_FAILED, kernel_id=kernel_id, target=f"GET {PATH} {name}"
        )
        self._ctx.audit.record(failing(event, error))
