"""smolagents' Docker executor with a gateway in place of its container: see docs/agents-frameworks.md."""

from __future__ import annotations

from typing import Any

import requests
from smolagents.remote_executors import DockerExecutor, RemotePythonExecutor, _create_kernel_http


class CellblockExecutor(DockerExecutor):
    """Runs an agent's code in a kernel of a gateway; what goes over the wire is smolagents' own."""

    def __init__(self, logger: Any, url: str, token: str) -> None:
        RemotePythonExecutor.__init__(self, [], logger)
        self.base_url = url
        self._wait_for_server(token)
        self.kernel_url = f"{url}/api/kernels"
        self.kernel_id = _create_kernel_http(f"{self.kernel_url}?token={token}", logger)
        self.kernel_url += f"/{self.kernel_id}"
        self.ws_url = f"{self.kernel_url}/channels?token={token}".replace("http", "ws", 1)
        self.headers = {"Authorization": f"token {token}"}

    def cleanup(self) -> None:
        """Delete the kernel."""
        requests.delete(self.kernel_url, headers=self.headers, timeout=30)
