"""Chooses where traces go: nowhere, or to an OpenTelemetry collector."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from gateway.errors import ConfigurationError
from gateway.ports.tracing import NoTracer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.ports.tracing import Tracer
    from gateway.settings import TelemetrySettings


@asynccontextmanager
async def tracing(settings: TelemetrySettings, version: str) -> AsyncIterator[Tracer]:
    """Give a tracer as long as the body runs; what it holds then is sent, for some seconds at most.

    Raises ConfigurationError where an endpoint is set and OpenTelemetry is not installed.
    """
    if settings.otlp_endpoint is None:
        yield NoTracer()
        return
    try:
        from gateway.telemetry.otlp import OtlpTracer  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise ConfigurationError(
            f"telemetry.otlp_endpoint needs OpenTelemetry ({error.name}): pip install 'cellblock[otel]'."
        ) from error
    tracer = await asyncio.to_thread(OtlpTracer, settings, version)
    try:
        yield tracer
    finally:
        await asyncio.to_thread(tracer.close)
