"""The in-cell boot step: says hello, waits to be proved confined, seals itself, becomes the kernel.

Stdlib only: it runs in the kernel's own Python, inside the cell, before any byte of a user's code. Its
standard input is a socket of the warden's. It says hello there (namespaces, Landlock ABI, what the filters
answer), waits for the order (argv, limits, paths), and swaps the socket for /dev/null. Once sealed it leaves
the attendant behind. Exit code 97: it could not seal itself.

What is loaded until then stays in the attendant for as long as the kernel lives. So that is next to nothing,
and other modules are loaded where they are used.
"""

from __future__ import annotations

import _socket
import ctypes
import fcntl
import marshal
import os
import select
import struct
import sys

from gateway.sandbox.adaptation import adapt_ipykernel
from gateway.sandbox.sealing import filtered, landlock, landlock_abi, libc, lower
from gateway.sandbox.thrift import load_ipykernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
EXIT_UNSEALED = 97

PR_SET_NAME, PR_SET_DUMPABLE = 15, 4
# what code in the cell calls tools by, in the cell's own network namespace
DOOR, WAITING = "\0cellblock", 64

# by which a kernel of a pool is told whose it is to be, and what its variables may take
CLAIM, TOLD_BYTES = "cellblock_claim_request", 1 << 20


class Pool:
    """What a kernel that is started for nobody yet does about it: loads modules, and waits to be claimed.

    Its claim brings variables, over the control channel: they are data there. `told` is the end of a pipe by
    which its attendant, if there is one, hears them too.
    """

    def __init__(self, preload: list[str], told: int) -> None:
        self._preload = preload
        self._told = told

    def load(self) -> None:
        """Load the modules. Exits where one cannot be loaded."""
        import importlib

        # as ipykernel has it, too late for a module that is there before
        os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        for name in self._preload:
            try:
                importlib.import_module(name)
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody is given such a kernel
                sys.exit(f"boot: cannot preload {name}: {type(error).__name__}: {error}")

    def adapt_ipykernel(self) -> None:
        """Have ipykernel wait for its claim."""
        from functools import partial

        from ipykernel.kernelapp import IPKernelApp

        plain_start = IPKernelApp.start

        def start(app: Any) -> None:
            app.kernel.control_handlers[CLAIM] = partial(self._claimed, app.kernel)
            plain_start(app)

        IPKernelApp.start = start

    def _claimed(self, kernel: Any, stream: Any, ident: Any, message: Any) -> None:
        """Take the variables, once."""
        import json

        del kernel.control_handlers[CLAIM]
        given = message["content"]["env"]
        os.environ.update(given)
        with open(self._told, "wb") as attendant:
            attendant.write(json.dumps(given).encode())
        kernel.session.send(stream, CLAIM.replace("request", "reply"), {"status": "ok"}, message, ident)


def hear(told: int) -> None:
    """Take the variables that a kernel was given when it was claimed, if it was given some."""
    import json

    os.set_blocking(told, False)
    try:
        with open(told, "rb") as kernel:
            os.environ.update(json.loads(kernel.read() or b"{}"))
    except (ValueError, TypeError, OSError):
        # code in the kernel can write there too: what is no variables leaves things as they are
        return


def import_from_home() -> None:
    """Find modules in the working directory too, where IPython would put it were Python not isolated (-I)."""
    folders = [os.path.basename(path) for path in sys.path]
    place = folders.index("site-packages") if "site-packages" in folders else len(folders)
    sys.path.insert(place, "")


class Guest:
    """Finds `cellblock`, the module that code in a kernel calls tools by: nothing of it runs before that."""

    def __init__(self, text: str) -> None:
        self._text = text

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> Any:
        """Tell where a module is."""
        if name != "cellblock":
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, self, origin="the cell")  # type: ignore[arg-type]

    def create_module(self, _spec: object) -> None:
        """Leave it to Python."""

    def exec_module(self, module: Any) -> None:
        """Run the module's text in it."""
        exec(compile(self._text, "<cellblock>", "exec"), module.__dict__)  # noqa: S102 - it is ours

    def get_source(self, _name: str) -> str:
        """Return the text, for tracebacks and readers."""
        return self._text


