"""A gateway of an ordinary user's: SUID firejail, one uid for all cells, and confinement all the same."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gateway import Client, Gateway, running
from tests.integration.test_kernel_life import STUBBORN
from tests.integration.test_warm_pool import ready
from tests.lifecycle import cells, eventually, kernels, run_dirs, traces, until_state
from tests.machine import processes_named

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

USER = f"cbuser{os.getpid()}"
LOOK = """
import json, os, pathlib
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
names = ("NoNewPrivs", "Seccomp", "CapEff", "CapBnd", "Uid")
print(json.dumps({name: status[name].strip() for name in names}))
"""


@pytest.fixture(scope="module")
def user() -> Iterator[pwd.struct_passwd]:
    """A throw-away ordinary user with a home and something secret in it."""
    subprocess.run(["useradd", "-m", "-U", "-s", "/bin/bash", USER], check=True, capture_output=True)
    entry = pwd.getpwnam(USER)
    try:
        secret = Path(entry.pw_dir) / "secret.txt"
        secret.write_text("the user's own secret")
        os.chown(secret, entry.pw_uid, entry.pw_gid)
        yield entry
    finally:
        subprocess.run(["userdel", "-r", "-f", USER], check=False, capture_output=True)
        shutil.rmtree(f"/tmp/cellblock-{entry.pw_uid}", ignore_errors=True)
        shutil.rmtree(entry.pw_dir, ignore_errors=True)


def state_of(user: pwd.struct_passwd, name: str) -> Path:
    """Make a state directory below the user's home, the user's own."""
    path = Path(user.pw_dir) / name
    path.mkdir(mode=0o700)
    os.chown(path, user.pw_uid, user.pw_gid)
    return path


@pytest.fixture(scope="module")
def gateway(user: pwd.struct_passwd) -> Iterator[Gateway]:
    """A gateway that runs as the user."""
    with running(state_dir=state_of(user, "shared"), user=user.pw_name) as shared:
        yield shared


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    """A client of alice's; what it starts is deleted."""
    async with gateway.client() as client:
        yield client
        for model in await client.json("GET", "/api/kernels"):
            await client.delete(model["id"])


async def look(client: Client, kernel_id: str, code: str) -> object:
    """Run code that prints JSON and return what it printed."""
    return json.loads(await client.out(kernel_id, code))


def test_the_mode_is_announced(gateway: Gateway) -> None:
    """The log says that this is single-tenant mode, and everything runs as the user."""
    warnings = [line for line in gateway.log() if line["level"] == "warning"]
    assert any("single-tenant mode" in line["event"] for line in warnings)
    assert gateway.process is not None
    for pid in (gateway.process.pid, *gateway.warden_pids(), *gateway.keeper_pids()):
        assert Path(f"/proc/{pid}").stat().st_uid == pwd.getpwnam(USER).pw_uid


async def test_kernels_are_confined(gateway: Gateway, client: Client) -> None:
    """From inside and outside: no new privileges, seccomp, no capabilities, six namespaces of its own."""
    kernel_id = await client.start()
    inside = await look(client, kernel_id, LOOK)
    (pid,) = kernels(gateway)
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    outside = {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}
    uid = pwd.getpwnam(USER).pw_uid
    assert isinstance(inside, dict)
    for facts in (inside, outside):
        assert facts["NoNewPrivs"] == "1"
        assert facts["Seccomp"] == "2"
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
        assert facts["Uid"].split() == [str(uid)] * 4
    for name in ("ipc", "mnt", "net", "pid", "user", "uts"):
        assert Path(f"/proc/{pid}/ns/{name}").readlink() != Path(f"/proc/self/ns/{name}").readlink()


