"""Every line that makes a cell is needed: without it an attack gets through, or its reason stands here.

One option at a time is taken from firejail's command line, by a stand-in for firejail, with Landlock off, so
that the second layer does not hide what the first lacks. Such a cell is weaker than any that the gateway
gives: only attacks that are no hazard run in it, as a pool user.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.doctor import attacks, bait
from gateway.models import ExecutionResult
from gateway.sandbox import bootstep
from gateway.sandbox.backend import CellPaths
from gateway.sandbox.bootstep import BootStep
from gateway.sandbox.daemon import run_dir
from gateway.sandbox.firejail import BASE, Firejail
from gateway.sandbox.profile import load_profile, shipped_dir
from gateway.settings import load
from tests.gateway import Gateway, new_state_dir, running
from tests.security import standins
from tests.security.test_escapes import Arena

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = os.geteuid() == 0
TABLE = {attack.id: attack for attack in attacks.load()}
ABI = "    return max(0, abi)\n"
NO_ABI = "    return 0\n"

# Without these no kernel starts at all: the proof from outside, or firejail itself, refuses. What it says:
REFUSED = {
    "noprofile": "firejail ended",
    "net=none": "the net namespace is the host's",
    "protocol=unix": "the protocol filter is not in force",
    "ipc-namespace": "the ipc namespace is the host's",
    "caps.drop=all": "CapBnd is not zero",
    "noroot": "the user namespace is the host's",
    "restrict-namespaces": "the namespaces filter is not in force",
    "private-tmp": "/tmp in the cell is the host's own",
    "private-dev": "/dev in the cell is the host's own",
    "private=*": "home is not its own",
    "seccomp.keep=*": "the keep-list filter is not in force",
    "whitelist=*/boot.py*": "firejail ended",
    "whitelist=*/i": "The kernel ended while it started",
    "whitelist=/srv/*python*": "firejail ended",
}
# Without these an attack of the table gets through.
RED = {
    "seccomp.block-secondary": "s25",
    "disable-mnt": "f02",
    "hostname=kernel": "e05",
    "blacklist=/sys": "f24",
    "blacklist=/proc/keys": "e07",
    "blacklist=/proc/key-users": "e07",
    "whitelist=/var/cellblock-none": "f33",
    "private-etc=*": "f34",
}
# Of these one sees that the wall is not there, though on this machine another stands behind it.
HIDDEN = """
import os
path = {path!r}
try: there = os.stat(path).st_dev
except OSError as error: print("HARMLESS", error.strerror)
else: print("BREACH" if there == os.stat(os.path.dirname(path)).st_dev else "HARMLESS covered")
"""
SEEN = {
    **{
        option: HIDDEN.format(path=option.partition("=")[2])
        for option, _ in BASE
        if option.startswith("blacklist=") and option not in RED
    },
    "blacklist=/usr/src": HIDDEN.format(path="/usr/src"),
    "memory-deny-write-execute": """
import mmap
try: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close(); print("BREACH")
except OSError as error: print("HARMLESS", error.strerror)
""",
    "read-only=*": """
