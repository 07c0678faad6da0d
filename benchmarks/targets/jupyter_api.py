"""Jupyter's REST and WebSocket API, which the gateway and both incumbents speak: one client for all three."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import aiohttp

from benchmarks.framing import LegacyFraming, V1Framing
from benchmarks.targets.target import Kernel
from benchmarks.wires.channels import Channels
from benchmarks.wires.wire import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from benchmarks.framing import Framing
    from benchmarks.wires.wire import Wire

FRAMINGS: dict[str, Callable[[], Framing]] = {"v1": V1Framing, "legacy": LegacyFraming}


class JupyterApi:
    """A client of one server with one token."""

    def __init__(self, url: str, token: str, kernelspec: str) -> None:
        self.url = url
        self.token = token
        self.kernelspec = kernelspec
        self.http = aiohttp.ClientSession(
            url,
            headers={"Authorization": f"token {token}"},
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.http.close()

    async def json(self, method: str, path: str, body: object = None) -> Any:
        """Make a request and return its JSON. Raises ConnectionError for any status that is no success."""
        async with self.http.request(method, path, json=body) as response:
            if response.status >= 300:
                raise ConnectionError(f"{method} {path}: {response.status} {(await response.text())[:100]}")
            return await response.json() if response.status != 204 else None

    async def text(self, path: str) -> str:
        """GET a text."""
        async with self.http.get(path) as response:
            return await response.text()

    async def create(self) -> Kernel:
        """POST a kernel. A server with warm kernels says in the model how this one was started."""
        model = await self.json("POST", "/api/kernels", {"name": self.kernelspec})
        return Kernel(model["id"], warm=was_warm(model))

    async def delete(self, kernel_id: str) -> None:
        """DELETE a kernel."""
        await self.json("DELETE", f"/api/kernels/{kernel_id}")

    async def ids(self) -> list[str]:
        """List the kernels."""
        return [model["id"] for model in await self.json("GET", "/api/kernels")]

    @contextlib.asynccontextmanager
    async def channels(self, kernel_id: str, door: str) -> AsyncIterator[Wire]:
        """Open a WebSocket in the framing that a door is named after."""
        session, framing = new_id(), FRAMINGS[door]()
        async with self.http.ws_connect(
            f"/api/kernels/{kernel_id}/channels?session_id={session}",
            protocols=framing.protocols,
            max_msg_size=0,
            autoping=True,
        ) as socket:
            if framing.protocols and socket.protocol not in framing.protocols:
                raise ConnectionError("the server does not speak the v1 framing")
            yield Channels(socket, framing, session)


def was_warm(model: dict[str, Any]) -> bool:
    """Tell from a kernel's model whether it was started before it was asked for."""
    return model.get("start") == "warm"
