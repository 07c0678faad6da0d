"""Connection files of tcp and ipc are understood; whatever else is refused, by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.connect import write_connection_file

from gateway.bridge import connection_file
from gateway.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("transport", "mark"), [("tcp", ":"), ("ipc", "-")])
def test_what_jupyter_client_writes(tmp_path: Path, transport: str, mark: str) -> None:
    """Addresses and key are those that jupyter_client's own clients use."""
    ip = "127.0.0.1" if transport == "tcp" else str(tmp_path / "kernel")
    path = tmp_path / "c.json"
    _, written = write_connection_file(str(path), transport=transport, ip=ip, key=b"secret")
    read = connection_file.read(path)

    assert read.key == b"secret"
    for name in connection_file.SOCKETS:
        assert read.endpoint(name) == f"{transport}://{ip}{mark}{written[f'{name}_port']}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"transport": "inproc"}, "a transport that is neither"),
        ({"signature_scheme": "hmac-md5"}, "another signature scheme"),
        ({"curve_publickey": "x"}, "CurveZMQ"),
        ({"key": ""}, "has no key"),
        ({"hb_port": 0}, "has no hb_port"),
        ({"ip": None}, "has no ip"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """The message names the field, and never the key."""
    good = {f"{name}_port": 5 for name in connection_file.SOCKETS}
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**good, "transport": "tcp", "ip": "127.0.0.1", "key": "secret", **change}))
    with pytest.raises(ConfigurationError, match=said) as caught:
        connection_file.read(path)

    assert "secret" not in caught.value.message


@pytest.mark.parametrize("text", [None, "", "[]", "\udcff"])
def test_what_is_none(tmp_path: Path, text: str | None) -> None:
    """A file that is missing or no JSON object is an error of its own."""
    path = tmp_path / "c.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError):
        connection_file.read(path)
