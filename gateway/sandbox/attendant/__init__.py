"""The attendant: the process in a cell that runs commands beside the kernel, and passes on calls of tools.

Stdlib only. Its text travels with the boot step's order and is run by a process that the boot step has left
behind (`boot.attend`), at the first thing that it is asked. Nothing in it guards anything: it is the cell's,
and what it says to the gateway may as well be its attacker's.
"""

from __future__ import annotations

from pathlib import Path

# each uses names of those before it; in the cell they are one text
PARTS = ("wires", "views", "calls", "children", "service")


def text() -> str:
    """Return the attendant's program: its parts one after the other, without their imports of each other."""
    lines: list[str] = []
    for part in PARTS:
        source = Path(__file__).with_name(f"{part}.py").read_text()
        lines += [line for line in source.splitlines() if not line.startswith("from gateway.")]
    return "\n".join(lines)
