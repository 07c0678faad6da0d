"""Command lines of cells: what they hold, what they refuse, and what real firejail makes of them."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BadRequest, ConfigurationError, SandboxUnavailable
from gateway.models import Limits
from gateway.sandbox.backend import version
from gateway.sandbox.bootorder import kernel_environment
from gateway.sandbox.firejail import (
    BASE,
    MINIMUM,
    CellPaths,
    Firejail,
    firejail_environment,
    host_blacklist,
)
from gateway.sandbox.profile import SandboxProfile, load_profile, profile_dirs
from gateway.sandbox.users import CellUser

PROGRAM = Path("/usr/bin/firejail")
LIMITS = Limits(pids=64, open_files=200, file_bytes=5 << 20)
DEFAULT = load_profile("default", profile_dirs())


@dataclass
class Host:
    """An ordinary user and directories of that user's, for real cells."""

    user: CellUser
    root: Path
    paths: CellPaths

    def run(self, *argv: str, profile: SandboxProfile = DEFAULT, paths: CellPaths | None = None) -> str:
        """Run a program in a cell and return what it printed."""
        paths = paths or self.paths
        command = Firejail(PROGRAM).command(profile, paths, argv, limits=LIMITS)
        done = subprocess.run(
            command,
            cwd="/",
            env=firejail_environment(self.user),
            user=self.user.uid,
            group=self.user.gid,
            extra_groups=[] if os.geteuid() == 0 else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def python(self, code: str, **options: Any) -> Any:
        """Run Python in a cell; the code leaves its findings in `found`."""
        script = f"import json, os\nfound = None\n{code}\nprint(json.dumps(found))"
        return json.loads(self.run("/usr/bin/python3", "-I", "-c", script, **options))


@pytest.fixture(scope="module")
def user() -> Iterator[CellUser]:
    """An ordinary user: this one, or one made for these tests where they run as root."""
    if os.geteuid():
        entry = pwd.getpwuid(os.geteuid())
        yield CellUser(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
        return
    name = f"cbtest{os.getpid()}"
    uid = str(50_000 + os.getpid() % 9000)  # far from the pool's
    subprocess.run(
        ["useradd", "-M", "-U", "-u", uid, "-d", f"/home/{name}", "-s", "/bin/bash", name], check=True
    )
    entry = pwd.getpwnam(name)
    home = Path(entry.pw_dir)
    home.mkdir(mode=0o700)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    yield CellUser(name, entry.pw_uid, entry.pw_gid, home)
    home.rmdir()
    subprocess.run(["userdel", name], check=True)


@pytest.fixture
def host(user: CellUser) -> Iterator[Host]:
    """Directories that the user may reach, gone afterwards."""
    root = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
    root.chmod(0o755)
    for name in ("home", "ipc", "other"):
        (root / name).mkdir(mode=0o700)
        os.chown(root / name, user.uid, user.gid)
    (root / "env" / "bin").mkdir(parents=True)
    os.chown(root / "env", user.uid, user.gid)
    (root / "boot.py").write_text("print('booted')")
    yield Host(user, root, CellPaths(root / "home", root / "ipc", root / "env", root / "boot.py"))
    shutil.rmtree(root)


CONFINED = """
import socket
lines = open("/proc/self/status").read().splitlines()
status = dict(line.split(":", 1) for line in lines)
def tried(what, *arguments):
    try:
        got = what(*arguments)
        return sorted(got) if isinstance(got, list) else "done"
    except OSError as error:
        return type(error).__name__
found = {
    "status": [status[key].strip() for key in ("NoNewPrivs", "Seccomp", "CapEff", "CapBnd")],
    "ns": {k: os.readlink("/proc/self/ns/" + k) for k in ("pid", "net", "mnt", "ipc", "uts", "user")},
    "lists": {d: tried(os.listdir, d) for d in ("/root", "/sys", "/mnt", "/opt", "/srv", "/var", "/home")},
    "run": os.listdir("/run"), "tmp": os.listdir("/tmp"), "root": sorted(os.listdir("ROOT")),
    "etc": sorted(os.listdir("/etc")), "cwd": os.getcwd(),
    "inet": tried(socket.socket, socket.AF_INET),
}
"""


def options(host: Host, profile: SandboxProfile = DEFAULT, **changed: Any) -> list[str]:
    """Return the options of a cell, without firejail and the program."""
    paths = CellPaths(**{**{name: getattr(host.paths, name) for name in CellPaths.__slots__}, **changed})
    command = Firejail(PROGRAM).command(profile, paths, ["/bin/true", "x"], limits=LIMITS)
    assert command[0] == str(PROGRAM)
    assert command[-2:] == ["/bin/true", "x"]
    return command[1:-2]


def test_every_fixed_option_is_there_once_and_says_why(host: Host) -> None:
    """No profile can lose one of the walls, and each carries its reason."""
    found = options(host, load_profile("scientific", profile_dirs()))

    for option, reason in BASE:
        assert found.count(f"--{option}") == 1
        assert len(reason) > 3


def test_all_is_an_option_until_the_program(host: Host) -> None:
    """Nothing stands between the options and the program, not even the dashes that mean a login shell."""
    found = options(host)

    assert all(option.startswith("--") and len(option) > 2 for option in found)
    assert "--profile" not in " ".join(found)
    assert f"--private={host.root}/home" in found
    assert f"--read-only={host.root}/env" in found
    assert f"--read-only={host.root}/ipc" not in found
    assert {"--rlimit-nproc=64", "--rlimit-nofile=200", "--rlimit-fsize=5242880"} <= set(found)


def test_the_cell_is_confined(host: Host) -> None:
    """Real firejail takes every option: namespaces, seccomp, no capabilities, no network, files hidden."""
    own = {
        kind: str(Path(f"/proc/self/ns/{kind}").readlink())
        for kind in ("pid", "net", "mnt", "ipc", "uts", "user")
    }
    found = host.python(CONFINED.replace("ROOT", str(host.root)))

    assert found["status"] == ["1", "2", "0" * 16, "0" * 16]
    assert not set(found["ns"].values()) & set(own.values())
    assert found["lists"] == {
        "/root": "PermissionError",
        "/sys": "PermissionError",
        "/mnt": "PermissionError",
        "/opt": [],
        "/srv": [],
        "/var": [],
        "/home": [host.user.home.name],
    }
    assert set(found["run"]) <= {"firejail", "user"}
    assert found["tmp"] == [host.root.name]
    assert found["root"] == ["boot.py", "env", "ipc"]
    assert found["etc"] == sorted(DEFAULT.files.private_etc)
    assert found["inet"] == "OSError"
    assert found["cwd"] == str(host.user.home)


def test_the_users_own_sockets_are_hidden(host: Host) -> None:
    """Firejail shows a user's whole runtime directory by itself; no cell may see its sockets."""
    assert "--blacklist=/run/user" in options(host)
    runtime = Path(f"/run/user/{host.user.uid}")
    made = os.geteuid() == 0
    if made:
        runtime.mkdir(parents=True)
        os.chown(runtime, host.user.uid, host.user.gid)
    try:
        if not runtime.exists():
            return
        (runtime / "cb-test.sock").touch()
        look = (
            "found = {}\n"
            f"for path in ('/run/user', '{runtime}', '{runtime}/cb-test.sock'):\n"
            "    try: found[path] = os.listdir(path)\n"
            "    except OSError as error: found[path] = type(error).__name__"
        )
        assert set(host.python(look).values()) == {"PermissionError"}

        # sockets of a cell that lie there are seen, and nothing beside them
        ipc = runtime / "cb-test" / "i"
        ipc.mkdir(parents=True)
        os.chown(ipc, host.user.uid, host.user.gid)
        found = host.python(look, paths=dataclasses.replace(host.paths, ipc=ipc))
        assert found[str(runtime)] == ["cb-test"]
        assert found[f"{runtime}/cb-test.sock"] == "FileNotFoundError"
    finally:
        if made:
            shutil.rmtree(runtime)
        elif runtime.exists():
            (runtime / "cb-test.sock").unlink()
            shutil.rmtree(runtime / "cb-test")


def test_home_and_ipc_are_written_and_the_rest_is_not(host: Host) -> None:
    """The cell writes its home and its sockets' directory, and cannot touch its user's own other files."""
    found = host.python(
        "open('in-home', 'w')\n"
        f"open('{host.root}/ipc/socket', 'w')\n"
        "found = []\n"
        f"for path in ('{host.root}/env/x', '{host.root}/boot.py', '/usr/x', '/etc/x'):\n"
        "    try: open(path, 'a')\n"
        "    except OSError as error: found.append(error.errno)\n"
    )

    assert len(found) == 4
    assert (host.root / "home" / "in-home").exists()
    assert (host.root / "ipc" / "socket").exists()


def test_what_looks_like_an_option_stays_the_programs(host: Host) -> None:
    """Arguments after the program reach it as they are."""
    hostile = ["--net=eth0", "--", "-x", "--noprofile", "a b", "$HOME", "*", "--join=1"]

    assert host.run("/usr/bin/printf", r"%s\n", *hostile).splitlines() == hostile


def test_limits_hold_in_the_cell(host: Host) -> None:
    """Descriptors, processes and file size are those asked for."""
    found = host.python(
        "import resource as r\n"
        "kinds = (r.RLIMIT_NOFILE, r.RLIMIT_NPROC, r.RLIMIT_FSIZE, r.RLIMIT_SIGPENDING)\n"
        "found = [r.getrlimit(kind)[1] for kind in kinds]"
    )

    assert found == [200, 64, 5 << 20, 256]


def test_only_scientific_cells_execute_what_they_wrote(host: Host) -> None:
    """Memory that is writable and executable is refused by default and allowed where the profile says so."""
    code = (
        "import mmap\n"
        "try: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC); found = True\n"
        "except OSError: found = False"
    )

    assert host.python(code) is False
    assert host.python(code, profile=load_profile("scientific", profile_dirs())) is True


def test_noexec_places_run_nothing(host: Host) -> None:
    """A profile can forbid programs in the writable places."""
    code = (
        "import shutil, subprocess\nfound = []\n"
        "for place in (os.path.expanduser('~'), '/tmp', '/dev/shm'):\n"
        "    shutil.copy('/bin/true', place + '/t')\n"
        "    try: found.append(subprocess.run([place + '/t']).returncode)\n"
        "    except OSError: found.append('refused')"
    )
    strict = DEFAULT.model_copy(
        update={"exec": DEFAULT.exec.model_copy(update={"noexec": ("home", "tmp", "shm")})}
    )

    assert host.python(code) == [0, 0, 0]
    assert host.python(code, profile=strict) == ["refused"] * 3


def test_shares_are_shown_read_only(host: Host) -> None:
    """Directories shared with a cell can be read where they are and not be written, by their owner either."""
    (host.root / "other" / "data.csv").write_text("1,2")
    paths = CellPaths(host.paths.home, host.paths.ipc, None, host.paths.boot, (host.root / "other",))
    code = (
        f"found = [open('{host.root}/other/data.csv').read()]\n"
        f"try: open('{host.root}/other/new', 'w')\n"
        "except OSError as error: found.append(error.strerror)"
    )

    assert host.python(code, paths=paths) == ["1,2", "Read-only file system"]


def test_the_boot_step_may_lie_in_the_environment(host: Host) -> None:
    """A path within another that is shown is no trouble."""
    boot = host.root / "env" / "boot.py"
    boot.write_text("print('booted')")
    paths = CellPaths(host.paths.home, host.paths.ipc, host.paths.environment, boot)

    assert host.run("/usr/bin/python3", str(boot), paths=paths) == "booted\n"


@pytest.mark.parametrize(
    "name",
    [
        "a,b",
        "a b",
        "a\nb",
        "a*",
        "a?",
        "a[b]",
        "a$b",
        "~a",
        "a'b",
        'a"b',
        "a\\b",
        "a{b}",
        "a\0b",
        "../other",
        "a;b",
    ],
)
def test_odd_paths_are_refused(host: Host, name: str) -> None:
    """What firejail would read as a list, a pattern, a macro or two lines never reaches it."""
    for part in ("home", "ipc", "environment", "boot"):
        with pytest.raises(ConfigurationError):
            options(host, **{part: host.root / name})


@pytest.mark.parametrize("path", ["relative", "-x", "--net=none", "", "/"])
def test_relative_paths_are_refused(host: Host, path: str) -> None:
    """A path that is not absolute could become an option."""
    for part in ("home", "ipc", "environment", "boot"):
        with pytest.raises(ConfigurationError, match="must be absolute"):
            options(host, **{part: Path(path)})


@pytest.mark.parametrize(
    "top", ["/var/tmp", "/var/lib", "/home", "/root", "/etc", "/proc", "/dev/shm", "/sys", "/mnt"]
)
def test_places_that_firejail_covers_are_refused(host: Host, top: str) -> None:
    """Where a cell would find nothing, or nothing that it may write, the launch says so beforehand."""
    with pytest.raises(ConfigurationError, match="cannot be had in a cell"):
        options(host, ipc=Path(top) / "x")
    if top not in {"/home", "/mnt"}:
        with pytest.raises(ConfigurationError, match="cannot be had in a cell"):
            options(host, home=Path(top) / "x")


def test_links_and_missing_paths_are_refused(host: Host) -> None:
    """A whitelist follows links, so what it would show is not what was named."""
    (host.root / "link").symlink_to(host.root / "env")
    with pytest.raises(ConfigurationError, match="is a link to"):
        options(host, environment=host.root / "link")
    with pytest.raises(ConfigurationError, match="does not exist"):
        options(host, environment=host.root / "none")


@pytest.mark.parametrize("argv", [[], ["true"], ["--net=eth0"], [""], ["./x"]])
def test_the_program_is_absolute(host: Host, argv: list[str]) -> None:
    """A program's name can be neither an option nor searched for."""
    with pytest.raises(ConfigurationError, match="absolute"):
        Firejail(PROGRAM).command(DEFAULT, host.paths, argv, limits=LIMITS)


def test_more_than_firejail_takes_is_refused(host: Host) -> None:
    """Firejail's own bounds on arguments are met before it is started."""
    firejail = Firejail(PROGRAM)
    with pytest.raises(ConfigurationError, match="firejail takes"):
        firejail.command(DEFAULT, host.paths, ["/bin/echo", *["x"] * 80], limits=LIMITS)
    with pytest.raises(ConfigurationError, match="too long"):
        firejail.command(DEFAULT, host.paths, ["/bin/echo", "x" * 5000], limits=LIMITS)
    with pytest.raises(ConfigurationError, match="zero"):
        firejail.command(DEFAULT, host.paths, ["/bin/echo", "a\0b"], limits=LIMITS)


@pytest.mark.parametrize("program", ["firejail", "/usr/bin/jail", "/usr/bin/firejail-0.9"])
def test_firejail_is_called_firejail(program: str) -> None:
    """Under another name it would run a program of that name."""
    with pytest.raises(ConfigurationError, match="called firejail"):
        Firejail(Path(program))


def test_the_tops_of_the_host_are_hidden(host: Host, tmp_path: Path) -> None:
    """Everything beside the standard directories is hidden, dotfiles too; links are not followed."""
    for name in ("usr", "data", ".dockerenv", "lost+found", "with space"):
        (tmp_path / name).mkdir()
    (tmp_path / "vmlinuz").symlink_to("usr")

    assert [path.name for path in host_blacklist(tmp_path)] == [
        ".dockerenv",
        "data",
        "lost+found",
        "with space",
    ]
    found = options(host)
    for path in host_blacklist():
        assert f"--blacklist={path}" in found


@pytest.mark.parametrize("name", ["a*", "a\nb", "${HOME}", "~", "a?b", "a[b", " a"])
def test_a_top_that_cannot_be_hidden_stops_the_launch(tmp_path: Path, name: str) -> None:
    """Better no cell than one that sees what it should not."""
    (tmp_path / name).touch()

    with pytest.raises(ConfigurationError, match="cannot be hidden"):
        host_blacklist(tmp_path)


def test_the_installed_firejail_is_new_enough() -> None:
    """The version is read from the program itself."""
    assert version(PROGRAM, "firejail") >= MINIMUM


@pytest.mark.parametrize(
    "script", ["#!/bin/sh\nexit 0", "#!/bin/sh\necho firejail version 0.9.72; exit 1", "nonsense"]
)
def test_what_is_not_firejail_is_refused(tmp_path: Path, script: str) -> None:
    """A program that does not answer as firejail does is none."""
    program = tmp_path / "firejail"
    program.write_text(script)
    program.chmod(0o755)

    with pytest.raises(SandboxUnavailable) as refused:
        version(program, "firejail")
    assert refused.value.reason == "firejail_missing"


def test_old_and_new_versions_compare(tmp_path: Path) -> None:
    """Versions are numbers, so 0.9.8 is older than 0.9.72."""
    program = tmp_path / "firejail"
    program.write_text("#!/bin/sh\necho firejail version 0.9.8\n")
    program.chmod(0o755)

    assert version(program, "firejail") == (0, 9, 8)
    assert version(program, "firejail") < MINIMUM


def test_a_missing_firejail_is_said(tmp_path: Path) -> None:
    """No program, no cell."""
    with pytest.raises(SandboxUnavailable, match="cannot be run"):
        version(tmp_path / "firejail", "firejail")


def test_the_environment_is_built_from_nothing(user: CellUser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the gateway's own environment gets in, and who the cell is cannot be changed."""
    monkeypatch.setenv("SECRET", "x")
    asked = {
        "HOME": "/root",
        "JPY_PARENT_PID": "1",
        "LANG": "de_DE.UTF-8",
        "KERNEL_NAME": "k",
    }
    found = kernel_environment(
        user, DEFAULT, Path("/srv/env"), asked, limits=Limits(cpus=1.5, home_bytes=1 << 20)
    )

    assert found["PATH"] == "/srv/env/bin:/usr/local/bin:/usr/bin:/bin"
    assert found["HOME"] == str(user.home)
    assert (found["USER"], found["LOGNAME"]) == (user.name, user.name)
    assert found["OMP_NUM_THREADS"] == found["OPENBLAS_NUM_THREADS"] == "2"
    assert found["LANG"] == "de_DE.UTF-8"
    assert found["KERNEL_NAME"] == "k"
    assert not {"SECRET", "JPY_PARENT_PID", "LD_PRELOAD"} & set(found)


def test_a_profiles_variables_come_before_the_requests(user: CellUser) -> None:
    """A kernelspec or request may change what a profile sets."""
    profile = DEFAULT.model_copy(update={"environment": {"A": "profile", "B": "profile"}})
    found = kernel_environment(user, profile, None, {"A": "request"}, limits=LIMITS)

    assert (found["A"], found["B"]) == ("request", "profile")
    assert found["PATH"] == "/usr/local/bin:/usr/bin:/bin"


def test_a_value_with_a_zero_is_refused(user: CellUser) -> None:
    """What no environment can hold is refused with a sentence."""
    with pytest.raises(BadRequest):
        kernel_environment(user, DEFAULT, None, {"A": "a\0b"}, limits=LIMITS)


def test_firejails_own_environment_is_fixed(user: CellUser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that anybody sets reaches firejail, and it never takes itself for contained already."""
    monkeypatch.setenv("SECRET", "x")
    found = firejail_environment(user)

    assert found["container"] == "docker"
    assert set(found) == {"PATH", "HOME", "USER", "LOGNAME", "LANG", "container"}
