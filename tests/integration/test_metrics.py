"""Every metric of a real gateway moves when its thing happens, and none moves by itself."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry import Metrics
from tests.gateway import Client, Gateway, new_state_dir
from tests.lifecycle import eventually, until_state
from tests.receiver import Receiver, receiving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

BIG = "for _ in range(8): print('x' * 1_000_000)"


class Scene:
    """A gateway with a webhook of ours, an admin who reads its metrics, and alice with a kernel."""

    def __init__(self, gateway: Gateway, root: Client, alice: Client, kernel: str, hook: Receiver) -> None:
        self.gateway = gateway
        self.root = root
        self.alice = alice
        self.kernel = kernel
        self.hook = hook

    async def samples(self) -> dict[str, float]:
        """Return all samples, by name and labels as they are written."""
        async with self.root.http.get("/metrics") as answer:
            families = text_string_to_metric_families(await answer.text())
        found = {}
        for family in families:
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found

    async def rises(self, name: str, before: dict[str, float], within_s: float = 10.0) -> None:
        """Wait until a sample is more than it was."""
        now: dict[str, float] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while True:
                    now = await self.samples()
                    if now.get(name, 0.0) > before.get(name, 0.0):
                        return
                    await asyncio.sleep(0.05)
        raise AssertionError(f"{name} did not move: {now.get(name)}")


@pytest.fixture(scope="module")
async def scene() -> AsyncIterator[Scene]:
    """The scene of this module."""
    place = new_state_dir()
    secret = place / "secret"
    secret.write_text(f"whsec_{base64.b64encode(b'k' * 32).decode()}")
    async with receiving() as hook:
        webhook = {"url": hook.url, "secret_file": str(secret), "timeout_s": 2}
        env = {
            "CELLBLOCK_WEBHOOKS": json.dumps([webhook]),
            "CELLBLOCK_QUOTAS__PRINCIPALS": '{"alice": {"sockets": 1}}',
            "CELLBLOCK_SERVER__DRAIN_S": "1",
            "CELLBLOCK_KERNELS__POOLS": '{"bash": {"size": 0, "max_size": 1}}',
        }
        gateway = Gateway("--no-keep", env=env, state_dir=place)
        # as the gateway's user must be able to read it, and nobody else
        secret.chmod(0o640)
        _give_to_service(secret)
        try:
            gateway.start()
            async with gateway.client("root", "admin") as root, gateway.client("alice") as alice:
                yield Scene(gateway, root, alice, await alice.start(), hook)
        finally:
            gateway.destroy()


def _give_to_service(path: Any) -> None:
    """Let the user that the gateway becomes read a file."""
    import grp
    import os
    import shutil

    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            grp.getgrnam("cellblock")
            shutil.chown(path, group="cellblock")


# -- what happens ------------------------------------------------------------------------------------------


async def nothing(_: Scene) -> None:
    """Let the reading of the metrics be what happens."""


async def a_missing_kernel(scene: Scene) -> None:
    """Ask for a kernel that is not there."""
    await scene.alice.json("GET", "/api/kernels/none", status=404)


async def an_execution(scene: Scene) -> None:
    """Execute something."""
    assert await scene.alice.out(scene.kernel, "print(1)") == "1\n"


async def a_timeout(scene: Scene) -> None:
    """Run into a deadline."""
    await scene.alice.run(scene.kernel, "import time; time.sleep(9)", timeout_s=0.2)


async def much_output(scene: Scene) -> None:
    """Write more than clients are sent."""
    await scene.alice.run(scene.kernel, BIG)


async def a_full_home(scene: Scene) -> None:
    """Write more into a home than it holds."""
    kernel = await scene.alice.start(limits={"home_bytes": 1 << 20})
    path = f"/api/kernels/{kernel}/files/big"
    async with scene.alice.http.put(path, data=io.BytesIO(b"x" * (3 << 20))) as answer:
        assert answer.status == 507, await answer.text()
    await scene.alice.delete(kernel)


async def too_large_a_body(scene: Scene) -> None:
    """Send a body that is larger than bodies may be."""
    body = io.BytesIO(json.dumps({"code": "x" * (17 << 20)}).encode())
    path = f"/api/kernels/{scene.kernel}/execute"
    async with scene.alice.http.post(path, data=body) as answer:
        assert answer.status == 413


async def a_death(scene: Scene) -> None:
    """Have a kernel end by itself."""
    kernel = await scene.alice.start()
    await scene.alice.run(kernel, "import os; os._exit(3)")
    await until_state(scene.alice, kernel, "dead")
    await scene.alice.delete(kernel)


async def a_hog(scene: Scene) -> None:
    """Have a kernel take more memory than it has."""
    kernel = await scene.alice.start(limits={"memory_bytes": 128 << 20})
    result = await scene.alice.run(kernel, "hog = [bytearray(16 << 20) for _ in range(64)]")
    assert result["reason"] == "oom"
    await scene.alice.delete(kernel)


async def a_second_kernel(scene: Scene) -> None:
    """Start a kernel, which stays."""
    await scene.alice.start()


async def a_kernel_with_a_pool(scene: Scene) -> None:
    """Ask for a kernel for which none is ready yet, but soon another."""
    await scene.alice.start("bash")


async def a_socket(scene: Scene) -> None:
    """Open a socket, execute over it, and send what nobody may send."""
    async with scene.alice.channels(scene.kernel) as channels:
        await channels.until_done(await channels.execute("1"))
        await channels.send("iopub", "stream", {"name": "stdout", "text": "forged"})
        await channels.until_done(await channels.execute("2"))


async def an_open_socket(scene: Scene) -> None:
    """Open a socket that stays open for a moment."""
    channels = scene.alice.channels(scene.kernel)
    await channels.__aenter__()
    asyncio.get_running_loop().call_later(
        1.0, lambda: setattr(scene, "closing", asyncio.ensure_future(channels.__aexit__(None, None, None)))
    )


async def a_socket_too_many(scene: Scene) -> None:
    """Open more sockets than alice may."""
    async with scene.alice.channels(scene.kernel):
        path = f"/api/kernels/{scene.kernel}/channels"
        async with scene.alice.http.get(path, headers=UPGRADE) as answer:
            assert answer.status == 429


async def a_trial(scene: Scene) -> None:
    """Ask whether the gateway is ready."""
    assert (await scene.alice.json("GET", "/readyz"))["status"] == "ready"


async def a_disk_in_the_way(scene: Scene) -> None:
    """Take the audit trail's directory away for a moment."""
    directory = scene.gateway.state_dir / "gateway" / "audit"
    aside = directory.with_name("aside")
    directory.rename(aside)
    directory.write_text("in the way")

    def mend() -> None:
        directory.unlink()
        aside.rename(directory)

    asyncio.get_running_loop().call_later(1.0, mend)
    async with scene.alice.http.get("/api/kernels/none") as answer:
        assert answer.status == 404


