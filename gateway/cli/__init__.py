"""The `cellblock` command: one module for each family of commands."""

from __future__ import annotations

import sys

import typer

from gateway.cli import (
    audit,
    bridge,
    contexts,
    doctor,
    files,
    jobs,
    kernels,
    kernelspec,
    keys,
    mcp,
    run,
    serve,
)
from gateway.errors import GatewayError

app = typer.Typer(
    name="cellblock",
    help="Run code that nobody should trust in Jupyter kernels, each in its own firejail cell.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("run")(run.run)
app.command("doctor")(doctor.doctor)
app.command("bridge")(bridge.bridge)
app.command("mcp")(mcp.mcp)
app.add_typer(kernelspec.app, name="kernelspec")
app.add_typer(kernels.app, name="kernels")
app.add_typer(jobs.app, name="jobs")
app.add_typer(contexts.app, name="contexts")
app.add_typer(files.app, name="files")
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")


def main() -> None:
    """Run the command line; what goes wrong is one sentence on stderr and exit code 2."""
    try:
        app()
    except GatewayError as error:
        print(f"cellblock: {error.message}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
