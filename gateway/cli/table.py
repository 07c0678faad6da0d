"""Aligned columns for people and JSON for programs, on stdout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns under a header; never wraps or cuts, so that `grep` and `awk` work."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def plain(text: str) -> str:
    """Return a text of somebody else's as one line that a terminal only shows."""
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)


def print_json(value: Any) -> None:
    """Print a JSON value, indented; moments and enums become strings."""
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))
