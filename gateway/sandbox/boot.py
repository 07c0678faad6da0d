"""The in-cell boot step: says hello, waits to be proved confined, seals itself, becomes the kernel.

Stdlib only: it runs in the kernel's own Python, inside the cell, before any byte of a user's code. Its
standard input is a socket of the warden's. It says hello there (namespaces, Landlock ABI, what the filters
answer), waits for the order (argv, limits, paths), and swaps the socket for /dev/null. Once sealed it leaves
the attendant behind. Exit code 97: it could not seal itself.
"""

import contextlib
import ctypes
import json
import os
import resource
import runpy
import select
import socket
import struct
import sys
from typing import Any

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
EXIT_UNSEALED = 97

# linux/landlock.h: syscall numbers are the same on every architecture
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
GET_VERSION, RULE_PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REMOVE_FILE, MAKE_CHAR, MAKE_SOCK, MAKE_FIFO = 1 << 5, 1 << 6, 1 << 9, 1 << 10
MAKE_BLOCK, MAKE_SYM, TRUNCATE, IOCTL_DEV = 1 << 11, 1 << 12, 1 << 14, 1 << 15
# How many file rights each ABI knows: asking for more than the kernel knows is an error
RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
NET_ABI, SCOPE_ABI = 4, 6
NET_TCP, SCOPE_ALL = 0b11, 0b11
FILE_ONLY = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
PR_SET_NAME, PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE = 15, 38, 4
# what code in the cell calls tools by, in the cell's own network namespace
DOOR, WAITING = "\0cellblock", 64

# characters of stdout or stderr that are sent in one message, and messages that wait for a slow reader
STREAM_PIECE, IOPUB_WAITING = 256 << 10, 100
# Table Schema, and how many rows of a DataFrame it shows
FRAMES, FRAME_ROWS = "application/vnd.dataresource+json", 1000
# Calls that do nothing where no filter stops them, as the kernel finds them wrong: a number that nobody has,
# and a clone whose two flags exclude each other (numbers: x86-64, and those that newer architectures share)
NO_CALL = 9999
CLONE = {"x86_64": 56}.get(os.uname().machine, 220)
CLONE_NEWUSER, CLONE_FS = 0x10000000, 0x200

libc = ctypes.CDLL(None, use_errno=True)


def landlock_abi() -> int:
    """Return the kernel's Landlock ABI, 0 where it has none."""
    abi: int = libc.syscall(CREATE_RULESET, None, 0, GET_VERSION)
    return max(0, abi)


def filtered() -> dict[str, int]:
    """Return the error that each of three forbidden calls gives: each stands for a filter of its own."""
    errors = {}
    for name, call in {"keep-list": (NO_CALL, 0), "namespaces": (CLONE, CLONE_NEWUSER | CLONE_FS)}.items():
        ctypes.set_errno(0)
        libc.syscall(*map(ctypes.c_long, (*call, 0, 0, 0, 0)))
        errors[name] = ctypes.get_errno()
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()
        errors["protocol"] = 0
    except OSError as error:
        errors["protocol"] = error.errno or 0
    return errors


def landlock(abi: int, rules: dict[str, list[str]]) -> None:
    """Restrict this process and its children to paths, each kind with rights of its own.

    To read and execute; to write; to use as they are; to share (written, but no links or sockets made: the
    host's programs would follow them); and to bind sockets in, where nothing else is made.
    """
    known = (1 << RIGHTS_BY_ABI.get(abi, 16)) - 1
    attributes = struct.pack("=Q", known)
    if abi >= NET_ABI:
        attributes += struct.pack("=Q", NET_TCP)
    if abi >= SCOPE_ABI:
        attributes += struct.pack("=Q", SCOPE_ALL)
    ruleset = check(libc.syscall(CREATE_RULESET, attributes, len(attributes), 0))
    readable = EXECUTE | READ_FILE | READ_DIR
    writable = known & ~(MAKE_CHAR | MAKE_BLOCK)
    usable = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | IOCTL_DEV
    rights = {
        "read": readable,
        "write": writable,
        "use": usable,
        "share": writable & ~(MAKE_SOCK | MAKE_FIFO | MAKE_SYM),
        "bind": READ_FILE | READ_DIR | WRITE_FILE | REMOVE_FILE | MAKE_SOCK,
    }
    for kind, paths in rules.items():
        for path in paths:
            allow(ruleset, path, rights[kind] & known)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    check(libc.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def allow(ruleset: int, path: str, rights: int) -> None:
    """Add one path to a ruleset; a path that is not there needs no rule."""
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= FILE_ONLY
    check(libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, struct.pack("=Qi", rights, beneath), 0))
    os.close(beneath)


