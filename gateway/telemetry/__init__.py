"""What operators see: logs without secrets, metrics, and traces."""

from gateway.telemetry.executions import ExecutionLog, ExecutionNotices, ExecutionSpans
from gateway.telemetry.logs import configure_logging, scrub, scrub_text
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tracing import tracing
from gateway.telemetry.watch import AuditWatch

__all__ = [
    "AuditWatch",
    "ExecutionLog",
    "ExecutionNotices",
    "ExecutionSpans",
    "Metrics",
    "configure_logging",
    "scrub",
    "scrub_text",
    "tracing",
]
