"""One kernel's own conversation with a warden, for a process that is no gateway, whatever its event loops."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gateway.errors import GatewayError, SandboxUnavailable
from gateway.sandbox import daemon
from gateway.sandbox.cell import pidfd_exited
from gateway.sandbox.link import failure
from gateway.sandbox.packets import connect
from gateway.sandbox.users import current_user
from gateway.sandbox.wire import (
    MAX_PACKET,
    CellFacts,
    Ending,
    Hello,
    Launch,
    LaunchOrder,
    OnCell,
    WardenFacts,
)
from gateway.settings import Settings

# a warden that ends itself in the moment it is found is followed by another
TRIES = 3
# the cells end with their conversations; an idle warden waits this long for the next one
LINGER_S = 10.0
LOST = Ending(exit_code=None, oom=False, stderr="")


def own(settings: Settings) -> Settings:
    """Return the settings of this user's warden for kernels without a gateway, which has a state of its own.

    A gateway ends what it finds at its warden and has no record of. Root's client here is root itself, so
    no other user may talk to that warden.
    """
    sandbox = settings.sandbox.model_copy(update={"service_user": current_user().name})
    return settings.model_copy(update={"state_dir": settings.state_dir / "local", "sandbox": sandbox})


class Conversation:
    """A conversation whose cells end with it, and so with this process. Blocks; for one thread at a time."""

    def __init__(self, connected: socket.socket, settings: Settings) -> None:
        self._socket = connected
        self._numbers = itertools.count(1)
        self._answer_s = settings.sandbox.answer_timeout_s
        self._start_s = settings.sandbox.start_timeout_s
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_PACKET)
        answer, _ = self.ask(Hello(keep_s=LINGER_S))
        facts = WardenFacts.model_validate(answer)
        self.other_settings = facts.settings != daemon.settings_hash(settings)
        self.privileged = facts.privileged

    @classmethod
    def begin(cls, settings: Settings) -> Conversation:
        """Talk to this user's warden, started if need be. Raises SandboxUnavailable, ConfigurationError."""
        for remaining in reversed(range(TRIES)):
            with starting(settings):
                keeper = daemon.ensure(settings)
            if keeper:
                # somebody has to hear of its end, a day later
                threading.Thread(target=keeper.wait, name="cellblock-keeper", daemon=True).start()
            try:
                return cls(connect(settings.warden_socket), settings)
            except (OSError, SandboxUnavailable) as error:
                if not remaining:
                    raise SandboxUnavailable(
                        f"The warden does not answer: {error}", reason="warden_gone"
                    ) from error
        raise AssertionError

    def ask(self, body: BaseModel) -> tuple[dict[str, Any], list[int]]:
        """Ask one thing; the descriptors that come with the answer are the caller's to close.

        Raises:
            GatewayError: the warden's own.
            SandboxUnavailable: it is gone or silent; the conversation is over, and with it every cell.
        """
        packet = {"id": next(self._numbers), "body": body.model_dump(mode="json")}
        try:
            self._socket.settimeout(self._answer_s + (self._start_s if isinstance(body, Launch) else 0.0))
            self._socket.sendmsg([json.dumps(packet).encode()], [], socket.MSG_NOSIGNAL)
            data, descriptors, flags, _ = socket.recv_fds(
                self._socket, MAX_PACKET, 4, socket.MSG_CMSG_CLOEXEC
            )
            answer = json.loads(data)
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or answer.get("id") != packet["id"]:
                raise ConnectionError("what it said is not whole")
        except (OSError, ValueError) as error:
            self.close()
            raise SandboxUnavailable(
                f"The warden is gone or silent: {error}.", reason="warden_gone"
            ) from error
        if "error" in answer:
            raise failure(answer["error"])
        return answer["answer"], descriptors

    @property
    def open(self) -> bool:
        """Whether it has not been closed by this side."""
        return self._socket.fileno() >= 0

    def close(self) -> None:
        """End it, and with it its cells, also under a thread that waits for an answer. Twice is harmless."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextlib.contextmanager
def starting(settings: Settings) -> Iterator[None]:
    """Hold the lock under which one process at a time starts this user's warden."""
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(settings.state_dir / "start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


class TiedCell:
    """A live cell and the kernel's pidfd. Its methods may be called from any thread."""

    def __init__(self, talk: Conversation, facts: CellFacts, pidfd: int) -> None:
        self.facts = facts
        self._talk = talk
        self.pidfd = pidfd
        self._lock = threading.Lock()
        self.pid = pid_of(pidfd)
        self.ending: Ending | None = None

    @classmethod
    def launch(cls, talk: Conversation, order: LaunchOrder) -> TiedCell:
        """Start a cell. Raises SandboxUnavailable, BadRequest."""
        answer, descriptors = talk.ask(Launch(order=order))
        return cls(talk, CellFacts.model_validate(answer), descriptors[0])

    @property
    def exited(self) -> bool:
        """Whether the kernel's process has ended."""
        return self.ending is not None or pidfd_exited(self.pidfd)

    def do(self, op: str) -> None:
        """Seal the cell or interrupt its kernel; of a cell that is gone nothing is wanted."""
        with self._lock, contextlib.suppress(GatewayError):
            if self.ending is None:
                self._talk.ask(OnCell.model_validate({"op": op, "cell": self.facts.cell}))

    def signal(self, number: int) -> None:
        """Send the kernel's process a signal, if it is there."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self.ending is None:
                signal.pidfd_send_signal(self.pidfd, number)

    def end(self) -> Ending:
        """Kill the cell as a whole, and say how its kernel had ended."""
        with self._lock:
            if self.ending is None:
                try:
                    answer, _ = self._talk.ask(OnCell(op="end", cell=self.facts.cell))
                    self.ending = Ending.model_validate(answer)
                except GatewayError:
                    # the warden is gone, or ends the cell as the conversation is over
                    self._talk.close()
                    self.ending = LOST
                os.close(self.pidfd)
            return self.ending


def pid_of(pidfd: int) -> int:
    """Return the pid of the process behind a pidfd, -1 where it is gone."""
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("Pid:")), -1)
