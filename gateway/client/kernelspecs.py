"""Kernelspecs: what kernels there may be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.client.views import KernelSpecs
from gateway.errors import NotFound

if TYPE_CHECKING:
    from gateway.client.transport import Transport

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


class Specs:
    """The kernelspecs that may be started."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self, *, within_s: float | None = None) -> KernelSpecs:
        """Return the kernelspecs, and which of them is the default."""
        return await self._transport.json(KernelSpecs, "GET", "api/kernelspecs", within_s=within_s)

    async def resource(self, spec_name: str, file_name: str, *, within_s: float | None = None) -> bytes:
        """Return a file of a kernelspec's: a logo, for one."""
        if not (_NAME.fullmatch(spec_name) and _NAME.fullmatch(file_name)):
            raise NotFound(f"The kernelspec {spec_name} has no file {file_name}.")
        path = f"kernelspecs/{spec_name}/{file_name}"
        return await self._transport.request("GET", path, within_s=within_s)
