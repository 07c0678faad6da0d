"""The file in which a Jupyter client says where it wants to find a kernel."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SOCKETS = ("shell", "iopub", "stdin", "control", "hb")
SCHEME = "hmac-sha256"


@dataclass(frozen=True, slots=True)
class ConnectionFile:
    """Where five sockets are to be bound, and the key by which their messages are signed."""

    transport: str
    ip: str
    ports: Mapping[str, int]
    key: bytes

    def endpoint(self, name: str) -> str:
        """Return a socket's ZMQ address (jupyter_client.connect: `ipc` has numbered paths, `tcp` ports)."""
        mark = "-" if self.transport == "ipc" else ":"
        return f"{self.transport}://{self.ip}{mark}{self.ports[name]}"


def read(path: Path) -> ConnectionFile:
    """Read a connection file.

    Raises:
        ConfigurationError: it cannot be read, or asks for what is not spoken here.
    """
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"The connection file {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigurationError(f"The connection file {path} is not JSON.") from error
    wrong = _wrong(fields)
    if wrong is not None:
        raise ConfigurationError(f"The connection file {path} {wrong}.")
    return ConnectionFile(
        transport=fields["transport"],
        ip=fields["ip"],
        ports={name: fields[f"{name}_port"] for name in SOCKETS},
        key=fields["key"].encode(),
    )


def _wrong(fields: Any) -> str | None:
    """Say what is wrong with a connection file's content, if anything is."""
    if not isinstance(fields, dict):
        return "is not a JSON object"
    texts = {name: fields.get(name) for name in ("ip", "key")}
    ports = {f"{name}_port": fields.get(f"{name}_port") for name in SOCKETS}
    missing = [name for name, text in texts.items() if not (isinstance(text, str) and text)]
    missing += [name for name, port in ports.items() if not (isinstance(port, int) and port > 0)]
    wrong = {
        "names a transport that is neither tcp nor ipc": fields.get("transport") not in {"tcp", "ipc"},
        f"names another signature scheme than {SCHEME}": fields.get("signature_scheme", SCHEME) != SCHEME,
        "asks for CurveZMQ, which is not spoken here": bool(fields.get("curve_publickey")),
        f"has no {', '.join(missing)}": bool(missing),
    }
    return next((text for text, holds in wrong.items() if holds), None)