def check(result: int) -> int:
    """Return a system call's result, or raise the error that it left."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def lower(limits: dict[str, int]) -> None:
    """Lower resource limits, named as in `resource`; never raise one."""
    for name, value in limits.items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        lowered = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (lowered, lowered))


def adapt_ipykernel() -> None:
    """Make ipykernel at home in a cell; a kernel that is none of its children is left as it is."""
    import zmq
    from ipykernel.iostream import IOPubThread, OutStream
    from ipykernel.kernelapp import IPKernelApp
    from zmq.eventloop.zmqstream import ZMQStream

    def pipe_in(self: Any) -> None:
        """Take the prints of forked children over a unix socket: a cell has no TCP."""
        self._pipe_uuid = os.urandom(16)
        self._pipe_port = f"ipc://@kernel-{self._pipe_uuid.hex()}"
        socket_in = self.socket.context.socket(zmq.PULL)
        socket_in.linger = 0
        socket_in.bind(self._pipe_port)
        self._pipe_in = ZMQStream(socket_in, self.io_loop)
        self._pipe_in.on_recv(self._handle_pipe_msg)

    def pipe_out(self: Any) -> tuple[Any, Any]:
        """Send a forked child's prints to its parent."""
        context = zmq.Context()
        socket_out = context.socket(zmq.PUSH)
        socket_out.linger = 3000
        socket_out.connect(self._pipe_port)
        return context, socket_out

    plain_write, plain_bind = OutStream.write, IPKernelApp._bind_socket
    plain_init = IPKernelApp.init_kernel

    def write(self: Any, string: str) -> int | None:
        """Send a flood of output as it comes, in messages of a size that clients take."""
        if not isinstance(string, str):
            return plain_write(self, string)
        for start in range(0, len(string), STREAM_PIECE):
            piece = string[start : start + STREAM_PIECE]
            self._unsent = getattr(self, "_unsent", 0) + len(piece)
            plain_write(self, piece)
            if self._unsent >= STREAM_PIECE:
                self._unsent = 0
                self.flush()
        return len(string)

    def bind(self: Any, s: Any, port: int) -> int:
        """Let output wait for a slow reader: by default it would be dropped without a word."""
        if s.type == zmq.XPUB:
            s.setsockopt(zmq.XPUB_NODROP, 1)
            s.setsockopt(zmq.SNDHWM, IOPUB_WAITING)
        return int(plain_bind(self, s, port))

    def init_kernel(self: Any) -> None:
        """Show DataFrames as JSON to who asks for it."""
        plain_init(self)
        offer_frames(self.kernel)

    IOPubThread._setup_pipe_in, IOPubThread._setup_pipe_out = pipe_in, pipe_out
    OutStream.write, IPKernelApp._bind_socket = write, bind
    IPKernelApp.init_kernel = init_kernel


