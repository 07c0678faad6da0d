"""`cellblock keys`: make, list and revoke API keys in the store itself, whether or not a gateway runs."""

from __future__ import annotations

import asyncio
import os
import pwd
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.connection import JsonOption
from gateway.cli.moments import date, span
from gateway.cli.state import StateDirOption, has_store, settings_for, with_store
from gateway.cli.table import print_json, print_table
from gateway.clock import SystemClock
from gateway.errors import AuditUnavailable, BadRequest, NotFound
from gateway.models import DEFAULT_SCOPES, AuditAction, AuditEvent, KeyRecord

if TYPE_CHECKING:
    from gateway.settings import Settings
    from gateway.store import SqlStore

app = typer.Typer(help="API keys, kept in the gateway's state directory.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Whose key: the owner of what it makes.")]
WhichArgument = Annotated[
    str, typer.Argument(metavar="ID|NAME", help="One key by its id, or all of an owner's.")
]
ScopesOption = Annotated[
    list[str] | None,
    typer.Option("--scopes", metavar="SCOPES", help="kernels, execute, files, admin; by commas or repeated."),
]
ExpiresOption = Annotated[
    str | None,
    typer.Option("--expires", metavar="WHEN", help="After 30d, 12h, 45m; or at an ISO date (UTC)."),
]


@app.command("create")
def create(
    name: NameArgument,
    state_dir: StateDirOption = None,
    scopes: ScopesOption = None,
    expires: ExpiresOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it: the only time that it can be seen."""
    from gateway.auth import KeyRing, load_pepper  # noqa: PLC0415 - not for --help

    clock = SystemClock()
    expires_at = None if expires is None else expiry(expires, clock.now())
    granted = {scope.strip() for given in scopes for scope in given.split(",")} if scopes else DEFAULT_SCOPES
    settings = settings_for(state_dir)
    caller = _caller()

    async def make(store: SqlStore) -> tuple[str, KeyRecord]:
        keys = KeyRing(store, load_pepper(settings.pepper_path), clock)
        made = await keys.create(name, granted, expires_at)
        # before the key is shown: one without a record is known to nobody
        extra = {
            "owner": name,
            "scopes": ",".join(sorted(made[1].scopes)),
            "expires": str(expires_at or "never"),
        }
        await _record(settings, store, caller, AuditAction.KEY_CREATE, made[1].id, extra)
        return made

    token, record = with_store(settings, make)
    if as_json:
        print_json({"key": token, **_shown(record, clock.now())})
        return
    typer.echo(token)
    if sys.stdout.isatty() and sys.stderr.isatty():
        typer.echo("Keep it: it is not shown again. For the other commands: export CELLBLOCK_KEY=…", err=True)


@app.command("ls")
def ls(state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """List all keys, the oldest first; never their secrets."""
    settings = settings_for(state_dir)

    # Looking makes nothing: no store yet, no keys.
    records = with_store(settings, lambda store: store.keys()) if has_store(settings) else []
    shown = [_shown(record, SystemClock().now()) for record in records]
    if as_json:
        print_json(shown)
        return
    print_table(
        ("ID", "NAME", "SCOPES", "CREATED", "EXPIRES", "STATE"),
        [
            (
                str(key["id"]),
                str(key["name"]),
                ",".join(key["scopes"] or ()),
                str(key["created_at"]),
                str(key["expires_at"] or "never"),
                str(key["state"]),
            )
            for key in shown
        ],
    )


@app.command("revoke")
def revoke(which: WhichArgument, state_dir: StateDirOption = None) -> None:
    """Revoke a key, or all keys of a name; open connections end within two seconds."""
    settings = settings_for(state_dir)
    caller = _caller()

    async def end(store: SqlStore) -> list[str]:
        live = [key for key in await store.keys() if key.revoked_at is None]
        chosen = [key for key in live if key.id == which] or [key for key in live if key.principal == which]
        now = SystemClock().now()
        ended = [key for key in chosen if await store.revoke_key(key.id, now)]
        for key in ended:
            extra = {"owner": key.principal}
            await _record(settings, store, caller, AuditAction.KEY_REVOKE, key.id, extra)
        return [key.id for key in ended]

    revoked = with_store(settings, end) if has_store(settings) else []
    if not revoked:
        raise NotFound(f"No key that is not revoked already has the id or name {which!r}.")
    for key_id in revoked:
        typer.echo(f"{key_id} revoked")


def expiry(text: str, now: datetime) -> datetime:
    """Return the moment that `30d`, `2027-01-31` or `2027-01-31T12:00+01:00` stands for; UTC unless it says.

    Raises:
        BadRequest: it is none of these, or has passed.
    """
    try:
        ahead = span(text)
        moment = date(text) if ahead is None else now + ahead
    except (ValueError, OverflowError):
        raise BadRequest(
            f"{text!r} is not an expiry: give 30d, 12h, 45m or a date like 2027-01-31."
        ) from None
    if moment <= now:
        raise BadRequest(f"The expiry {text!r} has passed already.")
    return moment


def _caller() -> str:
    """Return who runs this command, before it becomes the service user."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


async def _record(
    settings: Settings,
    store: SqlStore,
    caller: str,
    action: AuditAction,
    key_id: str,
    extra: dict[str, str],
) -> None:
    """Record what was done to a key, beside a gateway that may be running. Raises AuditUnavailable."""
    from gateway.audit.journal import Journal  # noqa: PLC0415 - not for --help
    from gateway.auth import load_pepper  # noqa: PLC0415

    event = AuditEvent(action=action, who=caller, door="cli", target=key_id, extra=extra)
    # how long records are kept is the gateway's to say
    keeping = settings.audit.model_copy(update={"retention_days": 0})
    journal = Journal(settings.audit_dir, load_pepper(settings.audit_key_path), keeping)
    try:
        await asyncio.to_thread(journal.append, [(SystemClock().now(), event)], await store.audit_head())
        await asyncio.to_thread(journal.sync)
    except OSError as error:
        raise AuditUnavailable(f"The audit trail cannot be written: {error.strerror}.") from error


def _shown(record: KeyRecord, now: datetime) -> dict[str, str | list[str] | None]:
    if record.revoked_at is not None:
        state = "revoked"
    elif record.expires_at is not None and record.expires_at <= now:
        state = "expired"
    else:
        state = "live"
    return {
        "id": record.id,
        "name": record.principal,
        "scopes": sorted(record.scopes),
        "created_at": _date(record.created_at),
        "expires_at": None if record.expires_at is None else _date(record.expires_at),
        "state": state,
    }


def _date(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
