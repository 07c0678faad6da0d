"""`cellblock kernelspec`: kernels in cells among the kernels of any Jupyter installation."""

from __future__ import annotations

import asyncio
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.bridge import PrivateKeyFileOption, credential
from gateway.cli.connection import DEFAULT_URL, KEY_VARIABLE, GatewayOption, JsonOption, checked_key
from gateway.cli.table import print_json, print_table
from gateway.cli.vault import keep_in_keyring, key_file_of, write_key
from gateway.errors import BadRequest, UnknownKernelSpec

if TYPE_CHECKING:
    from gateway.client import Client
    from gateway.client.views import SpecEntry

app = typer.Typer(help="Kernels in cells, for any Jupyter installation.", no_args_is_help=True)


class Share(StrEnum):
    """How the directory of a notebook is shared with its kernel."""

    NONE = "none"
    READ_ONLY = "read-only"
    READ_WRITE = "read-write"


KernelOption = Annotated[
    str | None,
    typer.Option("--kernel", metavar="NAME", help="The gateway's kernelspec; otherwise its default."),
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="The new kernelspec's name; otherwise cellblock-KERNEL."),
]
LocalKernelOption = Annotated[
    str, typer.Option("--kernel", metavar="NAME", help="The shipped kernelspec to make it from.")
]
LocalNameOption = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="The new kernelspec's name; otherwise KERNEL-local."),
]
ShareOption = Annotated[
    Share, typer.Option("--share", help="What kernels see of the notebook's directory, where they run.")
]
DisplayNameOption = Annotated[
    str | None, typer.Option("--display-name", metavar="TEXT", help="What Jupyter calls the kernel.")
]
StoreKeyOption = Annotated[
    bool,
    typer.Option(
        "--store-key", help=f"Keep the key (${KEY_VARIABLE}, else asked for) in a file that is yours alone."
    ),
]
KeyringOption = Annotated[
    bool, typer.Option("--keyring", help="The keyring has the key; with --store-key, keep it there.")
]
UserOption = Annotated[bool, typer.Option("--user", help="For this user: so it is without any of these.")]
SysPrefixOption = Annotated[
    bool, typer.Option("--sys-prefix", help="For the Python environment that runs this command.")
]
PrefixOption = Annotated[
    Path | None, typer.Option("--prefix", metavar="DIR", help="Below DIR/share/jupyter/kernels.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The kernelspec's name.")]


@app.command("install")
def install(
    gateway: GatewayOption = DEFAULT_URL,
    kernel: KernelOption = None,
    name: NameOption = None,
    display_name: DisplayNameOption = None,
    key_file: PrivateKeyFileOption = None,
    store_key: StoreKeyOption = False,
    keyring: KeyringOption = False,
    user: UserOption = False,
    sys_prefix: SysPrefixOption = False,
    prefix: PrefixOption = None,
) -> None:
    """Install a kernelspec that starts kernels of a gateway.

    The key stays where it is, or goes where --store-key says: never into the kernelspec.
    """
    place = _place(user, sys_prefix, prefix)
    if key_file is not None and (store_key or keyring):
        raise BadRequest("--key-file names a file that is there: it excludes --store-key and --keyring.")
    key_file = None if key_file is None else key_file.absolute()
    key = _asked_for() if store_key else credential(gateway, key_file, keyring)()
    entry, logos = asyncio.run(_look(gateway, key, kernel))
    name = name or f"cellblock-{entry.name}"

    from gateway.bridge import kernelspec  # noqa: PLC0415 - jupyter_client would slow every --help

    options = ["--keyring"] if keyring else []
    if store_key and not keyring:
        key_file = key_file_of(kernelspec.checked_name(name))
    if key_file is not None:
        options = ["--key-file", str(key_file)]
    spec = kernelspec.BridgeSpec(
        name=name,
        display_name=display_name or _marked(entry.spec.display_name),
        language=entry.spec.language,
        url=gateway,
        kernel=entry.name,
        credential=options,
        logos=logos,
    )
    where = kernelspec.install(spec, prefix=None if place is None else str(place))
    if store_key and keyring:
        keep_in_keyring(gateway, key)
    elif store_key and key_file is not None:
        write_key(key_file, key)
    typer.echo(f"{spec.display_name}: {where}")
    if not options and KEY_VARIABLE in os.environ:
        typer.echo(f"Jupyter has to be started with {KEY_VARIABLE}, too: the key was not stored.", err=True)


