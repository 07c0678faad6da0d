"""`cellblock bridge`: what a kernelspec of Cellblock's starts in the place of a local kernel."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.connection import DEFAULT_URL, GatewayOption, api_key, private_key
from gateway.cli.vault import keyring_key

if TYPE_CHECKING:
    from collections.abc import Callable

ConnectionFileOption = Annotated[
    Path,
    typer.Option("--connection-file", "-f", metavar="FILE", help="Where Jupyter wants to find the kernel."),
]
KernelOption = Annotated[
    str | None,
    typer.Option("--kernel", metavar="NAME", help="The gateway's kernelspec; otherwise its default."),
]
LanguageOption = Annotated[
    str, typer.Option("--language", metavar="NAME", help="What to answer for when there is no kernel.")
]
PrivateKeyFileOption = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", help="File with the API key, which others must not read."),
]
KeyringOption = Annotated[bool, typer.Option("--keyring", help="The keyring has the API key.")]


def bridge(
    connection_file: ConnectionFileOption,
    gateway: GatewayOption = DEFAULT_URL,
    kernel: KernelOption = None,
    language: LanguageOption = "python",
    key_file: PrivateKeyFileOption = None,
    keyring: KeyringOption = False,
) -> None:
    """Relay between Jupyter clients on this machine and a kernel of a gateway, until either ends.

    Started by Jupyter, from a kernelspec that `cellblock kernelspec install` made.
    """
    from gateway.bridge.process import Order, run  # noqa: PLC0415 - asyncio is not for --help

    key = credential(gateway, key_file, keyring)
    raise typer.Exit(run(Order(gateway, kernel, connection_file, key, language)))


def credential(url: str, key_file: Path | None, keyring: bool) -> Callable[[], str]:
    """Return what reads the API key, at the moment when it is used."""
    if keyring:
        return partial(keyring_key, url)
    return partial(api_key, None) if key_file is None else partial(private_key, key_file.absolute())
