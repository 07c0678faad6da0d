"""A real gateway's traces: one request, from the client's own span down to the execution in the cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.collector import Collector, collecting, facts
from tests.gateway import Gateway, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{SPAN}-01", "X-Request-Id": "mine-1"}
SECRET = "a-secret-of-the-code"


@pytest.fixture(scope="module")
async def traced() -> AsyncIterator[tuple[Gateway, Collector]]:
    """A gateway that sends its traces to a collector of ours."""
    async with collecting() as collector:
        env = {"CELLBLOCK_TELEMETRY__OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with running("--no-keep", env=env) as gateway:
            yield gateway, collector


async def test_one_trace_from_client_to_cell(traced: tuple[Gateway, Collector]) -> None:
    """Start and execution are children of their requests, and those of the client's span; no code in them."""
    gateway, collector = traced
    async with gateway.client() as client:
        async with client.http.post("/api/kernels", headers=HEADERS, json={}) as response:
            kernel_id = (await response.json())["id"]
        path = f"/api/kernels/{kernel_id}/execute"
        body = {"code": f"print('{SECRET}')"}
        async with client.http.post(path, headers=HEADERS, json=body) as response:
            assert response.status == 200

    await collector.until(lambda: collector.named("POST /api/kernels/{kernel_id}/execute"))
    created, executed = (
        collector.named(f"POST /api/kernels{rest}")[0] for rest in ("", "/{kernel_id}/execute")
    )
    [start], [execution] = collector.named("kernel.start"), collector.named("execution")
    for span in (created, executed, start, execution):
        assert span.trace_id.hex() == TRACE
    assert created.parent_span_id.hex() == executed.parent_span_id.hex() == SPAN
    assert start.parent_span_id == created.span_id
    assert execution.parent_span_id == executed.span_id
    assert facts(created)["cellblock.request_id"] == "mine-1"
    assert facts(created)["http.response.status_code"] == 201
    assert facts(start) == {
        "cellblock.kernel_id": kernel_id,
        "cellblock.kernelspec": "python3",
        "cellblock.how": "cold",
    }
    said = facts(execution)
    assert (said["cellblock.kernel_id"], said["cellblock.status"]) == (kernel_id, "ok")
    assert 0 < said["cellblock.queue_s"] < said["cellblock.duration_s"]
    assert SECRET not in str(collector.spans)


async def test_executions_over_a_socket_join_its_trace(traced: tuple[Gateway, Collector]) -> None:
    """What is asked for over a WebSocket is a child of the request that opened it."""
    gateway, collector = traced
    async with gateway.client() as client:
        kernel_id = await client.start()
        client.http.headers["traceparent"] = HEADERS["traceparent"].replace("4bf9", "4bfa")
        async with client.channels(kernel_id) as channels:
            await channels.until_done(await channels.execute("1"))

    def ours() -> list[object]:
        found = collector.named("execution")
        return [span for span in found if facts(span)["cellblock.kernel_id"] == kernel_id]

    name = "GET /api/kernels/{kernel_id}/channels"
    await collector.until(lambda: ours() and collector.named(name))
    [execution], [socket] = ours(), collector.named(name)
    assert execution.trace_id.hex().startswith("4bfa")  # type: ignore[attr-defined]
    assert execution.parent_span_id == socket.span_id  # type: ignore[attr-defined]


async def test_a_failure_is_marked(traced: tuple[Gateway, Collector]) -> None:
    """An execution that times out says so in its span."""
    gateway, collector = traced
    async with gateway.client() as client:
        kernel_id = await client.start()
        result = await client.run(kernel_id, "import time; time.sleep(30)", timeout_s=0.5)
        assert result["status"] == "timeout"

    await collector.until(lambda: [span for span in collector.spans if span.status.message == "timeout"])


async def test_log_and_trace_find_each_other(traced: tuple[Gateway, Collector]) -> None:
    """Every log line of a request has the trace's id beside the request's."""
    gateway, _ = traced
    headers = HEADERS | {"X-Request-Id": "mine-2"}
    async with gateway.client() as client, client.http.get("/api/me", headers=headers) as response:
        assert response.headers["X-Request-Id"] == "mine-2"

    lines = [line for line in gateway.log() if line.get("request_id") == "mine-2"]
    assert lines
    assert {line["trace_id"] for line in lines} == {TRACE}


async def test_the_audit_trail_is_as_before(traced: tuple[Gateway, Collector]) -> None:
    """A traced request's records have the fields of any other."""
    gateway, _ = traced
    text = "".join(path.read_text() for path in (gateway.state_dir / "gateway" / "audit").glob("*.jsonl"))

    assert "mine-1" in text
    assert "traceparent" not in text
