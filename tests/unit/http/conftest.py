"""The whole HTTP door on a loopback port, over doubles of the ports and real keys."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from gateway.auth import DerivedTokens, KeyRing
from gateway.http.app import build
from gateway.mcp.mount import Mount
from gateway.mcp.server import ToolServer
from gateway.models import DEFAULT_SCOPES, Scope
from gateway.ports.tracing import NoTracer
from gateway.services.quotas import Quotas
from gateway.services.readiness import Readiness
from gateway.services.sandbox_cases import SandboxCases
from gateway.services.use_cases import UseCases
from gateway.settings import QuotaSettings, ServerSettings, Settings
from gateway.telemetry import Metrics
from gateway.toolbox.toolbox import Toolbox
from gateway.webhooks import Webhooks
from tests.doubles import ManualClock, MemoryAudit, MemoryHost, MemoryKernel, MemoryStore, kernelspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class Door:
    """A running door, its collaborators, and clients by principal."""

    app: Any
    client: TestClient[Any, Any]
    host: MemoryHost
    store: MemoryStore
    clock: ManualClock
    keys: KeyRing
    metrics: Metrics
    quotas: Quotas
    tokens: dict[str, str]
    audit: MemoryAudit

    def bearer(self, name: str = "alice") -> dict[str, str]:
        """Return the header that speaks for a principal."""
        return {"Authorization": f"Bearer {self.tokens[name]}"}

    async def call(
        self, method: str, path: str, *, who: str | None = "alice", headers: Any = None, **more: Any
    ) -> tuple[int, Any, Any]:
        """Return status, parsed JSON body (None when there is none) and headers of an answer."""
        sent = {**(self.bearer(who) if who else {}), **(headers or {})}
        async with self.client.request(method, path, headers=sent, **more) as answer:
            body = await answer.read()
            parsed = await answer.json() if body and answer.content_type == "application/json" else None
            return answer.status, parsed, answer.headers

    async def kernel(self, who: str = "alice") -> MemoryKernel:
        """Start a kernel of a principal's."""
        status, body, _ = await self.call("POST", "/api/kernels", who=who)
        assert status == 201
        return self.host.kernels[body["id"]]

    def channels(self, kernel_id: str, *, who: str | None = "alice", headers: Any = None, **more: Any) -> Any:
        """Open a kernel's WebSocket."""
        sent = {**(self.bearer(who) if who else {}), **(headers or {})}
        query = more.pop("query", "")
        return self.client.ws_connect(f"/api/kernels/{kernel_id}/channels{query}", headers=sent, **more)


@asynccontextmanager
async def opened(*, specs: Any = None, quota: Any = None, **server: Any) -> AsyncIterator[Door]:
    """Serve the door with these settings of the server's."""
    clock, store, metrics = ManualClock(), MemoryStore(), Metrics()
    settings = Settings(
        server=ServerSettings(**{"max_body_bytes": 4096, "drain_s": 2.0} | server),
        quotas=QuotaSettings(**quota or {}),
    )
    quotas, audit = Quotas(settings, store, clock), MemoryAudit()
    offered = specs or (kernelspec(), kernelspec("bash", env={"SECRET": "x"}))
    host = MemoryHost(clock, specs=offered, gate=quotas)
    use_cases = UseCases.over(
        host,
        store,
        clock=clock,
        settings=settings,
        quotas=quotas,
        audit=audit,
        notifier=Webhooks(()),
    )
    keys = KeyRing(store, b"p" * 32, clock)
    readiness = Readiness(host, store, audit, clock, settings, told=metrics.ready.set)
    e2b = SandboxCases.over(
        use_cases,
        host,
        store,
        clock=clock,
        settings=settings,
        audit=audit,
        authenticator=keys,
        tokens=DerivedTokens(b"p" * 32),
    )
    toolbox = Toolbox(use_cases, settings=settings.mcp, audit=audit)
    mount = Mount(ToolServer(toolbox, clock, version="0.0.test", extended=False), max_body_bytes=4096)
    app = build(
        use_cases,
        settings=settings,
        toolbox=toolbox,
        mcp=mount,
        e2b=e2b,
        audit=audit,
        authenticator=keys,
        metrics=metrics,
        tracer=NoTracer(),
        readiness=readiness,
        clock=clock,
        started=clock.now(),
        version="0.0.test",
    )
    tokens = {name: (await keys.create(name, DEFAULT_SCOPES))[0] for name in ("alice", "bob")}
    tokens["root"] = (await keys.create("root", [Scope.ADMIN]))[0]
    tokens["reader"] = (await keys.create("alice", [Scope.KERNELS]))[0]
    async with mount, TestClient(TestServer(app)) as client:
        yield Door(app, client, host, store, clock, keys, metrics, quotas, tokens, audit)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    """The door with its defaults and a small body limit."""
    async with opened() as made:
        yield made
