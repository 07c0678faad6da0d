"""Control groups: the real hierarchy of this machine, and v2's files as a directory tree."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import SandboxUnavailable
from gateway.models import Limits
from gateway.sandbox.cgroup import Cgroup, CgroupTree, delegate, own_groups

LIMITS = Limits(memory_bytes=96 << 20, home_bytes=1 << 20, pids=30, cpus=0.5)


def join(group: Cgroup, *command: str) -> subprocess.Popen[bytes]:
    """Start a command that enters the group before it execs, as the launcher does."""
    script = 'for f; do [ "$f" = -- ] && break; echo $$ > "$f"; shift; done; shift; exec "$@"'
    files = [str(file) for file in group.procs_files()]
    process = subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", *files, "--", *command], start_new_session=True
    )
    deadline = time.monotonic() + 5
    while process.pid not in group.pids() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    return process


def wait(condition: object, seconds: float = 5.0) -> bool:
    """Wait until a condition holds; tell whether it did."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture
def tree() -> Iterator[CgroupTree | None]:
    """A tree of this machine's own hierarchy, gone again afterwards; None where this user has none."""
    tree = CgroupTree.detect(f"test-{os.getpid()}")
    if tree is None:
        # only an ordinary user without delegation may be left without groups
        assert os.geteuid() != 0
    yield tree
    if tree is not None:
        for cell in tree.leftovers():
            tree.open(cell).kill()
            tree.open(cell).remove()
        tree.remove()
        assert not list(Path("/sys/fs/cgroup").glob(f"*/cellblock/test-{os.getpid()}"))


def test_a_killed_group_is_empty_and_can_be_removed(tree: CgroupTree | None) -> None:
    """Killing ends forks of forks too, at once, and nothing of the group stays."""
    if tree is None:
        return
    group = tree.create("a1", LIMITS)
    forks = "import os, time\nfor _ in range(3): os.fork()\ntime.sleep(60)"
    process = join(group, sys.executable, "-c", forks)

    assert wait(lambda: len(group.pids()) == 8)
    started = time.monotonic()
    assert group.kill()
    assert time.monotonic() - started < 0.5
    assert process.wait(5) == -signal.SIGKILL
    assert group.pids() == []
    assert tree.leftovers() == ["a1"]
    assert group.remove()
    assert tree.leftovers() == []


def test_a_fork_bomb_is_bounded_and_dies(tree: CgroupTree | None) -> None:
    """No more tasks than allowed, and a bomb that forks while it is killed loses."""
    if tree is None:
        return
    group = tree.create("bomb", LIMITS)
    bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    process = join(group, sys.executable, "-c", bomb)

    assert wait(lambda: group.usage().pids == LIMITS.pids)
    assert group.kill()
    process.wait(5)
    assert group.remove()


def test_memory_is_bounded_and_the_kill_is_counted(tree: CgroupTree | None) -> None:
    """A process that takes more memory than allowed is killed and leaves a count and a peak."""
    if tree is None:
        return
    group = tree.create("hog", LIMITS)
    assert group.oom_kills() == 0
    process = join(group, sys.executable, "-c", "import time; time.sleep(.1); b = bytearray(300 << 20)")

    assert process.wait(20) == -signal.SIGKILL
    assert group.oom_kills() == 1
    peak = group.usage().memory_peak_bytes
    assert peak is not None
    assert 64 << 20 < peak <= LIMITS.memory_bytes
    assert group.remove()


def test_cpu_is_held_back(tree: CgroupTree | None) -> None:
    """A spinning process gets its share and the rest is counted as throttled."""
    if tree is None:
        return
    group = tree.create("spin", LIMITS.model_copy(update={"cpus": 0.1}))
    process = join(group, sys.executable, "-c", "while True: pass")

    assert wait(lambda: group.cpu_throttled() > 0)
    before, then = group.usage().cpu_s, time.monotonic()
    time.sleep(0.5)
    assert group.usage().cpu_s - before < 0.3 * (time.monotonic() - then)
    assert group.kill()
    process.wait(5)


def test_a_frozen_cell_stands_still_and_can_be_killed(tree: CgroupTree | None) -> None:
    """Freezing stops the CPU clock, thawing starts it, and a frozen group dies all the same."""
    if tree is None:
        return
    group = tree.create("ice", LIMITS)
    process = join(group, sys.executable, "-c", "while True: pass")
    group.freeze()
    time.sleep(0.05)
    still = group.usage().cpu_s
    time.sleep(0.15)
    assert group.usage().cpu_s == pytest.approx(still, abs=0.005)
    group.thaw()
    assert wait(lambda: group.usage().cpu_s > still + 0.02)
    group.freeze()

    assert group.kill()
    assert process.wait(5) == -signal.SIGKILL


