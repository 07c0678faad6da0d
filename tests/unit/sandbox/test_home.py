"""Paths into a home: beneath it, through no link, onto regular files and directories alone."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.errors import BadRequest, PreconditionFailed
from gateway.sandbox.beneath import openat2, opened, parts_of, refusal, renameat2
from gateway.sandbox.home import Home
from gateway.sandbox.packets import beside

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home that is a plain directory, beside a secret."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "home").mkdir()
    found = Home.of_directory(tmp_path / "home")
    yield found
    found.close()


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """The home's directory."""
    return tmp_path / "home"


@contextmanager
def fails(number: int) -> Iterator[None]:
    """Expect an operating system's error, at once."""
    began = time.monotonic()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what is looked at
        yield
    assert (caught.value.errno, time.monotonic() - began < 2) == (number, True)


def every_way(home: Home, path: str) -> list[tuple[str, type[Exception] | None]]:
    """Try all that can be done at a path; tell what each raised."""
    tried = {
        "read": lambda: os.close(home.open(path, "read")),
        "append": lambda: os.close(home.open(path, "append")),
        "mkdir": lambda: home.mkdir(path),
        "walk": lambda: list(home.walk(path, 1, 10)),
        "place": lambda: place(home, path, b"x"),
        "move": lambda: home.move(path, "moved", replace=True),
        "remove": lambda: home.remove(path),
        "empty": lambda: home.empty(path, 10),
        "stat": lambda: home.stat(path),
    }
    outcomes: list[tuple[str, type[Exception] | None]] = []
    for name, work in tried.items():
        try:
            work()
        except (OSError, BadRequest) as error:
            outcomes.append((name, type(error)))
        else:
            outcomes.append((name, None))
    return outcomes


def names(directory: Path) -> list[str]:
    """List a directory."""
    return sorted(entry.name for entry in directory.iterdir())


def place(home: Home, path: str, data: bytes, *, replace: bool = True, version: str | None = None) -> str:
    """Write a file; return its version."""
    with opened(home.spool(executable=False)) as file:
        os.write(file, data)
        return home.place(file, path, replace=replace, version=version).version


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "..",
        "../secret",
        "a/../../secret",
        "a/..",
        "a\0b",
        "a/" * 65 + "b",
        "n" * 256,
        "é" * 200,
    ],
)
def test_paths_that_no_home_has(home: Home, path: str) -> None:
    """Absolute paths, '..', NULs, and what is too long or too deep are refused by themselves."""
    for name, raised in every_way(home, path):
        assert raised is BadRequest, name


@pytest.mark.parametrize("path", ["", ".", "./", "//"[:0]])
def test_the_home_itself_stays(home: Home, inside: Path, path: str) -> None:
    """The home can be listed and looked at, and neither removed, renamed nor replaced."""
    outcomes = dict(every_way(home, path))
    assert outcomes["walk"] is outcomes["stat"] is None
    assert outcomes["remove"] is outcomes["move"] is outcomes["place"] is outcomes["mkdir"] is BadRequest
    assert inside.is_dir()


def test_names_are_joined_as_the_system_does(home: Home) -> None:
    """Empty names and single dots mean nothing."""
    assert parts_of("./a//b/./c/") == ["a", "b", "c"]


def test_links_lead_nowhere(home: Home, inside: Path, tmp_path: Path) -> None:
    """Nothing is read, written, listed or removed through a symbolic link, at the end or on the way."""
    (inside / "file").symlink_to(tmp_path / "secret")
    (inside / "dir").symlink_to(tmp_path)
    (inside / "proc").symlink_to("/proc/self")
    (inside / "own").mkdir()
    (inside / "self").symlink_to("own")
    for path in ("dir/secret", "proc/cwd", "proc/root/etc/passwd", "self/x", "dir/new"):
        outcomes = dict(every_way(home, path))
        assert all(raised and issubclass(raised, OSError) for raised in outcomes.values()), (path, outcomes)
    for path in ("file", "dir", "self"):
        with fails(errno.ELOOP):
            home.open(path, "read")
        with fails(errno.ELOOP):
            home.open(path, "append")
        assert home.stat(path).type == "link"
    assert names(tmp_path) == ["home", "secret"]
    assert (tmp_path / "secret").read_text() == "secret"
    # a file that is placed, and a removal, are of the link itself
    place(home, "file", b"mine")
    home.remove("dir")
    assert ((inside / "file").read_text(), (tmp_path / "secret").read_text()) == ("mine", "secret")


def test_magic_links(home: Home, inside: Path) -> None:
    """A /proc mounted or linked into a home gives nobody the gateway's descriptors."""
    (inside / "fd").symlink_to("/proc/self/fd")
    with fails(errno.ELOOP):
        home.open("fd/0", "read")


def test_what_is_no_file(home: Home, inside: Path) -> None:
    """FIFOs, sockets and devices are refused at once, whoever waits at their other end."""
    os.mkfifo(inside / "fifo")
    with socket.socket(socket.AF_UNIX) as listener, beside(inside / "socket") as name:
        listener.bind(name)
    if os.geteuid() == 0:
        os.mknod(inside / "null", 0o20666, os.makedev(1, 3))
    for path in names(inside):
        for mode in ("read", "append"):
            with fails(errno.ENXIO):
                home.open(path, mode)  # type: ignore[arg-type]
        assert home.stat(path).type == "other"
        with fails(errno.ENOTDIR):
            list(home.walk(path, 1, 10))
        home.remove(path)


