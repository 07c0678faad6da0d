"""A trail's files in a directory of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.audit.journal import Journal
from gateway.settings import AuditSettings

if TYPE_CHECKING:
    from pathlib import Path

KEY = b"k" * 32


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the files lie."""
    return tmp_path / "audit"


@pytest.fixture
def journal(directory: Path) -> Journal:
    """A journal with the default settings."""
    return Journal(directory, KEY, AuditSettings())
