"""`cellblock run`: execute a notebook, a script or a line of code in a kernel of a gateway."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.connection import DEFAULT_URL, KeyFileOption, UrlOption, api_key
from gateway.cli.job import Script
from gateway.errors import BadRequest

if TYPE_CHECKING:
    from gateway.cli.job import Job

FileArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="A notebook (.ipynb) or a script (any other name).")
]
CodeOption = Annotated[str | None, typer.Option("-c", metavar="CODE", help="Run this code.")]
KernelOption = Annotated[
    str | None,
    typer.Option("--kernel", metavar="NAME", help="Kernelspec; otherwise the notebook's, or the default."),
]
KernelIdOption = Annotated[
    str | None, typer.Option("--kernel-id", metavar="ID", help="Use this live kernel, and leave it alive.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Executed notebook; otherwise STEM.executed.ipynb here."
    ),
]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Longest time for one cell.")
]
AllowErrorsOption = Annotated[
    bool, typer.Option("--allow-errors", help="Go on after a cell that raises, and count it as success.")
]
KeepOption = Annotated[bool, typer.Option("--keep", help="Leave the kernel running, and say its id.")]


def run(
    file: FileArgument = None,
    code: CodeOption = None,
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
    kernel: KernelOption = None,
    kernel_id: KernelIdOption = None,
    output: OutputOption = None,
    timeout: TimeoutOption = None,
    allow_errors: AllowErrorsOption = False,
    keep: KeepOption = False,
) -> None:
    """Run a notebook, a script or a line of code in a kernel of its own.

    Exit code: 0 success, 1 the code failed, 2 usage or gateway, 124 timeout, 130 Ctrl-C.
    """
    if (file is None) == (code is None):
        raise BadRequest("Give either a notebook or script, or -c CODE.")
    if kernel is not None and kernel_id is not None:
        raise BadRequest("--kernel and --kernel-id exclude each other.")
    job = _job(file, code, output)
    key = api_key(key_file)

    from gateway.cli.execution import Options, execute  # noqa: PLC0415 - aiohttp would slow every --help

    options = Options(kernel, kernel_id, timeout, allow_errors, keep)
    raise typer.Exit(asyncio.run(execute(job, url, key, options)))


def _job(file: Path | None, code: str | None, output: Path | None) -> Job:
    if file is not None and file.suffix == ".ipynb":
        from gateway.cli.notebook import Notebook  # noqa: PLC0415 - nbformat takes half a second

        return Notebook.read(file, _writable(output or Path(f"{file.stem}.executed.ipynb")))
    if output is not None:
        raise BadRequest("--output is for notebooks: what a script prints goes to stdout.")
    if file is None:
        return Script(code or "")
    try:
        return Script(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"The script {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadRequest(f"The script {file} is not UTF-8 text.") from error


def _writable(target: Path) -> Path:
    """Return the path when a notebook can be written there: better known before an hour's run than after."""
    parent = target.parent
    if target.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BadRequest(f"The executed notebook cannot be written to {target}.")
    return target
