"""`cellblock run`: outputs, notebooks, exit codes, and no kernel left behind."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from typing import TYPE_CHECKING

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.fake_gateway import FakeGateway
    from tests.unit.cli.conftest import Command

    Until = Callable[[Callable[[], bool]], Awaitable[None]]


def write(
    path: Path, *sources: str | tuple[str, str], kernel: str | None = None, language: str | None = None
) -> str:
    """Write a notebook; a source may come with a tag. A stale output stands in every cell."""
    cells = [new_markdown_cell("# title")]
    for source in sources:
        code, *tags = (source,) if isinstance(source, str) else source
        stale = [new_output("stream", name="stdout", text="stale\n")]
        cells.append(new_code_cell(code, metadata={"tags": tags}, outputs=stale, execution_count=99))
    node = new_notebook(cells=cells)
    if kernel is not None:
        node.metadata["kernelspec"] = {"name": kernel, "display_name": kernel}
    if language is not None:
        node.metadata["language_info"] = {"name": language}
    nbformat.write(node, path)
    return str(path)


async def test_code(gateway: FakeGateway, cellblock: Command) -> None:
    """`-c` prints what the code prints, each stream to its own, results too, and leaves no kernel."""
    done = await cellblock("run", "-c", "print out\nwarn err\nshow\n42")

    assert (done.code, done.out) == (0, "out\n[image/png 640x480]\n42\n")
    assert done.err == "err\n"
    assert len(gateway.seen) == 1
    assert not gateway.kernels


async def test_code_that_fails(gateway: FakeGateway, cellblock: Command) -> None:
    """Failing code is exit code 1 with its traceback on stderr, without colours where nobody sees them."""
    done = await cellblock("run", "-c", "print a\nraise ValueError")

    assert (done.code, done.out, done.err) == (1, "a\n", "ValueError\n")
    assert not gateway.kernels


async def test_script(gateway: FakeGateway, cellblock: Command, tmp_path: Path) -> None:
    """A script is one piece of code; a kernelspec can be chosen for it."""
    (tmp_path / "job.py").write_text("print 1\nprint 2\n")
    done = await cellblock("run", "job.py", "--kernel", "bash")

    assert (done.code, done.out, done.err) == (0, "1\n2\n", "")
    assert gateway.seen[0].name == "bash"


async def test_notebook(gateway: FakeGateway, cellblock: Command, tmp_path: Path) -> None:
    """A notebook runs cell by cell; the executed copy is valid and has outputs, counts and times."""
    original = write(tmp_path / "work.ipynb", "print one", "", ("print no", "skip-execution"), "show\n42")
    before = (tmp_path / "work.ipynb").read_bytes()
    done = await cellblock("run", original)

    assert (done.code, done.out) == (0, "one\n[image/png 640x480]\n42\n")
    lines = done.err.splitlines()
    assert [line.rsplit(" ", 1)[0] for line in lines[:2]] == ["[1/2] cell 1 … ok", "[2/2] cell 2 … ok"]
    assert lines[2:] == ["Wrote work.executed.ipynb"]
    executed = nbformat.read(tmp_path / "work.executed.ipynb", as_version=4)
    nbformat.validate(executed)
    cells = executed.cells
    assert [cell.get("execution_count") for cell in cells] == [None, 1, None, None, 2]
    assert [len(cell.get("outputs", [])) for cell in cells] == [0, 1, 0, 0, 2]
    assert cells[4].outputs[1].data == {"text/plain": "42"}
    assert cells[1].metadata.cellblock.status == "ok"
    assert set(cells[1].metadata.execution) == {"iopub.execute_input", "shell.execute_reply"}
    assert (tmp_path / "work.ipynb").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["work.executed.ipynb", "work.ipynb"]
    assert [kernel.ran for kernel in gateway.seen] == [["print one", "show\n42"]]
    assert not gateway.kernels


async def test_the_first_error_stops(gateway: FakeGateway, cellblock: Command, tmp_path: Path) -> None:
    """A cell that may raise does not stop the run, the next error does, and what ran is written."""
    notebook = write(
        tmp_path / "n.ipynb", ("raise KeyError", "raises-exception"), "raise TypeError", "print no"
    )
    done = await cellblock("run", notebook, "--output", "out.ipynb")

    assert done.code == 1
    assert "[2/3] cell 2 … error" in done.err
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    assert [cell.outputs[0].ename for cell in cells[1:3]] == ["KeyError", "TypeError"]
    assert cells[3].outputs == []
    assert not gateway.kernels


async def test_allow_errors(cellblock: Command, tmp_path: Path) -> None:
    """With --allow-errors all cells run and the exit code is 0."""
    done = await cellblock(
        "run", write(tmp_path / "n.ipynb", "raise TypeError", "print yes"), "--allow-errors"
    )

    assert (done.code, done.out) == (0, "yes\n")


async def test_a_dead_kernel_stops_whatever_is_allowed(cellblock: Command, tmp_path: Path) -> None:
    """A kernel's death is never an allowed error; it is said why it died."""
    done = await cellblock("run", write(tmp_path / "n.ipynb", "die oom", "print no"), "--allow-errors")

    assert (done.code, done.out) == (1, "")
    assert "[1/2] cell 1 … dead (oom)" in done.err


