"""The kernelspec by which any Jupyter installation starts a bridge."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_client.kernelspec import KernelSpecManager

from gateway.errors import BadRequest, ConfigurationError, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MARK = "cellblock"
LOGO = re.compile(r"logo-[A-Za-z0-9_-]{1,64}\.(?:png|svg)")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class BridgeSpec:
    """A kernelspec to be: what it is called, and the kernel of a gateway that it stands for.

    `credential` are the bridge's options that say where the credential is, and never the credential itself.
    """

    name: str
    display_name: str
    language: str
    url: str
    kernel: str
    credential: Sequence[str] = ()
    logos: Mapping[str, bytes] = field(default_factory=dict)

    def kernel_json(self) -> dict[str, Any]:
        """Return the content of its kernel.json."""
        # -P: what lies in the notebook's directory must not be imported in a module's place
        command = [sys.executable, "-P", "-m", "gateway.cli", "bridge"]
        wanted = ["--gateway", self.url, "--kernel", self.kernel, "--language", self.language]
        return {
            "argv": [*command, *wanted, *self.credential, "--connection-file", "{connection_file}"],
            "display_name": self.display_name,
            "language": self.language,
            "interrupt_mode": "message",
            "metadata": {MARK: {"gateway": self.url, "kernel": self.kernel}},
        }


@dataclass(frozen=True, slots=True)
class Installed:
    """A kernelspec of ours that Jupyter finds."""

    name: str
    display_name: str
    gateway: str
    kernel: str
    directory: str


def checked_name(name: str) -> str:
    """Return a kernelspec's name as Jupyter writes it. Raises BadRequest."""
    if not NAME.fullmatch(name):
        raise BadRequest("A kernelspec's name has letters, digits and . _ - only, and begins with no . or -")
    return name.lower()


def install(spec: BridgeSpec, *, prefix: str | None) -> Path:
    """Install a kernelspec for the user, or below a prefix, and return its directory.

    Raises:
        BadRequest: the name is not one that Jupyter takes, or another program's kernelspec has it.
        ConfigurationError: the directory cannot be written.
    """
    name = checked_name(spec.name)
    there = _destination(name, prefix)
    if there.exists() and _mark(there) is None:
        raise BadRequest(f"{there} is another program's kernelspec: choose another --name.")
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made) / name
        # others may be meant to read it, which they must not in a temporary directory
        directory.mkdir(mode=0o755)
        files = {"kernel.json": json.dumps(spec.kernel_json(), indent=1).encode() + b"\n"}
        for file_name, content in (files | dict(spec.logos)).items():
            (directory / file_name).write_bytes(content)
            (directory / file_name).chmod(0o644)
        try:
            manager = KernelSpecManager()
            return Path(manager.install_kernel_spec(str(directory), name, user=prefix is None, prefix=prefix))
        except OSError as error:
            raise ConfigurationError(f"The kernelspec cannot be written to {there}: {error}.") from error


def installed() -> list[Installed]:
    """List the kernelspecs of ours that Jupyter finds, by name."""
    found = []
    for name, directory in sorted(KernelSpecManager().find_kernel_specs().items()):
        mark = _mark(Path(directory))
        if mark is not None:
            shown, gateway, kernel = (str(mark.get(key)) for key in ("display_name", "gateway", "kernel"))
            found.append(Installed(name, shown, gateway, kernel, directory))
    return found


def remove(name: str) -> str:
    """Remove a kernelspec of ours, and return where it was. Raises NotFound, ConfigurationError."""
    for spec in installed():
        if spec.name == checked_name(name):
            try:
                shutil.rmtree(spec.directory)
            except OSError as error:
                raise ConfigurationError(f"{spec.directory} cannot be removed: {error}.") from error
            return spec.directory
    raise NotFound(f"There is no kernelspec {name} of Cellblock's.")


def _destination(name: str, prefix: str | None) -> Path:
    if prefix is None:
        return Path(KernelSpecManager().user_kernel_dir) / name
    return Path(prefix) / "share" / "jupyter" / "kernels" / name


def _mark(directory: Path) -> dict[str, Any] | None:
    """Return what a kernelspec of ours says of itself; None for any other."""
    try:
        read = json.loads((directory / "kernel.json").read_bytes())
        mark = read["metadata"][MARK]
        return {**mark, "display_name": read["display_name"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None
