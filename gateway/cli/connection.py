"""Where the gateway is and with which key: what every client command shares."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.errors import ConfigurationError, GatewayError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeVar

    from gateway.client import Client

    T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8888"
KEY_VARIABLE = "CELLBLOCK_KEY"
MAX_KEY_BYTES = 4096

GatewayOption = Annotated[
    str, typer.Option("--gateway", envvar="CELLBLOCK_URL", metavar="URL", help="Where the gateway listens.")
]
UrlOption = Annotated[
    str, typer.Option("--url", envvar="CELLBLOCK_URL", metavar="URL", help="Where the gateway listens.")
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help=f"File with the API key; otherwise ${KEY_VARIABLE}, then ~/.config/cellblock/key.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def use_client(
    url: str, key_file: Path | None, use: Callable[[Client], Awaitable[T]], *, retries: int = 0
) -> T:
    """Open a client, do one thing with it, and return what that gave. Raises GatewayError."""
    from gateway.client import Client  # noqa: PLC0415 - aiohttp would slow every --help

    async def session() -> T:
        async with Client(url, api_key(key_file), retries=retries) as client:
            return await use(client)

    return asyncio.run(session())


def each(
    url: str,
    key_file: Path | None,
    names: Sequence[str],
    do: Callable[[Client, str], Awaitable[None]],
    done: str,
) -> None:
    """Do one thing to each of several, whatever becomes of the others; exit code 2 where one failed."""

    async def all_of_them(client: Client) -> bool:
        failed = False
        for name in names:
            try:
                await do(client, name)
                typer.echo(f"{name} {done}")
            except GatewayError as error:
                failed = True
                typer.echo(f"cellblock: {error.message}", err=True)
        return failed

    if use_client(url, key_file, all_of_them):
        raise typer.Exit(2)


def default_key_file() -> Path:
    """Return where a user's own key lies."""
    return Path.home() / ".config" / "cellblock" / "key"


def api_key(key_file: Path | None) -> str:
    """Return the API key: of the file named, of the environment, or of the user's own key file.

    A key is never taken from argv, where every user of the machine could read it.

    Raises:
        ConfigurationError: there is no key, it cannot be read, or others can read the user's own key file.
    """
    if key_file is not None:
        return checked_key(_read(key_file), str(key_file))
    if KEY_VARIABLE in os.environ:
        return checked_key(os.environ[KEY_VARIABLE], KEY_VARIABLE)
    own = default_key_file()
    if not own.exists():
        raise ConfigurationError(
            f"No API key: set {KEY_VARIABLE}, give --key-file FILE, or write the key to {own} (mode 0600)."
        )
    return private_key(own)


def private_key(path: Path) -> str:
    """Return the API key in a file that is its owner's alone: ours, or root's.

    Raises:
        ConfigurationError: others can read the file, or it has no key.
    """
    return checked_key(_read(path, private=True), str(path))


def _read(path: Path, *, private: bool = False) -> str:
    try:
        with path.open("rb") as file:
            if private:
                _check_private(os.fstat(file.fileno()), path)
            return file.read(MAX_KEY_BYTES).decode("ascii")
    except UnicodeDecodeError:
        raise ConfigurationError(f"The file {path} does not hold an API key.") from None
    except OSError as error:
        raise ConfigurationError(f"The key file {path} cannot be read: {error.strerror}.") from error


def _check_private(facts: os.stat_result, path: Path) -> None:
    if facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(f"Others may read the key file {path}: run chmod 600 {path}.")
    if facts.st_uid not in {os.geteuid(), 0}:
        raise ConfigurationError(f"The key file {path} is another user's.")


def checked_key(text: str, source: str) -> str:
    """Return the API key in a text, or raise ConfigurationError naming where that came from."""
    key = text.strip()
    # It becomes an HTTP header: one word of visible ASCII, or nothing is sent.
    if not key or not all("!" <= character <= "~" for character in key):
        raise ConfigurationError(f"{source} does not hold an API key.")
    return key