async def test_there_is_no_network(client: Client) -> None:
    """No interface but a loopback of its own, no address family but unix, and not the gateway's port."""
    kernel_id = await client.start()
    code = """
import json, os, socket
found = []
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET):
    try:
        socket.socket(family, socket.SOCK_DGRAM)
        found.append(int(family))
    except OSError:
        pass
lines = open("/proc/self/net/dev").read().splitlines()[2:]
print(json.dumps([found, [line.split(":")[0].strip() for line in lines]]))
"""
    families, interfaces = await look(client, kernel_id, code)  # type: ignore[misc]
    assert families == []
    assert set(interfaces) <= {"lo"}


async def test_the_home_is_private(client: Client, user: pwd.struct_passwd) -> None:
    """The home is an empty one of the kernel's, and the user's real files are not there."""
    first, second = await client.start(), await client.start()
    await client.run(first, "open('mine.txt', 'w').write('1')")
    names = await look(
        client, second, "import json, os; print(json.dumps(sorted(os.listdir(os.path.expanduser('~')))))"
    )
    assert isinstance(names, list)
    assert "mine.txt" not in names
    assert "secret.txt" not in names
    assert "shared" not in names
    assert not (Path(user.pw_dir) / "mine.txt").exists()
    code = """
import json, os
seen = []
for top in ("/home", "/root", "/run", "/tmp", "/var", "/srv"):
    for place, directories, files in os.walk(top):
        seen += [name for name in files if name in ("secret.txt", "cellblock.db", "pepper")]
print(json.dumps(seen))
"""
    assert await look(client, second, code) == []


async def test_cells_do_not_see_each_other(gateway: Gateway, client: Client) -> None:
    """A kernel sees its own processes and sockets alone, though all cells have one uid."""
    first, second = await client.start(), await client.start()
    code = f"""
import json, os
pids = [name for name in os.listdir("/proc") if name.isdigit()]
places = [place for place, _, files in os.walk({str(run_dirs(gateway)[0])!r}) if "k-1" in files]
reached = []
for place in {[str(path) for path in cell_dirs(gateway)]}:
    try:
        reached.append(os.listdir(place + "/i"))
    except OSError:
        pass
print(json.dumps([pids, places, reached]))
"""
    for kernel_id in (first, second):
        pids, places, reached = await look(client, kernel_id, code)  # type: ignore[misc]
        assert len(pids) < 8
        assert len(places) <= 1
        assert len(reached) == 1


def cell_dirs(gateway: Gateway) -> list[Path]:
    """List the directories of a gateway's cells."""
    (run_dir,) = run_dirs(gateway)
    return [path for path in run_dir.iterdir() if path.is_dir()]


async def test_no_signal_reaches_the_users_processes(client: Client, gateway: Gateway) -> None:
    """Code in a cell cannot signal or trace what else the user runs: those pids do not exist for it."""
    kernel_id = await client.start()
    assert gateway.process is not None
    pids = [gateway.process.pid, *gateway.warden_pids()]
    result = await client.run(
        kernel_id, f"import os, signal\nfor pid in {pids}:\n    os.kill(pid, signal.SIGKILL)"
    )
    assert result["error"]["ename"] in {"ProcessLookupError", "PermissionError"}
    assert gateway.process.poll() is None


async def test_interrupt_and_restart(client: Client) -> None:
    """Interrupt stops what runs and keeps the state; restart forgets it."""
    kernel_id = await client.start()
    task = asyncio.create_task(client.run(kernel_id, "x = 1\nimport time; time.sleep(60)"))
    await until_state(client, kernel_id, "busy")
    await asyncio.sleep(0.5)
    await client.json("POST", f"/api/kernels/{kernel_id}/interrupt", status=204)
    assert (await asyncio.wait_for(task, 5))["error"]["ename"] == "KeyboardInterrupt"
    assert await client.out(kernel_id, "print(x)") == "1\n"

    await client.json("POST", f"/api/kernels/{kernel_id}/restart")
    assert (await client.run(kernel_id, "x"))["status"] == "error"