async def test_timeout(gateway: FakeGateway, cellblock: Command, tmp_path: Path) -> None:
    """A cell that takes too long is exit code 124, its partial output is in the notebook."""
    done = await cellblock(
        "run", write(tmp_path / "n.ipynb", "print a\nsleep 30", "print no"), "--timeout", "0.3"
    )

    assert (done.code, done.out) == (124, "a\n")
    cell = nbformat.read(tmp_path / "n.executed.ipynb", as_version=4).cells[1]
    assert cell.outputs[0].text == "a\n"
    assert cell.metadata.cellblock.status == "timeout"
    assert not gateway.kernels


async def test_timeout_of_a_script_is_said(cellblock: Command) -> None:
    """Without progress lines the reason is a sentence."""
    done = await cellblock("run", "-c", "sleep 30", "--timeout", "0.2")

    assert done.code == 124
    assert "cellblock: the execution ended: timeout" in done.err


async def test_a_lost_gateway(cellblock: Command, tmp_path: Path) -> None:
    """A socket closed in the middle is the gateway's failure: exit code 2, and what ran is written."""
    done = await cellblock("run", write(tmp_path / "n.ipynb", "print a\nclose 1012 draining"))

    assert done.code == 2
    assert "cellblock: The gateway closed the connection: draining (1012).\n" in done.err
    assert nbformat.read(tmp_path / "n.executed.ipynb", as_version=4).cells[1].outputs[0].text == "a\n"


async def test_a_live_kernel_stays(gateway: FakeGateway, cellblock: Command) -> None:
    """--kernel-id uses a kernel and leaves it alive."""
    kernel = gateway.add()
    done = await cellblock("run", "-c", "print a", "--kernel-id", kernel.id)

    assert (done.code, done.out) == (0, "a\n")
    assert list(gateway.kernels) == [kernel.id]
    assert len(gateway.seen) == 1


async def test_keep(gateway: FakeGateway, cellblock: Command) -> None:
    """--keep leaves the kernel running and says its id on stderr."""
    done = await cellblock("run", "-c", "print a", "--keep")

    assert (done.code, done.out) == (0, "a\n")
    assert done.err == f"The kernel {next(iter(gateway.kernels))} keeps running.\n"


@pytest.mark.parametrize(
    ("named", "language", "options", "started"),
    [
        ("bash", None, (), "bash"),
        ("my-conda", "python", (), "python3"),
        ("my-conda", None, (), "python3"),
        ("bash", "bash", ("--kernel", "python3"), "python3"),
        ("ir", "R", (), None),
    ],
)
async def test_a_notebooks_own_kernel(
    *,
    gateway: FakeGateway,
    cellblock: Command,
    tmp_path: Path,
    named: str,
    language: str | None,
    options: tuple[str, ...],
    started: str | None,
) -> None:
    """A notebook gets the kernel it names, or the default of its language; never another language's."""
    done = await cellblock("run", write(tmp_path / "n.ipynb", "1", kernel=named, language=language), *options)

    assert done.code == (2 if started is None else 0)
    assert [kernel.name for kernel in gateway.seen] == ([] if started is None else [started])
    if started is None:
        assert "asks for the kernel 'ir'; give --kernel with one of: bash, python3" in done.err
        assert not (tmp_path / "n.executed.ipynb").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "Give either"),
        (("x.py", "-c", "1"), "Give either"),
        (("missing.ipynb",), "The notebook missing.ipynb cannot be read: No such file"),
        (("missing.py",), "The script missing.py cannot be read: No such file"),
        (("bad.ipynb",), "The file bad.ipynb is not a notebook"),
        (("invalid.ipynb",), "The file invalid.ipynb is not a valid notebook"),
        (("-c", "1", "--output", "o.ipynb"), "--output is for notebooks"),
        (("good.ipynb", "--output", "missing/o.ipynb"), "cannot be written to missing/o.ipynb"),
        (("-c", "1", "--kernel", "a", "--kernel-id", "b"), "exclude each other"),
        (("-c", "1", "--kernel", "cobol"), "No kernelspec 'cobol'"),
        (("-c", "1", "--kernel-id", "1-2-3-4-5"), "Kernel does not exist: 1-2-3-4-5"),
        (("-c", "1", "--url", "http://127.0.0.1:1"), "cannot be reached: connection refused"),
        (("-c", "1", "--url", "nonsense"), "must look like"),
        (("-c", "1", "--timeout", "-1"), "--timeout"),
    ],
)
async def test_usage(
    gateway: FakeGateway, cellblock: Command, tmp_path: Path, args: tuple[str, ...], says: str
) -> None:
    """What cannot be run is one clear sentence and exit code 2, and makes no kernel."""
    (tmp_path / "bad.ipynb").write_text("{")
    cells = '[{"cell_type": "x", "id": "a", "metadata": {}}]'
    (tmp_path / "invalid.ipynb").write_text(
        f'{{"nbformat": 4, "nbformat_minor": 5, "metadata": {{}}, "cells": {cells}}}'
    )
    write(tmp_path / "good.ipynb", "1")
    done = await cellblock("run", *args)

    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert not gateway.seen


