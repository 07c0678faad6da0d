"""What the boot step does in a kernel that is nobody's yet: modules, variables, and who hears them."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.sandbox import boot


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that is put back afterwards."""
    for name in ("KERNEL_A", "KERNEL_B", "MPLBACKEND"):
        monkeypatch.setenv(name, "before")


def test_variables_come_once_as_data(environ: None) -> None:
    """What a claim says is set as it is and passed to the attendant; a second claim finds nobody."""
    reader, writer = boot.pipe()
    said: list[Any] = []
    session = SimpleNamespace(send=lambda *arguments: said.append(arguments))
    pool = boot.Pool([], writer)
    kernel: Any = SimpleNamespace(session=session, control_handlers={boot.CLAIM: None})
    given = {"KERNEL_A": "';\n\"\\x41 🔑\x1b", "KERNEL_B": "x" * 150_000}
    message = {"content": {"env": given}}

    pool._claimed(kernel, "stream", "ident", message)

    assert {name: os.environ[name] for name in given} == given
    assert said == [("stream", "cellblock_claim_reply", {"status": "ok"}, message, "ident")]
    assert boot.CLAIM not in kernel.control_handlers
    for name in given:
        os.environ[name] = "after"
    boot.hear(reader)
    assert {name: os.environ[name] for name in given} == given


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[1]", b'{"KERNEL_A": 1}', b'{"A=B": "x"}', b"\xff", b'"x"'])
def test_the_attendant_takes_no_rubbish(environ: None, rubbish: bytes) -> None:
    """Whatever else code in the kernel writes there, the attendant goes on with what it had."""
    reader, writer = boot.pipe()
    os.write(writer, rubbish)
    boot.hear(reader)
    assert os.environ["KERNEL_A"] == "before"
    os.close(writer)


def test_nobody_is_told_before_the_claim(environ: None) -> None:
    """An attendant that wakes before there is anything to hear does not wait for it."""
    reader, writer = boot.pipe()
    boot.hear(reader)
    assert os.environ["KERNEL_A"] == "before"
    os.close(writer)


def test_modules_are_loaded(environ: None) -> None:
    """Modules are there afterwards, submodules too, and a backend that was chosen stays."""
    for name in ("xml.sax.saxutils", "xml.sax"):
        sys.modules.pop(name, None)
    boot.Pool(["xml.sax.saxutils"], -1).load()
    assert "xml.sax.saxutils" in sys.modules
    assert os.environ["MPLBACKEND"] == "before"


def test_a_module_that_cannot_be_loaded_ends_it() -> None:
    """It says which one and why: nobody is given a kernel that lacks it."""
    with pytest.raises(SystemExit, match="cannot preload no_such_module: ModuleNotFoundError"):
        boot.Pool(["json", "no_such_module"], -1).load()
