"""What the client remembers, and how it is exported."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import nbformat
import pytest

from gateway.client import Client, History
from gateway.errors import BadRequest
from gateway.models import ExecutionResult, ExecutionStatus
from tests.unit.client.conftest import TOKEN

if TYPE_CHECKING:
    from pathlib import Path


def result(text: str = "hi\n", **fields: Any) -> ExecutionResult:
    """Return what code that printed something gave."""
    outputs = [{"output_type": "stream", "name": "stdout", "text": text}]
    made = {"status": ExecutionStatus.OK, "stdout": text, "outputs": outputs, "duration_s": 0.25}
    return ExecutionResult.model_validate(made | fields)


def test_the_exports(tmp_path: Path) -> None:
    """The notebook is valid and has code, outputs and status; script and JSON lines have the same."""
    history = History()
    error = {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
    history.add("print('hi')", result(execution_count=3), kernel_id="k")
    history.add("1 / 0", result(status=ExecutionStatus.ERROR, outputs=[error]))
    history.add(None, result(), path="a.py")
    for suffix in ("ipynb", "py", "jsonl"):
        history.export(tmp_path / f"h.{suffix}")

    notebook = nbformat.read(tmp_path / "h.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert [cell.source for cell in notebook.cells] == ["print('hi')", "1 / 0", "# file: a.py"]
    assert notebook.cells[0].outputs[0].text == "hi\n"
    assert notebook.cells[0].execution_count == 3
    assert notebook.cells[1].metadata.cellblock.status == "error"
    script = (tmp_path / "h.py").read_text()
    compile(script, "h.py", "exec")
    assert script.index("print('hi')") < script.index("1 / 0") < script.index("# file: a.py")
    lines = [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["ok", "error", "ok"]
    assert (lines[0]["kernel_id"], lines[0]["duration_s"]) == ("k", 0.25)

    with pytest.raises(BadRequest):
        history.export(tmp_path / "h.txt")


def test_the_bounds() -> None:
    """The oldest go first, by number and by bytes; what alone is too large is kept without its outputs."""
    history = History(most=3, max_bytes=4000)
    for n in range(5):
        history.add(str(n), result())
    assert [entry.code for entry in history.entries] == ["2", "3", "4"]

    history.add("large", result("x" * 3400))
    assert [entry.code for entry in history.entries] == ["4", "large"]

    history.add("larger", result("x" * 5000))
    assert history.entries[-1].code == "larger"
    assert "are not kept here" in history.entries[-1].outputs[0]["text"]
    assert sum(len(line) for line in history.lines().splitlines()) <= 4000

    history.clear()
    assert not history.entries


def test_secrets_are_not_in_it(tmp_path: Path) -> None:
    """Key and secrets are replaced in code, paths, texts, bundles and their keys, in every export."""
    client = Client("http://127.0.0.1:1", TOKEN)
    client.history.hide("swordfish")
    data = {"text/plain": ["a swordfish"], "application/json": {"swordfish": {"deep": [f"x{TOKEN}y"]}}}
    output = {"output_type": "display_data", "data": data, "metadata": {}}
    client.history.add("key = 'swordfish'", result(f"{TOKEN}\n", outputs=[output]), path="swordfish.py")
    for suffix in ("ipynb", "py", "jsonl"):
        client.history.export(tmp_path / f"h.{suffix}")

    texts = [path.read_text() for path in tmp_path.iterdir()] + [repr(client.history.entries)]
    assert len(texts) == 4
    for text in texts:
        assert "swordfish" not in text
        assert TOKEN not in text
        assert "[secret]" in text


def test_text_that_is_none(tmp_path: Path) -> None:
    """A lone surrogate in code or output does not prevent an export."""
    history = History()
    history.add("x = '\udc80'", result("\udc80"))
    for suffix in ("ipynb", "py", "jsonl"):
        history.export(tmp_path / f"h.{suffix}")
        assert (tmp_path / f"h.{suffix}").read_text(encoding="utf-8")
