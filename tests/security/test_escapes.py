"""Attacks from inside a cell, beside a victim of another principal's: gateway/doctor/attacks.json has them.

Every probe runs as a cell's code. The hazardous ones run only after the cell was seen confined from outside;
without a cell only the others do, in the negative control.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.doctor import attacks, bait
from gateway.doctor.assault import Cell, look, names_of
from gateway.models import ExecutionResult, Limits
from gateway.sandbox.link import WardenLink
from tests.gateway import Client, Gateway, new_state_dir, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from gateway.doctor.attacks import Attack

ATTACKS = attacks.load()
KERNEL_ENV = Path("/srv/cellblock/envs/python3")
ROOT = os.geteuid() == 0
# what an ordinary user without any cell gets, at the least
RED_WITHOUT_CELL = {"f02", "f05", "e01", "e05", "n01", "n02", "n03", "n05", "n06", "c01", "c10"}
LEAST_RED = 35
VICTIM_LATENCY_S = 3.0
RSS_GROWTH = 256 << 20
LOG_GROWTH = 32 << 10
LOG_PER_ANSWER = 2 << 10
HELD = [attack for attack in ATTACKS if ROOT or not attack.single_tenant]


class Arena:
    """A gateway with a victim of bob's, attackers of alice's, and bait."""

    def __init__(self, gateway: Gateway, alice: Client, bob: Client, found: dict[str, str]) -> None:
        self.gateway = gateway
        self.alice = alice
        self.bob = bob
        self._bait = found
        self._attacker: Cell | None = None
        self.victim: Cell
        self.limits: Limits

    async def begin(self) -> None:
        """Start the victim, with something in it to be taken."""
        kernel = await self.bob.start()
        self.limits = Limits.model_validate((await self.bob.kernel(kernel))["limits"])
        self.victim = await self.look(kernel)
        code = "open('/tmp/mine', 'w').write('x'); open('mine', 'w').write('x'); print(1)"
        await self.bob.out(self.victim.kernel, code)

    async def attacker(self, *, fresh: bool) -> Cell:
        """Return an attacker that is alive: the one that there is, or a fresh one."""
        if self._attacker and not fresh:
            state = (await self.alice.kernel(self._attacker.kernel))["execution_state"]
            if state == "idle":
                return self._attacker
        await self.end_attacker()
        self._attacker = await self.look(await self.alice.start())
        return self._attacker

    async def end_attacker(self) -> None:
        """End the attacker, if there is one."""
        if self._attacker:
            kernel, self._attacker = self._attacker.kernel, None
            await self.alice.delete(kernel)

    async def look(self, kernel: str) -> Cell:
        """Find a kernel's cell by asking the warden, as the next gateway would."""
        ready = [line for line in self.gateway.log() if line.get("event") == "kernel ready"]
        cell = next(line["cell"] for line in reversed(ready) if line["kernel"] == kernel)
        link = WardenLink(self.gateway.state_dir / "warden" / "warden.sock", keep_s=60)
        try:
            return await look(link, cell)
        finally:
            link.close()

    def fill(self, attack: Attack, attacker: Cell, *, backend: str) -> str:
        """Write what the placeholders stand for into an attack's code."""
        assert self.gateway.process is not None
        names = names_of(
            attacker,
            self.victim,
            limits=self.limits,
            port=self.gateway.url.rsplit(":", 1)[1],
            gateway=self.gateway.process.pid,
            environment=KERNEL_ENV.resolve(),
        )
        code = attack.filled({**names, **self._bait}, backend=backend)
        assert re.search("@@[A-Z_]+@@", code) is None
        return code

    async def slowest_answer(self, until: asyncio.Event) -> tuple[float, int]:
        """Ask the victim again and again; return the longest that it took, and how often it was asked."""
        slowest, answers = 0.0, 0
        while True:
            begun = time.monotonic()
            assert await self.bob.out(self.victim.kernel, "print(6 * 7)") == "42\n"
            slowest = max(slowest, time.monotonic() - begun)
            answers += 1
            if until.is_set():
                return slowest, answers
            await asyncio.sleep(0.2)

    def weight(self) -> tuple[int, int]:
        """Return the gateway's resident bytes, and the bytes of its and its warden's logs."""
        assert self.gateway.process is not None
        pages = int(Path(f"/proc/{self.gateway.process.pid}/statm").read_text().split()[1])
        logs = (self.gateway.log_path, self.gateway.state_dir / "warden" / "warden.log")
        return pages * os.sysconf("SC_PAGE_SIZE"), sum(path.stat().st_size for path in logs)


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, str]]:
    """The bait of this module."""
    directory = new_state_dir()
    with bait.laid(directory) as placeholders:
        yield placeholders
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
async def arena(found: dict[str, str]) -> AsyncIterator[Arena]:
    """A gateway with secrets in its environment, and two principals."""
    secrets = {"CB_CANARY": "sing", "CB_SECRET_TOKEN": "sing"}
    with running("--no-keep", env=secrets) as gateway:
        async with gateway.client("alice") as alice, gateway.client("bob") as bob:
            arena = Arena(gateway, alice, bob, found)
            await arena.begin()
            yield arena


