"""A kernel's own sockets, by ZeroMQ and nothing else: the floor under every server."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import orjson
import zmq

from benchmarks.framing import ZmqFraming, execute_content, is_idle, is_reply, outcome_of, request
from benchmarks.outcome import Answer
from benchmarks.wires.wire import TIMEOUT_S, new_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.framing import Said
    from benchmarks.wires.wire import Wire

START_S = 40.0
RETRY_MS = 5  # a kernel that starts binds late: libzmq's own 100 ms would be the floor's, not the kernel's
STATUS = b"status"
ASK = """
import json
from ipykernel.kernelapp import IPKernelApp
_app = IPKernelApp.instance()
print(json.dumps({"transport": _app.transport, "ip": _app.ip, "shell_port": _app.shell_port,
                  "iopub_port": _app.iopub_port, "key": _app.session.key.decode()}))
del _app, json, IPKernelApp
"""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a kernel's sockets are, and its key."""

    transport: str
    ip: str
    shell_port: int
    iopub_port: int
    key: str

    @classmethod
    def of(cls, connection: Mapping[str, Any]) -> Self:
        """Take it out of a connection file's content."""
        return cls(*(connection[name] for name in cls.__slots__))

    @classmethod
    async def asked(cls, wire: Wire) -> Self:
        """Ask a kernel for it by code, so that the very kernel behind a server can be spoken to directly."""
        answer = await wire.execute(ASK)
        return cls.of(orjson.loads(answer.read().stdout))

    def url(self, port: int) -> str:
        """Return the address of one socket."""
        return f"{self.transport}://{self.ip}{'-' if self.transport == 'ipc' else ':'}{port}"


class Raw:
    """Shell and iopub of one kernel, read and written without an event loop: as fast as Python gets.

    It blocks the loop while it waits, so nothing else may be measured at the same time.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: Address) -> None:
        self._framing = ZmqFraming(address.key)
        self._session = new_id()
        self._shell = context.socket(zmq.DEALER)
        self._iopub = context.socket(zmq.SUB)
        for socket in (self._shell, self._iopub):
            socket.set_hwm(0)
            socket.linger = 0
            socket.reconnect_ivl = RETRY_MS
        self._iopub.subscribe(b"")
        # a publisher welcomes the first subscriber of a topic alone, and the server has this one already
        self._iopub.subscribe(new_id())
        self._shell.connect(address.url(address.shell_port))
        self._iopub.connect(address.url(address.iopub_port))
        self._poller = zmq.Poller()
        self._poller.register(self._shell, zmq.POLLIN)
        self._poller.register(self._iopub, zmq.POLLIN)

    def wait_until_heard(self) -> None:
        """Wait for the kernel's welcome on iopub: from then on no output is missed. Raises TimeoutError."""
        if not self._iopub.poll(int(START_S * 1000)):
            raise TimeoutError("the kernel did not speak")
        self._iopub.recv_multipart()

    async def execute(self, code: str, timeout_s: float = TIMEOUT_S) -> Answer:
        """Run code until its reply and its idle status have come."""
        msg_id = new_id()
        header = request("execute_request", msg_id, self._session)
        frames: list[list[bytes]] = []
        begun = time.perf_counter()
        self._shell.send_multipart(self._framing.encode(header, execute_content(code)))
        self._collect(msg_id, frames, begun + timeout_s)
        took_s = time.perf_counter() - begun
        return Answer(took_s, lambda: outcome_of(map(self._framing.decode, frames), msg_id))

    def close(self) -> None:
        """Close both sockets."""
        self._shell.close()
        self._iopub.close()

    def _collect(self, msg_id: str, frames: list[list[bytes]], deadline: float) -> None:
        replied = idle = False
        while not (replied and idle):
            ready = self._poller.poll(max(0, int((deadline - time.perf_counter()) * 1000)))
            if not ready:
                raise TimeoutError("the kernel did not answer in time")
            for socket, _ in ready:
                said = self._take(socket, frames)
                if said is not None:
                    replied = replied or is_reply(said, msg_id)
                    idle = idle or is_idle(said, msg_id)

    def _take(self, socket: zmq.Socket[bytes], frames: list[list[bytes]]) -> Said | None:
        parts = socket.recv_multipart()
        frames.append(parts)
        # output is told by its topic, and decoded when the clock has stopped
        return self._framing.decode(parts) if socket is self._shell or STATUS in parts[0] else None
