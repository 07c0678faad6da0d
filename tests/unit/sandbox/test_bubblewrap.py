"""Cells of bubblewrap's: what their commands hold and refuse, and what real bubblewrap makes of them."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import ConfigurationError, SandboxUnavailable
from gateway.models import Limits
from gateway.sandbox.backend import CellPaths, Invocation, version
from gateway.sandbox.bubblewrap import BASE, MINIMUM, Bubblewrap
from gateway.sandbox.profile import SandboxProfile, load_profile, profile_dirs
from gateway.sandbox.users import CellUser

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROGRAM = Path("/usr/bin/bwrap")
LIMITS = Limits(pids=64, tmp_bytes=2 << 20, shm_bytes=3 << 20)
STRICT = load_profile("bubblewrap", profile_dirs())


@dataclass
class Host:
    """An ordinary user's uid and directories of that user's, for real cells."""

    user: CellUser
    root: Path
    paths: CellPaths

    def start(
        self, argv: Sequence[str], *, profile: SandboxProfile = STRICT, paths: CellPaths | None = None
    ) -> subprocess.Popen[str]:
        """Start a program in a cell, as the warden does."""
        reading, leash = os.pipe()
        taken = self.invocation(argv, profile=profile, paths=paths, leash=leash)
        try:
            return subprocess.Popen(
                taken.command,
                cwd="/",
                env=taken.environment,
                user=self.user.uid,
                group=self.user.gid,
                extra_groups=[] if os.geteuid() == 0 else None,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                umask=0o077,
                start_new_session=True,
                pass_fds=(leash, *taken.descriptors),
            )
        finally:
            for descriptor in (reading, leash, *taken.descriptors):
                os.close(descriptor)

    def invocation(
        self,
        argv: Sequence[str],
        *,
        profile: SandboxProfile = STRICT,
        paths: CellPaths | None = None,
        leash: int = 2,
    ) -> Invocation:
        """Compose a cell."""
        return Bubblewrap(PROGRAM).invocation(
            profile, paths or self.paths, argv, user=self.user, limits=LIMITS, leash=leash
        )

    def options(self, **changed: Any) -> list[str]:
        """Return a cell's options, as its descriptor holds them."""
        profile = changed.pop("profile", STRICT)
        paths = dataclasses.replace(self.paths, **changed)
        taken = self.invocation(["/bin/true"], profile=profile, paths=paths)
        try:
            text = os.pread(int(taken.command[2]), 1 << 20, 0).decode()
        finally:
            for descriptor in taken.descriptors:
                os.close(descriptor)
        assert text.endswith("\0")
        return text.split("\0")[:-1]

    def python(self, code: str, **options: Any) -> Any:
        """Run Python in a cell; the code leaves its findings in `found`."""
        script = f"import json, os\nfound = None\n{code}\nprint(json.dumps(found))"
        with self.start(["/usr/bin/python3", "-I", "-c", script], **options) as process:
            said, complained = process.communicate(timeout=30)
        assert process.returncode == 0, complained
        return json.loads(said)


