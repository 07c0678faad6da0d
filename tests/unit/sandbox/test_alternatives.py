"""Which of the system's alternatives cells get, and that they follow the system's."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.sandbox.alternatives import Alternatives


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A system's alternatives."""
    source = tmp_path / "etc"
    source.mkdir()
    (source / "awk").symlink_to("/usr/bin/mawk")
    (source / "awk.1.gz").symlink_to("/usr/share/man/man1/mawk.1.gz")
    (source / "README").write_text("x")
    return source


def found(directory: Path | None) -> dict[str, str]:
    """Return the links of a directory."""
    assert directory is not None
    return {link.name: str(link.readlink()) for link in directory.iterdir()}


def test_programs_and_libraries_are_among_them_and_manual_pages_are_not(system: Path, tmp_path: Path) -> None:
    """Links stay links, and nothing else is there."""
    assert found(Alternatives(tmp_path / "cells", system).current()) == {"awk": "/usr/bin/mawk"}


def test_they_change_with_the_systems(system: Path, tmp_path: Path) -> None:
    """As they are when a cell is started; as long as nothing changes nothing is copied."""
    alternatives = Alternatives(tmp_path / "cells", system)
    first = alternatives.current()
    assert first is not None
    (first / "mark").touch()
    assert alternatives.current() == first
    assert (first / "mark").exists()

    (system / "awk").unlink()
    (system / "awk").symlink_to("/usr/bin/gawk")
    assert found(alternatives.current()) == {"awk": "/usr/bin/gawk"}
    # a cell that is being started has it still
    assert (tmp_path / "cells.old" / "mark").exists()


def test_a_system_without_any(tmp_path: Path) -> None:
    """Then there is nothing to show in their place."""
    assert Alternatives(tmp_path / "cells", tmp_path / "none").current() is None
