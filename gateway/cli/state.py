"""The gateway's state directory, for commands that work on it whether or not a gateway runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    from gateway.settings import Settings
    from gateway.store import SqlStore

    T = TypeVar("T")

StateDirOption = Annotated[
    Path | None, typer.Option("--state-dir", metavar="DIR", help="The gateway's state directory.")
]


def settings_for(state_dir: Path | None) -> Settings:
    """Return the settings that hold for a state directory. Raises ConfigurationError."""
    from gateway import settings as configuration  # noqa: PLC0415 - pydantic-settings would slow every --help

    # Absolute: who stops being root also leaves the current directory.
    return configuration.load(state_dir=(state_dir or configuration.load().state_dir).absolute())


def has_store(settings: Settings) -> bool:
    """Tell whether there is a store, without making one. Raises ConfigurationError."""
    try:
        return settings.store_path.exists()
    except OSError as error:
        raise ConfigurationError(f"The state directory {settings.state_dir} is closed to you.") from error


def with_store(settings: Settings, work: Callable[[SqlStore], Awaitable[T]]) -> T:
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
