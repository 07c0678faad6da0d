"""`cellblock files`: the home of a kernel: list, fetch, send, remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.connection import DEFAULT_URL, JsonOption, KeyFileOption, UrlOption, each, use_client
from gateway.cli.table import plain, print_json, print_table
from gateway.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, TypeVar

    from gateway.client import Client

    T = TypeVar("T")

app = typer.Typer(help="Files of a kernel's home.", no_args_is_help=True)

KernelId = Annotated[str, typer.Argument(metavar="KERNEL", help="The kernel's id.")]
RecursiveOption = Annotated[bool, typer.Option("--recursive", "-r", help="What is below a directory, too.")]


@app.command("ls")
def ls(
    kernel_id: KernelId,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A directory; otherwise the home.")] = "",
    recursive: RecursiveOption = False,
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a directory of a kernel's home."""
    listing = use_client(
        url, key_file, lambda client: client.files.list(kernel_id, path, recursive=recursive)
    )
    if as_json:
        print_json(listing.model_dump(mode="json"))
        return
    print_table(
        ("TYPE", "SIZE", "MODIFIED", "PATH"),
        [(file.type, str(file.size), file.modified_at, plain(file.path)) for file in listing.files],
    )
    if listing.truncated:
        typer.echo("cellblock: there are more entries than are listed", err=True)


@app.command("get")
def get(
    kernel_id: KernelId,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file of the home.")],
    target: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to; otherwise its name, here.")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
) -> None:
    """Fetch a file of a kernel's home; a local file of that name is replaced once all of it is there."""
    place = target or Path(path.rstrip("/").rpartition("/")[2] or "file")
    if place.is_dir():
        place /= path.rstrip("/").rpartition("/")[2]
    size = _local(url, key_file, lambda client: client.files.download(kernel_id, path, place))
    typer.echo(f"{place} {size} bytes")


@app.command("put")
def put(
    kernel_id: KernelId,
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A local file.")],
    path: Annotated[
        str | None, typer.Argument(metavar="PATH", help="Where to in the home; otherwise its name.")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
) -> None:
    """Send a local file to a kernel's home; a file that is there is replaced."""
    wanted = path or source.name
    if wanted.endswith("/"):
        wanted += source.name
    entry = _local(url, key_file, lambda client: client.files.upload(kernel_id, source, wanted))
    typer.echo(f"{plain(entry.path)} {entry.size} bytes")


@app.command("rm")
def rm(
    kernel_id: KernelId,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files or directories of the home.")],
    recursive: RecursiveOption = False,
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
) -> None:
    """Remove files and empty directories of a kernel's home, and with --recursive full ones."""
    each(
        url,
        key_file,
        paths,
        lambda client, path: client.files.delete(kernel_id, path, recursive=recursive),
        "removed",
    )


def _local(url: str, key_file: Path | None, use: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """Do something with a local file. Raises BadRequest where that cannot be read or written."""
    try:
        return use_client(url, key_file, use, retries=4)
    except OSError as error:
        raise BadRequest(f"The local file {error.filename} is not to be had: {error.strerror}.") from error