async def test_ctrl_c(gateway: FakeGateway, cellblock: Command, tmp_path: Path, until: Until) -> None:
    """Ctrl-C interrupts the cell, writes what ran, deletes the kernel and is exit code 130."""
    process = await cellblock.start("run", write(tmp_path / "n.ipynb", "print a\nsleep 30", "print no"))
    await until(lambda: bool(gateway.seen and gateway.seen[0].ran))
    process.send_signal(signal.SIGINT)
    done = await cellblock.done(process)

    assert (done.code, done.out) == (130, "a\n")
    cell = nbformat.read(tmp_path / "n.executed.ipynb", as_version=4).cells[1]
    assert [output.output_type for output in cell.outputs] == ["stream", "error"]
    assert gateway.seen[0].ran == ["print a\nsleep 30"]
    assert not gateway.kernels


async def test_a_second_ctrl_c_leaves(gateway: FakeGateway, cellblock: Command, until: Until) -> None:
    """Where the code ignores the first Ctrl-C the second ends the run, and still deletes the kernel."""
    process = await cellblock.start("run", "-c", "stubborn 60")
    await until(lambda: bool(gateway.seen and gateway.seen[0].ran))
    process.send_signal(signal.SIGINT)
    await until(gateway.seen[0].interrupted.is_set)
    process.send_signal(signal.SIGINT)
    done = await cellblock.done(process)

    assert done.code == 130
    assert not gateway.kernels


async def test_sigterm(gateway: FakeGateway, cellblock: Command, until: Until) -> None:
    """SIGTERM ends the run at once and deletes the kernel."""
    process = await cellblock.start("run", "-c", "stubborn 60")
    await until(lambda: bool(gateway.seen and gateway.seen[0].ran))
    process.send_signal(signal.SIGTERM)
    done = await cellblock.done(process)

    assert done.code == 143
    assert not gateway.kernels


async def test_ctrl_c_while_the_kernel_starts(gateway: FakeGateway, cellblock: Command) -> None:
    """A kernel that is being started when Ctrl-C comes is not left behind."""
    gateway.start_s = 1.0
    process = await cellblock.start("run", "-c", "print no")
    await asyncio.wait_for(gateway.starting.wait(), 20)
    process.send_signal(signal.SIGINT)
    done = await cellblock.done(process)

    assert (done.code, done.out) == (130, "")
    assert len(gateway.seen) == 1
    assert not gateway.kernels


async def test_on_a_terminal(gateway: FakeGateway, cellblock: Command, tmp_path: Path) -> None:
    """On a terminal there is a bar, the cells are shown, and outputs cannot send commands to it."""
    notebook = write(tmp_path / "n.ipynb", "print \x1b]0;evil\x07harmless", "show")
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.cli",
        "run",
        notebook,
        cwd=tmp_path,
        env=cellblock.env | {"TERM": "xterm-256color", "COLUMNS": "120"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                piece = await asyncio.to_thread(terminal.read, 65536)
            except OSError:  # Linux: the other side is closed
                break
            if not piece:
                break
            shown += piece
    assert await process.wait() == 0
    text = shown.decode()
    assert "│ show" in text
    assert "2/2" in text
    assert "[2/2] cell 2 … ok" in text
    assert "harmless" in text
    assert "[image/png 640x480]" in text
    assert "\x1b]0;" not in text
    assert "\x07" not in text
