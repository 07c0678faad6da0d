"""The errors that the gateway reports: each class carries a code and an HTTP status."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a quota leaves: so many of `limit` remain, and `reset_s` seconds bring more of them."""

    limit: int
    remaining: int
    reset_s: float


class GatewayError(Exception):
    """Base of every error that a caller may see.

    `message` is one clear sentence, `reason` an optional short machine-readable detail, `retry_after_s`
    the seconds after which trying again makes sense; `recorded` says that the audit trail knows of it.
    """

    code = "internal_error"
    status = 500
    recorded = False

    def __init__(
        self, message: str, *, reason: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, str | None]:
        """Return the JSON body that every door answers with."""
        return {"message": self.message, "reason": self.reason, "code": self.code}


class BadRequest(GatewayError):
    """The request is malformed or has a value that is not allowed."""

    code = "bad_request"
    status = 400


class Unauthorized(GatewayError):
    """The credential is missing, unknown, expired or revoked."""

    code = "unauthorized"
    status = 401


class Forbidden(GatewayError):
    """The credential is good and lacks the scope, or the request's origin is not allowed."""

    code = "forbidden"
    status = 403


class NotFound(GatewayError):
    """There is no such thing, or it is not the caller's: the two are never told apart."""

    code = "not_found"
    status = 404


class UnknownKernelSpec(NotFound):
    """No kernelspec of that name may be started here."""

    code = "unknown_kernelspec"


class MethodNotAllowed(GatewayError):
    """The path exists and does not take this method."""

    code = "method_not_allowed"
    status = 405


class Conflict(GatewayError):
    """The request contradicts the present state."""

    code = "conflict"
    status = 409


class KernelDead(Conflict):
    """The kernel has died; `reason` says of what. Restart or delete it."""

    code = "kernel_dead"


class Gone(GatewayError):
    """What the request names was there and has ended."""

    code = "gone"
    status = 410


class RequestTimeout(GatewayError):
    """The request's body did not arrive in time."""

    code = "request_timeout"
    status = 408


class PreconditionFailed(GatewayError):
    """What a request names is not, or no longer, as the request says that it is."""

    code = "precondition_failed"
    status = 412


class PayloadTooLarge(GatewayError):
    """The body or frame exceeds the limit named in the message."""

    code = "payload_too_large"
    status = 413


class RangeNotSatisfiable(GatewayError):
    """The file has none of the bytes that the request's Range names."""

    code = "range_not_satisfiable"
    status = 416


class HeadersTooLarge(GatewayError):
    """The request's line and headers exceed the limit."""

    code = "headers_too_large"
    status = 431


class LimitReached(GatewayError):
    """A limit or quota is used up for now; `allowance` tells of it where it is counted."""

    code = "limit_reached"
    status = 429

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        retry_after_s: float | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        super().__init__(message, reason=reason, retry_after_s=retry_after_s)
        self.allowance = allowance


class ToolFailed(GatewayError):
    """A tool of the client's, called by code in a cell, has answered with an error."""

    code = "tool_failed"
    status = 502


class KernelStartFailed(GatewayError):
    """The cell was confined and the kernel in it did not come up."""

    code = "kernel_start_failed"
    status = 502


class SandboxUnavailable(GatewayError):
    """A confined cell cannot be had, so no kernel runs."""

    code = "sandbox_unavailable"
    status = 503


class StoreUnavailable(GatewayError):
    """The store does not answer or refuses to write."""

    code = "store_unavailable"
    status = 503


class IdentityUnavailable(GatewayError):
    """The issuer of tokens does not answer, so no token can be checked."""

    code = "identity_unavailable"
    status = 503


class AuditUnavailable(GatewayError):
    """The audit trail takes no more records for now, so nothing that must be recorded may begin."""

    code = "audit_unavailable"
    status = 503


class ShuttingDown(GatewayError):
    """The gateway is draining and takes no new work."""

    code = "shutting_down"
    status = 503


class SandboxNotRunning(GatewayError):
    """The sandbox that a request names has ended or is paused, never was, or is not the caller's."""

    code = "sandbox_not_running"
    status = 502


class NotOffered(GatewayError):
    """The request is one of a protocol's that this gateway does not offer."""

    code = "not_offered"
    status = 501


class InsufficientStorage(GatewayError):
    """A home, a workspace or the disk below it is full."""

    code = "insufficient_storage"
    status = 507


class ConfigurationError(GatewayError):
    """A setting, profile or kernelspec is wrong; the message names the place."""

    code = "configuration_error"
