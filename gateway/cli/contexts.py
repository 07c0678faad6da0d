"""`cellblock contexts`: the caller's named contexts."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.connection import DEFAULT_URL, JsonOption, KeyFileOption, UrlOption, each, use_client
from gateway.cli.table import print_json, print_table

app = typer.Typer(help="The caller's named contexts.", no_args_is_help=True)


@app.command("ls")
def ls(url: UrlOption = DEFAULT_URL, key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """List the contexts, oldest first."""
    contexts = use_client(url, key_file, lambda client: client.contexts.list())
    if as_json:
        print_json([context.model_dump(mode="json") for context in contexts])
        return
    print_table(
        ("NAME", "STATE", "KERNEL", "ID", "CREATED", "EXPIRES"),
        [
            (
                context.name,
                f"{context.state} ({context.reason})" if context.reason else context.state,
                context.kernel,
                context.kernel_id,
                context.created_at,
                context.expires_at or "-",
            )
            for context in contexts
        ],
    )


@app.command("close")
def close(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="The contexts' names.")],
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
) -> None:
    """End contexts and their kernels."""
    each(url, key_file, names, lambda client, name: client.contexts.close(name), "closed")