def offer_frames(kernel: Any) -> None:
    """Add Table Schema to what pandas' DataFrames are shown as, where an execution's metadata asks for it."""
    if not hasattr(kernel, "shell"):
        # it is for another language
        return
    from IPython.core.formatters import BaseFormatter

    class FrameFormatter(BaseFormatter):  # type: ignore[misc]
        """A formatter that is asked by type alone."""

        format_type, print_method, _return_type = FRAMES, "_repr_nothing_", dict

    def frame(table: Any) -> dict[str, Any] | None:
        """Return a DataFrame's first rows; None where that is not asked for, or pandas cannot."""
        asked = kernel.get_parent().get("metadata", {}).get("cellblock")
        if not isinstance(asked, dict) or not asked.get("dataframes"):
            return None
        try:
            shown: dict[str, Any] = json.loads(table.head(FRAME_ROWS).to_json(orient="table"))
        except Exception:  # noqa: BLE001 - whatever it is, the other forms are shown
            return None
        return shown

    formatter: Any = FrameFormatter(parent=kernel.shell.display_formatter)
    for module in ("pandas", "pandas.core.frame"):
        formatter.for_type_by_name(module, "DataFrame", frame)
    kernel.shell.display_formatter.formatters[FRAMES] = formatter


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


def attend(link: int, order: dict[str, Any]) -> None:
    """Leave the attendant behind, a process with a socket whose other end the warden gets over the link.

    The link itself would not do: the programs that make the cell hold it as well, and its end would not be
    seen. The attendant is no child of the kernel's: who waits for all children of a kernel would wait for
    ever. Where it cannot be had the kernel does without.
    """
    with socket.socket(fileno=link) as warden, contextlib.ExitStack() as held:
        try:
            kernel = os.pidfd_open(os.getpid())
            held.callback(os.close, kernel)
            ours, theirs = map(held.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            between = os.fork()
        except (OSError, AttributeError):
            warden.send(b"without")
            return
        if not between:
            try:
                # an own session, which it does not lead, so that no interrupt of the kernel's reaches it
                os.setsid()
                if not os.fork():
                    warden.close()
                    theirs.close()
                    await_work(ours, kernel, order)
            finally:
                os._exit(0)
        os.waitpid(between, 0)
        socket.send_fds(warden, [b"with"], [theirs.fileno()])


def await_work(link: socket.socket, kernel: int, order: dict[str, Any]) -> None:
    """Wait for a first request or call, and be the attendant then; until then this is next to nothing."""
    for stream in (1, 2):
        os.dup2(0, stream)
    rename(b"attendant", b"cellblock-attendant")
    # its descriptors are no other process's, not even of the same user
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.bind(DOOR)
    door.listen(WAITING)
    found = select.poll()
    for descriptor in (link.fileno(), kernel, door.fileno()):
        found.register(descriptor, select.POLLIN)
    if kernel in dict(found.poll()):
        return
    program: dict[str, Any] = {"__name__": "attendant"}
    exec(compile(order["attendant"], "<attendant>", "exec"), program)  # noqa: S102 - it is ours
    program["attend"](link, door, kernel, python="module" in order)


def rename(name: bytes, command: bytes) -> None:
    """Have this process and its command line called something else than those that it was made from."""
    libc.prctl(PR_SET_NAME, name, 0, 0, 0)
    with open("/proc/self/stat", "rb") as facts:
        start, end = map(int, facts.read().rpartition(b")")[2].split()[45:47])
    if end - start > len(command):
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, command, len(command))


def become(order: dict[str, Any]) -> None:
    """Turn into the kernel: in this process for a Python module, by exec for anything else."""
    if "module" in order:
        sys.argv = [order["module"], *order["arguments"]]
        with contextlib.suppress(ImportError):
            adapt_ipykernel()
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
    with socket.socket(fileno=0) as warden:
        links = {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}
        hello = {"landlock": abi, "namespaces": links, "filtered": filtered()}
        warden.send(json.dumps(hello).encode())
        order = json.loads(warden.recv(1 << 19))
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
    if "attendant" in order:
        attend(link, order)
    else:
        os.close(link)
    become(order)


if __name__ == "__main__":
    main()
