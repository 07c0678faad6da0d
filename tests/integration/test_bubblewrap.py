"""Kernels in bubblewrap's cells: the same life as in firejail's, and none where there is no bubblewrap."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gateway import Client, Gateway, new_state_dir, running
from tests.integration.test_kernel_life import STUBBORN
from tests.lifecycle import cells, eventually, until_state
from tests.machine import grown, kernels_of, name_of, processes_named, remains, wait_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SPEC = "python3-bubblewrap"
DAEMON = """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/bin/sleep", ["{mark}", "300"])
    os._exit(0)
"""

BATTERY = {
    "import numpy as np; print(np.linalg.inv(np.eye(3) * 2).trace())": "1.5\n",
    "import pandas as pd; print(pd.DataFrame({'a': [1, 2]}).a.sum())": "3\n",
    "from scipy import optimize as o; print(round(o.brentq(lambda x: x**3 - 8, 0, 9), 6))": "2.0\n",
    "from sklearn.linear_model import Ridge as R; print(R(0).fit([[0], [1]], [0, 2]).coef_)": "[2.]\n",
    "import multiprocessing as m; print(m.get_context('fork').Pool(2).map(abs, [-1, -2]))": "[1, 2]\n",
    "import concurrent.futures as f; print(list(f.ProcessPoolExecutor(2).map(len, ['ab'])))": "[2]\n",
    "!printf '#include <stdio.h>\\nint main(){puts(\"c\");}' > a.c && gcc a.c -o a && ./a": "c\n",
    "import sqlite3; print(sqlite3.connect('a.db').execute('select 1').fetchone())": "(1,)\n",
    "import tempfile; print(tempfile.TemporaryFile().write(b'abc'))": "3\n",
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway whose kernels are bubblewrap's unless they are asked for by another name."""
    with running("--no-keep", env={"CELLBLOCK_KERNELS__DEFAULT": SPEC}) as own:
        yield own


@pytest.fixture
async def kernel(client: Client, gateway: Gateway) -> AsyncIterator[str]:
    """A fresh kernel, of which bubblewrap is the maker."""
    kernel_id = await client.start()
    assert (await client.kernel(kernel_id))["profile"] == "bubblewrap"
    assert makers(gateway) == {"bwrap"}
    yield kernel_id
    async with client.http.delete(f"/api/kernels/{kernel_id}"):
        pass


def makers(gateway: Gateway) -> set[str]:
    """Return the names of what made a gateway's cells."""
    return {name_of(Path("/proc", str(pid))) for pid in cells(gateway)} & {"bwrap", "firejail"}


async def test_both_backends_side_by_side(gateway: Gateway, client: Client, kernel: str) -> None:
    """One gateway has cells of both, and each says which profile it has."""
    other = await client.start("python3")

    assert makers(gateway) == {"bwrap", "firejail"}
    assert (await client.kernel(other))["profile"] == "default"
    assert await client.out(kernel, "print(6 * 7)") == await client.out(other, "print(6 * 7)") == "42\n"
    await client.delete(other)


async def test_no_privilege_is_ever_involved(gateway: Gateway, client: Client, kernel: str) -> None:
    """Every process of the cell, bubblewrap's own included, has one ordinary uid; no argument says much."""
    lines = cells(gateway)

    uids = {Path(f"/proc/{pid}").stat().st_uid for pid in lines}
    assert len(uids) == 1
    assert 0 not in uids
    for line in lines.values():
        assert str(gateway.state_dir) not in line
        assert "c.json" not in line


async def test_ordinary_data_science(client: Client, kernel: str) -> None:
    """Numbers, tables, plots, children, shells and compilers work, and complain of nothing."""
    battery = dict(BATTERY)
    if os.geteuid() == 0:
        battery["import subprocess as s; print(s.check_output(['id', '-un'], text=True)[:4])"] = "cell\n"
    for code, said in battery.items():
        result = await client.run(kernel, code)
        assert (result["status"], result["stdout"].replace("\r", "")) == ("ok", said), (code, result)
        assert result["stderr"] == "", code
    plot = await client.run(
        kernel, "%matplotlib inline\nimport matplotlib.pyplot as p; p.plot([1, 2]); p.show()"
    )
    assert any("image/png" in output.get("data", {}) for output in plot["outputs"])


async def test_interrupt(client: Client, kernel: str) -> None:
    """POST interrupt stops what runs, children of the kernel's included, and the kernel stays."""
    for code in ("import time; time.sleep(60)", "!sleep 60"):
        run = asyncio.create_task(client.run(kernel, code))
        await asyncio.sleep(0.7)
        begun = time.monotonic()
        await client.json("POST", f"/api/kernels/{kernel}/interrupt", status=204)
        await run
        assert time.monotonic() - begun < 5, code
    assert await client.out(kernel, "print(1)") == "1\n"


async def test_timeout_by_kill_restarts(client: Client, kernel: str) -> None:
    """Code that swallows SIGINT is killed after the grace; its output is kept, a fresh kernel takes over."""
    result = await client.run(kernel, STUBBORN, timeout_s=1)

    assert (result["status"], result["reason"]) == ("timeout", "timeout")
    assert "before" in result["stdout"]
    assert await client.out(kernel, "print(2)") == "2\n"


