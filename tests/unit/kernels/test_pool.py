"""What a kernel that is up already can become, and what has to be started for who asks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import Conflict, GatewayError, SandboxUnavailable
from gateway.kernels.pool import WarmPool, served_warm, told
from gateway.kernels.running import Wiring, wire
from gateway.kernels.shelf import WarmCell
from gateway.models import KernelSpec, Limits
from gateway.sandbox.link import WardenLink
from gateway.sandbox.profile import SandboxProfile, load_profile, profile_dirs
from gateway.sandbox.wire import LaunchOrder, WorkspaceOrder
from gateway.settings import KernelsSettings, PoolSettings
from gateway.telemetry import Metrics
from tests.doubles import ManualClock, kernelspec

ENVIRONMENT = "/srv/somewhere"
SPEC = kernelspec(env={"FROM_SPEC": "1"}, environment=ENVIRONMENT)


@pytest.fixture(scope="module")
def profile() -> SandboxProfile:
    """The profile that is shipped as the default."""
    return load_profile("default", profile_dirs())


def order(spec: KernelSpec = SPEC, env: dict[str, str] | None = None, **changes: Any) -> LaunchOrder:
    """Return an order for a kernel with these variables beside its kernelspec's."""
    fields = {
        "kernel_id": "00000000-0000-0000-0000-000000000001",
        "profile": spec.profile,
        "argv": spec.argv,
        "environment": spec.environment,
        "env": {**spec.env, **(env or {})},
        "limits": Limits(),
    }
    return LaunchOrder(**fields | changes)


def test_what_it_is_told() -> None:
    """Only what its kernelspec did not give it already, or gave it otherwise."""
    assert told(SPEC, order()) == {}
    assert told(SPEC, order(env={"KERNEL_X": "2", "FROM_SPEC": "3"})) == {"KERNEL_X": "2", "FROM_SPEC": "3"}


@pytest.mark.parametrize(
    ("wanted", "warm"),
    [
        (order(), True),
        (order(env={"KERNEL_X": "1"}), True),
        (order(env={"TOKEN": "a secret"}), True),
        (order(env={"TZ": "Asia/Tokyo"}), False),
        (order(env={"FROM_SPEC": "2"}), False),
        (order(limits=Limits(memory_bytes=512 << 20, pids=64)), True),
        (order(limits=Limits(cpus=0.3)), True),
        (order(limits=Limits(cpus=2.0)), False),
        (
            order(workspace=WorkspaceOrder(owner="0" * 32, name="w", size_bytes=16 << 20, inodes=64)),
            False,
        ),
    ],
)
def test_what_is_served_warm(profile: SandboxProfile, wanted: LaunchOrder, warm: bool) -> None:
    """No workspace, as many cores, and variables that nothing reads while it starts."""
    assert served_warm(SPEC, wanted, {"TOKEN"}, profile) is warm


@pytest.mark.parametrize(
    ("argv", "environment", "warm"),
    [
        (("python", "-m", "ipykernel_launcher", "-f", "{connection_file}"), ENVIRONMENT, True),
        (("python3", "-Xfrozen_modules=off", "-m", "ipykernel", "-f", "x"), ENVIRONMENT, True),
        (("python", "-m", "bash_kernel", "-f", "{connection_file}"), ENVIRONMENT, False),
        (("xpython", "-f", "{connection_file}"), ENVIRONMENT, False),
        (("python", "-m", "ipykernel_launcher", "-f", "{connection_file}"), None, False),
    ],
)
def test_only_ipykernel_is_told_variables(
    profile: SandboxProfile, argv: tuple[str, ...], environment: str | None, warm: bool
) -> None:
    """Another kernel is served warm only where there is nothing to tell it."""
    spec = kernelspec(argv=argv, environment=environment)
    assert served_warm(spec, order(spec), (), profile)
    assert served_warm(spec, order(spec, env={"KERNEL_X": "1"}), (), profile) is warm


