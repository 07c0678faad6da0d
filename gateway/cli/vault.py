"""API keys at rest for those who are not asked for one: a file that is its user's alone, or the keyring."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gateway.cli.connection import default_key_file
from gateway.errors import ConfigurationError

SERVICE = "cellblock"


def key_file_of(name: str) -> Path:
    """Return where the key of a kernelspec lies."""
    return default_key_file().parent / "keys" / name


def write_key(path: Path, key: str) -> None:
    """Write a key to a file that only its user may read. Raises ConfigurationError."""
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key + "\n")
        new.replace(path)
    except OSError as error:
        raise ConfigurationError(f"The key file {path} cannot be written: {error.strerror}.") from error


def keyring_key(url: str) -> str:
    """Return the key that the keyring has for a gateway. Raises ConfigurationError."""
    try:
        key = _keyring().get_password(SERVICE, url)
    except Exception as error:
        raise ConfigurationError(f"The keyring does not answer: {error}.") from error
    if not key:
        raise ConfigurationError(f"The keyring has no key for {url}.")
    return str(key)


def keep_in_keyring(url: str, key: str) -> None:
    """Let the keyring keep the key for a gateway. Raises ConfigurationError."""
    try:
        _keyring().set_password(SERVICE, url, key)
    except Exception as error:
        raise ConfigurationError(f"The keyring does not take the key: {error}.") from error


def _keyring() -> Any:
    try:
        import keyring  # noqa: PLC0415 - optional, and slow to load
    except ImportError:
        raise ConfigurationError("There is no keyring: install the package keyring.") from None
    return keyring
