"""Attacks from inside a cell, beside a victim of another principal's: probes.json says what and why.

Every probe runs as a cell's code. The hazardous ones run only after the cell was seen confined from outside;
without a cell only the others do, in the negative control.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.sandbox.link import WardenLink
from gateway.sandbox.profile import shipped_dir
from tests.gateway import Client, Gateway, new_state_dir, running
from tests.security import bait

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PROBES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("probes.json").read_text())
KERNEL_ENV = Path("/srv/cellblock/envs/python3")
ROOT = os.geteuid() == 0
# these leave the kernel broken or its cell full, so each gets a kernel of its own
CONSUMED = {"exhaustion", "protocol"}
# what an ordinary user without any cell gets, at the least
RED_WITHOUT_CELL = {"f02", "f05", "e01", "e05", "n01", "n02", "n03", "n05", "n06", "c01", "c10"}
VICTIM_LATENCY_S = 3.0
RSS_GROWTH = 256 << 20
LOG_GROWTH = 32 << 10
LOG_PER_ANSWER = 2 << 10
# what single-tenant mode does not hold (see docs/security.md): there is one user, and without a group of its
# own a cell's memory, files and sockets' directory are bounded by process and not as a whole
SINGLE_TENANT_OPEN = {"e04", "f06", "z06", "r01", "r05"}
HELD = [probe for probe in PROBES if ROOT or probe["id"] not in SINGLE_TENANT_OPEN]


@dataclass(frozen=True)
class Cell:
    """A live kernel as the host sees it."""

    kernel: str
    cell: str
    ipc: Path
    key: str
    pid: int

    def status(self) -> dict[str, str]:
        """Return the kernel's /proc/PID/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    def confined(self) -> bool:
        """Tell from outside whether it is safe to let it do hazardous things."""
        facts = self.status()
        return (
            facts["NoNewPrivs"] == "1"
            and facts["Seccomp"] == "2"
            and int(facts["CapBnd"], 16) == 0
            and len(facts["NSpid"].split()) > 1
            and "0" not in facts["Uid"].split()
        )


class Arena:
    """A gateway with a victim of bob's, attackers of alice's, and bait."""

    def __init__(self, gateway: Gateway, alice: Client, bob: Client, found: dict[str, str]) -> None:
        self.gateway = gateway
        self.alice = alice
        self.bob = bob
        self._bait = found
        self._attacker: Cell | None = None
        self.victim: Cell

    async def begin(self) -> None:
        """Start the victim, with something in it to be taken."""
        self.victim = await self.look(await self.bob.start())
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
        facts, pidfd = await link.adopt(cell)
        try:
            info = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
        finally:
            os.close(pidfd)
            link.close()
        pid = int(re.search(r"^Pid:\s*(\d+)", info, re.MULTILINE)[1])  # type: ignore[index]
        return Cell(kernel, cell, Path(facts.connection.ip).parent, facts.connection.key, pid)

    def fill(self, code: str, attacker: Cell) -> str:
        """Write what the placeholders stand for into a probe's code."""
        assert self.gateway.process is not None
        names = {
            **self._bait,
            "IPC": attacker.ipc,
            "BASE": attacker.ipc.parent,
            "KID": attacker.cell,
            "KEY": attacker.key,
            "OTHER_IPC": self.victim.ipc,
            "OTHER_HOME": self.victim.ipc.parent / "h",
            "OTHER_KID": self.victim.cell,
            "OTHER_KEY": self.victim.key,
            "OTHER_USER": pwd.getpwuid(int(self.victim.status()["Uid"].split()[0])).pw_name,
            "GW_PORT": self.gateway.url.rsplit(":", 1)[1],
            "GW_PID": self.gateway.process.pid,
            "HOST_KPID": self.victim.pid,
            "PROFILE": shipped_dir() / "default.toml",
            "KERNEL_ENV": KERNEL_ENV.resolve(),
        }
        for name, value in names.items():
            code = code.replace(f"@@{name}@@", str(value))
        assert "@@" not in code
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


def outcome(result: dict[str, Any]) -> str:
    """Return all that an execution said, and DEAD or GATEWAY where it could not end by itself."""
    words = [result["stdout"], result["stderr"]]
    if result["error"]:
        words += [result["error"]["ename"], result["error"]["evalue"]]
    words += {"dead": ["DEAD"], "timeout": ["GATEWAY"]}.get(result["status"], [])
    if result["reason"] in ("oom", "killed", "crashed"):
        words.append("DEAD")
    return "\n".join(words)


@pytest.mark.parametrize("probe", HELD, ids=lambda probe: probe["id"])
async def test_probe(arena: Arena, probe: dict[str, Any]) -> None:
    """The attack fails as expected; meanwhile the victim answers, and the gateway stays small."""
    attacker = await arena.attacker(fresh=probe["group"] in CONSUMED)
    assert attacker.confined()
    assert attacker.status()["Uid"] != arena.victim.status()["Uid"] or not ROOT
    resident, logged = arena.weight()
    over = asyncio.Event()
    watching = asyncio.create_task(arena.slowest_answer(over))
    try:
        code = arena.fill(probe["code"], attacker)
        result = await arena.alice.run(attacker.kernel, code, timeout_s=probe["timeout"])
    finally:
        over.set()
        slowest, answers = await watching
    said = outcome(result)

    assert "BREACH" not in said, probe["why"]
    assert re.search(probe["check"], said), said
    assert "FORGED" not in said
    assert slowest < VICTIM_LATENCY_S
    grown, longer = arena.weight()
    assert grown - resident < RSS_GROWTH
    assert longer - logged < LOG_GROWTH + answers * LOG_PER_ANSWER
    if probe["group"] in CONSUMED:
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
    for probe in PROBES:
        if probe["hazard"] or probe["group"] in CONSUMED:
            continue
        code = probe["code"]
        # the gateway's port is the bait's here, on the address of the bait
        code = code.replace("'127.0.0.1',@@GW_PORT@@", "'@@BAIT_ADDR@@',@@GW_PORT@@")
        for name, value in names.items():
            code = code.replace(f"@@{name}@@", value)
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                [*drop, "/usr/bin/python3", "-I", "-c", code],
                capture_output=True,
                text=True,
                timeout=probe["timeout"],
                env=environment,
                cwd="/tmp",
                check=False,
            )
            if "BREACH" in done.stdout:
                red.add(probe["id"])

    assert red >= RED_WITHOUT_CELL, RED_WITHOUT_CELL - red
