"""The example notebooks, and what an executed one must look like."""

from __future__ import annotations

import base64
from pathlib import Path

import nbformat

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "notebooks" / "examples").glob("*.ipynb"))
# what each must say, so that a run which skips its work is seen
SAYS = {
    "analysis": "569 tumours, 30 measurements, 212 malignant",
    "hostile": "attempts, 0 of them got something",
    "timeouts": "The kernel that started this notebook is still here",
}
FIGURES = {"analysis": 2, "hostile": 0, "timeouts": 0}


def check_executed(path: Path, name: str) -> None:
    """Assert that a notebook was executed to its end, without errors, with its texts and figures."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs if output.output_type == "error"]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert SAYS[name] in text
    figures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == FIGURES[name]
    assert all(base64.b64decode(figure).startswith(b"\x89PNG") for figure in figures)
