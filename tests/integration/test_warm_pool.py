"""Warm kernels: ready before anybody asks, given once, with their owner's limits, environment and home."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOM
from tests.gateway import Gateway, running
from tests.integration.test_audit import of, until
from tests.lifecycle import eventually

if TYPE_CHECKING:
    from tests.gateway import Client

POOLS = {"python3": {"size": 2, "max_size": 3, "demand_s": 3, "preload": ["fractions", "email.mime.text"]}}
SETTINGS = ROOM | {
    "CELLBLOCK_KERNELS__POOLS": json.dumps(POOLS),
    "CELLBLOCK_KERNELS__ENV_ALLOWED": '["TZ"]',
    "CELLBLOCK_KERNELS__SECRETS_ALLOWED": '["API_TOKEN"]',
}
# what text may be: quotes, backslashes, lines, what looks like code or a format, other alphabets, controls
AWKWARD = "'; raise SystemExit(1) #\n\"\\x41\\\\ {0} %s $HOME `id` \r\t\x1b[31m ключ 钥匙 🔑"
# all that an owner could tell a warm kernel from a cold one by
LOOK_AROUND = """
import json, os
own = ("HOME", "USER", "LOGNAME", "MPLCONFIGDIR")
environment = {name: value for name, value in os.environ.items() if name not in own}
found = [os.path.join(top, name) for top, _, names in os.walk(".") for name in names]
home = sorted(name for name in found if "-journal" not in name)
shell = get_ipython()
history = shell.history_manager
counts = [shell.execution_count, history.session_number, len(list(history.get_range()))]
at_home = os.getcwd() == os.environ["HOME"]
print(json.dumps([environment, home, at_home, os.listdir("/tmp"), sorted(globals()), In, Out, _, __, counts]))
"""
PRELOADED = "import sys; print([name in sys.modules for name in ('fractions', 'email.mime.text', 'mailbox')])"


@pytest.fixture(scope="module")
def warm() -> Iterator[Gateway]:
    """A gateway that keeps two kernels ready."""
    with running(env=SETTINGS) as gateway:
        yield gateway


async def ready(client: Client, count: int = 2, spec: str = "python3") -> None:
    """Wait until so many kernels are ready."""
    line = f'cellblock_warm_kernels{{spec="{spec}"}} {float(count)}'
    async with asyncio.timeout(15):
        while line not in await metrics(client):
            await asyncio.sleep(0.05)


async def metrics(client: Client) -> list[str]:
    """Return the lines of the gateway's metrics."""
    async with client.http.get("/metrics") as response:
        return (await response.text()).splitlines()


async def create(client: Client, **body: Any) -> dict[str, Any]:
    """Create a kernel and return its model."""
    model: dict[str, Any] = await client.json("POST", "/api/kernels", body, status=201)
    return model


@pytest.fixture
async def alice(warm: Gateway) -> Any:
    """Somebody who asks when kernels are ready, and leaves none behind."""
    async with warm.client("alice", "admin") as client:
        await ready(client)
        yield client
        for model in await client.json("GET", "/api/kernels"):
            await client.delete(model["id"])


async def test_who_asks_gets_a_warm_kernel(warm: Gateway, alice: Client) -> None:
    """A kernel that is ready is given at once, under an id of its own, and says so; so does the trail."""
    before = warm.kernel_pids()
    model = await create(alice)

    assert (model["start"], model["owner"], model["name"]) == ("warm", "alice", "python3")
    assert warm.kernel_pids() == before, "a cell was made for it"
    assert await alice.out(model["id"], "print(1 + 1)") == "2\n"
    shown = await alice.kernel(model["id"])
    assert (shown["start"], shown["executions"]) == ("warm", 1)
    [made] = [one for one in await until(warm, "kernel.create") if one["kernel_id"] == model["id"]]
    assert made["extra"]["start"] == "warm"


async def test_modules_are_loaded_already(alice: Client) -> None:
    """What the pool preloads is there, and nothing of it in the user's names."""
    kernel_id = (await create(alice))["id"]

    assert await alice.out(kernel_id, PRELOADED) == "[True, True, False]\n"
    assert await alice.out(kernel_id, "print('fractions' in globals(), In[1][:10])") == "False import sys\n"