import os, sys
print("HARMLESS" if os.statvfs(sys.prefix).f_flag & os.ST_RDONLY else "BREACH")
""",
}
NEXT = "private-dev has no such device already"
SECOND = "the boot step sets the same limit again before any user's code; this one holds until then"
# Lines that no attack can show the want of, each with why it stands there all the same (docs/security.md).
REASONS = {
    "quiet": "no wall: it keeps remarks out of the log",
    "dbus-user=none": "the socket is gone with /run; this also leads the variables nowhere",
    "dbus-system=none": "as dbus-user",
    "x11=none": "abstract sockets go with the network namespace, and /tmp is private",
    "nonewprivs": "the seccomp filter implies it, and the proof demands it whoever sets it",
    "nogroups": "root's warden gives no group to begin with; an ordinary user's groups go by this line",
    "private-cwd=~": "no wall: where the kernel starts",
    "machine-id": "private-etc leaves /etc/machine-id out, and /var is empty",
    "nosound": NEXT,
    "novideo": NEXT,
    "no3d": NEXT,
    "notv": NEXT,
    "nodvd": NEXT,
    "nou2f": NEXT,
    "noinput": NEXT,
    "noprinters": NEXT,
    "deterministic-exit-code": "no wall: firejail ends with the kernel's code; the tests of deaths need it",
    "deterministic-shutdown": "no wall: the warden kills the cell; without it firejail may wait for ever",
    "blacklist=/root": "firejail covers it with the private home, and it is root's alone",
    "blacklist=/boot": "firejail hides it by itself",
    "blacklist=/proc/kpagecgroup": "not every kernel has it, and root alone reads it",
    "blacklist=/proc/sysrq-trigger": "root alone may write it; absent on the machine that was measured",
    "blacklist=/proc/kcore": "root alone reads it; absent on the machine that was measured",
    "whitelist=/run/cellblock-none": "as /srv, by the whitelist of the sockets",
    "whitelist=/srv/cellblock-none": "the environment's whitelist does it too, where that lies there",
    "whitelist=/opt/cellblock-none": "hides what is in /opt, which may be nothing",
    "blacklist=/lib/modules": "the same directory as /usr/lib/modules on a merged /usr",
    "blacklist=/usr/lib/modules": "the same directory as /lib/modules on a merged /usr",
    "blacklist=/run/user": "a whitelist below /run brings /run/user/UID back; pool users have none",
    "blacklist=HOST": "top directories of this host beside the usual ones: most hosts have none",
    "rlimit-nofile=*": SECOND,
    "rlimit-nproc=*": SECOND,
    "rlimit-fsize=*": SECOND,
    "rlimit-sigpending=*": SECOND,
}
for explained in REASONS:
    SEEN.pop(explained, None)


def pattern(option: str) -> str:
    """Return the shell's pattern of an option."""
    return f"--{option}" if "*" in option else f"'--{option}'"


class Weakened:
    """A gateway whose cells can be weakened, with a victim and bait beside them."""

    def __init__(self, arena: Arena, stand_in: Path) -> None:
        self.arena = arena
        self._stand_in = stand_in
        self.gateway: Gateway = arena.gateway
        self._run_dir = run_dir(load(state_dir=self.gateway.state_dir))

    def without(self, option: str | None, *, landlock: bool = False) -> None:
        """Make the cells from now on without an option, and without Landlock."""
        program = self.gateway.state_dir / "warden" / "bin" / "firejail"
        if not ROOT:
            program = self._stand_in
        text = standins.PASSES_ON if option is None else standins.without(pattern(option))
        standins.install(program, text)
        whole = bootstep.text()
        assert ABI in whole
        BootStep(self._run_dir).lay(whole if landlock else whole.replace(ABI, NO_ABI))

    async def tried(self, code: str | None = None, attack: str = "") -> str:
        """Run code or an attack in a fresh cell; return its breach, or nothing."""
        cell = await self.arena.attacker(fresh=True)
        assert cell.status()["Uid"].split()[0] != "0"
        if attack:
            assert not TABLE[attack].hazard
            code = self.arena.fill(TABLE[attack], cell, backend="firejail")
        result = await self.arena.alice.run(cell.kernel, code or "", timeout_s=20)
        said = attacks.outcome(ExecutionResult.model_validate(result))
        assert said, "the attack said nothing"
        return TABLE[attack].failure(said) if attack else re.sub(r"(?m)^HARMLESS.*\n?", "", said).strip()