@app.command("install-local")
def install_local(
    kernel: LocalKernelOption = "python3",
    name: LocalNameOption = None,
    display_name: DisplayNameOption = None,
    share: ShareOption = Share.NONE,
    user: UserOption = False,
    sys_prefix: SysPrefixOption = False,
    prefix: PrefixOption = None,
) -> None:
    """Install a kernelspec whose kernels Jupyter starts itself, in cells of this machine: no gateway."""
    place = _place(user, sys_prefix, prefix)

    from gateway.kernels import provisioner_spec  # noqa: PLC0415 - jupyter_client would slow every --help

    where = provisioner_spec.install(
        kernel=kernel, name=name, display_name=display_name, share=share.value, prefix=place
    )
    typer.echo(str(where))


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the kernelspecs of gateways that Jupyter finds here."""
    from gateway.bridge.kernelspec import installed  # noqa: PLC0415 - jupyter_client would slow every --help

    found = installed()
    if as_json:
        fields = ("name", "display_name", "gateway", "kernel", "directory")
        print_json([{field: getattr(spec, field) for field in fields} for spec in found])
        return
    print_table(
        ("NAME", "DISPLAY NAME", "GATEWAY", "KERNEL", "DIRECTORY"),
        [(spec.name, spec.display_name, spec.gateway, spec.kernel, spec.directory) for spec in found],
    )


@app.command("remove")
def remove(name: NameArgument) -> None:
    """Remove a kernelspec, and the key that was stored for it."""
    from gateway.bridge import kernelspec  # noqa: PLC0415 - jupyter_client would slow every --help

    where = kernelspec.remove(name)
    key_file_of(kernelspec.checked_name(name)).unlink(missing_ok=True)
    typer.echo(f"{where} removed")


def _place(user: bool, sys_prefix: bool, prefix: Path | None) -> Path | None:
    """Return the prefix to install below; None for the user's own directory."""
    if sum((user, sys_prefix, prefix is not None)) > 1:
        raise BadRequest("--user, --sys-prefix and --prefix exclude each other.")
    if sys_prefix:
        return Path(sys.prefix)
    return None if prefix is None else prefix.absolute()


def _asked_for() -> str:
    """Return the key that the environment has, or that the user types, or that stands on stdin."""
    if KEY_VARIABLE in os.environ:
        return checked_key(os.environ[KEY_VARIABLE], KEY_VARIABLE)
    if sys.stdin.isatty():
        return checked_key(typer.prompt("API key", hide_input=True), "What was typed")
    return checked_key(sys.stdin.readline(), "stdin")


async def _look(url: str, key: str, kernel: str | None) -> tuple[SpecEntry, dict[str, bytes]]:
    """Return what the gateway says of a kernelspec, and its logos. Raises GatewayError."""
    from gateway.client import Client  # noqa: PLC0415 - aiohttp would slow every --help

    async with Client(url, key, retries=0) as client:
        specs = await client.kernelspecs.list()
        wanted = kernel or specs.default
        entry = specs.kernelspecs.get(wanted)
        if entry is None:
            known = ", ".join(sorted(specs.kernelspecs))
            raise UnknownKernelSpec(f"The gateway has no kernelspec {wanted}; it has {known}.")
        return entry, await _logos(client, entry)


async def _logos(client: Client, entry: SpecEntry) -> dict[str, bytes]:
    from gateway.bridge.kernelspec import LOGO  # noqa: PLC0415 - jupyter_client would slow every --help

    names = {path.rpartition("/")[2] for path in entry.resources.values()}
    logos = [name for name in sorted(names) if LOGO.fullmatch(name)]
    return {name: await client.kernelspecs.resource(entry.name, name) for name in logos}


def _marked(display_name: str) -> str:
    """Return a display name that cannot be taken for a local kernel's."""
    return display_name if "Cellblock" in display_name else f"{display_name} (Cellblock)"