async def test_each_is_given_once(warm: Gateway, alice: Client) -> None:
    """Every kernel that is asked for at once has a cell of its own: what one holds, no other ever sees."""
    async with warm.client("bob") as bob:
        models = await asyncio.gather(*(create(who) for who in (alice, bob, alice, bob)))
        assert len({model["id"] for model in models}) == 4
        # two were ready, and who came late had to wait for a start
        assert sorted(model["start"] for model in models) == ["cold", "cold", "warm", "warm"]
        for number, model in enumerate(models):
            await alice.out(model["id"], f"mine = {number}; open('mine', 'w').write('{number}')")
        for number, model in enumerate(models):
            assert await alice.out(model["id"], "print(mine, open('mine').read())") == f"{number} {number}\n"
        for model in models:
            await alice.delete(model["id"])
        # what is ready next was nobody's before
        await ready(alice)
        fresh = await create(bob)
        code = "import os; print(os.path.exists('mine'), 'mine' in globals())"
        assert await bob.out(fresh["id"], code) == "False False\n"
        await bob.delete(fresh["id"])


async def test_environment_and_secrets_are_exact(alice: Client) -> None:
    """Variables arrive byte for byte in a warm kernel, in its children and in commands beside it."""
    env = {"KERNEL_AWKWARD": AWKWARD, "KERNEL_EMPTY": "", "KERNEL_LONG": "ä" * 20_000}
    model = await create(alice, env=env, secrets={"API_TOKEN": "s3cret'\"\n"})
    assert model["start"] == "warm"
    wanted = {**env, "API_TOKEN": "s3cret'\"\n"}
    read = f"import json, os; print(json.dumps({{name: os.environ.get(name) for name in {list(wanted)}}}))"

    assert json.loads(await alice.out(model["id"], read)) == wanted
    child = (
        f"import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', {read!r}]).decode())"
    )
    assert json.loads(await alice.out(model["id"], child)) == wanted
    path = f"/api/kernels/{model['id']}/commands"
    beside = await alice.json("POST", path, {"command": 'printf "%s|%s" "$KERNEL_AWKWARD" "$API_TOKEN"'})
    assert beside["stdout"] == f"{AWKWARD}|s3cret'\"\n"


async def test_variables_stay_in_their_kernel(alice: Client) -> None:
    """What one owner's kernel was told is in no other that was ready at the same time."""
    await create(alice, env={"KERNEL_MINE": "hers"})
    other = await create(alice)

    assert other["start"] == "warm"
    assert await alice.out(other["id"], "import os; print(os.environ.get('KERNEL_MINE'))") == "None\n"


LOWER = {
    "memory_bytes": 300 << 20,
    "pids": 40,
    "home_bytes": 8 << 20,
    "tmp_bytes": 4 << 20,
    "home_inodes": 64,
    "open_files": 100,
    "file_bytes": 6 << 20,
    "timeout_s": 2,
}
SIZES = """
import os, resource
for place in (os.path.expanduser("~"), "/tmp"):
    facts = os.statvfs(place); print(facts.f_blocks * facts.f_frsize, facts.f_files)
for name in ("NOFILE", "FSIZE", "NPROC"):
    print(*resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
"""


async def bounded(client: Client, model: dict[str, Any]) -> None:
    """Hold a warm kernel to the lower limits: what it sees, what is beside it, and what memory it gets."""
    assert model["start"] == "warm"
    assert {name: model["limits"][name] for name in LOWER} == LOWER
    assert (await client.out(model["id"], SIZES)).splitlines() == [
        f"{8 << 20} 64",
        f"{4 << 20} 64",
        "100 100",
        f"{6 << 20} {6 << 20}",
        "40 40",
    ]
    path = f"/api/kernels/{model['id']}/commands"
    assert (await client.json("POST", path, {"command": "ulimit -n"}))["stdout"] == "100\n"
    full = await client.run(model["id"], "block = bytearray(1); block *= 400 << 20")
    assert (full["status"], full["reason"]) == ("dead", "oom")


async def test_limits_are_the_owners(alice: Client) -> None:
    """Lower limits hold in a warm kernel: of memory, processes, files, descriptors and its home."""
    await bounded(alice, await create(alice, limits=LOWER))


async def test_limits_hold_with_bubblewrap() -> None:
    """They hold in a cell of the other backend, too."""
    pools = {"python3-bubblewrap": {"size": 1, "max_size": 1}}
    with running("--no-keep", env=ROOM | {"CELLBLOCK_KERNELS__POOLS": json.dumps(pools)}) as gateway:
        async with gateway.client("alice", "admin") as client:
            await ready(client, 1, "python3-bubblewrap")
            await bounded(client, await create(client, name="python3-bubblewrap", limits=LOWER))