def test_a_fifo_with_a_reader_is_refused_too(home: Home, inside: Path) -> None:
    """A FIFO that could be opened is closed again, and nothing is written into it."""
    os.mkfifo(inside / "fifo")
    reader = os.open(inside / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with fails(errno.ENXIO):
        home.open("fifo", "append")
    assert os.read(reader, 10) == b""
    os.close(reader)


def test_a_lease_keeps_nobody_waiting(home: Home, inside: Path) -> None:
    """A process that holds a lease on a file does not hold up who opens it."""
    (inside / "leased").write_text("x")
    holder = os.open(inside / "leased", os.O_RDWR)
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(holder, 10, 0)  # F_SETSIG: no signal is wanted here
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        with fails(errno.EAGAIN):
            home.open("leased", "read")
    finally:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        os.close(holder)


def test_mounts_are_not_entered(home: Home, inside: Path) -> None:
    """What is mounted below a home is none of it."""
    top = os.open("/", os.O_PATH)
    with pytest.raises(OSError, match="cross-device"):
        openat2(top, "proc/version", os.O_RDONLY)
    os.close(top)


def test_only_spooled_files_are_placed(home: Home, inside: Path, tmp_path: Path) -> None:
    """A descriptor of anything but this home's own spooled file gets no name in it."""
    (inside / "there").write_text("x")
    odd = [
        os.open(tmp_path / "secret", os.O_RDONLY),
        os.open("/dev/null", os.O_RDWR),
        os.open(inside / "there", os.O_RDONLY),
        os.memfd_create("x"),
    ]
    for descriptor in odd:
        with pytest.raises(BadRequest):
            home.place(descriptor, "stolen", replace=True, version=None)
        os.close(descriptor)
    assert names(inside) == ["there"]


def test_preconditions(home: Home, inside: Path) -> None:
    """A version that is not there any more, and a name that is taken, leave all as it was."""
    first = place(home, "a", b"1", replace=False)
    with pytest.raises(PreconditionFailed):
        place(home, "a", b"2", replace=False)
    with pytest.raises(PreconditionFailed):
        place(home, "none", b"2", version=first)
    second = place(home, "a", b"2", version=first)
    assert second != first
    with pytest.raises(PreconditionFailed):
        place(home, "a", b"3", version=first)
    assert ((inside / "a").read_text(), names(inside)) == ("2", ["a"])


def test_a_failed_placement_leaves_nothing(home: Home, inside: Path) -> None:
    """Where a directory has the name, neither the file nor a trace of it stays."""
    (inside / "d").mkdir()
    with fails(errno.EISDIR):
        place(home, "d", b"x")
    assert names(inside) == ["d"]


def test_deep_and_wide_trees_go(home: Home, inside: Path) -> None:
    """A tree deeper than any path, and a wide one, go a bounded part at a time, with few descriptors."""
    here = os.open(inside, os.O_RDONLY)
    os.mkdir("top", dir_fd=here)
    at = os.open("top", os.O_RDONLY, dir_fd=here)
    os.close(here)
    for _ in range(3000):
        os.mkdir("deeper", dir_fd=at)
        os.close(os.open("file", os.O_CREAT, dir_fd=at))
        below = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    for number in range(2000):
        (inside / "top" / str(number)).touch()
    before = len(names(Path("/proc/self/fd")))
    rounds = 0
    while not home.empty("top", 500):
        rounds += 1
        assert rounds < 100
    home.remove("top")
    assert (names(inside), len(names(Path("/proc/self/fd")))) == ([], before)
    assert rounds >= 8000 // 500 - 1


def test_walks_are_bounded(home: Home, inside: Path) -> None:
    """A walk yields at most what it may, says when that is not all, and keeps within its depth."""
    for number in range(300):
        (inside / f"{number:03}").mkdir()
        (inside / f"{number:03}" / "in").write_text("x")

    def walked(depth: int, limit: int) -> tuple[list[str], bool]:
        batches = list(home.walk("", depth, limit))
        found = [facts.path for batch in batches for facts in batch if facts]
        return found, any(None in batch for batch in batches)

    assert walked(1, 300) == ([f"{n:03}" for n in range(300)], False)
    found, truncated = walked(1, 299)
    assert (len(found), truncated) == (299, True)
    found, truncated = walked(2, 450)
    assert (len(found), found[-1], truncated) == (450, "149/in", True)
    assert (len(walked(2, 600)[0]), walked(2, 600)[1]) == (600, False)


def test_names_that_are_no_text(home: Home, inside: Path) -> None:
    """Bytes that are no UTF-8 are names like any others."""
    with open(os.fsencode(inside) + b"/\xff\xfe\n", "w") as file:  # noqa: PTH123
        file.write("x")
    (batch,) = home.walk("", 1, 10)
    (facts,) = batch
    assert facts is not None
    with opened(home.open(facts.path, "read")) as descriptor:
        assert os.read(descriptor, 10) == b"x"


def test_swaps(home: Home, inside: Path, tmp_path: Path) -> None:
    """While directories and links trade places all the time, what is opened is never the secret beside."""
    (inside / "d").mkdir()
    (inside / "d" / "secret").write_text("mine")
    (inside / "link").symlink_to(tmp_path)
    stop = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        top = os.open(inside, os.O_RDONLY)
        while not stop.is_set():
            renameat2(top, "d", top, "link", 2)  # RENAME_EXCHANGE
            swaps += 1
        os.close(top)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    deadline = time.monotonic() + 20
    try:
        while (swaps < 1000 or len(seen) < 2) and time.monotonic() < deadline:
            try:
                with opened(home.open("d/secret", "read")) as descriptor:
                    seen.add(os.read(descriptor, 10))
                place(home, "d/new", b"x")
            except (OSError, BadRequest) as error:
                seen.add(refusal(error, "d").code.encode() if isinstance(error, OSError) else b"bad_request")
    finally:
        stop.set()
        thread.join()
    assert swaps >= 1000
    assert b"secret" not in seen
    assert b"mine" in seen
    assert names(tmp_path) == ["home", "secret"]