async def test_out_of_memory_is_named(client: Client, kernel: str) -> None:
    """A kernel that takes more memory than its cell has dies of oom."""
    result = await client.run(kernel, "hog = [bytearray(64 << 20) for _ in range(64)]")

    assert (result["status"], result["reason"]) == ("dead", "oom")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os._exit(3)", "crashed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed"),
    ],
)
async def test_deaths_have_their_reasons(client: Client, kernel: str, code: str, reason: str) -> None:
    """Exit codes and signals come through bubblewrap as they come through firejail; restart revives."""
    result = await client.run(kernel, code)
    assert (result["status"], result["reason"]) == ("dead", reason)

    await client.json("POST", f"/api/kernels/{kernel}/restart")

    assert await client.out(kernel, "print('back')") == "back\n"


async def test_limits_are_the_profiles(client: Client, kernel: str) -> None:
    """What firejail sets by options is set in a bubblewrap cell too."""
    code = """
import os, resource as r
names = ("NOFILE", "NPROC", "FSIZE", "SIGPENDING", "CORE", "MSGQUEUE")
print(*(r.getrlimit(getattr(r, "RLIMIT_" + name))[1] for name in names))
for path in (os.path.expanduser("~"), "/tmp", "/dev/shm"):
    found = os.statvfs(path); print(found.f_blocks * found.f_frsize >> 20, found.f_files)
"""
    rlimits, *places = (await client.out(kernel, code)).splitlines()

    assert rlimits == "512 128 268435456 256 0 0"
    assert [place.split()[0] for place in places][1:] == ["256", "256"]
    if os.geteuid() == 0:
        assert places == ["256 20000"] * 3


@pytest.mark.parametrize("which", ["kernel", "init", "bubblewrap"])
async def test_whatever_is_killed_all_of_the_cell_goes(
    gateway: Gateway, client: Client, kernel: str, which: str
) -> None:
    """SIGKILL of any process of a cell ends all of it, a detached daemon included; the client is told."""
    mark = f"cellblock-bwrap-daemon-{os.getpid()}-{which}"
    await client.run(kernel, DAEMON.format(mark=mark))
    assert await wait_for(lambda: len(processes_named(mark)) == 1)
    pid = kernels_of(gateway)[-1]
    init = parent_of(pid)
    victim = {"kernel": pid, "init": init, "bubblewrap": parent_of(init)}[which]

    os.kill(victim, signal.SIGKILL)

    assert await wait_for(lambda: processes_named(mark) == [], 10)
    assert await eventually(lambda: not cells(gateway))
    await until_state(client, kernel, "dead")


def parent_of(pid: int) -> int:
    """Return a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


async def test_no_cell_outlives_its_warden() -> None:
    """`kill -9` of the warden and of its keeper ends the cells at once: bubblewrap is on the leash, too."""
    with running("--no-keep", env={"CELLBLOCK_KERNELS__DEFAULT": SPEC}) as own:
        async with own.client() as client:
            await client.start()
            assert makers(own) == {"bwrap"}

            for pid in [*own.keeper_pids(), *own.warden_pids()]:
                os.kill(pid, signal.SIGKILL)

            assert await eventually(lambda: not cells(own))


async def test_nothing_is_left(gateway: Gateway, client: Client) -> None:
    """After twenty starts and ends there is nothing more than before."""
    await three_lives(client)
    before = remains(gateway)

    for _ in range(6):
        await three_lives(client)

    assert await wait_for(lambda: not grown(before, remains(gateway))), grown(before, remains(gateway))


async def three_lives(client: Client) -> None:
    """Start three kernels at once and end them at once."""
    ids = await asyncio.gather(*(client.start() for _ in range(3)))
    await asyncio.gather(*(client.delete(kernel_id) for kernel_id in ids))


STAND_INS = {
    "missing": (None, "No such file"),
    "too-old": ("echo bubblewrap 0.4.1", "0.8.0 or newer is needed"),
    "another": ("echo hello", "does not say its version"),
    "fails": (
        '[ "$1" = --version ] && echo bubblewrap 0.8.0 || { echo no namespaces >&2; exit 1; }',
        "no namespaces",
    ),
    "fails-open": (
        '[ "$1" = --version ] && echo bubblewrap 0.8.0 && exit; shift 3; exec "$@"',
        "The cell is not confined",
    ),
}


@pytest.mark.parametrize("name", STAND_INS)
async def test_no_bubblewrap_no_kernel(name: str) -> None:
    """Missing, old, failing or failing open: 503 with the reason, and firejail's kernels run."""
    text, says = STAND_INS[name]
    place = new_state_dir()
    program = place / "bwrap"
    try:
        if text:
            program.write_text(f"#!/bin/sh\n{text}\n")
            program.chmod(0o755)
        with running("--no-keep", env={"CELLBLOCK_SANDBOX__BUBBLEWRAP": str(program)}) as own:
            async with own.client() as client:
                body = await client.json("POST", "/api/kernels", {"name": SPEC}, status=503)
                assert body["code"] == "sandbox_unavailable"
                assert says in body["message"]
                kernel = await client.start("python3")
                assert await client.out(kernel, "print(1)") == "1\n"
                assert makers(own) == {"firejail"}
    finally:
        shutil.rmtree(place)
