"""compatibility.md names the versions that the tests run, and tests that are there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tests.docs.markdown import ROOT, code, page, rows

CLIENTS = rows(page("compatibility.md"), "client", "version", "way")
BUILD = Path(sys.prefix) / "share" / "jupyter" / "lab" / "static" / "package.json"


def locked() -> dict[str, str]:
    """Return the locked version of everything that the tests install."""
    text = "".join(
        (ROOT / "requirements" / f"{name}.txt").read_text() for name in ("test", "gateway", "agents")
    )
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE))
    return {name.lower().replace("_", "-"): version for name, version in pins.items()}


def test_versions() -> None:
    """Every client stands there with the version that is locked."""
    known = locked()
    # JupyterLab's build brings this one
    known["@jupyterlab/services"] = json.loads(BUILD.read_text())["resolutions"][
        "@jupyterlab/services"
    ].lstrip("~")
    known |= json.loads((ROOT / "tests" / "clients" / "js" / "package.json").read_text())["dependencies"]
    named = {cells[0]: cells[1] for cells in CLIENTS if "not installed" not in cells[1]}

    assert named == {name: known[name.replace("_", "-")] for name in named}


def test_the_tests_exist() -> None:
    """Every test that a row names is a file."""
    named = [path for cells in CLIENTS for path in code(cells[3])]

    assert len(named) > 10

    for path in named:
        assert (ROOT / path).is_file(), path
