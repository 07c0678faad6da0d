"""Reads the documentation: headings, sections, tables, fenced blocks and links."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "sandbox_profiles" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_CELL = re.compile(r"(?<!\\)\|")


def page(name: str) -> str:
    """Return the text of a page of docs/."""
    return (ROOT / "docs" / name).read_text()


def section(text: str, title: str) -> str:
    """Return what stands below a heading, up to the next heading of its level or a higher one."""
    found = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert found, f"there is no heading {title!r}"
    rest = text[found.end() :]
    after = re.search(rf"^#{{1,{len(found[1])}}} ", prose(rest, keep_length=True), re.MULTILINE)
    return rest[: after.start()] if after else rest


def rows(text: str, *header: str) -> list[list[str]]:
    """Return the cells of all tables whose header begins with these names."""
    found: list[list[str]] = []
    inside = False
    for line in prose(text).splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in _CELL.split(line)[1:-1]]
        if not cells:
            inside = False
        elif cells[: len(header)] == list(header):
            inside = True
        elif inside and set(cells[0]) != {"-"}:
            found.append(cells)
    return found


def code(text: str) -> list[str]:
    """Return everything between single backquotes, in order."""
    return re.findall(r"`([^`]+)`", text)


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, without their indentation."""
    found = []
    for indent, named, content in _FENCE.findall(text):
        if named == language:
            found.append("".join(line.removeprefix(indent) for line in content.splitlines(keepends=True)))
    return found


def prose(text: str, *, keep_length: bool = False) -> str:
    """Return a text without its fenced blocks."""
    return _FENCE.sub(lambda match: " " * len(match[0]) if keep_length else "", text)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(text: str) -> list[str]:
    """Return the targets of all links."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))
