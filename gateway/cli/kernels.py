"""`cellblock kernels`: look at a gateway's kernels, interrupt, restart and remove them."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.connection import DEFAULT_URL, JsonOption, KeyFileOption, UrlOption, each, use_client
from gateway.cli.table import print_json, print_table

app = typer.Typer(help="The kernels of a gateway.", no_args_is_help=True)

KernelId = Annotated[str, typer.Argument(metavar="ID", help="The kernel's id.")]


@app.command("ls")
def ls(url: UrlOption = DEFAULT_URL, key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """List the kernels that the key may see."""
    kernels = use_client(url, key_file, lambda client: client.kernels.list())
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
    use_client(url, key_file, lambda client: client.kernels.interrupt(kernel_id))
    typer.echo(f"{kernel_id} interrupted")


@app.command("restart")
def restart(
    kernel_id: KernelId,
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restart a kernel under the same id; its variables are lost."""
    kernel = use_client(url, key_file, lambda client: client.kernels.restart(kernel_id))
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
    each(url, key_file, kernel_ids, lambda client, kernel_id: client.kernels.delete(kernel_id), "removed")