def attend(link: int, order: dict[str, Any], told: int = -1) -> None:
    """Leave the attendant behind, a process with a socket whose other end the warden gets over the link.

    The link itself would not do: the programs that make the cell hold it as well, and its end would not be
    seen. The attendant is no child of the kernel's: who waits for all children of a kernel would wait for
    ever. Where it cannot be had the kernel does without.
    """
    warden, kernel = _socket.socket(fileno=link), -1
    ends: list[_socket.socket] = []
    try:
        try:
            kernel = os.pidfd_open(os.getpid())
            ends += _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
            between = os.fork()
        except (OSError, AttributeError):
            warden.send(b"without")
            return
        ours, theirs = ends
        if not between:
            try:
                # an own session, which it does not lead, so that no interrupt of the kernel's reaches it
                os.setsid()
                if not os.fork():
                    warden.close()
                    theirs.close()
                    await_work(ours, kernel, order, told)
            finally:
                os._exit(0)
        os.waitpid(between, 0)
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", theirs.fileno()))
        warden.sendmsg([b"with"], [rights])
    finally:
        for each in (warden, *ends):
            each.close()
        if kernel >= 0:
            os.close(kernel)


def await_work(link: _socket.socket, kernel: int, order: dict[str, Any], told: int) -> None:
    """Wait for a first request or call, and be the attendant then; until then this is next to nothing."""
    for stream in (1, 2):
        os.dup2(0, stream)
    rename(b"attendant", b"cellblock-attendant")
    # its descriptors are no other process's, not even of the same user
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    door = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    door.bind(DOOR)
    door.listen(WAITING)
    found = select.poll()
    for descriptor in (link.fileno(), kernel, door.fileno()):
        found.register(descriptor, select.POLLIN)
    if kernel in dict(found.poll()):
        return
    if told >= 0:
        hear(told)
    program: dict[str, Any] = {"__name__": "attendant"}
    exec(compile(order["attendant"], "<attendant>", "exec"), program)  # noqa: S102 - it is ours
    import socket

    ends = [socket.socket(fileno=each.detach()) for each in (link, door)]
    program["attend"](*ends, kernel, python="module" in order)


def pipe() -> tuple[int, int]:
    """Return the ends of a pipe that takes all variables of a claim at once."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, TOLD_BYTES)
    return reader, writer


def rename(name: bytes, command: bytes) -> None:
    """Have this process and its command line called something else than those that it was made from."""
    libc.prctl(PR_SET_NAME, name, 0, 0, 0)
    with open("/proc/self/stat", "rb") as facts:
        start, end = map(int, facts.read().rpartition(b")")[2].split()[45:47])
    if end - start > len(command):
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, command, len(command))


def become(order: dict[str, Any], pool: Pool | None) -> None:
    """Turn into the kernel: in this process for a Python module, by exec for anything else."""
    if "module" in order:
        import contextlib
        import runpy

        sys.argv = [order["module"], *order["arguments"]]
        with contextlib.suppress(ImportError):
            load_ipykernel(debugger=order["module"] in {"ipykernel", "ipykernel_launcher"})
            adapt_ipykernel()
            if pool is not None:
                pool.adapt_ipykernel()
        if pool is not None:
            pool.load()
        import_from_home()
        if "guest" in order:
            sys.meta_path.append(Guest(order["guest"]))
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    else:
        try:
            os.execvp(order["exec"][0], order["exec"])  # noqa: S606
        except OSError as error:
            sys.exit(f"boot: cannot run {order['exec'][0]}: {error.strerror}")


def main() -> None:
    """Say hello, obey the order, become the kernel."""
    abi = landlock_abi()
    warden = _socket.socket(fileno=0)
    links = {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}
    hello = {"landlock": abi, "namespaces": links, "filtered": filtered()}
    # numbers and names: as JSON they look the same but for the quotes
    warden.send(repr(hello).replace("'", '"').encode())
    order = marshal.loads(warden.recv(1 << 19))  # noqa: S302 - it is the warden's
    link = os.dup(0)
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 0)
    os.close(devnull)
    warden.detach()
    try:
        if abi:
            landlock(abi, order["rules"])
        lower(order["limits"])
        os.chdir(order["directory"])
    except OSError as error:
        print(f"boot: cannot seal the cell: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_UNSEALED)
    os.setsid()  # an own group, so that an interrupt reaches the kernel's children and never firejail
    os.umask(order["umask"])
    # what firejail added to its own is not the kernel's
    os.environ.clear()
    os.environ.update(order["environment"])
    heard, told = pipe() if "preload" in order else (-1, -1)
    if "attendant" in order:
        attend(link, order, heard)
    else:
        os.close(link)
    if heard >= 0:
        os.close(heard)
    become(order, Pool(order["preload"], told) if "preload" in order else None)


if __name__ == "__main__":
    main()
