"""The proof of confinement, on live processes."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.errors import SandboxUnavailable
from gateway.sandbox import boot, sealing
from gateway.sandbox.confinement import CAPABILITIES, NAMESPACES, absent_filters, prove, shared_namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

FILTERED = {"keep-list": errno.EPERM, "namespaces": errno.EPERM, "protocol": errno.ENOTSUP}
ELSEWHERE = {name: f"{name}:[1]" for name in NAMESPACES}


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process of one's own without any sandbox."""
    program = subprocess.Popen(["sleep", "60"])
    yield program.pid
    program.kill()
    program.wait()


def refusal(pid: int, *, uid: int, parent: int = 1) -> str:
    """Return why a process is not taken for confined, whatever it says of itself."""
    with pytest.raises(SandboxUnavailable) as caught:
        prove(pid, uid=uid, parent=parent, reported=ELSEWHERE, filtered=FILTERED)
    assert caught.value.reason == "not_confined"
    return caught.value.message


def test_own_process_is_refused_for_every_reason() -> None:
    """An ordinary process is no cell, and the refusal names all that is missing."""
    message = refusal(os.getpid(), uid=12345)

    assert "NoNewPrivs is not 1" in message
    assert "Seccomp is not 2" in message
    assert "CapBnd is not zero" in message
    assert "the uid is not 12345" in message
    assert "is not a child of its namespace's init" in message
    for name in NAMESPACES:
        assert f"the {name} namespace is the host's" in message


def test_process_of_another_uid_is_refused(sleeper: int) -> None:
    """A process that does not run as the cell's user is refused, and so is anything as root."""
    assert "the uid is not 1" in refusal(sleeper, uid=1)
    if os.geteuid() == 0:
        assert "the uid is not 0" in refusal(sleeper, uid=0)


def test_process_with_no_new_privs_alone_is_refused() -> None:
    """One protection in force does not hide that the others are not."""
    with subprocess.Popen(["setpriv", "--no-new-privs", "sleep", "60"]) as program:
        while not Path(f"/proc/{program.pid}/cmdline").read_bytes().startswith(b"sleep"):
            time.sleep(0.005)
        message = refusal(program.pid, uid=os.getuid() or 1)
        program.kill()

    assert "NoNewPrivs is not 1" not in message
    assert "Seccomp is not 2" in message


def test_process_that_is_gone_is_refused() -> None:
    """A pid without a process is no cell."""
    program = subprocess.Popen(["true"])
    program.wait()

    with pytest.raises(SandboxUnavailable, match="ended before it could be proved"):
        prove(program.pid, uid=1, parent=1, reported=ELSEWHERE, filtered=FILTERED)


def test_looking_wins_over_what_is_reported(sleeper: int) -> None:
    """Where the namespaces can be read, what the process says of them does not count."""
    assert shared_namespaces(sleeper, ELSEWHERE) == list(NAMESPACES)


def test_capabilities_and_namespaces_are_all_there_are() -> None:
    """The proof looks at every capability set, and at each namespace that firejail makes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sets = [line.split(":")[0] for line in lines if line.startswith("Cap")]

    assert sorted(CAPABILITIES) == sorted(sets)
    assert set(NAMESPACES) == set(boot.NAMESPACES) - {"cgroup"}


@pytest.mark.parametrize("name", FILTERED)
@pytest.mark.parametrize("answer", [None, 0])
def test_each_filter_counts(name: str, answer: int | None) -> None:
    """A filter that a call passed, or that nothing is said of, is absent."""
    filtered = {key: value for key, value in FILTERED.items() if key != name}
    if answer is not None:
        filtered[name] = answer

    assert absent_filters(FILTERED) == []
    assert absent_filters(filtered) == [name]


def test_calls_reach_the_kernel_where_nothing_filters() -> None:
    """The boot step's forbidden calls do nothing here and give the kernel's own errors."""
    assert sealing.filtered() == {"keep-list": errno.ENOSYS, "namespaces": errno.EINVAL, "protocol": 0}
    assert absent_filters(sealing.filtered()) == list(FILTERED)
