"""A process that is forked and not waited for: what it does before it is its program may take its time."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

EXIT_NOT_STARTED = 127


class Spawned:
    """A program in a session of its own, from `/`, with no descriptors but those that it is given.

    `stderr` is the end to read of what it says there, and its caller's to close. It runs `steps` between
    fork and exec; where one of them fails, or the exec, it says so there and ends. `subprocess` would wait
    for all of it, and to join a control group alone may take 20 ms. The caller must have one thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdin: int,
        descriptors: Iterable[int],
        steps: Iterable[Callable[[], object]],
    ) -> None:
        """Fork. Raises OSError."""
        self._code: int | None = None
        self.stderr, writer = os.pipe()
        try:
            self.pid = os.fork()
            if not self.pid:
                _become(command, environment, (stdin, writer), frozenset(descriptors), steps)
        except OSError:
            os.close(self.stderr)
            raise
        finally:
            os.close(writer)

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def kill(self) -> None:
        """Kill it, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _become(
    command: Sequence[str],
    environment: Mapping[str, str],
    streams: tuple[int, int],
    descriptors: frozenset[int],
    steps: Iterable[Callable[[], object]],
) -> NoReturn:
    """Turn the forked process into its program; nothing else leads out of here."""
    try:
        os.setsid()
        os.umask(0o077)
        os.chdir("/")
        # as Python found them, not as it has set them
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        stdin, stderr = streams
        for target, descriptor in enumerate((stdin, os.open(os.devnull, os.O_WRONLY), stderr)):
            os.dup2(descriptor, target)
        for step in steps:
            step()
        for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            # the one that they were listed by is gone
            with contextlib.suppress(OSError):
                os.set_inheritable(descriptor, descriptor in {0, 1, 2, *descriptors})
        os.execve(command[0], list(command), environment)  # noqa: S606
    except BaseException as error:  # noqa: BLE001 - it is told, and this process ends
        os.write(2, f"It cannot be started: {error}\n".encode(errors="replace"))
    finally:
        os._exit(EXIT_NOT_STARTED)
