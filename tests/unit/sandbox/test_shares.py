"""Which directories can be shared with cells."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import gateway
from gateway.errors import BadRequest
from gateway.sandbox.shares import checked
from gateway.sandbox.users import CellUser
from gateway.sandbox.wire import Share

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def home() -> Iterator[Path]:
    """A home where homes may be: pytest's own directories are below /tmp."""
    path = Path(f"/srv/cellblock-shares-{os.getpid()}") if os.access("/srv", os.W_OK) else Path.home()
    home = path / "someone"
    for name in ("work/deep", ".ssh", "state/homes"):
        (home / name).mkdir(parents=True)
    (home / "link").symlink_to(home / "work")
    yield home
    shutil.rmtree(home)
    if path != Path.home():
        path.rmdir()


def share(home: Path, path: Path | str, *, writable: bool = False, uid: int | None = None) -> Path:
    """Ask for a directory as the owner of a home, with the state directory closed."""
    user = CellUser("someone", os.geteuid() if uid is None else uid, 0, home)
    return checked(Share(path=str(path), writable=writable), user, [home / "state"])


@pytest.mark.parametrize("name", ["work", "work/deep"])
@pytest.mark.parametrize("writable", [True, False])
def test_what_can_be_shared(home: Path, name: str, writable: bool) -> None:
    """A directory in the home can be shared, to read and to write."""
    assert share(home, home / name, writable=writable) == home / name


@pytest.mark.parametrize(
    "path", ["/", "/etc", "/home", "/tmp/x", "/var/lib/x", "/usr/share", "/root/x", "/proc/self", "/run/user"]
)
def test_the_systems(home: Path, path: str) -> None:
    """Nothing of the system's can be shared."""
    with pytest.raises(BadRequest, match="is not shared with cells"):
        share(home, path)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "whole home"),
        ("..", "."),
        (".ssh", "hidden"),
        ("link", "a link to"),
        ("work/../.ssh", "a link to"),
        ("nonesuch", "No such file"),
        ("state", "cells are made with"),
        ("state/homes", "cells are made with"),
    ],
)
def test_the_users(home: Path, name: str, why: str) -> None:
    """The home itself, hidden directories, links and what cells are made with are not shared."""
    with pytest.raises(BadRequest, match=why):
        share(home, home / name if name else home)


def test_somebody_elses(home: Path) -> None:
    """A directory of another user's is not shared, nor a file."""
    with pytest.raises(BadRequest, match="no directory of"):
        share(home, home / "work", uid=12345)
    (home / "file").touch()
    with pytest.raises(BadRequest, match="no directory of"):
        share(home, home / "file")


def test_what_the_warden_runs_from(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds the warden's own Python may be read in a cell, and never written."""
    venv = home / "work" / "venv"
    venv.mkdir()
    monkeypatch.setattr(sys, "prefix", str(venv))

    assert share(home, home / "work") == home / "work"
    with pytest.raises(BadRequest, match="cells are made with"):
        share(home, home / "work", writable=True)
    monkeypatch.undo()
    monkeypatch.setattr(gateway, "__file__", str(home / "work" / "gateway" / "__init__.py"))
    with pytest.raises(BadRequest, match="cells are made with"):
        share(home, home / "work", writable=True)
