"""The composition root: settings → store → host → services → http, and the life of one gateway."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from importlib.metadata import version
from uuid import uuid4

import structlog
from aiohttp import web

from gateway.auth import KeyRing, load_pepper
from gateway.clock import SystemClock
from gateway.http import app as http_app
from gateway.kernels.host import LocalKernelHost
from gateway.kernels.running import wire
from gateway.kernels.specs import SpecCatalogue
from gateway.models import Channel
from gateway.sandbox.link import WardenLink
from gateway.sandbox.profile import load_profiles, profile_dirs
from gateway.services.culler import Culler
from gateway.services.executions import ExecutionService
from gateway.services.kernels import KernelService
from gateway.services.sessions import SessionService
from gateway.settings import Settings
from gateway.store import SqlStore
from gateway.telemetry import Metrics

log = structlog.get_logger()


async def serve(settings: Settings, listener: socket.socket, *, keep: bool, privileged: bool) -> None:
    """Serve until SIGTERM or SIGINT, then drain; with `keep` the kernels are left for the next gateway.

    `privileged` says that the warden is root's: only then are tenants kept apart by uids of their own.

    Raises:
        GatewayError: the store, the warden, a profile or a kernelspec cannot be used.
    """
    clock, metrics = SystemClock(), Metrics()
    async with contextlib.AsyncExitStack() as stack:
        store = await SqlStore.open(settings.store_path)
        stack.push_async_callback(store.close)
        host = make_host(settings, clock, metrics, keep=keep)
        stack.push_async_callback(host.close, keep=keep)
        for kernel_id in await host.adopt(await store.kernels()):
            await store.delete_kernel(kernel_id)
        kernels = KernelService(host, store, clock, settings)
        culler = asyncio.create_task(Culler(host, kernels, clock, settings).run())
        stack.push_async_callback(cancel, culler)
        application = http_app.build(
            settings=settings,
            kernels=kernels,
            executions=ExecutionService(kernels, clock, settings),
            sessions=SessionService(kernels, store, clock),
            authenticator=KeyRing(store, load_pepper(settings.pepper_path), clock),
            metrics=metrics,
            clock=clock,
            started=clock.now(),
            version=version("cellblock"),
        )
        runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            auto_decompress=False,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, listener).start()
        stop = stop_event()
        if not privileged:
            log.warning("single-tenant mode: all cells share this user's uid; see docs/security.md")
        log.info("serving", address=address(listener), state_dir=str(settings.state_dir))
        await stop.wait()
        log.info("draining", keep=keep)
        await http_app.drain(application)


def make_host(settings: Settings, clock: SystemClock, metrics: Metrics, *, keep: bool) -> LocalKernelHost:
    """Build the host of this machine's kernels. Raises ConfigurationError."""

    def dropped(channel: Channel, why: str) -> None:
        metrics.dropped_messages.labels("malformed").inc()
        log.debug("a kernel's message was dropped", channel=channel, why=why)

    link = WardenLink(settings.warden_socket, keep_s=settings.sandbox.keep_s if keep else 0.0)
    kernels = settings.kernels
    return LocalKernelHost(
        catalogue=SpecCatalogue(kernels),
        profiles=load_profiles(profile_dirs(settings.sandbox.profile_dirs)),
        wiring=wire(
            link,
            session=uuid4().hex,
            kernels=kernels.max_kernels,
            max_message_bytes=kernels.max_message_bytes,
            ready_timeout_s=kernels.ready_timeout_s,
            on_dropped=dropped,
        ),
        clock=clock,
        metrics=metrics,
        settings=kernels,
    )


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def address(listener: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it is gone."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
