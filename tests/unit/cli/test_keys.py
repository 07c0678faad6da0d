"""`cellblock keys`: keys that work, shown once, listed and revoked."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.auth import KeyRing, load_pepper
from gateway.cli.keys import expiry
from gateway.clock import SystemClock
from gateway.errors import BadRequest, Unauthorized
from gateway.models import DEFAULT_SCOPES, Principal, Scope
from gateway.settings import load
from gateway.store import SqlStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.cli.conftest import Command

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def state() -> Iterator[str]:
    """A state directory that does not exist yet, where the service user can reach it too."""
    parent = Path(tempfile.mkdtemp(prefix="cb-keys-"))
    parent.chmod(0o755)
    yield str(parent / "state")
    shutil.rmtree(parent)


async def owner(state: str, token: str) -> Principal:
    """Return whose token it is, as a gateway with this state directory would tell."""
    settings = load(state_dir=state)
    store = await SqlStore.open(settings.store_path)
    try:
        return await KeyRing(store, load_pepper(settings.pepper_path), SystemClock()).authenticate(token)
    finally:
        await store.close()


async def test_create_prints_the_key_alone(cellblock: Command, state: str) -> None:
    """Before a gateway's first start: stdout has the key and nothing else, and the key is good."""
    done = await cellblock("keys", "create", "alice", "--state-dir", state)

    assert (done.code, done.err) == (0, "")
    assert done.out.count("\n") == 1
    principal = await owner(state, done.out.strip())
    assert (principal.name, principal.scopes, principal.expires_at) == ("alice", DEFAULT_SCOPES, None)


async def test_scopes_and_expiry(cellblock: Command, state: str) -> None:
    """Scopes are given by commas or repeated; an expiry is kept; JSON tells all but once the secret."""
    args = ("keys", "create", "bob", "--state-dir", state, "--expires", "30d", "--json")
    first = json.loads((await cellblock(*args, "--scopes", "kernels,admin")).out)
    second = json.loads((await cellblock(*args, "--scopes", "kernels", "--scopes", "execute")).out)

    assert (first["scopes"], second["scopes"]) == (["admin", "kernels"], ["execute", "kernels"])
    principal = await owner(state, first["key"])
    assert principal.scopes == {Scope.KERNELS, Scope.ADMIN}
    assert principal.expires_at is not None
    assert timedelta(days=29) < principal.expires_at - datetime.now(UTC) <= timedelta(days=30)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("bad name",), "A key's name must be"),
        (("x", "--scopes", "root"), "Unknown scopes: 'root'. The scopes are kernels, execute, files, admin."),
        (("x", "--expires", "soon"), "'soon' is not an expiry"),
        (("x", "--expires", "2020-01-01"), "has passed already"),
    ],
)
async def test_what_cannot_be_a_key(cellblock: Command, state: str, args: tuple[str, ...], says: str) -> None:
    """A wrong name, scope or expiry is one sentence and exit code 2; nothing is on stdout."""
    done = await cellblock("keys", "create", *args, "--state-dir", state)

    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert done.err.count("\n") == 1


async def test_several_at_once(cellblock: Command, state: str) -> None:
    """Commands that run at the same moment, on a new state directory too, all give good keys."""
    done = await asyncio.gather(
        *(cellblock("keys", "create", f"u{n}", "--state-dir", state) for n in range(3))
    )

    assert [each.code for each in done] == [0, 0, 0], [each.err for each in done]
    assert [(await owner(state, each.out.strip())).name for each in done] == ["u0", "u1", "u2"]


async def test_ls_and_revoke(cellblock: Command, state: str) -> None:
    """Keys are listed without secrets; one is revoked by its id, the rest by their owner's name."""
    tokens = [
        (await cellblock("keys", "create", "carol", "--state-dir", state)).out.strip() for _ in range(3)
    ]
    ids = [token.split("_")[1] for token in tokens]
    table = (await cellblock("keys", "ls", "--state-dir", state)).out

    assert [line.split()[:3] for line in table.splitlines()[1:]] == [
        [key_id, "carol", "execute,files,kernels"] for key_id in ids
    ]
    assert not any(token.split("_", 2)[2] in table for token in tokens)

    assert (await cellblock("keys", "revoke", ids[1], "--state-dir", state)).out == f"{ids[1]} revoked\n"
    listed = json.loads((await cellblock("keys", "ls", "--state-dir", state, "--json")).out)
    assert [key["state"] for key in listed] == ["live", "revoked", "live"]
    assert (await cellblock("keys", "revoke", "carol", "--state-dir", state)).out.count("revoked") == 2
    again = await cellblock("keys", "revoke", "carol", "--state-dir", state)
    assert (again.code, again.out) == (2, "")
    assert "has the id or name 'carol'" in again.err
    for token in tokens:
        with pytest.raises(Unauthorized):
            await owner(state, token)


async def test_a_relative_state_directory(cellblock: Command, state: str) -> None:
    """A relative path is one of the caller's directory, whoever the command becomes."""
    cellblock.home = Path(state).parent
    done = await cellblock("keys", "create", "dora", "--state-dir", "state")

    assert (await owner(state, done.out.strip())).name == "dora"


async def test_looking_makes_nothing(cellblock: Command, state: str) -> None:
    """Without a store there are no keys to list or revoke, and none is made by asking."""
    listed = await cellblock("keys", "ls", "--state-dir", state, "--json")
    revoked = await cellblock("keys", "revoke", "x", "--state-dir", state)

    assert (listed.code, json.loads(listed.out)) == (0, [])
    assert revoked.code == 2
    assert not Path(state).exists()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", NOW + timedelta(seconds=90)),
        ("12h", NOW + timedelta(hours=12)),
        ("2w", NOW + timedelta(weeks=2)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T12:00:00+01:00", datetime(2027, 1, 31, 11, tzinfo=UTC)),
    ],
)
def test_expiries(text: str, moment: datetime) -> None:
    """Spans count from now; dates are UTC unless they say otherwise."""
    assert expiry(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "0d", "30", "d", "-1d", "999999w", "2025-12-31", "2026-13-01", "٣d"])
def test_what_is_no_expiry(text: str) -> None:
    """Anything else, the past included, is refused."""
    with pytest.raises(BadRequest):
        expiry(text, NOW)