@pytest.mark.parametrize("attack", HELD, ids=lambda attack: attack.id)
async def test_attack(arena: Arena, attack: Attack) -> None:
    """The attack fails as expected; meanwhile the victim answers, and the gateway stays small."""
    await withstand(arena, attack, backend="firejail")


async def withstand(arena: Arena, attack: Attack, *, backend: str) -> None:
    """Make an attack and assert that it fails."""
    attacker = await arena.attacker(fresh=attack.consumes)
    assert attacker.confined()
    assert attacker.status()["Uid"] != arena.victim.status()["Uid"] or not ROOT
    resident, logged = arena.weight()
    over = asyncio.Event()
    watching = asyncio.create_task(arena.slowest_answer(over))
    try:
        code = arena.fill(attack, attacker, backend=backend)
        result = await arena.alice.run(attacker.kernel, code, timeout_s=attack.timeout)
    finally:
        over.set()
        slowest, answers = await watching

    assert attack.failure(attacks.outcome(ExecutionResult.model_validate(result))) == "", attack.why
    assert slowest < VICTIM_LATENCY_S
    grown, longer = arena.weight()
    assert grown - resident < RSS_GROWTH
    assert longer - logged < LOG_GROWTH + answers * LOG_PER_ANSWER
    if attack.consumes:
        await arena.end_attacker()


async def test_attacks_leave_the_victim_as_it_was(arena: Arena) -> None:
    """After all of it the victim's kernel is the same process with its files, and its bait untouched."""
    code = "import os; print(os.path.exists('/tmp/mine'), os.path.exists('mine'))"

    assert await arena.bob.out(arena.victim.kernel, code) == "True True\n"
    assert Path(f"/proc/{arena.victim.pid}").exists()


async def test_what_a_cell_plants_is_not_the_next_cells(arena: Arena) -> None:
    """A kernel of the same user finds nothing of the one before, and a user's real home stays empty."""
    first = await arena.attacker(fresh=True)
    plant = (
        "import os\nfor place in ('.config/firejail/globals.local', '.config/firejail/firejail.config',"
        " '.ipython/profile_default/startup/00.py', 'usercustomize.py', '.bashrc'):\n"
        "    path = os.path.expanduser('~/' + place); os.makedirs(os.path.dirname(path), exist_ok=True)\n"
        "    open(path, 'w').write('ignore seccomp\\nignore net\\n')\n"
        "for top in ('/tmp', '/dev/shm', '/var/tmp'):\n"
        "    try: open(top + '/planted', 'w').write('x')\n"
        "    except OSError: pass\n"
        "print('planted')"
    )
    assert await arena.alice.out(first.kernel, plant) == "planted\n"
    uid = int(first.status()["Uid"].split()[0])

    second = await arena.attacker(fresh=True)

    assert second.confined()
    look = (
        "import os\nplaces = ['/tmp/planted', '/dev/shm/planted', '/var/tmp/planted']\n"
        "found = [place for place in places if os.path.exists(place)]\n"
        "print(found, os.path.exists(os.path.expanduser('~/usercustomize.py')))"
    )
    assert await arena.alice.out(second.kernel, look) == "[] False\n"
    if ROOT:
        assert list(Path(pwd.getpwuid(uid).pw_dir).iterdir()) == []


def test_probes_go_red_without_a_cell(found: dict[str, str]) -> None:
    """The control: outside of any cell an ordinary user gets what the probes that are no hazard look for."""
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if ROOT else []
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "CB_CANARY": "sing"}
    names = {**found, "GW_PORT": found["BAIT_PORT"], "KEY": "none", "OTHER_USER": "root"}
    red = set()
    for attack in ATTACKS:
        if attack.hazard or attack.consumes:
            continue
        # the gateway's port is the bait's here, on the address of the bait
        here = attack.model_copy(
            update={"code": attack.code.replace("'127.0.0.1',@@GW_PORT@@", "'@@BAIT_ADDR@@',@@GW_PORT@@")}
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                [*drop, "/usr/bin/python3", "-I", "-c", here.filled(names)],
                capture_output=True,
                text=True,
                timeout=attack.timeout,
                env=environment,
                cwd="/tmp",
                check=False,
            )
            if "BREACH" in done.stdout:
                red.add(attack.id)

    assert red >= RED_WITHOUT_CELL, RED_WITHOUT_CELL - red
    assert len(red) >= LEAST_RED, sorted(red)
