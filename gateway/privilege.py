"""From root to the service user: whose the state is, what that user can reach, and the step down."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from gateway.errors import ConfigurationError
from gateway.kernels.specs import shipped_dir as kernelspecs_dir
from gateway.sandbox.namespace import MS_BIND, MS_NODEV, MS_NOSUID, MS_REC, mount, own_mounts
from gateway.sandbox.profile import shipped_dir as profiles_dir
from gateway.settings import Settings


def prepare_state(settings: Settings) -> None:
    """Make the state directory: the gateway's part is the service user's alone, the warden's part root's.

    Raises:
        ConfigurationError: it cannot be made.
    """
    ours = settings.store_path.parent
    try:
        settings.state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        ours.mkdir(mode=0o700, exist_ok=True)
        settings.warden_socket.parent.mkdir(mode=0o711, exist_ok=True)
        if os.geteuid() == 0:
            service = service_user(settings.sandbox.service_user)
            # the directory may be a 0700 one that a caller made for us
            settings.state_dir.chmod(stat.S_IMODE(settings.state_dir.stat().st_mode) | 0o011)
            os.chown(ours, service.pw_uid, service.pw_gid)
    except OSError as error:
        raise ConfigurationError(
            f"The state directory {settings.state_dir} cannot be used: {error.strerror}."
        ) from error


def as_service_user(settings: Settings) -> None:
    """Make the state directory and stop being root. An ordinary user stays who they are.

    Raises:
        ConfigurationError: the directory or the service user cannot be made, or the code cannot be reached.
    """
    prepare_state(settings)
    if os.geteuid() != 0:
        return
    service = service_user(settings.sandbox.service_user)
    os.chdir("/")
    package = Path(__file__).resolve().parent
    tls = settings.server.tls
    needed = {
        Path(sys.prefix),
        Path(sys.base_prefix),
        package,
        kernelspecs_dir(),
        profiles_dir(),
        settings.state_dir,
        *settings.kernels.spec_dirs,
        *settings.sandbox.profile_dirs,
        # the directories: a new certificate may be a new file
        *(path.parent for path in (tls.cert, tls.key, tls.client_ca) if path is not None),
    }
    make_reachable(path.resolve() for path in needed)
    os.setgroups([])
    os.setresgid(service.pw_gid, service.pw_gid, service.pw_gid)
    os.setresuid(service.pw_uid, service.pw_uid, service.pw_uid)
    os.umask(0o077)
    os.environ["HOME"] = service.pw_dir
    if not os.access(package / "app.py", os.R_OK):
        raise ConfigurationError(
            f"The service user {service.pw_name} cannot read {package}; was it installed with a umask of 077?"
        )


def service_user(name: str) -> pwd.struct_passwd:
    """Return the service user, made if need be. Raises ConfigurationError."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        command = ["useradd", "--system", "-U", "-M", "-d", "/nonexistent", "-s", "/usr/sbin/nologin", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigurationError(f"The user {name} cannot be made: {done.stderr.strip()}") from None
        return pwd.getpwnam(name)


def make_reachable(paths: Iterable[Path]) -> None:
    """Give this process a view in which paths below closed directories (root's home) can be reached.

    The view is this process's own: a closed directory shows nothing but what is needed of it. Run it as root,
    with one thread.

    Raises:
        ConfigurationError: the view cannot be made.
    """
    closed: dict[Path, list[Path]] = {}
    for path in sorted(set(paths)):
        barrier = next((above for above in reversed(path.parents) if not above.stat().st_mode & 0o001), None)
        if barrier and path.exists():
            closed.setdefault(barrier, []).append(path)
    if not closed:
        return
    os.umask(0o022)
    try:
        own_mounts()
        for barrier, inside in closed.items():
            # opened among the own mounts: nothing of another namespace can be bound
            opened = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in inside]
            mount("view", barrier, "tmpfs", MS_NOSUID | MS_NODEV, "size=64k,mode=0755")
            for path, descriptor in opened:
                # a path below one that is bound already is there with it
                if not path.exists():
                    path.mkdir(parents=True)
                    mount(f"/proc/self/fd/{descriptor}", path, None, MS_BIND | MS_REC)
                os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or 'A needed directory'} cannot be shown to the service user: {error.strerror}."
        ) from error