@pytest.fixture
def host() -> Iterator[Host]:
    """A user (a number is enough for bubblewrap) and directories that the user may reach, gone afterwards."""
    if os.geteuid():
        entry = pwd.getpwuid(os.geteuid())
        user = CellUser(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
    else:
        user = CellUser("somebody", 61_234, 61_234, Path("/home/somebody"))
    root = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
    root.chmod(0o755)
    for name in ("home", "ipc", "other"):
        (root / name).mkdir(mode=0o700)
        os.chown(root / name, user.uid, user.gid)
    (root / "env" / "bin").mkdir(parents=True)
    (root / "env").chmod(0o755)
    (root / "boot.py").write_text("print('booted')")
    yield Host(user, root, CellPaths(root / "home", root / "ipc", root / "env", root / "boot.py"))
    shutil.rmtree(root)


def test_every_fixed_option_is_there_and_says_why(host: Host) -> None:
    """No profile can lose one of the walls, and each carries its reason."""
    found = host.options(
        profile=STRICT.model_copy(update={"memory": type(STRICT.memory)(write_execute=True)})
    )
    lines = "\0".join(found)

    for option, reason in BASE:
        assert "\0".join(option) in lines
        assert len(reason) > 3
    assert not [word for word in found if word.startswith("--share") or word == "--dev-bind"]


def test_the_command_line_tells_nothing(host: Host) -> None:
    """What everybody may read of it is two programs, a number, and the boot step."""
    taken = host.invocation(["/usr/bin/python3", "-I", "x"])
    for descriptor in taken.descriptors:
        os.close(descriptor)

    assert taken.command[:2] == [str(PROGRAM), "--args"]
    assert taken.command[2].isdigit()
    assert taken.command[3:] == ["--", "/usr/bin/python3", "-I", "x"]
    assert set(taken.environment) == {"PATH", "LANG"}


def test_nothing_stays_open_when_a_cell_is_refused(host: Host) -> None:
    """A path that cannot be had leaves no descriptor behind."""
    before = open_descriptors()

    with pytest.raises(ConfigurationError):
        host.invocation(["/bin/true"], paths=dataclasses.replace(host.paths, environment=Path("/etc/x")))

    assert open_descriptors() == before


def open_descriptors() -> list[str]:
    """List what this process has open, but for the listing itself."""
    return sorted(str(path) for path in Path("/proc/self/fd").iterdir() if path.exists())


CONFINED = """
import socket
lines = open("/proc/self/status").read().splitlines()
status = dict(line.split(":", 1) for line in lines if ":" in line)
def tried(what, *arguments):
    try:
        got = what(*arguments)
        return sorted(got) if isinstance(got, list) else "done"
    except OSError as error:
        return type(error).__name__
found = {
    "status": [status[key].strip() for key in ("NoNewPrivs", "Seccomp", "CapEff", "CapPrm", "CapBnd")],
    "uid": [os.getuid(), os.geteuid(), os.getgid()],
    "ns": {k: os.readlink("/proc/self/ns/" + k) for k in ("pid", "net", "mnt", "ipc", "uts", "user")},
    "top": sorted(os.listdir("/")), "dev": sorted(os.listdir("/dev")), "etc": sorted(os.listdir("/etc")),
    "run": tried(os.listdir, "/run"), "home": os.listdir(os.path.expanduser("~")), "cwd": os.getcwd(),
    "inet": tried(socket.socket, socket.AF_INET), "name": os.uname().nodename,
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]],
    "cmdline": open("/proc/1/cmdline").read(), "pids": sorted(p for p in os.listdir("/proc") if p.isdigit()),
    "fds": len(os.listdir("/proc/self/fd")), "environ": sorted(os.environ),
}
"""


def test_the_cell_is_confined(host: Host) -> None:
    """A real cell has nothing of the host's but what it was given."""
    found = host.python(CONFINED)

    assert found["status"] == ["1", "2", "0" * 16, "0" * 16, "0" * 16]
    assert found["uid"] == [host.user.uid, host.user.uid, host.user.gid]
    for name, link in found["ns"].items():
        assert link != str(Path(f"/proc/self/ns/{name}").readlink())
    allowed = {
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "sbin",
        "tmp",
        "usr",
        "var",
    }
    assert set(found["top"]) <= allowed | {host.user.home.parts[1]}
    assert set(found["etc"]) <= set(STRICT.files.private_etc)
    assert "mem" not in found["dev"]
    assert (found["run"], found["home"], found["cwd"]) == ("FileNotFoundError", [], str(host.user.home))
    assert (found["inet"], found["name"], found["interfaces"]) == ("OSError", "kernel", ["lo"])
    assert found["pids"] == ["1", "2"]
    # standard streams and the listing itself
    assert found["fds"] == 4
    assert str(host.root / "home") not in found["cmdline"]
    assert set(found["environ"]) <= {"PATH", "LANG", "PWD", "LC_CTYPE"}


WRITES = """
def written(path):
    try:
        os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        return True
    except OSError:
        return False
places = ["/", "/dev/", "/usr/", "/etc/", "/var/", "/home/", os.path.expanduser("~/"), "/tmp/", "/var/tmp/",
          "/dev/shm/", *given]
found = [place for place in places if written(place + "x")]
"""


def test_writable_is_what_should_be(host: Host) -> None:
    """Home, ipc directory, /tmp (also as /var/tmp) and /dev/shm; nothing else, and nothing gets out."""
    given = [f"{host.root}/{name}/" for name in ("env", "ipc", "other")]

    found = host.python(f"given = {given!r}\n{WRITES}")

    home = f"{host.user.home}/"
    assert found == [home, "/tmp/", "/var/tmp/", "/dev/shm/", f"{host.root}/ipc/"]
    assert [path.name for path in (host.root / "home").iterdir()] == ["x"]
    assert not (host.root / "other" / "x").exists()


def test_sizes_are_the_limits(host: Host) -> None:
    """/tmp and /dev/shm end where the limits say."""
    code = "found = [os.statvfs(p).f_blocks * os.statvfs(p).f_frsize for p in ('/tmp', '/dev/shm')]"

    assert host.python(code) == [LIMITS.tmp_bytes, LIMITS.shm_bytes]


def test_passwd_names_nobody_else(host: Host) -> None:
    """The cell finds its own user, and the names of no people."""
    code = """
import grp, pwd
people = sorted(entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid >= 1000)
members = [entry.gr_mem for entry in grp.getgrall() if entry.gr_mem]
found = [pwd.getpwuid(os.getuid()).pw_dir, grp.getgrgid(os.getgid()).gr_name, people, members]
"""
    home, group, people, members = host.python(code)

    assert (home, group) == (str(host.user.home), host.user.name)
    assert set(people) <= {host.user.uid, 65_534}
    assert members == []


def test_hidden_paths_are_empty(host: Host) -> None:
    """A directory that a profile hides is empty, a file cannot be read; what the kernel tells is covered."""
    (host.root / "env" / "secret").write_text("x")
    files = STRICT.files.model_copy(update={"blacklist": ("/usr/src", f"{host.root}/env/secret", "/no/such")})
    code = f"""
def tried(path):
    try:
        return os.listdir(path) if os.path.isdir(path) else len(open(path, "rb").read(1))
    except OSError as error:
        return error.strerror
found = [tried(p) for p in ("/usr/src", "{host.root}/env/secret", "/proc/kallsyms", "/proc/timer_list")]
"""
    found = host.python(code, profile=STRICT.model_copy(update={"files": files}))

    assert found == [[], *["Permission denied"] * 3]


def test_the_filter_is_the_profiles(host: Host) -> None:
    """Memory that is written and executed is had where the profile allows it, and only there."""
    code = """
import mmap
try:
    mmap.mmap(-1, 4096, prot=7)
    found = True
except OSError:
    found = False
"""
    loose = STRICT.model_copy(update={"memory": STRICT.memory.model_copy(update={"write_execute": True})})

    assert host.python(code) is False
    assert host.python(code, profile=loose) is True


@pytest.mark.parametrize("top", ["etc", "proc", "sys", "dev", "root", "boot", "lib"])
def test_shared_paths_are_where_they_can_be(host: Host, top: str) -> None:
    """What the cell has an own one of cannot be shared into it."""
    with pytest.raises(ConfigurationError, match="cannot be had in a cell"):
        host.options(environment=Path("/", top, "x"))


def test_wrong_paths_are_refused(host: Host) -> None:
    """Links, missing and relative paths are not what was named."""
    (host.root / "link").symlink_to(host.root / "env")
    with pytest.raises(ConfigurationError, match="is a link to"):
        host.options(environment=host.root / "link")
    with pytest.raises(ConfigurationError, match="does not exist"):
        host.options(environment=host.root / "none")
    for path in ("x", "/", "/srv/../etc"):
        with pytest.raises(ConfigurationError, match="absolute path below"):
            host.options(environment=Path(path))


@pytest.mark.parametrize("home", ["/", "/usr/games", "/etc", "/root"])
def test_some_homes_cannot_be_had(host: Host, home: str) -> None:
    """A user whose home is the system's gets no cell, rather than a broken one."""
    host.user = dataclasses.replace(host.user, home=Path(home))
    with pytest.raises(ConfigurationError, match="No home can be had"):
        host.options()


@pytest.mark.parametrize("argv", [[], ["true"], ["--bind"], [""], ["./x"]])
def test_the_program_is_absolute(host: Host, argv: list[str]) -> None:
    """A program's name can be neither an option nor searched for."""
    with pytest.raises(ConfigurationError, match="absolute"):
        host.invocation(argv)


def test_arguments_are_no_options(host: Host) -> None:
    """What follows the program is the program's, dashes and all; a zero is refused."""
    with host.start(["/bin/echo", "--bind", "/", "/"]) as process:
        assert process.communicate(timeout=30)[0] == "--bind / /\n"
    with pytest.raises(ConfigurationError, match="zero"):
        host.invocation(["/bin/echo", "a\0--bind"])


def test_the_cell_dies_with_its_maker(host: Host) -> None:
    """SIGKILL of the process that was started ends everything in the cell, detached children too."""
    mark = f"cellblock-bwrap-{os.getpid()}"
    code = f"(setsid sleep 300 {mark} 2>/dev/null || exec -a {mark} sleep 300) & exec -a {mark} sleep 300"
    process = host.start(["/bin/bash", "-c", f"echo up; {code}"])
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"

    process.send_signal(signal.SIGKILL)
    process.wait()
    # the pipe ends when the last process that holds it is gone
    process.communicate(timeout=10)

    assert not [p for p in Path("/proc").glob("[1-9]*") if mark.encode() in read(p / "cmdline")]


def read(path: Path) -> bytes:
    """Read a file of /proc; nothing where the process is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_the_programs_exit_code_comes_out(host: Host) -> None:
    """Bubblewrap ends with the code of what ran in it, whatever it left behind."""
    with host.start(["/bin/sh", "-c", "sleep 300 >/dev/null 2>&1 & exit 7"]) as process:
        process.communicate(timeout=10)
    assert process.returncode == 7


PROFILE = 'description = "x"\nextends = "bubblewrap"\n'


@pytest.mark.parametrize(
    ("lines", "line", "why"),
    [
        ('[exec]\nnoexec = ["home"]\n', 4, "noexec cannot be had"),
        (
            '[syscalls]\nkeep = ["execve", "read", "write", "mmap", "exit_group", "futex", "raed"]\n',
            4,
            "raed",
        ),
    ],
)
def test_what_bubblewrap_cannot_do_is_an_error(tmp_path: Path, lines: str, line: int, why: str) -> None:
    """An option that would be dropped in silence stops the gateway, with file and line."""
    (tmp_path / "mine.toml").write_text(PROFILE + lines)

    with pytest.raises(ConfigurationError, match=why) as refused:
        load_profile("mine", profile_dirs([tmp_path]))
    assert f"mine.toml:{line}" in refused.value.message


def test_the_installed_bubblewrap_is_new_enough() -> None:
    """The version is read from the program itself."""
    assert version(PROGRAM, "bubblewrap") >= MINIMUM


@pytest.mark.parametrize(
    "script", ["#!/bin/sh\nexit 0", "#!/bin/sh\necho bubblewrap 0.8.0; exit 1", "nonsense"]
)
def test_what_is_not_bubblewrap_is_refused(tmp_path: Path, script: str) -> None:
    """A program that does not answer as bubblewrap does is none."""
    program = tmp_path / "bwrap"
    program.write_text(script)
    program.chmod(0o755)

    with pytest.raises(SandboxUnavailable) as refused:
        version(program, "bubblewrap")
    assert refused.value.reason == "bubblewrap_missing"
    with pytest.raises(SandboxUnavailable, match="cannot be run"):
        version(tmp_path / "none", "bubblewrap")


def test_the_program_is_named_in_full() -> None:
    """A relative name would be searched for."""
    with pytest.raises(ConfigurationError):
        Bubblewrap(Path("bwrap"))
