"""The warden as a process: built from the settings, started below its keeper, found by its socket."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import logging.handlers
import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path

from gateway.errors import ConfigurationError, GatewayError, SandboxUnavailable
from gateway.sandbox import bubblewrap, firejail
from gateway.sandbox.alternatives import Alternatives
from gateway.sandbox.backend import version
from gateway.sandbox.bubblewrap import Bubblewrap
from gateway.sandbox.cgroup import CgroupTree
from gateway.sandbox.firejail import Firejail
from gateway.sandbox.launch import Launcher, Privilege, sweep
from gateway.sandbox.namespace import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_NOSYMFOLLOW, mount, unmount
from gateway.sandbox.packets import connect, listen
from gateway.sandbox.profile import load_profiles, profile_dirs
from gateway.sandbox.users import UserPool
from gateway.sandbox.warden import Warden
from gateway.sandbox.wire import WardenFacts
from gateway.sandbox.workspaces import Workspaces
from gateway.settings import Settings

CANNOT_START = 2
LOG_BYTES = 1 << 20
START_TIMEOUT_S = 15.0
TAKEOVER_S = 10.0

# firejail's own switches, for the processes that the warden starts: nothing that a cell's launch does not use
FIREJAIL_CONFIG = """\
bind no
chroot no
file-transfer no
force-nonewprivs yes
join no
name-change no
private-home no
restricted-network yes
x11 no
"""

log = logging.getLogger("cellblock.warden")


def tree_name(settings: Settings) -> str:
    """Return the short name that is this state directory's on the machine: for run directory and cgroups."""
    return hashlib.sha256(os.fsencode(settings.state_dir.resolve())).hexdigest()[:8]


def run_dir(settings: Settings) -> Path:
    """Return the directory of the cells' sockets, short since a socket's path holds 107 bytes."""
    if settings.sandbox.run_dir:
        return settings.sandbox.run_dir
    if os.geteuid() == 0:
        return Path("/run/cellblock") / tree_name(settings)
    # of the places that a cell can be shown a directory of, those where an ordinary user may make one
    runtime = Path(f"/run/user/{os.geteuid()}")
    base = runtime / "cellblock" if os.access(runtime, os.W_OK) else Path(f"/tmp/cellblock-{os.geteuid()}")  # noqa: S108
    return base / tree_name(settings)


def settings_hash(settings: Settings) -> str:
    """Return what tells apart the settings that a warden was started with."""
    return hashlib.sha256(settings.sandbox.model_dump_json().encode()).hexdigest()


def reachable(path: Path) -> bool:
    """Tell whether a warden answers at a socket."""
    try:
        connect(path).close()
    except OSError:
        return False
    return True


def ensure(settings: Settings) -> subprocess.Popen[bytes] | None:
    """Start a warden for this state directory unless one is running; return its keeper once it answers.

    Raises:
        SandboxUnavailable: it did not start; the message carries its own words.
    """
    directory = settings.warden_socket.parent
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    if reachable(settings.warden_socket):
        return None
    facts = directory / "settings.json"
    facts.touch(mode=0o600)
    facts.write_text(settings.model_dump_json())
    keeper = Path(__file__).with_name("keeper.py")
    command = [sys.executable, "-I", str(keeper), sys.executable, "-m", "gateway.sandbox.daemon", str(facts)]
    with (directory / "start.log").open("w+b") as said:
        # in a session and with streams of its own: it outlives the gateway and holds nothing of the gateway's
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd="/", start_new_session=True
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not reachable(settings.warden_socket):
            if process.poll() is not None or time.monotonic() > deadline:
                said.seek(0)
                words = said.read(4096).decode("utf-8", "replace").strip()
                raise SandboxUnavailable(f"The warden did not start: {words or 'it gave no reason'}")
            time.sleep(0.01)
    return process


def build(settings: Settings) -> Warden:
    """Build the warden of this process from the settings, and clean up after a dead one.

    Raises:
        ConfigurationError: a profile is wrong, or a directory is somebody else's.
        SandboxUnavailable: this process may not do what its mode needs.
    """
    directory = settings.warden_socket.parent
    profiles = load_profiles(profile_dirs(settings.sandbox.profile_dirs))
    base = run_dir(settings)
    cgroups = CgroupTree.detect(tree_name(settings))
    if cgroups is None and settings.sandbox.require_cgroups:
        raise SandboxUnavailable(
            "Control groups are required, and none with memory and pids can be written here."
        )
    if cgroups:
        for leftover in cgroups.leftovers():
            cgroups.open(leftover).kill()
            cgroups.open(leftover).remove()
    sweep(base)
    privilege = switches = links = None
    program = settings.sandbox.firejail
    refusals = {
        "firejail": unusable("firejail", program, firejail.MINIMUM),
        "bubblewrap": unusable("bubblewrap", settings.sandbox.bubblewrap, bubblewrap.MINIMUM),
    }
    if os.geteuid() == 0:
        privilege = prepare_privileged(settings, base)
        switches = firejail_settings(directory)
        links = Alternatives(directory / "alternatives")
        if refusals["firejail"] is None:
            program = private_copy(program, directory)
    else:
        prepare_own(base)
    # an ordinary user's homes are directories, and firejail replaces /var, wherever the state is
    in_var = privilege is None and directory.resolve().parts[1] == "var"
    homes = (base if in_var else directory) / "homes"
    shutil.rmtree(homes, ignore_errors=True)
    homes.mkdir(mode=0o700)
    log.info("control groups: %s", cgroups.describe() if cgroups else "none: limits are rlimits only")
    for backend, refusal in refusals.items():
        if refusal and any(profile.backend == backend for profile in profiles.values()):
            log.log(logging.ERROR if backend == "firejail" else logging.WARNING, "%s", refusal)
    workspaces = Workspaces(directory / "workspaces", images=privilege is not None)
    launcher = Launcher(
        backends={
            "firejail": Firejail(program, settings=switches, alternatives=links),
            "bubblewrap": Bubblewrap(settings.sandbox.bubblewrap),
        },
        run_dir=base,
        home_dir=homes,
        workspaces=workspaces,
        environment_roots=settings.sandbox.environment_roots,
        cgroups=cgroups,
        privilege=privilege,
        timeout_s=settings.sandbox.start_timeout_s,
        refusals={backend: refusal for backend, refusal in refusals.items() if refusal},
    )
    launcher.prepare()
    gateway = pwd.getpwnam(settings.sandbox.service_user) if privilege else None
    return Warden(
        launcher=launcher,
        workspaces=workspaces,
        profiles=profiles,
        listener=listen(settings.warden_socket, gid=gateway.pw_gid if gateway else None),
        allowed_uids=frozenset({os.geteuid(), gateway.pw_uid if gateway else os.geteuid()}),
        keep_s=settings.sandbox.keep_s,
        facts=WardenFacts(
            privileged=privilege is not None,
            cgroups=cgroups.describe() if cgroups else None,
            settings=settings_hash(settings),
        ),
    )


