"""The boot step as cells get it: one program of its parts, and bytecode of it for who has the same Python."""

from __future__ import annotations

import importlib.util
import marshal
import os
import sys
from pathlib import Path

# the last uses names of the others; in the cell they are one text
PARTS = ("sealing", "thrift", "adaptation", "boot")


class BootStep:
    """The files of the boot step in a directory that every cell may read."""

    def __init__(self, directory: Path) -> None:
        self._text = directory / "boot.py"
        self._bytecode = directory / "boot.pyc"

    def lay(self, program: str) -> None:
        """Lay a program out afresh; `text` has it."""
        replace(self._text, program.encode())
        replace(self._bytecode, bytecode(program, str(self._text)))

    def file(self, interpreter: str) -> Path:
        """Return the file for an interpreter: bytecode of its own saves it the compiling at each start."""
        same = os.path.realpath(interpreter) == os.path.realpath(sys.executable)
        return self._bytecode if same else self._text


def text() -> str:
    """Return the boot step's program: its parts one after the other, without their imports of each other."""
    lines = ["from __future__ import annotations"]
    for part in PARTS:
        source = Path(__file__).with_name(f"{part}.py").read_text()
        lines += [
            line for line in source.splitlines() if not line.startswith(("from gateway.", "from __future__"))
        ]
    return "\n".join(lines) + "\n"


def bytecode(program: str, name: str) -> bytes:
    """Return a program as this Python's bytecode, whose source nobody looks for (PEP 552, unchecked)."""
    code = compile(program, name, "exec", dont_inherit=True)
    source = importlib.util.source_hash(program.encode())
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + source + marshal.dumps(code)


def replace(file: Path, content: bytes) -> None:
    """Write a file that others may only read."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)
    file.chmod(0o444)
