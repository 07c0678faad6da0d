"""The composition root: settings → store → host → services → http, and the life of one gateway."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import structlog
from aiohttp import web

from gateway.audit.journal import Journal
from gateway.audit.trail import AuditTrail
from gateway.auth import Authenticators, DerivedTokens, KeyRing, connect, load_pepper
from gateway.clock import SystemClock
from gateway.http import app as http_app
from gateway.http.listener import Listener
from gateway.http.tls import Certificates
from gateway.kernels.host import LocalKernelHost
from gateway.kernels.observers import Observers
from gateway.kernels.pool import WarmPool
from gateway.kernels.running import wire
from gateway.kernels.specs import SpecCatalogue
from gateway.mcp.door import McpDoor
from gateway.models import AuditAction, AuditEvent, Channel
from gateway.ports import Audit, Authenticator, Clock, ExecutionGate, ExecutionObserver, Store
from gateway.ports.tracing import Tracer
from gateway.sandbox.daemon import settings_hash
from gateway.sandbox.link import WardenLink
from gateway.sandbox.profile import load_profiles, profile_dirs
from gateway.sandbox.wire import WardenFacts
from gateway.services.culler import Culler
from gateway.services.meter import Meter
from gateway.services.quotas import Quotas
from gateway.services.readiness import Readiness
from gateway.services.sandbox_cases import SandboxCases
from gateway.services.use_cases import UseCases
from gateway.settings import Settings
from gateway.store import SqlStore
from gateway.telemetry import (
    AuditWatch,
    ExecutionLog,
    ExecutionNotices,
    ExecutionSpans,
    Metrics,
    tracing,
)
from gateway.toolbox.toolbox import Toolbox
from gateway.webhooks import notifying

log = structlog.get_logger()

# mallopt(3); a message of a kernel's may be ten times as large
M_MMAP_THRESHOLD, LARGE_BYTES = -3, 1 << 20


async def listen(
    runner: web.AppRunner,
    listening: socket.socket,
    settings: Settings,
    certificates: Certificates | None,
    stack: contextlib.AsyncExitStack,
) -> None:
    """Take connections, as `web.SockSite` does, by a listener of our own, until the stack unwinds."""
    manager = runner.server
    assert manager is not None  # noqa: S101 - it is there after setup()

    def certificate() -> ssl.SSLContext | None:
        return certificates.context() if certificates else None

    listener = Listener(listening, manager, settings.server, certificate)
    beside(stack, listener.run())


async def serve(settings: Settings, listener: socket.socket, *, keep: bool) -> None:
    """Serve until SIGTERM or SIGINT, then drain; with `keep` the kernels are left for the next gateway.

    Raises:
        GatewayError: the store, the warden, a profile or a kernelspec cannot be used.
    """
    give_memory_back()
    clock, metrics = SystemClock(), Metrics()
    has_tls = settings.server.tls.cert is not None
    certificates = await asyncio.to_thread(Certificates, settings.server.tls) if has_tls else None
    async with contextlib.AsyncExitStack() as stack:
        store = await SqlStore.open(settings.store_path)
        stack.push_async_callback(store.close)
        pepper = await asyncio.to_thread(load_pepper, settings.pepper_path)
        trail = await open_trail(settings, store, clock, metrics, stack)
        ours = await asyncio.to_thread(version, "cellblock")
        tracer = await stack.enter_async_context(tracing(settings.telemetry, ours))
        notifier = await stack.enter_async_context(
            notifying(settings, clock, metrics.webhook_deliveries, metrics.webhook_queue)
        )
        audit = AuditWatch(trail, metrics, notifier, clock)
        audit.record(AuditEvent(action=AuditAction.GATEWAY_START, door="gateway", extra={"keep": keep}))
        stack.callback(
            audit.record,
            AuditEvent(action=AuditAction.GATEWAY_STOP, door="gateway", extra={"keep": keep}),
        )
        quotas = Quotas(settings, store, clock)
        await quotas.load()
        stack.push_async_callback(quotas.save)
        host = await asyncio.to_thread(
            make_host,
            settings,
            clock,
            metrics,
            gate=quotas,
            audit=audit,
            observer=Observers(
                ExecutionLog(metrics), trail, ExecutionNotices(notifier, clock), ExecutionSpans(tracer)
            ),
            tracer=tracer,
            keep=keep,
        )
        stack.push_async_callback(host.close, keep=keep)
        for kernel_id in await host.adopt(await store.kernels()):
            await store.delete_kernel(kernel_id)
        use_cases = UseCases.over(
            host,
            store,
            clock=clock,
            settings=settings,
            quotas=quotas,
            audit=audit,
            notifier=notifier,
        )
        kernels = use_cases.kernels
        culler = Culler(host, kernels, clock, settings, audit)
        for work in (host.keep_warm(), culler.run(), Meter(host, kernels, quotas, clock, audit).run()):
            beside(stack, work)
        readiness = Readiness(host, store, audit, clock, settings, told=metrics.ready.set)
        stack.push_async_callback(readiness.close)
        await stack.enter_async_context(use_cases.jobs.working())
        authenticator = await credentials(settings, KeyRing(store, pepper, clock), clock, stack)
        e2b = SandboxCases.over(
            use_cases,
            host,
            store,
            clock=clock,
            settings=settings,
            audit=audit,
            authenticator=authenticator,
            tokens=DerivedTokens(pepper),
        )
        await e2b.book.load()
        beside(stack, e2b.book.run())
        stack.push_async_callback(e2b.commands.close)
        toolbox = Toolbox(use_cases, settings=settings.mcp, audit=audit)
        application = http_app.build(
            use_cases,
            settings=settings,
            e2b=e2b,
            toolbox=toolbox,
            mcp=await stack.enter_async_context(mcp(toolbox, clock, settings, ours)),
            audit=audit,
            authenticator=authenticator,
            metrics=metrics,
            tracer=tracer,
            readiness=readiness,
            clock=clock,
            started=clock.now(),
            version=ours,
        )
        runner = web.AppRunner(
            application,
            handle_signals=False,
            handler_cancellation=True,
            shutdown_timeout=settings.server.drain_s,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        if certificates is not None:
            beside(stack, certificates.watch())
            on_signal(certificates.reload, signal.SIGHUP)
        await listen(runner, listener, settings, certificates, stack)
        stop = stop_event()
        warn(await host.warden(), settings)
        url = address(listener, secure=certificates is not None)
        log.info("serving", address=url, state_dir=str(settings.state_dir))
        await stopped(stop, application, keep=keep)


async def stopped(stop: asyncio.Event, application: web.Application, *, keep: bool) -> None:
    """Serve until told to stop, then drain."""
    leave_code_alone()
    await stop.wait()
    log.info("draining", keep=keep)
    await http_app.drain(application)


async def open_trail(
    settings: Settings, store: Store, clock: Clock, metrics: Metrics, stack: contextlib.AsyncExitStack
) -> AuditTrail:
    """Begin to write the audit trail, until the stack unwinds; its queue shows in the metrics."""
    key = await asyncio.to_thread(load_pepper, settings.audit_key_path)
    trail = AuditTrail(Journal(settings.audit_dir, key, settings.audit), store, clock, settings.audit)
    await trail.start()
    stack.push_async_callback(trail.close)
    metrics.audit_queue_records.set_function(lambda: trail.waiting)
    metrics.audit_queue_bytes.set_function(lambda: trail.waiting_bytes)
    return trail


def mcp(toolbox: Toolbox, clock: SystemClock, settings: Settings, ours: str) -> McpDoor:
    """Return the MCP server of a toolbox, which is to be entered."""
    return McpDoor(
        toolbox,
        clock,
        version=ours,
        extended=settings.mcp.extended,
        max_body_bytes=settings.server.max_body_bytes,
    )


def warn(warden: WardenFacts, settings: Settings) -> None:
    """Say loudly what this gateway cannot give its tenants."""
    if not warden.privileged:
        log.warning("single-tenant mode: all cells share this user's uid; see docs/security.md")
    if warden.cgroups is None:
        log.warning("no control groups: memory and CPU time of cells are bounded by rlimits only")
    if warden.settings != settings_hash(settings):
        log.warning("the running warden keeps the [sandbox] settings that it was started with")


async def credentials(
    settings: Settings, keys: KeyRing, clock: SystemClock, stack: contextlib.AsyncExitStack
) -> Authenticator:
    """Return what tells whose a credential is: keys, and an issuer's tokens where the settings name one."""
    oidc = settings.auth.oidc
    if oidc.issuer is None:
        return keys
    return Authenticators(keys, await stack.enter_async_context(connect(oidc, clock)))


