"""`cellblock jobs`: executions that the gateway keeps: look at them, follow them, cancel them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.connection import DEFAULT_URL, JsonOption, KeyFileOption, UrlOption, each, use_client
from gateway.cli.table import print_json, print_table

if TYPE_CHECKING:
    from gateway.cli.screen import Screen
    from gateway.client import Client
    from gateway.models.jobs import Event, JobStatus, JobView, TaskResult

app = typer.Typer(
    help="The executions of a gateway: running ones, and those whose results are kept.", no_args_is_help=True
)

JobId = Annotated[str, typer.Argument(metavar="ID", help="The execution's id.")]
CursorOption = Annotated[
    int, typer.Option("--cursor", metavar="N", min=0, help="Begin after the event of this number.")
]
# of ends that are no failure of the code; every other one is 1
EXIT_CODES = {"queued": 0, "running": 0, "ok": 0, "timeout": 124}
OUTPUTS = {"display": "display_data", "update_display": "display_data", "result": "execute_result"}


@app.command("ls")
def ls(url: UrlOption = DEFAULT_URL, key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """List the executions that are kept, newest first."""
    jobs = use_client(url, key_file, lambda client: client.executions.list())
    if as_json:
        print_json([job.model_dump(mode="json") for job in jobs])
        return
    print_table(
        ("ID", "STATUS", "KERNEL", "CONTEXT", "CREATED", "ENDED"),
        [
            (
                job.id,
                job.status,
                job.kernel_id or "-",
                job.context or "-",
                job.created_at,
                job.ended_at or "-",
            )
            for job in jobs
        ],
    )


@app.command("show")
def show(
    job_id: JobId,
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how an execution is, and what it gave so far.

    Exit code: 0 success or still on its way, 1 it failed, 124 timeout.
    """
    from gateway.cli.screen import Screen  # noqa: PLC0415 - not for --help

    view = use_client(url, key_file, lambda client: client.executions.get(job_id))
    if as_json:
        print_json(view.model_dump(mode="json", exclude_none=True))
    else:
        _print(view, Screen())
    raise typer.Exit(_exit_code(view.status))


@app.command("follow")
def follow(
    job_id: JobId,
    cursor: CursorOption = 0,
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print an execution's output as it comes, from its start, until it ends; Ctrl-C leaves it running.

    With --json one event a line. Exit code: as of `jobs show`, and 130 for Ctrl-C.
    """
    from gateway.cli.screen import Screen  # noqa: PLC0415 - not for --help

    screen = Screen()

    async def follow_it(client: Client) -> int:
        code = 0
        async for event in client.executions.follow(job_id, cursor=cursor):
            if as_json:
                typer.echo(event.model_dump_json(exclude_none=True))
            else:
                _print_event(event, screen)
            if event.type == "ended" and event.status is not None:
                code = _exit_code(event.status)
        return code

    try:
        raise typer.Exit(use_client(url, key_file, follow_it, retries=4))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(130) from None


@app.command("cancel")
def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The executions' ids.")],
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
) -> None:
    """End executions for real, by a restart of the kernel if need be; forget those that have ended."""
    each(url, key_file, job_ids, lambda client, job_id: client.executions.cancel(job_id), "cancelled")


def _exit_code(status: JobStatus) -> int:
    return EXIT_CODES.get(status, 1)


def _print(view: JobView, screen: Screen) -> None:
    named = [(view.result, "")] if view.tasks is None else []
    for number, task in enumerate(view.tasks or [], 1):
        named.append((task.result, f"task {task.name or number}: {task.status}"))
    for result, title in named:
        if title:
            screen.say(title)
        if result is not None:
            _print_result(result, screen)
    if view.failure is not None:
        screen.say(view.failure.message)
    screen.say(_how(view.status, view.reason))


def _print_result(result: TaskResult, screen: Screen) -> None:
    for output in result.outputs:
        screen.show(str(output.get("output_type")), output)


def _print_event(event: Event, screen: Screen) -> None:
    content: dict[str, Any] = event.wire()
    match event.type:
        case "stdout" | "stderr":
            screen.show("stream", {"name": event.type, "text": event.text or ""})
        case "display" | "update_display" | "result":
            screen.show(OUTPUTS[event.type], content)
        case "error":
            screen.show("error", content)
        case "gap":
            screen.say(f"cellblock: {event.bytes or 0} bytes of events before this are gone")
        case "ended":
            screen.say(_how(event.status, event.reason))


def _how(status: str | None, reason: str | None) -> str:
    return f"cellblock: {status}" + (f" ({reason})" if reason else "")