async def a_webhook_that_fails(scene: Scene) -> None:
    """Have the webhook refuse the next notice."""
    scene.hook.answers = [(400, {})]
    await an_execution(scene)


async def a_webhook_that_asks_for_patience(scene: Scene) -> None:
    """Have the webhook take the next notice at its second try."""
    scene.hook.answers = [(503, {})]
    await an_execution(scene)


async def a_slow_webhook(scene: Scene) -> None:
    """Have the webhook take its time, while more comes."""
    scene.hook.delay_s = 0.5
    asyncio.get_running_loop().call_later(1.0, lambda: setattr(scene.hook, "delay_s", 0.0))
    for _ in range(4):
        await an_execution(scene)


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@dataclass(frozen=True)
class Case:
    """A sample, and what makes it rise."""

    sample: str
    happens: Callable[[Scene], Awaitable[None]]


CASES = (
    Case('cellblock_requests_total{method="GET",route="/metrics",status="200"}', nothing),
    Case('cellblock_door_requests_total{door="rest"}', nothing),
    Case('cellblock_door_requests_total{door="websocket"}', a_socket),
    Case('cellblock_refusals_total{code="not_found"}', a_missing_kernel),
    Case('cellblock_refusals_total{code="limit_reached"}', a_socket_too_many),
    Case('cellblock_limits_hit_total{limit="sockets"}', a_socket_too_many),
    Case('cellblock_limits_hit_total{limit="deadline"}', a_timeout),
    Case('cellblock_limits_hit_total{limit="output"}', much_output),
    Case('cellblock_limits_hit_total{limit="storage"}', a_full_home),
    Case('cellblock_limits_hit_total{limit="memory"}', a_hog),
    Case('cellblock_limits_hit_total{limit="payload_too_large"}', too_large_a_body),
    Case('cellblock_kernel_starts_total{how="cold",outcome="ok",spec="python3"}', a_second_kernel),
    Case('cellblock_kernel_starts_total{how="trial",outcome="ok",spec="python3"}', a_trial),
    Case("cellblock_kernel_start_seconds_count", a_second_kernel),
    Case('cellblock_warm_claims_total{outcome="empty",spec="bash"}', a_kernel_with_a_pool),
    Case('cellblock_warm_kernels{spec="bash"}', a_kernel_with_a_pool),
    Case('cellblock_kernel_deaths_total{reason="crashed"}', a_death),
    Case('cellblock_kernel_deaths_total{reason="oom"}', a_hog),
    Case("cellblock_kernels", a_second_kernel),
    Case('cellblock_kernel_states{state="idle"}', a_second_kernel),
    Case('cellblock_executions_total{status="ok"}', an_execution),
    Case('cellblock_executions_total{status="timeout"}', a_timeout),
    Case("cellblock_execution_seconds_count", an_execution),
    Case("cellblock_execution_queue_seconds_count", an_execution),
    Case('cellblock_relay_bytes_total{direction="to_kernel",door="rest"}', an_execution),
    Case('cellblock_relay_bytes_total{direction="from_kernel",door="rest"}', an_execution),
    Case('cellblock_relay_bytes_total{direction="from_kernel",door="websocket"}', a_socket),
    Case('cellblock_relay_bytes_total{direction="to_kernel",door="websocket"}', a_socket),
    Case("cellblock_sockets", an_open_socket),
    Case('cellblock_dropped_messages_total{reason="not_allowed"}', a_socket),
    Case("cellblock_ready", a_trial),
    Case("cellblock_audit_queue_records", a_disk_in_the_way),
    Case("cellblock_audit_queue_bytes", a_disk_in_the_way),
    Case('cellblock_webhook_deliveries_total{outcome="delivered"}', an_execution),
    Case('cellblock_webhook_deliveries_total{outcome="failed"}', a_webhook_that_fails),
    Case('cellblock_webhook_deliveries_total{outcome="retried"}', a_webhook_that_asks_for_patience),
    Case("cellblock_webhook_queue", a_slow_webhook),
)
EVENTS = tuple(dict.fromkeys(case.happens for case in CASES))


