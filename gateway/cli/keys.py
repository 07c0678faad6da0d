"""`cellblock keys`: make, list and revoke API keys in the store itself, whether or not a gateway runs."""

from __future__ import annotations

import asyncio
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway import settings as configuration
from gateway.cli.connection import JsonOption
from gateway.cli.table import print_json, print_table
from gateway.clock import SystemClock
from gateway.errors import BadRequest, ConfigurationError, NotFound
from gateway.models import DEFAULT_SCOPES, KeyRecord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    from gateway.settings import Settings
    from gateway.store import SqlStore

    T = TypeVar("T")

app = typer.Typer(help="API keys, kept in the gateway's state directory.", no_args_is_help=True)

StateDirOption = Annotated[
    Path | None, typer.Option("--state-dir", metavar="DIR", help="The gateway's state directory.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Whose key: the owner of what it makes.")]
WhichArgument = Annotated[
    str, typer.Argument(metavar="ID|NAME", help="One key by its id, or all of an owner's.")
]
ScopesOption = Annotated[
    list[str] | None,
    typer.Option("--scopes", metavar="SCOPES", help="kernels, execute, admin; by commas or repeated."),
]
ExpiresOption = Annotated[
    str | None,
    typer.Option("--expires", metavar="WHEN", help="After 30d, 12h, 45m; or at an ISO date (UTC)."),
]

_SPAN = re.compile(r"([0-9]{1,6})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


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
    settings = _settings(state_dir)

    async def make(store: SqlStore) -> tuple[str, KeyRecord]:
        keys = KeyRing(store, load_pepper(settings.pepper_path), clock)
        return await keys.create(name, granted, expires_at)

    token, record = _with_store(settings, make)
    if as_json:
        print_json({"key": token, **_shown(record, clock.now())})
        return
    typer.echo(token)
    if sys.stdout.isatty() and sys.stderr.isatty():
        typer.echo("Keep it: it is not shown again. For the other commands: export CELLBLOCK_KEY=…", err=True)


@app.command("ls")
def ls(state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """List all keys, the oldest first; never their secrets."""
    settings = _settings(state_dir)

    # Looking makes nothing: no store yet, no keys.
    records = _with_store(settings, lambda store: store.keys()) if _has_store(settings) else []
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
    settings = _settings(state_dir)

    async def end(store: SqlStore) -> list[str]:
        live = [key for key in await store.keys() if key.revoked_at is None]
        chosen = [key for key in live if key.id == which] or [key for key in live if key.principal == which]
        now = SystemClock().now()
        return [key.id for key in chosen if await store.revoke_key(key.id, now)]

    revoked = _with_store(settings, end) if _has_store(settings) else []
    if not revoked:
        raise NotFound(f"No key that is not revoked already has the id or name {which!r}.")
    for key_id in revoked:
        typer.echo(f"{key_id} revoked")


def expiry(text: str, now: datetime) -> datetime:
    """Return the moment that `30d`, `2027-01-31` or `2027-01-31T12:00+01:00` stands for; UTC unless it says.

    Raises:
        BadRequest: it is none of these, or has passed.
    """
    span = _SPAN.fullmatch(text)
    try:
        if span is not None:
            moment = now + timedelta(**{_UNITS[span[2]]: int(span[1])})
        else:
            moment = datetime.fromisoformat(text)
            moment = moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise BadRequest(
            f"{text!r} is not an expiry: give 30d, 12h, 45m or a date like 2027-01-31."
        ) from None
    if moment <= now:
        raise BadRequest(f"The expiry {text!r} has passed already.")
    return moment


def _settings(state_dir: Path | None) -> Settings:
    # Absolute: who stops being root also leaves the current directory.
    return configuration.load(state_dir=(state_dir or configuration.load().state_dir).absolute())


def _with_store(settings: Settings, work: Callable[[SqlStore], Awaitable[T]]) -> T:
    """Do something with the store, as the user whose files these are, also when root asks."""
    from gateway.privilege import as_service_user  # noqa: PLC0415 - as below
    from gateway.store import SqlStore  # noqa: PLC0415 - SQLAlchemy would slow every --help

    async def opened() -> T:
        store = await SqlStore.open(settings.store_path)
        try:
            return await work(store)
        finally:
            await store.close()

    as_service_user(settings)
    return asyncio.run(opened())


def _has_store(settings: Settings) -> bool:
    try:
        return settings.store_path.exists()
    except OSError as error:
        raise ConfigurationError(f"The state directory {settings.state_dir} is closed to you.") from error


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
