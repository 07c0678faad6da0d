"""The catalogue of kernelspecs: ours first, then Jupyter's own where that is asked for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.paths import jupyter_path
from pydantic import ValidationError

from gateway.errors import ConfigurationError
from gateway.models import KernelSpec
from gateway.settings import KernelsSettings

log = structlog.get_logger(__name__)


def shipped_dir() -> Path:
    """Return the kernelspecs that come with the package: in it when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "data" / "kernelspecs"
    return installed if installed.is_dir() else package.parent / "kernelspecs"


class SpecCatalogue:
    """Reads kernelspecs and reads them again when a directory of them has changed."""

    def __init__(self, settings: KernelsSettings) -> None:
        dirs = [*settings.spec_dirs, shipped_dir()]
        if settings.jupyter_path:
            dirs += [Path(path) for path in jupyter_path("kernels")]
        self._dirs = [str(directory) for directory in dirs]
        self._allowed = frozenset(settings.allowed)
        self._seen: tuple[int, ...] | None = None
        self._specs: Mapping[str, KernelSpec] = {}

    def specs(self) -> Mapping[str, KernelSpec]:
        """Return the kernelspecs that may be started, by name. Blocks on the disk: call it in a thread.

        One that is wrong is logged and left out; one whose needs are missing is left out while they are.
        """
        seen = stamps(self._dirs)
        if seen != self._seen:
            found = KernelSpecManager(kernel_dirs=self._dirs, ensure_native_kernel=False).get_all_specs()
            self._specs = self._parsed(found)
            self._seen = seen
        return {name: spec for name, spec in self._specs.items() if all(map(os.path.exists, spec.needs))}

    async def offered(self) -> Mapping[str, KernelSpec]:
        """Return the kernelspecs that may be started, by name, without blocking the loop."""
        return await asyncio.to_thread(self.specs)

    def _parsed(self, found: Mapping[str, Any]) -> Mapping[str, KernelSpec]:
        specs = {}
        for name, facts in sorted(found.items()):
            if self._allowed and name not in self._allowed:
                continue
            if facts["spec"].get("metadata", {}).get("kernel_provisioner"):
                # made for a Jupyter server that starts its kernels itself
                continue
            try:
                specs[name] = parse(name, Path(facts["resource_dir"]), facts["spec"])
            except ConfigurationError as error:
                log.error("kernelspec_left_out", kernelspec=name, error=error.message)
        return specs


def stamps(dirs: Sequence[str]) -> tuple[int, ...]:
    """Return when each directory changed last, 0 for those that are not there."""
    return tuple(Path(path).stat().st_mtime_ns if Path(path).is_dir() else 0 for path in dirs)


def parse(name: str, resource_dir: Path, spec: Mapping[str, Any]) -> KernelSpec:
    """Check one kernel.json; ours are the keys of `metadata.cellblock`: profile, environment, needs.

    Raises:
        ConfigurationError: it is wrong; the message names the file.
    """
    ours = spec.get("metadata", {}).get("cellblock", {})
    try:
        if unknown := set(ours) - {"profile", "environment", "needs"}:
            raise ValueError(f"metadata.cellblock has unknown keys: {', '.join(sorted(unknown))}")  # noqa: TRY301 - one message for all
        return KernelSpec(
            name=name,
            argv=tuple(spec["argv"]),
            display_name=spec.get("display_name") or name,
            language=spec.get("language", ""),
            interrupt_mode=spec.get("interrupt_mode") or "signal",
            env=spec.get("env") or {},
            metadata=spec.get("metadata") or {},
            resource_dir=str(resource_dir),
            **ours,
        )
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"The kernelspec {resource_dir / 'kernel.json'} is wrong: {error}"
        ) from error
