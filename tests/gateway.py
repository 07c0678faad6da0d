"""A real gateway for tests: the `cellblock serve` process, its warden, its keys, and clients of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from gateway.models import CHANNELS
from gateway.protocol.messages import make
from gateway.protocol.websocket import V1, framing
from gateway.sandbox import daemon
from gateway.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from gateway.models import Message

COMMAND = Path(sys.executable).with_name("cellblock")
START_S = 30.0


def new_state_dir() -> Path:
    """Make a directory that a service user can reach, which pytest's own are not."""
    place = "/var/tmp" if os.geteuid() == 0 else "/tmp"  # an ordinary user's homes may not be below /var
    path = Path(tempfile.mkdtemp(prefix="cellblock-test-", dir=place))
    path.chmod(0o755)
    return path


class Gateway:
    """One state directory and the gateway processes that run on it, one after the other."""

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        state_dir: Path | None = None,
        user: str | None = None,
    ) -> None:
        self.state_dir = state_dir or new_state_dir()
        self._arguments = arguments
        self._env = {**os.environ, "CELLBLOCK_LOG__FORMAT": "json", **(env or {})}
        # root runs the tests, and an ordinary user may not see where they lie
        self._prefix = (
            [] if user is None else [sys.executable, "-P", str(Path(__file__).with_name("as_user.py")), user]
        )
        self._keys: dict[tuple[str, str | None], str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def log_path(self) -> Path:
        """Where the processes' stderr goes."""
        return self.state_dir / "test.log"

    @property
    def tree(self) -> str:
        """The state directory's short name on the machine: of its run directory and its cgroups."""
        return daemon.tree_name(Settings(state_dir=self.state_dir))

    def log(self) -> list[dict[str, Any]]:
        """Return the structured log so far."""
        lines = self.log_path.read_text().splitlines() if self.log_path.exists() else []
        # a full disk cuts lines off
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def command(self, *arguments: str) -> list[str]:
        """Return a `cellblock` command line."""
        return [*self._prefix, str(COMMAND), *arguments]

    def start(self) -> Gateway:
        """Start a gateway on a free port and wait until it serves."""
        already = len([line for line in self.log() if line.get("event") == "serving"])
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(*("serve", "--port", "0", "--state-dir", str(self.state_dir)), *self._arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                cwd="/",
            )
        deadline = time.monotonic() + START_S
        while True:
            serving = [line for line in self.log() if line.get("event") == "serving"]
            if len(serving) > already:
                self.url = serving[-1]["address"]
                return self
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the gateway did not start:\n{self.log_path.read_text()}")
            time.sleep(0.02)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal the gateway and wait until it is gone; return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def key(self, name: str = "alice", scopes: str | None = None) -> str:
        """Return an API key of a principal's, made at first use."""
        if (name, scopes) not in self._keys:
            extra = ["--scopes", scopes] if scopes else []
            command = self.command("keys", "create", name, "--state-dir", str(self.state_dir), *extra)
            made = subprocess.run(command, capture_output=True, text=True, check=True, env=self._env, cwd="/")
            self._keys[name, scopes] = made.stdout.strip()
        return self._keys[name, scopes]

    @contextlib.asynccontextmanager
    async def client(self, name: str = "alice", scopes: str | None = None) -> AsyncIterator[Client]:
        """Give a client of a principal's."""
        headers = {"Authorization": f"token {self.key(name, scopes)}"}
        async with aiohttp.ClientSession(self.url, headers=headers) as session:
            yield Client(session)

    def warden_pids(self) -> list[int]:
        """List the warden of this state directory (not its keeper)."""
        return [
            pid
            for pid, line in self._processes()
            if "gateway.sandbox.daemon" in line and "keeper.py" not in line
        ]

    def keeper_pids(self) -> list[int]:
        """List the warden's keeper."""
        return [pid for pid, line in self._processes() if "keeper.py" in line]

    def kernel_pids(self) -> list[int]:
        """List this gateway's Python kernels as the host's pids, the one started last at the end."""
        return kernel_pids(set(self.warden_pids()))

    def _processes(self) -> list[tuple[int, str]]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if str(self.state_dir) in line:
                        found.append((int(entry.name), line))
        return found

    def destroy(self) -> None:
        """End everything of this state directory and remove it."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.warden_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while self._processes() and time.monotonic() < deadline:
            time.sleep(0.02)
        shutil.rmtree(self.state_dir, ignore_errors=True)


def kernel_pids(ancestors: set[int]) -> list[int]:
    """List the Python kernels below some processes as the host's pids, the one started last at the end."""
    parents, kernels = {}, []
    for entry in Path("/proc").glob("[1-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            pid = int(entry.name)
            parents[pid] = int(fields[1])
            line = (entry / "cmdline").read_bytes()
            # the kernel leads a session of its own, which the kernel's children do not
            makers = (b"firejail", b"bwrap")
            if b"boot.py" in line and int(fields[3]) == pid and not any(m in line for m in makers):
                kernels.append((int(fields[19]), pid))

    def ours(pid: int) -> bool:
        while pid > 1:
            if pid in ancestors:
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for _, pid in sorted(kernels) if ours(pid)]


@contextlib.contextmanager
def running(*arguments: str, **options: Any) -> Iterator[Gateway]:
    """Give a gateway of one's own, destroyed afterwards."""
    gateway = Gateway(*arguments, **options)
    try:
        yield gateway.start()
    finally:
        gateway.destroy()


class Client:
    """A principal's client: plain REST, and WebSocket sessions."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.http = session

    async def json(self, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        """Make a request, assert its status, and return its JSON (None where there is no body)."""
        async with self.http.request(method, path, json=body) as response:
            text = await response.text()
            assert response.status == status, (response.status, text)
            return json.loads(text) if text else None

    async def start(self, name: str | None = None, **body: Any) -> str:
        """Start a kernel and return its id."""
        if name is not None:
            body["name"] = name
        return str((await self.json("POST", "/api/kernels", body, status=201))["id"])

    async def run(self, kernel_id: str, code: str, **body: Any) -> dict[str, Any]:
        """Execute code over REST and return the result."""
        result: dict[str, Any] = await self.json(
            "POST", f"/api/kernels/{kernel_id}/execute", {"code": code, **body}
        )
        return result

    async def out(self, kernel_id: str, code: str, **body: Any) -> str:
        """Execute code that must succeed and return its stdout."""
        result = await self.run(kernel_id, code, **body)
        assert result["status"] == "ok", result
        return str(result["stdout"])

    async def kernel(self, kernel_id: str) -> dict[str, Any]:
        """Return a kernel's model."""
        model: dict[str, Any] = await self.json("GET", f"/api/kernels/{kernel_id}")
        return model

    async def delete(self, kernel_id: str) -> None:
        """Delete a kernel."""
        await self.json("DELETE", f"/api/kernels/{kernel_id}", status=204)

    @contextlib.asynccontextmanager
    async def channels(
        self, kernel_id: str, *, v1: bool = True, session_id: str = "test", query: str = ""
    ) -> AsyncIterator[Channels]:
        """Open a WebSocket to a kernel's channels; `query` is added to its URL as it is."""
        protocols = (V1,) if v1 else ()
        path = f"/api/kernels/{kernel_id}/channels?session_id={session_id}{query}"
        async with self.http.ws_connect(path, protocols=protocols, max_msg_size=0) as socket:
            yield Channels(socket, V1 if v1 else None)


class Channels:
    """An open WebSocket, spoken in one framing."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, protocol: str | None) -> None:
        self.socket = socket
        self._framing = framing(protocol)

    async def send(
        self,
        channel: str,
        msg_type: str,
        content: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Send a request and return its msg_id."""
        assert channel in CHANNELS
        message = make(channel, msg_type, content, parent=None, session="test", metadata=metadata)  # type: ignore[arg-type]
        await self.put(message)
        return message.msg_id

    async def put(self, message: Message) -> None:
        """Send a message that was made elsewhere."""
        data = self._framing.encode(message)
        await (self.socket.send_bytes(data) if isinstance(data, bytes) else self.socket.send_str(data))

    async def execute(self, code: str, *, timeout_s: float | None = None, **content: Any) -> str:
        """Send an execute_request, with a deadline of its own perhaps, and return its msg_id."""
        metadata = {"cellblock": {"timeout_s": timeout_s}} if timeout_s else None
        fields = {"code": code, "silent": False, **content}
        return await self.send("shell", "execute_request", fields, metadata)

    async def receive(self, timeout: float = 20.0) -> Message:
        """Return the next message. Fails when the socket closes first."""
        frame = await self.socket.receive(timeout)
        assert frame.type in {aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT}, frame
        return self.decode(frame.data)

    def decode(self, data: bytes | str) -> Message:
        """Return the message of a frame that was received by other means."""
        return self._framing.decode(data)

    async def until(self, *msg_types: str, timeout: float = 30.0) -> Message:
        """Return the next message of one of these types, passing over others."""
        deadline = time.monotonic() + timeout
        while True:
            message = await self.receive(deadline - time.monotonic())
            if message.msg_type in msg_types:
                return message

    async def closing(self, timeout: float = 10.0) -> int | None:
        """Read on until the gateway closes the socket; return its close code."""
        deadline, code = time.monotonic() + timeout, None
        while not self.socket.closed:
            frame = await self.socket.receive(deadline - time.monotonic())
            if frame.type is aiohttp.WSMsgType.CLOSE:
                # aiohttp itself says 1006 when its own answer to this frame comes too late
                code = int(frame.data)
        return self.socket.close_code if code is None else code

    async def until_done(self, msg_id: str, timeout: float = 30.0) -> list[Message]:
        """Collect an execution's messages until its reply and its idle status have come."""
        seen: list[Message] = []
        deadline = time.monotonic() + timeout
        while not complete(seen, msg_id):
            message = await self.receive(deadline - time.monotonic())
            if message.parent_id == msg_id:
                seen.append(message)
        return seen


def complete(messages: list[Message], msg_id: str) -> bool:
    """Tell whether an execution's reply and idle are among messages."""
    replied = any(m.channel == "shell" and m.parent_id == msg_id for m in messages)
    idle = any(m.msg_type == "status" and b'"idle"' in m.content for m in messages)
    return replied and idle


def text_of(messages: list[Message], name: str = "stdout") -> str:
    """Join the stream texts among messages."""
    parts = [json.loads(m.content) for m in messages if m.msg_type == "stream"]
    return "".join(part["text"] for part in parts if part["name"] == name)