def make_host(
    settings: Settings,
    clock: SystemClock,
    metrics: Metrics,
    *,
    gate: ExecutionGate,
    audit: Audit,
    observer: ExecutionObserver,
    tracer: Tracer,
    keep: bool,
) -> LocalKernelHost:
    """Build the host of this machine's kernels. Raises ConfigurationError."""

    def dropped(channel: Channel, why: str) -> None:
        metrics.dropped_messages.labels("malformed").inc()
        log.debug("a kernel's message was dropped", channel=channel, why=why)

    kernels, sandbox = settings.kernels, settings.sandbox
    link = WardenLink(
        settings.warden_socket,
        keep_s=sandbox.keep_s if keep else 0.0,
        answer_s=sandbox.answer_timeout_s,
        start_s=sandbox.start_timeout_s,
    )
    catalogue = SpecCatalogue(kernels)
    catalogue.specs()  # a wrong one shows in the log now, and not at somebody's first request
    profiles = load_profiles(profile_dirs(settings.sandbox.profile_dirs))
    wiring = wire(
        link,
        session=uuid4().hex,
        kernels=kernels.max_kernels,
        max_message_bytes=kernels.max_message_bytes,
        ready_timeout_s=kernels.ready_timeout_s,
        on_dropped=dropped,
        processes=settings.processes,
    )
    host = LocalKernelHost(
        catalogue=catalogue,
        profiles=profiles,
        wiring=wiring,
        pool=WarmPool(
            specs=catalogue.offered,
            profiles=profiles,
            wiring=wiring,
            clock=clock,
            metrics=metrics,
            settings=kernels,
        ),
        clock=clock,
        metrics=metrics,
        settings=kernels,
        observer=observer,
        audit=audit,
        gate=gate,
        tracer=tracer,
    )
    metrics.follow(host)
    return host


def give_memory_back() -> None:
    """Have malloc return large blocks as they are freed: glibc learns to keep them once it has seen some."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def leave_code_alone() -> None:
    """Have the collector look at what comes from now on only: a full pass would hold everybody up."""
    gc.freeze()
    gc.enable()


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set; they stay harmless once the loop is closed."""
    stop = asyncio.Event()
    on_signal(stop.set, signal.SIGTERM, signal.SIGINT)
    return stop


def on_signal(call: Callable[[], None], *numbers: signal.Signals) -> None:
    """Call back in this loop when a signal comes."""
    loop = asyncio.get_running_loop()

    def told(_number: int, _frame: object) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(call)

    # not the loop's own handlers: those end with it, and the next signal would kill a gateway on its way out
    for number in numbers:
        signal.signal(number, told)


def address(listener: socket.socket, *, secure: bool) -> str:
    """Return the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def beside(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Do something in a task of its own until the stack unwinds."""
    stack.push_async_callback(cancel, asyncio.create_task(work))


async def cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it is gone."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
