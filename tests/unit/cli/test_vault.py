"""Keys at rest: a file that others cannot read, or the keyring; never anything else."""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from gateway.cli.bridge import credential
from gateway.cli.connection import private_key
from gateway.cli.vault import keep_in_keyring, keyring_key, write_key
from gateway.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

KEY = "cb_0123456789ab_secret"
URL = "http://127.0.0.1:8888"
# keyring's own interface, with a file for a backend
KEYRING = """
from pathlib import Path
kept = Path(__file__).with_name("kept")
def set_password(service, username, password):
    kept.write_text("|".join((service, username, password)))
def get_password(service, username):
    if not kept.exists():
        return None
    *who, password = kept.read_text().split("|")
    return password if who == [service, username] else None
"""


def test_a_key_is_written_for_its_user_alone(tmp_path: Path) -> None:
    """Whatever the umask and whatever was there before, others cannot read it."""
    path = tmp_path / "keys" / "a"
    path.parent.mkdir()
    path.write_text("old")
    path.chmod(0o666)
    umask = os.umask(0)
    try:
        write_key(path, KEY)
    finally:
        os.umask(umask)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert private_key(path) == KEY
    assert [entry.name for entry in path.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_file_that_others_may_touch(tmp_path: Path, mode: int) -> None:
    """Readable or writable by any other: refused, with the remedy."""
    path = tmp_path / "key"
    path.write_text(KEY)
    path.chmod(mode)

    with pytest.raises(ConfigurationError, match="chmod 600"):
        private_key(path)


@pytest.mark.parametrize("text", ["", "\n", "two words", "new\nline", "ü"])
def test_a_file_without_a_key(tmp_path: Path, text: str) -> None:
    """What is no key is never sent anywhere, and never shown."""
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)

    with pytest.raises(ConfigurationError, match="does not hold an API key"):
        private_key(path)


def test_the_file_is_read_at_each_use(tmp_path: Path) -> None:
    """A key that is replaced is taken up."""
    path = tmp_path / "key"
    write_key(path, KEY)
    read = credential(URL, path, keyring=False)
    assert read() == KEY
    write_key(path, KEY + "2")
    assert read() == KEY + "2"


def test_there_is_no_keyring() -> None:
    """Without the package the remedy is named, and nothing else is tried."""
    with pytest.raises(ConfigurationError, match="install the package keyring"):
        credential(URL, None, keyring=True)()


def test_the_keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps one key for each gateway."""
    path = tmp_path / "keyring.py"
    path.write_text(KEYRING)
    spec = importlib.util.spec_from_file_location("keyring", path)
    assert spec is not None
    assert spec.loader is not None
    keyring = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(keyring)
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    with pytest.raises(ConfigurationError, match="has no key"):
        keyring_key(URL)
    keep_in_keyring(URL, KEY)
    assert credential(URL, None, keyring=True)() == KEY
    with pytest.raises(ConfigurationError, match="has no key"):
        keyring_key("http://127.0.0.1:9999")
