"""The keeper: the warden's parent, which ends every cell should the warden die, and starts it anew.

Stdlib only, since it only waits. As child subreaper it inherits the cells of a dead warden: it kills
firejail's processes, which are its children then, and the cells in them die with those (PDEATHSIG).
Usage: keeper.py COMMAND [ARGUMENT…]
"""

import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
RESTARTS, WITHIN_S = 5, 60.0

libc = ctypes.CDLL(None, use_errno=True)


def children() -> list[int]:
    """List this process's children."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", "rb") as stat:
                parent = int(stat.read().rsplit(b")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == os.getpid():
            found.append(int(entry))
    return found


def end_children() -> None:
    """Kill and reap until no child is left."""
    while left := children():
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for pid in left:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue


def start(command: list[str]) -> int:
    """Start the warden and return its pid; it is told to end everything (SIGTERM) should this process die."""
    pid = os.fork()
    if pid == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        try:
            os.execvp(command[0], command)
        finally:
            os._exit(2)
    return pid


def ended(warden: int) -> int:
    """Reap whatever this process inherits until the warden ends; return its exit code."""
    while True:
        pid, status = os.wait()
        if pid == warden:
            return os.waitstatus_to_exitcode(status)


def main() -> int:
    """Keep the warden running until it ends by its own will."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    warden = start(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: os.kill(warden, signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    starts = [time.monotonic()]
    while True:
        code = ended(warden)
        end_children()
        starts = [moment for moment in starts if time.monotonic() - moment < WITHIN_S]
        # 0: it ended by its own will; 2: it says that it cannot start
        if code in (0, 2) or len(starts) > RESTARTS:
            return code
        starts.append(time.monotonic())
        warden = start(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