async def test_timeout_and_kill(client: Client) -> None:
    """A deadline interrupts; code that ignores that is killed, and a fresh kernel takes over."""
    kernel_id = await client.start()
    result = await client.run(kernel_id, "kept = 1\nimport time; time.sleep(60)", timeout_s=1)
    assert result["status"] == "timeout"
    assert await client.out(kernel_id, "print(kept)") == "1\n"
    result = await client.run(kernel_id, STUBBORN, timeout_s=1)
    assert (result["status"], result["reason"]) == ("timeout", "timeout")
    assert await client.out(kernel_id, "print(2)") == "2\n"


async def test_a_death_is_seen_and_named(gateway: Gateway, client: Client) -> None:
    """`kill -9` of the kernel, and its own exit, answer what runs within a second."""
    for end, reason in ((lambda: os.kill(kernels(gateway)[0], signal.SIGKILL), "killed"), (None, "crashed")):
        kernel_id = await client.start()
        task = asyncio.create_task(client.run(kernel_id, "import time, os; time.sleep(1.5); os._exit(3)"))
        await until_state(client, kernel_id, "busy")
        await asyncio.sleep(0.5)
        begun = time.monotonic()
        if end:
            end()
        result = await asyncio.wait_for(task, 5)
        assert (result["status"], result["reason"]) == ("dead", reason)
        assert time.monotonic() - begun < 3
        await client.delete(kernel_id)


async def test_memory_is_bounded(client: Client) -> None:
    """Without cgroups the address space is the bound: too much is a MemoryError, or the kernel's death."""
    kernel_id = await client.start()
    result = await client.run(kernel_id, "hog = bytearray(64 << 30)")
    assert result["status"] in {"error", "dead"}
    if result["status"] == "error":
        assert result["error"]["ename"] == "MemoryError"


async def test_ordinary_work_runs(client: Client) -> None:
    """numpy, pandas, a plot, children and the shell work within the rlimits."""
    kernel_id = await client.start()
    code = """
import numpy, pandas, subprocess, multiprocessing, tempfile
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
plt.plot([1, 2])
with tempfile.NamedTemporaryFile() as file:
    plt.savefig(file, format="png")
total = int(numpy.ones((500, 500)).dot(numpy.ones((500, 500))).sum())
print(total, len(pandas.DataFrame({"a": [1, 2]})), subprocess.run(["echo", "hi"], capture_output=True).stdout)
"""
    assert await client.out(kernel_id, code) == "125000000 2 b'hi\\n'\n"


async def test_delete_leaves_nothing(gateway: Gateway, client: Client) -> None:
    """Deleting kernels leaves no process and no directory, detached daemons included."""
    before = len(cell_dirs(gateway))
    ids = [await client.start() for _ in range(3)]
    await client.run(
        ids[0], "import os\nif os.fork() == 0:\n    os.setsid()\n    import time; time.sleep(300)"
    )
    assert len(cell_dirs(gateway)) == before + 3
    for kernel_id in ids:
        await client.delete(kernel_id)
    assert await eventually(lambda: not cells(gateway)), cells(gateway)
    assert cell_dirs(gateway) == []
    homes = gateway.state_dir / "warden" / "homes"
    assert list(homes.iterdir()) == []


async def test_adoption_after_kill_9(user: pwd.struct_passwd) -> None:
    """The next gateway of the user's adopts the kernels with their variables, and can end them."""
    with running(state_dir=state_of(user, "adoption"), user=user.pw_name) as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            await client.run(kernel_id, "x = 8")
        gateway.end(signal.SIGKILL)
        gateway.start()
        async with gateway.client() as client:
            assert await client.out(kernel_id, "print(x)") == "8\n"
            await client.delete(kernel_id)
            assert await eventually(lambda: not cells(gateway))


async def test_no_keep_leaves_nothing(user: pwd.struct_passwd) -> None:
    """After a SIGTERM with --no-keep nothing of the user's gateway is left on the machine."""
    with running("--no-keep", state_dir=state_of(user, "nokeep"), user=user.pw_name) as gateway:
        async with gateway.client() as client:
            await client.start()
        assert gateway.end() == 0
        assert await eventually(lambda: not traces(gateway), 5), traces(gateway)


