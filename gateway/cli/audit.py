"""`cellblock audit`: prove the trail, look at it, take it elsewhere."""

from __future__ import annotations

import csv
import json
import sys
import time
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.connection import JsonOption
from gateway.cli.moments import date, span
from gateway.cli.state import StateDirOption, has_store, settings_for, with_store
from gateway.cli.table import print_json
from gateway.clock import SystemClock
from gateway.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.audit.journal import Journal
    from gateway.models import AuditHead, AuditRecord
    from gateway.settings import Settings
    from gateway.store import SqlStore

app = typer.Typer(help="The audit trail of a state directory.", no_args_is_help=True)

SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="Only what is younger than 30d, 12h, 45m, or an ISO date."),
]
LinesOption = Annotated[int, typer.Option("-n", "--lines", metavar="N", min=0, help="How many of the last.")]
FollowOption = Annotated[
    bool, typer.Option("--follow", "-f", help="Go on with what is recorded from now on.")
]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV with a header, and not JSON lines.")]

AT_ONCE = 500
POLL_S = 0.5
# What a spreadsheet would take for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@app.command("verify")
def verify(state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """Prove that no record was changed, moved or cut out; exit code 1 and the first bad record if one was."""
    from gateway.audit.verify import verify as proved  # noqa: PLC0415 - not for --help

    settings = settings_for(state_dir)
    journal, head, key = _opened(settings)
    verdict = proved(journal, key, head)
    if as_json:
        print_json(
            {
                "ok": verdict.problem is None,
                "records": verdict.records,
                "first": verdict.first,
                "last": verdict.last,
                "problem": verdict.problem,
            }
        )
    elif verdict.problem is None:
        typer.echo(f"{verdict.records} records, {verdict.first} to {verdict.last}: nothing was changed.")
    else:
        typer.echo(f"{verdict.problem} {verdict.records} records before that are good.")
    if verdict.problem is not None:
        raise typer.Exit(1)


@app.command("tail")
def tail(
    state_dir: StateDirOption = None,
    lines: LinesOption = 20,
    since: SinceOption = None,
    follow: FollowOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the last records, or all since a moment, and with --follow what comes."""
    start = _moment(since)
    journal, _, _ = _opened(settings_for(state_dir))
    begin = 0 if start is not None else _last(journal, lines)
    with suppress(KeyboardInterrupt, BrokenPipeError):
        for record in _records(journal, begin, start, follow=follow):
            sys.stdout.write(record.model_dump_json(exclude_none=True) if as_json else _line(record))
            sys.stdout.write("\n")
            sys.stdout.flush()


@app.command("export")
def export(state_dir: StateDirOption = None, since: SinceOption = None, as_csv: CsvOption = False) -> None:
    """Print every record, or all since a moment, oldest first, as JSON lines or CSV."""
    from gateway.models import AuditRecord  # noqa: PLC0415 - not for --help

    start = _moment(since)
    journal, _, _ = _opened(settings_for(state_dir))
    names = list(AuditRecord.model_fields)
    table = csv.writer(sys.stdout)
    with suppress(BrokenPipeError):
        if as_csv:
            table.writerow(names)
        for record in _records(journal, 0, start, follow=False):
            if as_csv:
                table.writerow([_cell(value) for value in record.model_dump(mode="json").values()])
            else:
                sys.stdout.write(record.model_dump_json(exclude_none=True) + "\n")


def _opened(settings: Settings) -> tuple[Journal, AuditHead, bytes]:
    """Return the trail, the newest record that the store knows, and the key. Raises NotFound."""
    from gateway.audit.journal import Journal  # noqa: PLC0415 - not for --help
    from gateway.auth import load_pepper  # noqa: PLC0415

    if not has_store(settings):
        raise NotFound(f"There is no gateway's state in {settings.state_dir}.")

    async def head(store: SqlStore) -> AuditHead:
        return await store.audit_head()

    newest = with_store(settings, head)
    if not settings.audit_key_path.exists():
        # looking makes nothing, and a new key would prove nothing
        raise NotFound(f"The audit trail's key {settings.audit_key_path} is missing.")
    key = load_pepper(settings.audit_key_path)
    return Journal(settings.audit_dir, key, settings.audit), newest, key


def _records(journal: Journal, begin: int, start: datetime | None, *, follow: bool) -> Iterator[AuditRecord]:
    from gateway.audit.journal import Position  # noqa: PLC0415 - not for --help

    position = Position(begin)
    while True:
        records, position = journal.read(position, AT_ONCE)
        for record in records:
            if start is None or datetime.fromisoformat(record.at) >= start:
                yield record
        if not records and not follow:
            return
        if not records:
            time.sleep(POLL_S)


def _last(journal: Journal, count: int) -> int:
    """Return the number of the record before the last ones."""
    from gateway.audit.journal import Position, first_of  # noqa: PLC0415 - not for --help

    files = journal.files()
    if not files:
        return 0
    # from the newest file that surely has all of them behind its beginning
    newest = first_of(files[-1])
    position = Position(
        max((first_of(file) for file in files if first_of(file) <= newest - count), default=1) - 1
    )
    last = position.seq
    while True:
        records, position = journal.read(position, AT_ONCE)
        if not records:
            return max(0, last - count)
        last = records[-1].seq


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        passed: timedelta | None = span(text)
        return date(text) if passed is None else SystemClock().now() - passed
    except (ValueError, OverflowError):
        raise BadRequest(f"{text!r} is no moment: give 30d, 12h, 45m or a date like 2027-01-31.") from None


def _line(record: AuditRecord) -> str:
    """Return a record as one line of a terminal, whatever characters clients put into it."""
    where = record.kernel_id or record.target or "-"
    fields: list[Any] = [record.at, record.action, record.outcome, record.who or "-", record.door or "-"]
    fields += [record.address or "-", where, record.reason or ""]
    text = "  ".join(map(str, fields)).rstrip()
    if record.extra:
        text += "  " + json.dumps(dict(record.extra))
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value) if value else ""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
