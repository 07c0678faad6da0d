"""The gateway's metrics, for Prometheus."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from gateway.errors import InsufficientStorage
from gateway.models import Door, ExecutionState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.errors import GatewayError
    from gateway.ports import KernelHost

# names of limits come from the code; should one ever come from elsewhere, it fills no registry
MOST_LIMITS = 64

_WORK_S = (0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300, 1800)
_WAIT_S = (0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300)
_START_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40)


class Metrics:
    """The gateway's metrics, in a registry of their own.

    The values of labels come from closed sets (route templates, kernelspecs, reasons), never from users.
    """

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._limits: set[str] = set()
        counter = partial(Counter, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        self.requests = counter(
            "cellblock_requests",
            "HTTP requests, by route template, method and status.",
            ["route", "method", "status"],
        )
        self.door_requests = counter(
            "cellblock_door_requests",
            "What clients asked for, by door: HTTP requests, and messages over sockets.",
            ["door"],
        )
        self.refusals = counter(
            "cellblock_refusals", "Requests that were answered with an error, by its code.", ["code"]
        )
        self.limits_hit = counter(
            "cellblock_limits_hit", "Limits and quotas that were hit, by name.", ["limit"]
        )
        self.kernel_starts = counter(
            "cellblock_kernel_starts",
            "Kernels asked for, by kernelspec, outcome, and how: cold, warm, or as a trial of readiness.",
            ["spec", "outcome", "how"],
        )
        self.warm_kernels = gauge(
            "cellblock_warm_kernels", "Kernels that are ready and nobody's yet, by kernelspec.", ["spec"]
        )
        self.warm_claims = counter(
            "cellblock_warm_claims",
            "Starts for which there is a pool, by outcome: warm, empty, unsuited, failed.",
            ["spec", "outcome"],
        )
        self.kernel_start_seconds = histogram(
            "cellblock_kernel_start_seconds",
            "Seconds from asking for a kernel to its first answer.",
            buckets=_START_S,
        )
        self.kernel_deaths = counter("cellblock_kernel_deaths", "Kernels that ended, by reason.", ["reason"])
        self.kernels = gauge("cellblock_kernels", "Kernels that live now.")
        self.kernel_states = gauge(
            "cellblock_kernel_states", "Kernels that there are now, by state.", ["state"]
        )
        self.executions = counter("cellblock_executions", "Executions that ended, by status.", ["status"])
        self.execution_seconds = histogram(
            "cellblock_execution_seconds", "Seconds from an execute request to its end.", buckets=_WORK_S
        )
        self.execution_queue_seconds = histogram(
            "cellblock_execution_queue_seconds",
            "Seconds from an execute request to the moment in which the kernel begins with it.",
            buckets=_WAIT_S,
        )
        self.relay_bytes = counter(
            "cellblock_relay_bytes",
            "Bytes of messages to and from kernels, by direction and by the door that asked.",
            ["direction", "door"],
        )
        self.sockets = gauge("cellblock_sockets", "WebSockets that are open now.")
        self.dropped_messages = counter(
            "cellblock_dropped_messages", "Messages that were not delivered, by reason.", ["reason"]
        )
        self.ready = gauge(
            "cellblock_ready",
            "1 when the last trial of readiness was good, 0 when not; NaN before the first.",
        )
        self.audit_queue_records = gauge(
            "cellblock_audit_queue_records", "Audit records that wait for the disk."
        )
        self.audit_queue_bytes = gauge("cellblock_audit_queue_bytes", "Their size.")
        self.webhook_deliveries = counter(
            "cellblock_webhook_deliveries",
            "What became of notices to webhooks: delivered, retried, failed, dropped.",
            ["outcome"],
        )
        self.webhook_queue = gauge("cellblock_webhook_queue", "Notices that wait for their webhooks.")
        self.ready.set(float("nan"))

    def refused(self, error: GatewayError) -> None:
        """Count an error that somebody is answered with; for every door."""
        self.refusals.labels(error.code).inc()
        if isinstance(error, InsufficientStorage):
            self.hit("storage")

    def hit(self, limit: str) -> None:
        """Count a limit that somebody has run into."""
        if limit not in self._limits and len(self._limits) >= MOST_LIMITS:
            limit = "other"
        self._limits.add(limit)
        self.limits_hit.labels(limit).inc()

    def relayed(self, direction: Literal["to_kernel", "from_kernel"]) -> Mapping[str, Counter]:
        """Return the counters of one direction by door: looked up once, used for each message."""
        return {door: self.relay_bytes.labels(direction, door) for door in get_args(Door)}

    def follow(self, host: KernelHost) -> None:
        """Show the states of a host's kernels, as they are whenever somebody looks."""
        for state in ExecutionState:
            self.kernel_states.labels(state.value).set_function(partial(_in_state, host, state))

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format, to be sent as `content_type`."""
        return generate_latest(self._registry)


def _in_state(host: KernelHost, state: ExecutionState) -> float:
    return sum(handle.state is state for handle in host.all())
