"""The kernelspec by which a Jupyter server starts its own kernels in cells, from one of the gateway's."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from jupyter_client.kernelspec import KernelSpecManager

from gateway.errors import UnknownKernelSpec
from gateway.kernels.provisioner import NAME
from gateway.kernels.specs import shipped_dir

Sharing = Literal["none", "read-only", "read-write"]


def local_spec(
    spec: dict[str, Any], *, display_name: str | None = None, share: Sharing = "none"
) -> dict[str, Any]:
    """Return the kernel.json that has the provisioner start what one of the gateway's kernelspecs names."""
    ours = spec.get("metadata", {}).get("cellblock", {})
    config = {key: ours[key] for key in ("profile", "environment") if key in ours}
    metadata = {key: value for key, value in spec.get("metadata", {}).items() if key != "cellblock"}
    return {
        **spec,
        "display_name": display_name or f"{spec['display_name']}, local",
        "metadata": {
            **metadata,
            "kernel_provisioner": {"provisioner_name": NAME, "config": {**config, "share": share}},
        },
    }


def install(
    *,
    kernel: str = "python3",
    name: str | None = None,
    display_name: str | None = None,
    share: Sharing = "none",
    prefix: Path | None = None,
) -> Path:
    """Install the kernelspec below a prefix, or for the user, and return its directory.

    Raises:
        UnknownKernelSpec: no kernelspec of that name comes with the package.
        OSError: it cannot be written.
    """
    source = shipped_dir() / kernel
    if not (source / "kernel.json").is_file():
        raise UnknownKernelSpec(f"There is no kernelspec {kernel!r} to make a local one from.")
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory) / kernel
        shutil.copytree(source, made)
        spec = json.loads((source / "kernel.json").read_text())
        local = local_spec(spec, display_name=display_name, share=share)
        (made / "kernel.json").write_text(json.dumps(local, indent=2) + "\n")
        installed = KernelSpecManager().install_kernel_spec(
            str(made), name or f"{kernel}-local", user=prefix is None, prefix=str(prefix) if prefix else None
        )
    return Path(installed)