def test_limits_go_up_and_down(tree: CgroupTree | None) -> None:
    """Limits can be changed in both directions, whatever order the system wants."""
    if tree is None:
        return
    group = tree.create("flex", LIMITS)
    for size in (512 << 20, 80 << 20, 2 << 30):
        group.apply(LIMITS.model_copy(update={"memory_bytes": size}))
        [file] = [
            path
            for path in (
                group.procs_files()[0].parent / name for name in ("memory.max", "memory.limit_in_bytes")
            )
            if path.exists()
        ]
        assert int(file.read_text()) == size


def test_a_cell_is_made_once(tree: CgroupTree | None) -> None:
    """A second cell of the same id is refused, and the first one stays as it was."""
    if tree is None:
        return
    tree.create("twin", LIMITS)

    with pytest.raises(SandboxUnavailable, match="cannot be made"):
        tree.create("twin", LIMITS)
    assert tree.leftovers() == ["twin"]


def test_a_process_never_kills_itself(tree: CgroupTree | None) -> None:
    """Killing a group in which the caller stands spares the caller and says that it is not empty."""
    if tree is None:
        return
    group = tree.create("self", LIMITS)
    script = (
        "import sys\nfrom gateway.sandbox.cgroup import CgroupTree\n"
        f"sys.exit(42 if CgroupTree.detect('test-{os.getpid()}').open('self').kill() is False else 1)"
    )
    process = join(group, sys.executable, "-c", script)

    assert process.wait(10) == 42
    assert wait(group.remove)


def test_names_are_no_paths(tmp_path: Path) -> None:
    """Neither a tree's name nor a cell's id can lead elsewhere."""
    (tmp_path / "cgroup.controllers").touch()
    with pytest.raises(ValueError, match="no name"):
        CgroupTree.detect("../x", tmp_path)
    tree = CgroupTree("cgroup v2", {"memory": tmp_path})
    for bad in ("", "..", "a/b", "-x", "a" * 65):
        with pytest.raises(ValueError, match="no cell's id"):
            tree.open(bad)


# -- v2: the same files in an ordinary directory tree


def v2_root(root: Path, controllers: str = "cpu io memory pids") -> Path:
    """Lay out what a v2 hierarchy shows, two levels of our own included."""
    for group in (root, root / "cellblock", root / "cellblock" / "t"):
        group.mkdir(exist_ok=True)
        (group / "cgroup.controllers").write_text(controllers + "\n")
        (group / "cgroup.subtree_control").write_text("\n")
        (group / "cgroup.procs").write_text("")
    return root


def v2_cell(root: Path) -> tuple[Cgroup, Path]:
    """Return a cell of a v2 tree with the files that the kernel would make."""
    tree = CgroupTree.detect("t", v2_root(root))
    assert tree is not None
    directory = root / "cellblock" / "t" / "c1"
    directory.mkdir()
    for file in (
        "cpu.max",
        "memory.swap.max",
        "memory.oom.group",
        "cgroup.freeze",
        "cgroup.kill",
        "cgroup.procs",
    ):
        (directory / file).touch()
    return tree.open("c1"), directory