@pytest.mark.parametrize("happens", EVENTS, ids=lambda happens: happens.__name__)
async def test_it_moves(scene: Scene, happens: Callable[[Scene], Awaitable[None]]) -> None:
    """What happens raises the samples that tell of it."""
    before = await scene.samples()
    if "cellblock_ready" in before and before["cellblock_ready"] != before["cellblock_ready"]:
        before["cellblock_ready"] = 0.0  # not a number yet

    await happens(scene)

    for case in CASES:
        if case.happens is happens:
            await scene.rises(case.sample, before)
    async with asyncio.timeout(10):
        while (await scene.samples())["cellblock_audit_queue_records"]:
            await asyncio.sleep(0.1)


def test_every_metric_has_a_case() -> None:
    """No metric is without a test that it moves."""
    named = {case.sample.split("{")[0] for case in CASES}
    for metric in vars(Metrics()).values():
        if hasattr(metric, "_labelnames"):
            [family] = metric.describe()
            endings = {"counter": "_total", "histogram": "_count", "gauge": ""}
            assert family.name + endings[family.type] in named, family.name


async def test_notices_of_what_happened_arrive(scene: Scene) -> None:
    """The webhook is told of executions, jobs, deaths and limits, with whose they were, and of no code."""
    await a_socket(scene)
    await a_timeout(scene)
    await a_death(scene)
    await a_socket_too_many(scene)
    job = await scene.alice.json("POST", "/api/executions", {"code": "6*7", "kernel_id": scene.kernel})

    def told(kind: str) -> list[dict[str, Any]]:
        bodies = [json.loads(body) for _, _, body in scene.hook.requests]
        return [body["data"] for body in bodies if body["type"] == kind]

    assert await eventually(lambda: told("job.finished"))
    [finished] = told("job.finished")
    assert (finished["job_id"], finished["owner"], finished["status"]) == (job["id"], "alice", "ok")
    executions = told("execution.finished")
    assert {note["owner"] for note in executions} == {"alice"}
    assert {"rest", "websocket"} <= {note["door"] for note in executions}
    assert {"ok", "timeout", "dead"} <= {note["status"] for note in executions}
    assert all(note["duration_s"] >= note.get("queue_s", 0) >= 0 for note in executions)
    died = told("kernel.died")
    assert "crashed" in {note["reason"] for note in died}
    assert all(note["owner"] == "alice" and note["kernel_id"] for note in died)
    # once a minute, however often it was hit
    assert [hit["owner"] for hit in told("limit.hit") if hit["reason"] == "sockets"] == ["alice"]
    assert "print" not in str(scene.hook.data)
    assert "6*7" not in str(scene.hook.data)


async def test_labels_do_not_grow_by_what_clients_send(scene: Scene) -> None:
    """Odd paths, methods and names of clients add no series."""
    await scene.alice.json("GET", "/api/kernels/none", status=404)
    before = set(await scene.samples())
    for number in range(50):
        async with scene.alice.http.request(f"ODD{number}", f"/odd/{number}") as answer:
            assert answer.status in {400, 404, 405}
        await scene.alice.json("GET", f"/api/kernels/odd-{number}", status=404)
        await scene.alice.json("POST", "/api/kernels", {"name": f"odd-{number}"}, status=404)

    assert len(set(await scene.samples()) - before) <= 8