def unusable(backend: str, program: Path, minimum: tuple[int, int, int]) -> str | None:
    """Return why a backend's program cannot be used, None if it can."""
    try:
        found = version(program, backend)
    except GatewayError as error:
        return error.message
    if found < minimum:
        wanted = ".".join(map(str, minimum))
        return f"{program} is version {'.'.join(map(str, found))}; {wanted} or newer is needed."
    return None


def hold(path: Path, refusal: str, *, wait_s: float = 0.0) -> None:
    """Hold a lock for this process's life. Raises ConfigurationError when another keeps it for `wait_s`."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(lock)
                raise ConfigurationError(refusal) from None
        time.sleep(0.02)


def prepare_privileged(settings: Settings, base: Path) -> Privilege:
    """Lay out what a root warden needs: the sockets' small tmpfs, the pool."""
    try:
        gateway = pwd.getpwnam(settings.sandbox.service_user)
    except KeyError:
        raise ConfigurationError(f"There is no user {settings.sandbox.service_user!r}.") from None
    base.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    base.mkdir(mode=0o711, exist_ok=True)
    # a dead warden's mount is kept: a gateway with mounts of its own would not see another
    if not base.is_mount():
        flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
        options = "size=16m,nr_inodes=16k,mode=0711"
        try:
            mount("cellblock", base, "tmpfs", flags | MS_NOSYMFOLLOW, options)
        except OSError:
            # MS_NOSYMFOLLOW came with Linux 5.10; sealing and no reconnects guard without it
            mount("cellblock", base, "tmpfs", flags, options)
    sandbox = settings.sandbox
    pool = UserPool(sandbox.pool_prefix, sandbox.pool_first_uid, sandbox.pool_size)
    return Privilege(users=pool, gateway_gid=gateway.pw_gid)


def firejail_settings(directory: Path) -> Path:
    """Lay out firejail's switches for cells of root's; return their directory."""
    Path("/run/firejail").mkdir(mode=0o755, exist_ok=True)
    switches = directory / "firejail"
    switches.mkdir(mode=0o755, exist_ok=True)
    (switches / "firejail.config").write_text(FIREJAIL_CONFIG)
    return switches


def private_copy(firejail: Path, directory: Path) -> Path:
    """Copy firejail to where only root may run it, without the SUID bit; the system's own stays as it is."""
    target = directory / "bin" / "firejail"
    target.parent.mkdir(mode=0o700, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copyfile(firejail, target)
    target.chmod(0o700)
    return target


def prepare_own(base: Path) -> None:
    """Lay out the run directory of an ordinary user. Raises ConfigurationError when it is somebody else's."""
    base.parent.mkdir(mode=0o700, exist_ok=True)
    facts = base.parent.lstat()
    if facts.st_uid != os.geteuid() or base.parent.is_symlink():
        raise ConfigurationError(f"{base.parent} belongs to somebody else; set sandbox.run_dir.")
    base.mkdir(mode=0o700, exist_ok=True)


def clear(settings: Settings) -> None:
    """Remove from the machine what a warden laid out for its cells."""
    if os.geteuid() == 0:
        unmount(run_dir(settings))
    shutil.rmtree(run_dir(settings), ignore_errors=True)
    if cgroups := CgroupTree.detect(tree_name(settings)):
        cgroups.remove()


def main() -> int:
    """Run the warden that the settings file named on the command line describes."""
    settings = Settings.model_validate_json(Path(sys.argv[1]).read_text())
    directory = settings.warden_socket.parent
    os.umask(0o022)
    handler = logging.handlers.RotatingFileHandler(
        directory / "warden.log", maxBytes=LOG_BYTES, backupCount=1
    )
    logging.basicConfig(
        level=logging.INFO, handlers=[handler], format="%(asctime)s %(levelname)s %(message)s"
    )

    async def serve() -> None:
        try:
            await build(settings).run()
        finally:
            clear(settings)

    try:
        # one that was told to stop may still be ending its cells
        hold(directory / "lock", f"Another warden holds {directory}.", wait_s=TAKEOVER_S)
        asyncio.run(serve())
    except GatewayError as error:
        log.error("%s", error.message)
        print(error.message, file=sys.stderr)  # noqa: T201
        return CANNOT_START
    return 0


if __name__ == "__main__":
    sys.exit(main())
