"""`cellblock kernels`: look at a gateway's kernels, interrupt, restart and remove them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.connection import DEFAULT_URL, JsonOption, KeyFileOption, UrlOption, api_key
from gateway.cli.table import print_json, print_table
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from typing import TypeVar

    from gateway.client import Client

    T = TypeVar("T")

app = typer.Typer(help="The kernels of a gateway.", no_args_is_help=True)

KernelId = Annotated[str, typer.Argument(metavar="ID", help="The kernel's id.")]


def call(url: str, key_file: Path | None, use: Callable[[Client], Awaitable[T]]) -> T:
    """Open a client, do one thing with it, and return what that gave."""
    from gateway.client import Client  # noqa: PLC0415 - aiohttp would slow every --help

    async def session() -> T:
        async with Client(url, api_key(key_file)) as client:
            return await use(client)

    return asyncio.run(session())


@app.command("ls")
def ls(url: UrlOption = DEFAULT_URL, key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """List the kernels that the key may see."""
    kernels = call(url, key_file, lambda client: client.kernels())
    if as_json:
        print_json([kernel.model_dump(mode="json") for kernel in kernels])
        return
    print_table(
        ("ID", "NAME", "STATE", "OWNER", "PROFILE", "SOCKETS", "LAST ACTIVITY"),
        [
            (
                kernel.id,
                kernel.name,
                f"{kernel.execution_state} ({kernel.reason})" if kernel.reason else kernel.execution_state,
                kernel.owner,
                kernel.profile,
                str(kernel.connections),
                kernel.last_activity,
            )
            for kernel in kernels
        ],
    )


@app.command("interrupt")
def interrupt(kernel_id: KernelId, url: UrlOption = DEFAULT_URL, key_file: KeyFileOption = None) -> None:
    """Interrupt what a kernel runs."""
    call(url, key_file, lambda client: client.interrupt(kernel_id))
    typer.echo(f"{kernel_id} interrupted")


@app.command("restart")
def restart(
    kernel_id: KernelId,
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restart a kernel under the same id; its variables are lost."""
    kernel = call(url, key_file, lambda client: client.restart(kernel_id))
    if as_json:
        print_json(kernel.model_dump(mode="json"))
    else:
        typer.echo(f"{kernel_id} restarted")


@app.command("rm")
def rm(
    kernel_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The kernels' ids.")],
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
) -> None:
    """End kernels and everything that they started."""

    async def remove(client: Client) -> GatewayError | None:
        failure = None
        for kernel_id in kernel_ids:
            try:
                await client.delete(kernel_id)
                typer.echo(f"{kernel_id} removed")
            except GatewayError as error:
                failure = error
                typer.echo(f"cellblock: {error.message}", err=True)
        return failure

    if call(url, key_file, remove) is not None:
        raise typer.Exit(2)