@pytest.fixture(scope="module")
async def weakened() -> AsyncIterator[Weakened]:
    """The gateway of this module; its victim's cell is whole."""
    directory = new_state_dir()
    stand_in = directory / "bin" / "firejail"
    env = {"CELLBLOCK_QUOTAS__STARTS_PER_MINUTE": "unlimited"}
    if not ROOT:
        env["CELLBLOCK_SANDBOX__FIREJAIL"] = str(standins.install(stand_in, standins.PASSES_ON))
    with bait.laid(directory) as found, running("--no-keep", env=env) as gateway:
        async with gateway.client("alice") as alice, gateway.client("bob") as bob:
            arena = Arena(gateway, alice, bob, found)
            await arena.begin()
            yield Weakened(arena, stand_in)
    shutil.rmtree(directory)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that firejail could show."""
    path = Path(tempfile.mkdtemp(prefix="cellblock-", dir="/tmp"))
    for name in ("h", "i", "env"):
        (path / name).mkdir()
    (path / "boot.py").touch()
    yield path
    shutil.rmtree(path)


def known(option: str) -> str:
    """Return the name under which an option of a command line stands in the tables here."""
    tables = {**REFUSED, **RED, **SEEN, **REASONS}
    if option in tables:
        return option
    name, _, value = option.partition("=")
    if name == "whitelist":
        return "whitelist=*/boot.py*" if value.endswith("/boot.py") else "whitelist=*/i"
    return "blacklist=HOST" if name == "blacklist" else f"{name}=*"


def test_every_line_is_accounted_for(place: Path) -> None:
    """Whatever stands on the default profile's command line is in one of the tables, and nothing else is."""
    profile = load_profile("default", [shipped_dir()])
    environment = Path("/srv/cellblock/envs/python3").resolve()
    paths = CellPaths(home=place / "h", ipc=place / "i", boot=place / "boot.py", environment=environment)
    firejail = Firejail(Path("/usr/bin/firejail"))
    command = firejail.command(profile, paths, ["/usr/bin/python3"], limits=profile.limits)
    options = {argument[2:] for argument in command if argument.startswith("--")}
    options = {
        "whitelist=/srv/*python*" if option == f"whitelist={environment}" else option for option in options
    }
    tables = [*REFUSED, *RED, *SEEN, *REASONS]

    assert {known(option) for option in options} | {"blacklist=HOST", "blacklist=/run/user"} == set(tables)
    assert len(tables) == len(set(tables))


def test_reasons_are_told() -> None:
    """What has a reason instead of an attack stands in the documentation with it."""
    told = (Path(__file__).parents[2] / "docs" / "security.md").read_text()

    assert [option for option in REASONS if f"`{option}`" not in told] == []


async def test_whole_cells_hold(weakened: Weakened) -> None:
    """Nothing is red before anything is taken away: the tables mean what they say."""
    weakened.without(None, landlock=True)

    for attack in sorted(set(RED.values())):
        assert await weakened.tried(attack=attack) == ""
    for code in SEEN.values():
        assert await weakened.tried(code) == ""


async def test_landlock_holds_by_itself(weakened: Weakened) -> None:
    """Landlock is a wall of its own: with it the root directory cannot be listed, without it it can."""
    look = "import os\ntry: print('BREACH', len(os.listdir('/')))\nexcept OSError: print('HARMLESS')"
    weakened.without(None, landlock=True)
    assert await weakened.tried(look) == ""

    weakened.without(None)

    assert "BREACH" in await weakened.tried(look)


@pytest.mark.parametrize("option", REFUSED)
async def test_refused(weakened: Weakened, option: str) -> None:
    """Without the option there is no kernel."""
    weakened.without(option)
    async with weakened.arena.alice.http.post("/api/kernels", json={}) as response:
        answer = await response.json()

    assert response.status in {500, 502, 503}, answer
    assert REFUSED[option] in answer["message"]


@pytest.mark.parametrize("option", RED)
async def test_red(weakened: Weakened, option: str) -> None:
    """Without the option an attack of the table gets through."""
    weakened.without(option)

    assert "BREACH" in await weakened.tried(attack=RED[option])


@pytest.mark.parametrize("option", SEEN)
async def test_seen(weakened: Weakened, option: str) -> None:
    """Without the option its wall is not there; where there is nothing to hide, none is needed."""
    weakened.without(option)
    name, _, path = option.partition("=")
    needed = name != "blacklist" or Path(path).exists()

    assert ("BREACH" in await weakened.tried(SEEN[option])) == needed
