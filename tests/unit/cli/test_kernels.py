"""`cellblock kernels`, and where every client command takes its key from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gateway.cli.connection import api_key
from gateway.errors import ConfigurationError
from tests.fake_gateway import TOKEN

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fake_gateway import FakeGateway
    from tests.unit.cli.conftest import Command


async def test_ls(gateway: FakeGateway, cellblock: Command) -> None:
    """The table has a line for each kernel under its header; JSON has the whole models."""
    kernels = [gateway.add(), gateway.add("bash")]
    table = await cellblock("kernels", "ls")
    models = await cellblock("kernels", "ls", "--json")

    lines = table.out.splitlines()
    assert lines[0].split()[:3] == ["ID", "NAME", "STATE"]
    assert [line.split()[:3] for line in lines[1:]] == [[k.id, k.name, "idle"] for k in kernels]
    assert [model["id"] for model in json.loads(models.out)] == [kernel.id for kernel in kernels]


async def test_verbs(gateway: FakeGateway, cellblock: Command) -> None:
    """Interrupt and restart reach the kernel, rm ends all kernels named."""
    first, second = gateway.add(), gateway.add()

    assert (await cellblock("kernels", "interrupt", first.id)).code == 0
    assert first.interrupted.is_set()
    assert json.loads((await cellblock("kernels", "restart", first.id, "--json")).out)["id"] == first.id
    assert (await cellblock("kernels", "rm", first.id, second.id)).out.count("removed") == 2
    assert not gateway.kernels


async def test_rm_goes_on_after_a_failure(gateway: FakeGateway, cellblock: Command) -> None:
    """An unknown id does not keep the others; it is said, and the exit code is 2."""
    kernel = gateway.add()
    done = await cellblock("kernels", "rm", "0-0-0-0-0", kernel.id)

    assert (done.code, done.out) == (2, f"{kernel.id} removed\n")
    assert done.err == "cellblock: Kernel does not exist: 0-0-0-0-0\n"
    assert not gateway.kernels


async def test_a_wrong_key_is_one_sentence(cellblock: Command) -> None:
    """The gateway's refusal is one sentence on stderr and exit code 2."""
    done = await cellblock("kernels", "ls", CELLBLOCK_KEY="wrong")

    assert (done.code, done.out) == (2, "")
    assert done.err == "cellblock: The credential is missing or not valid.\n"


async def test_help_is_light() -> None:
    """The modules that take long to import are left to the commands that need them."""
    import asyncio
    import sys

    heavy = "{'aiohttp', 'nbformat', 'sqlalchemy'} & set(sys.modules)"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"import sys, gateway.cli; print({heavy} or 'light')",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()

    assert out == b"light\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without keys, and no key in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CELLBLOCK_KEY", raising=False)
    return tmp_path


def own_key(home: Path, mode: int) -> Path:
    """Write the user's own key file."""
    path = home / ".config" / "cellblock" / "key"
    path.parent.mkdir(parents=True)
    path.write_text("cb_own\n")
    path.chmod(mode)
    return path


def test_the_order_of_keys(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--key-file wins over the environment, which wins over the user's own file."""
    own_key(home, 0o600)
    named = home / "named"
    named.write_text("cb_named\n")

    assert api_key(None) == "cb_own"
    monkeypatch.setenv("CELLBLOCK_KEY", TOKEN)
    assert api_key(None) == TOKEN
    assert api_key(named) == "cb_named"


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_an_open_key_file_is_refused(home: Path, mode: int) -> None:
    """The user's own key file must be closed to others; the sentence says how."""
    path = own_key(home, mode)

    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        api_key(None)


def test_no_key(home: Path) -> None:
    """Without a key the sentence names the three places for one."""
    with pytest.raises(ConfigurationError, match=r"CELLBLOCK_KEY.*--key-file.*\.config/cellblock/key"):
        api_key(None)


@pytest.mark.parametrize("key", ["", "two words", "a\nX-Header: b", "ключ"])
def test_what_is_no_key(home: Path, key: str) -> None:
    """What cannot be a header's value is never sent, and never shown."""
    path = home / "named"
    path.write_text(key)

    with pytest.raises(ConfigurationError, match="does not hold an API key") as caught:
        api_key(path)
    assert not key or key not in caught.value.message


def test_a_key_file_that_is_not_there(home: Path) -> None:
    """A missing file is named, with the reason."""
    with pytest.raises(ConfigurationError, match="missing cannot be read: No such file"):
        api_key(home / "missing")
