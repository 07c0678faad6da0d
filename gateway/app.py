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
from gateway.http.protocol import Protocol
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
from gateway.telemetry import ExecutionLog, Metrics

log = structlog.get_logger()


async def listen(runner: web.AppRunner, listener: socket.socket, stack: contextlib.AsyncExitStack) -> None:
    """Take connections, as `web.SockSite` does, by a protocol of our own, until the stack unwinds."""
    loop, manager = asyncio.get_running_loop(), runner.server
    assert manager is not None  # noqa: S101 - it is there after setup()

    def connected() -> Protocol:
        # without an access log: the middleware writes its own, which has no query in it
        return Protocol(manager, loop=loop, access_log=None, auto_decompress=False)  # type: ignore[arg-type]

    server = await loop.create_server(connected, sock=listener, backlog=128)
    stack.callback(server.close)


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
            handle_signals=False,
            handler_cancellation=True,
            shutdown_timeout=settings.server.drain_s,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await listen(runner, listener, stack)
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
    catalogue = SpecCatalogue(kernels)
    catalogue.specs()  # a wrong one shows now, and not at somebody's first request
    return LocalKernelHost(
        catalogue=catalogue,
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
        observer=ExecutionLog(metrics),
    )


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set; they stay harmless once the loop is closed."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def told(_number: int, _frame: object) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)

    # not the loop's own handlers: those end with it, and the next signal would kill a gateway on its way out
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)
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
