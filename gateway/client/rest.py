"""The gateway's REST API, typed."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Self, TypeVar

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from yarl import URL

from gateway.client.connection import KernelConnection
from gateway.client.failures import GatewayUnreachable, error_of, reason_of
from gateway.errors import BadRequest, GatewayError, NotFound
from gateway.models import ExecuteRequest, ExecutionResult, Kernel
from gateway.protocol import websocket

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

T = TypeVar("T")

_KERNEL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SPEC_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")

CONNECT_S = 10.0
REQUEST_S = 120.0  # a kernel may take a minute to start on a loaded machine
EXECUTE_SLACK_S = 60.0  # what a gateway may need beside the code's own time: interrupt, grace, restart
HEARTBEAT_S = 30.0
MAX_FRAME_BYTES = 64 << 20


class SpecDetail(BaseModel):
    """The part of a kernel.json that a client shows."""

    model_config = ConfigDict(extra="ignore")

    display_name: str
    language: str


class SpecEntry(BaseModel):
    """One kernelspec that may be started, and the files that front ends show of it: paths by name."""

    model_config = ConfigDict(extra="ignore")

    name: str
    spec: SpecDetail
    resources: dict[str, str] = {}


class KernelSpecs(BaseModel):
    """The kernelspecs that may be started, by name, and the name used when a request names none."""

    model_config = ConfigDict(extra="ignore")

    default: str
    kernelspecs: dict[str, SpecEntry]


class Client:
    """Talks to one gateway with one key. Use as an async context manager.

    Every method raises the GatewayError that the gateway answered with, or GatewayUnreachable. Fields that
    a newer gateway adds are ignored.
    """

    def __init__(self, url: str, token: str) -> None:
        self._base = _base_url(url)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def kernels(self) -> list[Kernel]:
        """Return the kernels that the key may see, oldest first."""
        return self._parse(list[Kernel], await self._request("GET", "api/kernels"))

    async def create_kernel(
        self, name: str | None = None, env: Mapping[str, str] | None = None, kernel_id: str | None = None
    ) -> Kernel:
        """Start a kernel of a kernelspec (the gateway's default when None) and return it when it answers.

        `kernel_id` is the UUID that it shall have; otherwise the gateway chooses one.
        """
        body: dict[str, Any] = {}
        if name is not None:
            body["name"] = name
        if env is not None:
            body["env"] = dict(env)
        if kernel_id is not None:
            body["kernel_id"] = kernel_id
        return self._parse(Kernel, await self._request("POST", "api/kernels", body))

    async def kernel(self, kernel_id: str) -> Kernel:
        """Return one kernel."""
        return self._parse(Kernel, await self._request("GET", _kernel_path(kernel_id)))

    async def interrupt(self, kernel_id: str) -> None:
        """Interrupt what a kernel runs."""
        await self._request("POST", f"{_kernel_path(kernel_id)}/interrupt")

    async def restart(self, kernel_id: str) -> Kernel:
        """Restart a kernel under the same id and return it."""
        return self._parse(Kernel, await self._request("POST", f"{_kernel_path(kernel_id)}/restart"))

    async def delete(self, kernel_id: str) -> None:
        """End a kernel and everything that it started."""
        await self._request("DELETE", _kernel_path(kernel_id))

    async def kernelspecs(self) -> KernelSpecs:
        """Return the kernelspecs that may be started."""
        return self._parse(KernelSpecs, await self._request("GET", "api/kernelspecs"))

    async def resource(self, spec_name: str, file_name: str) -> bytes:
        """Return a file of a kernelspec's: a logo, for one."""
        if not (_SPEC_NAME.fullmatch(spec_name) and _FILE_NAME.fullmatch(file_name)):
            raise NotFound(f"The kernelspec {spec_name} has no file {file_name}.")
        return await self._request("GET", f"kernelspecs/{spec_name}/{file_name}")

    async def execute(self, kernel_id: str, code: str, timeout_s: float | None = None) -> ExecutionResult:
        """Run code in a kernel and return everything it gave; its own failure is a status, not an error.

        The gateway ends the execution after `timeout_s` seconds, or after its own limit when None.
        """
        body = ExecuteRequest(code=code, timeout_s=timeout_s).model_dump(exclude_defaults=True)
        total = None if timeout_s is None else timeout_s + EXECUTE_SLACK_S
        answer = await self._request("POST", f"{_kernel_path(kernel_id)}/execute", body, total_s=total)
        return self._parse(ExecutionResult, answer)

    def session(self, kernel_id: str, *, current: bool = False) -> KernelConnection:
        """Return a connection to a kernel's channels, to be entered with `async with`.

        With `current` it brings the output of what runs now from its start: see `KernelConnection.messages`.
        """
        return KernelConnection(
            lambda session_id: self.channels(kernel_id, session_id, current=current),
            lambda: self.interrupt(kernel_id),
        )

    async def channels(
        self, kernel_id: str, session_id: str, *, current: bool = False
    ) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket to a kernel's channels; one that is open with the same session id is replaced.

        What was missed under that session id comes first; with `current`, all of what runs now.
        """
        query = {"session_id": session_id} | ({"replay": "current"} if current else {})
        url = self._url(f"{_kernel_path(kernel_id)}/channels") % query
        try:
            async with asyncio.timeout(REQUEST_S):
                return await self._session().ws_connect(
                    url, protocols=(websocket.V1,), heartbeat=HEARTBEAT_S, max_msg_size=MAX_FRAME_BYTES
                )
        except aiohttp.WSServerHandshakeError as error:
            # A refused handshake has no body for us; the same question by REST gives the reason.
            await self.kernel(kernel_id)
            raise error_of(error.status, error.message, b"") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error

    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, total_s: float | None = REQUEST_S
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S)
        try:
            async with self._session().request(
                method,
                self._url(path),
                data=None if body is None else orjson.dumps(body),
                headers={"Content-Type": "application/json"},
                timeout=timeout,
                allow_redirects=False,  # a redirected key may end anywhere
            ) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error
        if not 200 <= response.status < 300:
            raise error_of(response.status, response.reason, answer, response.headers.get("Retry-After"))
        return answer

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("use the client as an async context manager")
        return self._http

    def _url(self, path: str) -> URL:
        return self._base.joinpath(path, encoded=True)

    def _unreachable(self, error: Exception) -> GatewayUnreachable:
        reason = "it does not answer" if isinstance(error, TimeoutError) else reason_of(error)
        return GatewayUnreachable(f"The gateway at {self._base} cannot be reached: {reason}.")

    def _parse(self, kind: type[T], answer: bytes) -> T:
        try:
            return TypeAdapter(kind).validate_json(answer, extra="ignore")
        except ValidationError as error:
            raise GatewayError(
                f"What answers at {self._base} is not a Cellblock gateway, or one of another version."
            ) from error


def _base_url(url: str) -> URL:
    try:
        base = URL(url)
        plain = base.scheme in {"http", "https"} and base.host and base.port
    except ValueError:
        plain = False
    if not plain or base.user is not None or base.query_string or base.fragment:
        raise BadRequest("The gateway's URL must look like http://127.0.0.1:8888.")
    return base


def _kernel_path(kernel_id: str) -> str:
    # It becomes a part of a path: what is no id must not lead elsewhere.
    if not _KERNEL_ID.fullmatch(kernel_id):
        raise NotFound(f"Kernel does not exist: {kernel_id}")
    return f"api/kernels/{kernel_id}"