async def test_what_cannot_be_served_warm_is_cold(alice: Client) -> None:
    """A workspace, and a variable that Python may read when it starts, each take a start of their own."""
    for body in ({"workspace": "lasting"}, {"env": {"TZ": "Asia/Tokyo"}}):
        model = await create(alice, **body)
        assert model["start"] == "cold"
    assert await alice.out(model["id"], "import time; print(time.tzname[0])") == "JST\n"
    assert 'cellblock_warm_claims_total{outcome="unsuited",spec="python3"} 2.0' in await metrics(alice)


async def test_kernelspecs_without_a_pool(alice: Client) -> None:
    """Other kernelspecs are started as ever."""
    assert (await create(alice, name="bash"))["start"] == "cold"


async def test_a_restart_takes_a_warm_one(alice: Client) -> None:
    """A kernel that is restarted by its owner or by its deadline goes on in a cell that was ready."""
    kernel_id = (await create(alice, env={"KERNEL_X": "1"}))["id"]
    await alice.run(kernel_id, "x = 1")
    await ready(alice)
    model = await alice.json("POST", f"/api/kernels/{kernel_id}/restart")

    assert (model["start"], model["id"]) == ("warm", kernel_id)
    assert (
        await alice.out(kernel_id, "import os; print('x' in globals(), os.environ['KERNEL_X'])")
        == "False 1\n"
    )


async def test_dead_ones_are_not_given(warm: Gateway, alice: Client) -> None:
    """Warm kernels that were killed are replaced, and nobody gets them."""
    gone = set(warm.kernel_pids())
    for pid in gone:
        os.kill(pid, signal.SIGKILL)
    assert await eventually(lambda: not gone & set(warm.kernel_pids()))
    await ready(alice)
    model = await create(alice)
    assert model["start"] == "warm"
    assert await alice.out(model["id"], "print(2)") == "2\n"


async def test_demand_makes_more_and_goes(warm: Gateway, alice: Client) -> None:
    """As many are kept ready as were asked for lately, up to the most; and the usual number afterwards."""
    for _ in range(3):
        await alice.delete((await create(alice))["id"])
    await ready(alice, 3)
    await ready(alice, 2)


async def test_a_gateway_that_dies_leaves_none() -> None:
    """After `kill -9` the next gateway adopts what is somebody's, and ends what was nobody's."""
    with running(env=SETTINGS) as gateway:
        async with gateway.client("alice", "admin") as client:
            await ready(client)
            mine = await create(client)
            await client.run(mine["id"], "x = 'mine'")
            await ready(client)
            before = set(gateway.kernel_pids())
        gateway.end(signal.SIGKILL)
        gateway.start()
        async with gateway.client("alice", "admin") as client:
            await ready(client)
            assert await client.out(mine["id"], "print(x)") == "mine\n"
            after = set(gateway.kernel_pids())
            assert len(after) == 3
            assert len(before & after) == 1
            assert [one["outcome"] for one in of(gateway, "kernel.adopt")] == ["ok"]
        gateway.end()
        assert await eventually(lambda: set(gateway.kernel_pids()) == before & after)


async def test_a_module_that_is_not_there() -> None:
    """A pool that cannot be filled says why, tries again in its time, and starts are cold meanwhile."""
    pools = {"python3": {"size": 1, "preload": ["no_such_module"]}, "nothing": {"size": 1}}
    with running(env=ROOM | {"CELLBLOCK_KERNELS__POOLS": json.dumps(pools)}) as gateway:

        def said() -> list[str]:
            return [line["error"] for line in gateway.log() if line["event"] == "no warm kernel"]

        assert await eventually(lambda: any("cannot preload no_such_module" in text for text in said()))
        assert any("'nothing'" in text for text in said())
        async with gateway.client() as client:
            model = await create(client)
            assert model["start"] == "cold"
            assert await client.out(model["id"], "print(1)") == "1\n"
        begun, tries = time.monotonic(), len(said())
        await asyncio.sleep(2)
        assert len(said()) - tries <= 4, time.monotonic() - begun


async def test_it_is_as_one_that_was_started(alice: Client) -> None:
    """Names, history, counters, environment and files are those of a cold start."""
    warm, cold = await create(alice), await create(alice, env={"TZ": "UTC"})
    assert (warm["start"], cold["start"]) == ("warm", "cold")
    facts = [json.loads(await alice.out(model["id"], LOOK_AROUND)) for model in (warm, cold)]
    assert facts[1][0].pop("TZ") == "UTC"
    assert facts[0] == facts[1]
