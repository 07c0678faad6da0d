"""A warm kernel's cell is as closed as any, is given once, and what its owner tells it is nobody else's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from gateway.errors import Conflict
from gateway.models import Limits
from gateway.sandbox.link import WardenLink
from tests.conftest import ROOM
from tests.gateway import Gateway, running
from tests.security.test_secrets import export, holders, processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.gateway import Client

# what the system says of a process's confinement
FACTS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
HISTORY = """
import os
value = os.environ["API_TOKEN"]
print(list(get_ipython().history_manager.search(f"*{value}*")), value in str(In))
"""
SETTINGS = ROOM | {
    "CELLBLOCK_KERNELS__POOLS": json.dumps({"python3": {"size": 2, "max_size": 2}}),
    "CELLBLOCK_KERNELS__ENV_ALLOWED": '["TZ"]',
    "CELLBLOCK_KERNELS__SECRETS_ALLOWED": '["API_TOKEN"]',
    "CELLBLOCK_LOG__LEVEL": "debug",
}


@pytest.fixture(scope="module")
def warm() -> Iterator[Gateway]:
    """A gateway that keeps two kernels ready."""
    with running("--no-keep", env=SETTINGS) as gateway:
        yield gateway


@pytest.fixture
async def link(warm: Gateway) -> AsyncIterator[WardenLink]:
    """A conversation with its warden, as the gateway has one."""
    link = WardenLink(warm.state_dir / "warden" / "warden.sock", keep_s=60)
    yield link
    link.close()


async def pooled(link: WardenLink) -> list[str]:
    """Return the cells that are nobody's, once there are two."""
    async with asyncio.timeout(20):
        while True:
            facts = [(await link.adopt(cell))[0] for cell in await link.cells()]
            found = [each.cell for each in facts if each.pooled]
            if len(found) == 2:
                # up, too: not only launched
                await asyncio.sleep(0.7)
                return found
            await asyncio.sleep(0.1)


async def create(client: Client, **body: object) -> tuple[str, str]:
    """Create a kernel; return its id and how it was started."""
    model = await client.json("POST", "/api/kernels", body, status=201)
    return model["id"], model["start"]


def confinement(pid: int) -> dict[str, str]:
    """Return what the system says of a process, but for whose it is."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    chosen = {name: facts[name] for name in FACTS}
    own = [uid for uid in chosen.pop("Uid").split() if uid == "0"]
    chosen.pop("Gid")
    limits = Path(f"/proc/{pid}/limits").read_text()
    return chosen | {"root": str(own), "limits": limits}


async def test_it_is_confined_as_a_cold_one(warm: Gateway, link: WardenLink) -> None:
    """Capabilities, filters, privileges and limits are those of a cold start; namespaces and user its own."""
    await pooled(link)
    async with warm.client() as alice:
        before = set(warm.kernel_pids())
        (ours, how), (_, other) = await create(alice), await create(alice, env={"TZ": "UTC"})
        assert (how, other) == ("warm", "cold")
        uid = await alice.out(ours, "import os; print(os.getuid())")
        new = [pid for pid in warm.kernel_pids() if pid not in before]
        mine = next(pid for pid in before if Path(f"/proc/{pid}").stat().st_uid == int(uid))
        assert confinement(mine) == confinement(new[0])
        for space in ("ipc", "mnt", "net", "pid", "uts"):
            links = {str(Path(f"/proc/{pid}/ns/{space}").readlink()) for pid in (mine, new[0], "self")}
            assert len(links) >= (2 if space == "cgroup" else 3), space
        assert Path(f"/proc/{mine}").stat().st_uid != Path(f"/proc/{new[0]}").stat().st_uid


async def test_a_cell_is_given_once(warm: Gateway, link: WardenLink) -> None:
    """The warden refuses a second claim, that of a cell that was never pooled, and a limit that rises."""
    cell, other = await pooled(link)
    with pytest.raises(Conflict) as refused:
        await link.claim(cell, kernel_id=str(uuid4()), limits=Limits(pids=4096), age_s=0)
    assert refused.value.reason == "limits"
    facts = await link.claim(cell, kernel_id=str(uuid4()), limits=Limits(), age_s=0)
    assert not facts.pooled
    with pytest.raises(Conflict) as refused:
        await link.claim(cell, kernel_id=str(uuid4()), limits=Limits(), age_s=0)
    assert refused.value.reason == "claimed"
    # the gateway is told the same, and its owner gets another
    async with warm.client() as alice:
        kernel, _ = await create(alice)
        assert await alice.out(kernel, "print(1)") == "1\n"
        owned = [(await link.adopt(each))[0] for each in await link.cells()]
        assert kernel in {each.kernel_id for each in owned if each.cell != cell}
        cold, how = await create(alice, env={"TZ": "UTC"})
        assert how == "cold"
        [its] = [each for each in await link.cells() if (await link.adopt(each))[0].kernel_id == cold]
        with pytest.raises(Conflict):
            await link.claim(its, kernel_id=str(uuid4()), limits=Limits(), age_s=0)
    assert other


async def test_nobody_can_say_a_claim(warm: Gateway, link: WardenLink) -> None:
    """A client's own message of that name reaches no kernel, warm or cold."""
    await pooled(link)
    async with warm.client() as alice:
        kernel, how = await create(alice)
        assert how == "warm"
        async with alice.channels(kernel) as channels:
            asked = await channels.send("control", "cellblock_claim_request", {"env": {"PATH": "/evil"}})
            done = await channels.until_done(await channels.execute("import os; print(os.environ['PATH'])"))
            assert not any(message.parent_id == asked for message in done)
        assert "/evil" not in await alice.out(kernel, "import os; print(os.environ['PATH'])")


async def test_its_secrets_are_nowhere_else(warm: Gateway, link: WardenLink) -> None:
    """A secret that a warm kernel was told is in no file, log, record, process or other kernel."""
    await pooled(link)
    canary = f"canary-{uuid4().hex}"
    async with warm.client("alice") as alice, warm.client("bob") as bob:
        mine, how = await create(alice, secrets={"API_TOKEN": canary})
        theirs, other = await create(bob)
        assert (how, other) == ("warm", "warm")
        show = "import os; print(os.environ.get('API_TOKEN'))"
        assert await alice.out(mine, show) == f"{canary}\n"
        assert await bob.out(theirs, show) == "None\n"
        assert await alice.out(mine, HISTORY) == "[] False\n"
        assert holders(warm, canary) == []
        assert canary not in export(warm)
        assert processes(canary) == set()
