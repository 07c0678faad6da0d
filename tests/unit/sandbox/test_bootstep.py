"""What cells get for their boot step: one text, its bytecode, and little that is loaded before the seal."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.sandbox import bootstep
from gateway.sandbox.bootstep import BootStep

# it does everything but main
LOOK = """
import sys
names = {"__name__": "boot"}
exec(TEXT, names)
loaded = sorted(sys.modules)
import json
print(json.dumps([loaded, sorted(names)]))
"""


@pytest.fixture
def boot(tmp_path: Path) -> BootStep:
    """A boot step that is laid out."""
    step = BootStep(tmp_path)
    step.lay(bootstep.text())
    return step


def test_it_is_one_text_of_the_standard_library_alone() -> None:
    """Nothing of the gateway's is imported in a cell; ipykernel's own may be, where a kernel has it."""
    others = set()
    for node in ast.walk(ast.parse(bootstep.text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
        others |= {str(name).split(".")[0] for name in names} - sys.stdlib_module_names
    assert others == {"IPython", "ipykernel", "zmq"}


def test_it_loads_next_to_nothing_before_it_is_sealed(tmp_path: Path) -> None:
    """The attendant keeps what is loaded by then for as long as the kernel lives: no parsers, no enums."""
    file = tmp_path / "look.py"
    file.write_text(LOOK.replace("TEXT", repr(bootstep.text())))
    done = subprocess.run(["/usr/bin/python3", "-I", file], capture_output=True, text=True, check=True)
    loaded, names = json.loads(done.stdout)
    assert {"main", "load_ipykernel", "attend"} <= set(names)
    large = {"contextlib", "enum", "functools", "importlib.util", "json", "re", "socket", "typing"}
    assert large.isdisjoint(loaded)


def test_this_python_gets_bytecode_and_another_the_text(boot: BootStep, tmp_path: Path) -> None:
    """Bytecode is for the very same Python, a kernel environment's link to it among them."""
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert boot.file(str(link)) == boot.file(sys.executable) == tmp_path / "boot.pyc"
    assert boot.file("/bin/sh") == tmp_path / "boot.py"
    assert (tmp_path / "boot.pyc").read_bytes()[:4] == importlib.util.MAGIC_NUMBER


def test_both_are_the_same_program_and_nobody_may_write_to_them(boot: BootStep, tmp_path: Path) -> None:
    """Either fails alike where its standard input is no socket; laid out again they are replaced."""
    boot.lay(bootstep.text())
    for file in (tmp_path / "boot.py", tmp_path / "boot.pyc"):
        assert file.stat().st_mode & 0o777 == 0o444
        done = subprocess.run(
            [sys.executable, "-I", file],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.rstrip().endswith("Socket operation on non-socket")