@pytest.mark.parametrize("whom", ["warden", "both"])
async def test_the_wardens_death_ends_the_cells(user: pwd.struct_passwd, whom: str) -> None:
    """`kill -9` of the warden, or of its keeper too, ends every cell within 2 s; the next start works."""
    with running(state_dir=state_of(user, f"death-{whom}"), user=user.pw_name) as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            for pid in [*(gateway.keeper_pids() if whom == "both" else []), *gateway.warden_pids()]:
                os.kill(pid, signal.SIGKILL)
            assert await eventually(lambda: not cells(gateway), 2), cells(gateway)
            await until_state(client, kernel_id, "dead", 3)
        gateway.end()
        gateway.start()
        async with gateway.client() as client:
            assert await client.out(await client.start(), "print(1)") == "1\n"


def test_keys_create(gateway: Gateway, user: pwd.struct_passwd) -> None:
    """`cellblock keys create` as the user prints a key, and the store is the user's alone."""
    assert gateway.key("carol").startswith("cb_")
    for path in (gateway.state_dir / "gateway").iterdir():
        assert path.stat().st_uid == user.pw_uid
        assert path.stat().st_mode & 0o077 == 0


def test_another_users_state_directory_is_refused(user: pwd.struct_passwd) -> None:
    """A state directory that the user may not write is one clear sentence and exit code 2."""
    gateway = Gateway(user=user.pw_name)
    try:
        done = subprocess.run(
            gateway.command("serve", "--port", "0", "--state-dir", str(gateway.state_dir / "roots")),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            cwd="/",
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "cannot be used: Permission denied" in done.stderr
    finally:
        gateway.destroy()


async def test_commands_run_beside_the_kernel(client: Client) -> None:
    """As an ordinary user, too: confined like the kernel, in its home, killed with it."""
    kernel_id = await client.start()
    path = f"/api/kernels/{kernel_id}"
    look = "grep -E '^(NoNewPrivs|Seccomp|CapEff):' /proc/self/status"
    line = f"{look}; pwd; echo $HOME; sleep 4714 >/dev/null 2>&1 &"
    result = await client.json("POST", f"{path}/commands", {"command": line})
    values = dict(row.split(":\t") for row in result["stdout"].splitlines()[:3])
    assert values == {"CapEff": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"}
    home, same = result["stdout"].splitlines()[3:]
    assert home == same
    assert await client.out(kernel_id, "import os; print(os.environ['HOME'])") == f"{home}\n"
    process = await client.json("POST", f"{path}/processes", {"argv": ["cat"]}, status=201)
    path = f"{path}/processes/{process['id']}"
    await client.json("POST", f"{path}/input", {"text": "x", "eof": True}, status=204)
    output = await client.json("GET", f"{path}/output?wait_s=10")
    assert output["chunks"] == [{"stream": "stdout", "text": "x"}]
    assert processes_named("4714")
    await client.delete(kernel_id)
    assert await eventually(lambda: not processes_named("4714"))


async def test_warm_kernels_have_their_owners_limits(user: pwd.struct_passwd) -> None:
    """A warm kernel is given with lower limits and its variables, as far as an ordinary user can limit it."""
    env = {"CELLBLOCK_KERNELS__POOLS": json.dumps({"python3": {"size": 1, "max_size": 1}})}
    with running(state_dir=state_of(user, "warm"), user=user.pw_name, env=env) as gateway:
        async with gateway.client("alice", "admin") as client:
            await ready(client, 1)
            body = {"limits": {"open_files": 90, "file_bytes": 2 << 20}, "env": {"KERNEL_X": "y"}}
            model = await client.json("POST", "/api/kernels", body, status=201)
            assert model["start"] == "warm"
            code = (
                "import os, resource as r\n"
                "print(r.getrlimit(r.RLIMIT_NOFILE), r.getrlimit(r.RLIMIT_FSIZE), os.environ['KERNEL_X'])"
            )
            assert await client.out(model["id"], code) == f"(90, 90) ({2 << 20}, {2 << 20}) y\n"