class Running:
    """A cell that is claimed, or not."""

    alive = True

    def __init__(self, failure: GatewayError | None) -> None:
        self._failure = failure
        self.claims: list[dict[str, str]] = []
        self.ended = 0

    async def claim(self, _order: LaunchOrder, env: dict[str, str], _listener: Any) -> None:
        """Take note, and fail."""
        self.claims.append(env)
        if self._failure:
            raise self._failure

    async def end(self) -> None:
        """End it."""
        self.ended += 1


@pytest.fixture
def wiring(tmp_path: Path) -> Iterator[Wiring]:
    """The wiring of a gateway whose warden is not there."""
    link = WardenLink(tmp_path / "none", keep_s=0)
    bounds = {"session": "s", "kernels": 1, "max_message_bytes": 1 << 20, "ready_timeout_s": 1}
    wiring = wire(link, on_dropped=lambda *_: None, **bounds)  # type: ignore[arg-type]
    yield wiring
    wiring.context.destroy(linger=0)


def make_pool(profile: SandboxProfile, wiring: Wiring, metrics: Metrics, **settings: Any) -> WarmPool:
    """Return a pool for python3, of which nothing is made."""
    return WarmPool(
        specs=lambda: pytest.fail("nothing is made here"),
        profiles={"default": profile},
        wiring=wiring,
        clock=ManualClock(),
        metrics=metrics,
        settings=KernelsSettings(pools={"python3": PoolSettings()}, **settings),
    )


@pytest.mark.parametrize(
    ("failure", "spec", "outcome", "ended", "left"),
    [
        (None, SPEC, "warm", 0, 0),
        # it is as it was, and somebody else's perhaps
        (Conflict("Too low.", reason="limits"), SPEC, "failed", 0, 1),
        (Conflict("It is somebody's.", reason="claimed"), SPEC, "failed", 1, 0),
        (SandboxUnavailable("No.", reason="limits_refused"), SPEC, "failed", 1, 0),
        # of no use to anybody: ended when there is time
        (None, SPEC.model_copy(update={"display_name": "changed"}), "empty", 0, 0),
    ],
)
async def test_what_becomes_of_a_claim(
    *,
    profile: SandboxProfile,
    wiring: Wiring,
    failure: GatewayError | None,
    spec: KernelSpec,
    outcome: str,
    ended: int,
    left: int,
) -> None:
    """It is given; or a start is cold, and the cell is ended unless it is as good as before."""
    metrics = Metrics()
    pool = make_pool(profile, wiring, metrics)
    running = Running(failure)
    [shelf] = pool._shelves.values()
    shelf.put_back(WarmCell(running, SPEC))  # type: ignore[arg-type]
    wanted = order(env={"KERNEL_X": "1"})

    given = await pool.claim(spec, wanted, None, secrets=())  # type: ignore[arg-type]

    assert (given is running, running.ended, len(shelf)) == (outcome == "warm", ended, left)
    assert running.claims == ([] if spec is not SPEC else [{"KERNEL_X": "1"}])
    assert f'outcome="{outcome}"' in metrics.render().decode()
    assert await pool.claim(SPEC.model_copy(update={"name": "other"}), wanted, None, secrets=()) is None  # type: ignore[arg-type]


async def test_pools_give_way_to_any_start(profile: SandboxProfile, wiring: Wiring) -> None:
    """When somebody's kernels fill the gateway, of another kernelspec even, warm ones are ended at once."""
    pool = make_pool(profile, wiring, Metrics(), max_kernels=2)
    running, occupied = Running(None), 1
    [shelf] = pool._shelves.values()
    shelf.put_back(WarmCell(running, SPEC))  # type: ignore[arg-type]
    task = asyncio.create_task(pool.run(lambda: occupied))
    await asyncio.sleep(0.05)
    assert running.ended == 0

    occupied = 2
    other = SPEC.model_copy(update={"name": "other"})
    assert await pool.claim(other, order(), None, secrets=()) is None  # type: ignore[arg-type]
    async with asyncio.timeout(2):
        while not running.ended:
            await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
