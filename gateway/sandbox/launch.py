"""Launching one cell: a backend around the boot step, proof from outside, the order to become a kernel."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import BadRequest, Conflict, SandboxUnavailable
from gateway.sandbox import bootstep, claiming, confinement, shares, tmpfs
from gateway.sandbox.backend import ALIAS, Backend, CellPaths
from gateway.sandbox.bootorder import attended, boot_order, interpreter, programs
from gateway.sandbox.bootstep import BootStep
from gateway.sandbox.cell import Cell, Tail
from gateway.sandbox.cgroup import CgroupTree
from gateway.sandbox.handshake import Handshake, Hello
from gateway.sandbox.home import Home
from gateway.sandbox.namespace import Entry, Leash
from gateway.sandbox.profile import SandboxProfile
from gateway.sandbox.spawn import Spawned
from gateway.sandbox.users import CellUser, UserPool, current_user
from gateway.sandbox.wire import Claim, Connection, LaunchOrder, Place
from gateway.sandbox.workspaces import Lease, Workspaces


@dataclass(frozen=True, slots=True)
class Privilege:
    """What only a root warden has: pool users, and the gateway's group."""

    users: UserPool
    gateway_gid: int


class Launcher:
    """Starts cells below `run_dir`; with a `privilege` each runs as a pool user, else as this very user.

    `backends` has one of each name that a profile may give; a name among the `refusals` says why no cell can
    be had with it on this machine, and is the answer to every such launch.
    """

    def __init__(
        self,
        *,
        backends: Mapping[str, Backend],
        run_dir: Path,
        home_dir: Path,
        environment_roots: tuple[Path, ...],
        workspaces: Workspaces,
        cgroups: CgroupTree | None,
        privilege: Privilege | None,
        timeout_s: float,
        refusals: Mapping[str, str],
    ) -> None:
        self._backends = backends
        self._refusals = refusals
        self._run_dir = run_dir
        self._home_dir = home_dir
        self._environment_roots = environment_roots
        self._workspaces = workspaces
        self._cgroups = cgroups
        self._privilege = privilege
        self._timeout_s = timeout_s
        self._boot = BootStep(run_dir)
        self._programs: Mapping[str, str] = {}

    def prepare(self) -> None:
        """Lay out the boot step where every cell can read it, and get ready what its order brings."""
        self._boot.lay(bootstep.text())
        self._programs = programs()

    async def launch(self, order: LaunchOrder, profile: SandboxProfile) -> Cell:
        """Start a cell and return it once proved confined and ordered to become its kernel.

        Raises:
            SandboxUnavailable: it could not be started or proved; nothing of it is left.
            BadRequest: the order asks for what no cell may have.
        """
        if refusal := self._refusals.get(profile.backend):
            raise SandboxUnavailable(refusal, reason=f"{profile.backend}_missing")
        environment = self._environment(order.environment)
        boot = self._boot.file(interpreter(order.argv, environment)[0])
        cell, handshake = self._start(order, profile, environment, boot)
        try:
            async with asyncio.timeout(self._timeout_s):
                hello, pid = await handshake.hello()
                self._prove(cell, pid, hello, order, self._backends[profile.backend].shm)
                texts = self._programs if attended(order, profile) else {}
                orders = boot_order(order, profile, cell, environment, boot, programs=texts)
                await handshake.order(orders)
                if texts:
                    cell.attendant_fd = await handshake.attendant()
        except TimeoutError:
            await cell.end()
            raise SandboxUnavailable(
                f"The cell did not come up within {self._timeout_s:g} s.", reason="cell_timeout"
            ) from None
        except (SandboxUnavailable, OSError) as error:
            ending = await cell.end()
            said = f" {profile.backend} said: {ending.stderr[-500:]}" if ending.stderr else ""
            message = (
                error.message if isinstance(error, SandboxUnavailable) else f"The cell is gone: {error}."
            )
            raise SandboxUnavailable(message + said, reason=getattr(error, "reason", None)) from error
        except BaseException:
            await cell.end()
            raise
        finally:
            handshake.close()
        return cell

    def claim(self, cell: Cell, order: Claim, profile: SandboxProfile) -> None:
        """Make a pooled cell somebody's; see `claiming.claim`."""
        claiming.claim(cell, order, profile, shm=self._backends[profile.backend].shm)

    def _environment(self, path: str | None) -> Path | None:
        """Return a kernel environment's real path, if cells may see it. Raises SandboxUnavailable."""
        if path is None:
            return None
        real = Path(path).resolve()
        if not any(real.is_relative_to(root) and real != root for root in self._environment_roots):
            raise SandboxUnavailable(
                f"The kernel environment {path} is not below an allowed root.", reason="environment_refused"
            )
        try:
            facts = real.stat()
        except OSError as error:
            raise SandboxUnavailable(
                f"The kernel environment {path} cannot be used: {error.strerror}.", reason="no_environment"
            ) from error
        if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
            raise SandboxUnavailable(
                f"The kernel environment {path} can be written by others.", reason="environment_refused"
            )
        return real

    def _start(
        self, order: LaunchOrder, profile: SandboxProfile, environment: Path | None, boot: Path
    ) -> tuple[Cell, Handshake]:
        with contextlib.ExitStack() as undo:
            share = self._share(order, environment)
            user = self._privilege.users.take() if self._privilege else current_user()
            if self._privilege:
                undo.callback(self._privilege.users.release, user)
            directory = self._directory(order.place)
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            lease = self._workspaces.take(order.workspace) if order.workspace else None
            if lease:
                undo.callback(lease.release)
            home = self._home(directory, lease)
            if not lease:
                undo.callback(shutil.rmtree, home, ignore_errors=True)
            connection = self._connection(directory / "i", order.place, user)
            cgroup = self._cgroups.create(directory.name, order.limits) if self._cgroups else None
            if cgroup:
                undo.callback(cgroup.remove)
            paths = CellPaths(
                home=home,
                ipc=directory / "i",
                environment=environment,
                boot=boot,
                share=share,
                share_writable=order.share is not None and order.share.writable,
            )
            program = [*interpreter(order.argv, environment), str(boot)]
            leash, held = os.pipe()
            undo.callback(os.close, leash)
            started = undo.enter_context(contextlib.ExitStack())
            started.callback(os.close, held)
            backend = self._backends[profile.backend]
            invocation = backend.invocation(
                profile, paths, program, user=user, limits=order.limits, leash=held
            )
            for descriptor in invocation.descriptors:
                started.callback(os.close, descriptor)
            steps: list[Callable[[], Any]] = [Leash(held)]
            files = tuple(cgroup.procs_files()) if cgroup else ()
            if self._privilege:
                volume = lease.volume(user) if lease else None
                if volume:
                    started.callback(volume.close)
                steps += [Entry(user, home, order.limits, files, volume), backend.become(user)]
            else:
                steps.append(Joining(files))
            handshake = Handshake(profile.backend)
            undo.callback(handshake.close)
            with handshake.theirs, started:
                try:
                    process = Spawned(
                        invocation.command,
                        invocation.environment,
                        stdin=handshake.theirs.fileno(),
                        descriptors=(held, *invocation.descriptors),
                        steps=steps,
                    )
                except OSError as error:
                    raise SandboxUnavailable(
                        f"{profile.backend} cannot be started: {error}.", reason=f"{profile.backend}_missing"
                    ) from error
            undo.pop_all()
        cell = Cell(
            id=directory.name,
            kernel_id=order.kernel_id,
            profile=order.profile,
            user=dataclasses.replace(user, home=home) if share else user,
            directory=directory,
            home=home,
            connection=connection,
            process=process,
            stderr=Tail(process.stderr),
            born=time.monotonic() - order.age_s,
            leash=leash,
            limits=order.limits,
            cgroup=cgroup,
            pool=self._privilege.users if self._privilege else None,
            workspace=lease,
            tied=order.tied,
            pooled=order.pooled,
        )
        record(directory, process.pid)
        return cell, handshake

    def _home(self, directory: Path, lease: Lease | None) -> Path:
        """Return the directory that becomes a cell's home: a root warden's launcher mounts over it."""
        if lease and not self._privilege:
            return lease.path
        home = directory / "h" if self._privilege else self._home_dir / directory.name
        home.mkdir(mode=0o700)
        return home

    def _share(self, order: LaunchOrder, environment: Path | None) -> Path | None:
        """Return the directory that the order shares with its cell. Raises BadRequest."""
        if order.share is None:
            return None
        if self._privilege:
            raise shares.refusal(
                Path(order.share.path), "a cell of root's runs as a user who has no access to your files"
            )
        if order.workspace:
            raise BadRequest("A cell has a workspace or a shared directory, not both.")
        closed = [self._run_dir, self._home_dir.parent.parent]
        if environment and order.share.writable:
            closed.append(environment)
        return shares.checked(order.share, current_user(), closed)

    def _directory(self, place: Place | None) -> Path:
        """Make a cell's directory, whose name is its id. Raises Conflict where the ended one's is there."""
        directory = self._run_dir / (place.cell if place else secrets.token_hex(6))
        try:
            directory.mkdir(mode=0o711)
        except FileExistsError:
            raise Conflict(f"The place of cell {directory.name} is taken.", reason="place_taken") from None
        return directory

    def _connection(self, ipc: Path, place: Place | None, user: CellUser) -> Connection:
        """Make the ipc directory and the connection file: the kernel binds, the gateway's group connects."""
        ipc.mkdir(mode=0o700)
        connection = Connection(ip=str(ipc / "k"), key=place.key if place else secrets.token_hex(32))
        file = ipc / "c.json"
        file.touch(mode=0o400)
        file.chmod(0o600)
        file.write_text(connection.model_dump_json())
        file.chmod(0o400)
        if self._privilege:
            os.chown(file, user.uid, user.gid)
            os.chown(ipc, user.uid, self._privilege.gateway_gid)
            ipc.chmod(0o2770)
        return connection

    def _prove(self, cell: Cell, pid: int, hello: Hello, order: LaunchOrder, shm: str) -> None:
        limits, share = order.limits, order.share
        # the pidfd first: what is proved afterwards is proved of the process that it holds
        cell.kernel_fd, cell.kernel_pid = os.pidfd_open(pid), pid
        init = confinement.prove(
            pid,
            uid=cell.user.uid,
            parent=cell.process.pid,
            reported=hello.namespaces,
            filtered=hello.filtered,
        )
        if cell.cgroup and pid not in cell.cgroup.pids():
            raise SandboxUnavailable("The cell is not in its cgroup.", reason="not_confined")
        cell.init_fd = os.pidfd_open(init)
        if confinement.status(pid).get("PPid") != str(init):
            raise SandboxUnavailable("The cell ended before it could be proved.", reason="cell_ended")
        cell.landlock = hello.landlock
        if share and share.writable and not hello.landlock:
            raise SandboxUnavailable(
                "A directory can be shared to write to only where Linux has Landlock.", reason="no_landlock"
            )
        if self._privilege:
            inodes = limits.home_inodes
            tmpfs.bound(pid, "/tmp", size_bytes=limits.tmp_bytes, inodes=inodes)  # noqa: S108
            tmpfs.bound(pid, shm, size_bytes=limits.shm_bytes, inodes=inodes)
        cell.files = Home.of_cell(pid, cell.user) if self._privilege else Home.of_directory(cell.home)
        if self._privilege:
            self._name_home(pid, cell.user)

    @staticmethod
    def _name_home(pid: int, user: CellUser) -> None:
        """Have a cell's home known by its other name, too, unless its backend has seen to that.

        Nothing of the user's has run in it yet, so that the path is what it seems.
        """
        alias = Path(f"/proc/{pid}/root{ALIAS}")
        with contextlib.suppress(OSError):
            if alias.parent.lstat().st_dev != ALIAS.parent.lstat().st_dev:
                alias.symlink_to(user.home)


@dataclass(frozen=True, slots=True)
class Joining:
    """Joins cgroups between fork and exec, where an ordinary user was delegated some."""

    files: tuple[Path, ...]

    def __call__(self) -> None:
        """Write this process into the groups."""
        for file in self.files:
            file.write_text(str(os.getpid()))


def record(directory: Path, pid: int) -> None:
    """Note whose cell a directory is, so that the next warden can end what this one could not."""
    (directory / "pid").write_text(f"{pid} {started(pid)}")


def started(pid: int) -> str:
    """Return when a process was started, in clock ticks since boot; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return ""


def sweep(run_dir: Path) -> None:
    """End the cells that a dead warden left below a directory, and remove what it noted of them."""
    for directory in run_dir.glob("????????????"):
        with contextlib.suppress(OSError, ValueError):
            pid, since = (directory / "pid").read_text().split()
            if since == started(int(pid)):
                os.kill(int(pid), signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)