def test_v2_detection_delegates_on_every_level(tmp_path: Path) -> None:
    """Children of every level down to the cells get memory, pids and cpu, and nothing else."""
    tree = CgroupTree.detect("t", v2_root(tmp_path))

    assert tree is not None
    assert tree.describe().startswith("cgroup v2: cpu, memory, pids")
    for group in (tmp_path, tmp_path / "cellblock", tmp_path / "cellblock" / "t"):
        assert (group / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


@pytest.mark.parametrize("controllers", ["cpu io memory", "pids", "hugetlb", ""])
def test_without_memory_and_pids_there_is_no_tree(tmp_path: Path, controllers: str) -> None:
    """Half a bound is none: the caller must know that cells are not limited by groups."""
    assert CgroupTree.detect("t", v2_root(tmp_path, controllers)) is None


def test_an_empty_root_has_no_tree(tmp_path: Path) -> None:
    """A machine without cgroups, or one that cannot be written, is no error."""
    assert CgroupTree.detect("t", tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "cellblock").write_text("in the way")
    assert CgroupTree.detect("t", tmp_path) is None


def test_v2_limits_are_written_with_swap_off(tmp_path: Path) -> None:
    """Memory without swap, tasks, CPU quota; a child out of memory dies alone."""
    group, directory = v2_cell(tmp_path)
    group.apply(LIMITS)
    written = {
        file: (directory / file).read_text()
        for file in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
    }

    assert written == {
        "memory.max": str(96 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "0",
        "pids.max": "30",
        "cpu.max": "50000 100000",
    }
    assert group.procs_files() == [directory / "cgroup.procs"]


def test_v2_figures_are_read(tmp_path: Path) -> None:
    """Usage, kills for memory and throttling come from v2's own files and units."""
    group, directory = v2_cell(tmp_path)
    (directory / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n")
    (directory / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\nthrottled_usec 750000\n")
    (directory / "memory.current").write_text("1024\n")
    (directory / "memory.peak").write_text("2048\n")
    (directory / "pids.current").write_text("7\n")

    assert group.oom_kills() == 2
    assert group.cpu_throttled() == 0.75
    usage = group.usage()
    assert (usage.memory_bytes, usage.memory_peak_bytes, usage.cpu_s, usage.pids) == (1024, 2048, 2.5, 7)


def test_figures_of_a_group_that_is_gone_are_zero(tmp_path: Path) -> None:
    """Asking about a dead cell is no error."""
    group = CgroupTree("cgroup v2", dict.fromkeys(("memory", "pids", "cpu", "unified"), tmp_path)).open(
        "gone"
    )

    assert group.oom_kills() == 0
    assert group.usage().memory_peak_bytes is None
    assert group.pids() == []
    assert group.kill()
    assert group.remove()


def test_v2_kill_and_freeze_use_the_kernels_own(tmp_path: Path) -> None:
    """One write freezes, one write kills; the process listed is killed by pid besides."""
    group, directory = v2_cell(tmp_path)
    group.freeze()
    assert (directory / "cgroup.freeze").read_text() == "1"
    victim = subprocess.Popen(["sleep", "60"])
    (directory / "cgroup.procs").write_text(f"{victim.pid}\n")

    assert not group.kill()  # the tree of files never gets empty
    assert (directory / "cgroup.kill").read_text() == "1"
    assert (directory / "cgroup.freeze").read_text() == "0"
    assert victim.wait(5) == -signal.SIGKILL


def test_a_cell_that_cannot_be_frozen_says_so(tmp_path: Path) -> None:
    """Without any freezer the caller learns it."""
    group = Cgroup("c", {"memory": tmp_path, "pids": tmp_path})

    with pytest.raises(SandboxUnavailable, match="cannot freeze"):
        group.freeze()


def test_delegation_moves_own_processes_out_of_the_way() -> None:
    """The kernel lets no v2 group hold processes beside controlled children; ours move, others' do not.

    Run on a real v2 hierarchy with whatever controller it has to give.
    """
    mounted = [
        path for path in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if Path(path, "cgroup.procs").exists()
    ]
    top = Path(mounted[0]) if mounted else None
    offered = (top / "cgroup.controllers").read_text().split() if top else []
    if top is None or os.geteuid() or not offered:
        return
    controller = offered[-1]
    before = (top / "cgroup.subtree_control").read_text().split()
    delegate(top, [controller], [])
    group = top / f"cellblock-test-{os.getpid()}"
    group.mkdir()
    script = (
        "import os,sys\nfrom pathlib import Path\nfrom gateway.sandbox.cgroup import delegate\n"
        "group = Path(sys.argv[1])\n(group / 'cgroup.procs').write_text(str(os.getpid()))\n"
        "delegate(group, [sys.argv[2]], [])\n"
        "print((group / 'cgroup.subtree_control').read_text(), Path('/proc/self/cgroup').read_text())"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(group), controller],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(controller)
        assert f"{group.name}/host" in done.stdout
        (group / "cgroup.subtree_control").write_text(f"-{controller}")
        (group / "host").rmdir()
        stranger = subprocess.Popen(["sleep", "60"])
        (group / "cgroup.procs").write_text(str(stranger.pid))
        with pytest.raises(OSError, match="others") as refused:
            delegate(group, [controller], [])
        assert refused.value.errno == errno.EBUSY
        stranger.kill()
        stranger.wait()
    finally:
        if (group / "host").exists():
            (group / "host").rmdir()
        group.rmdir()
        if controller not in before:
            (top / "cgroup.subtree_control").write_text(f"-{controller}")


def test_own_groups_are_read_by_controller() -> None:
    """Co-mounted controllers share a path, the v2 one has no name, and paths may hold colons."""
    text = "12:cpu,cpuacct:/a\n3:name=systemd:/s\n2:pids:/x:y\n0::/user.slice\n"

    assert own_groups(text) == {
        "cpu": "/a",
        "cpuacct": "/a",
        "name=systemd": "/s",
        "pids": "/x:y",
        "": "/user.slice",
    }
