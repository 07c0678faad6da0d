"""A kernelspec is written where Jupyter finds it, for whom it is meant, and takes nobody's place."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

import pytest
from jupyter_client.kernelspec import KernelSpec

from gateway.bridge.kernelspec import BridgeSpec, install, installed, remove
from gateway.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from pathlib import Path

SPEC = BridgeSpec(
    name="Cellblock-R",
    display_name="R (Cellblock)",
    language="R",
    url="https://cells.example:8888",
    kernel="ir",
    credential=["--key-file", "/home/ada/key"],
    logos={"logo-64x64.png": b"\x89PNG"},
)


@pytest.fixture(autouse=True)
def jupyter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Jupyter of the test's own."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "prefix" / "share" / "jupyter"))
    return tmp_path


def test_jupyter_reads_it(jupyter: Path) -> None:
    """It is a kernelspec to Jupyter, with everything that was wished."""
    where = install(SPEC, prefix=None)
    assert where == jupyter / "data" / "kernels" / "cellblock-r"
    read = KernelSpec.from_resource_dir(str(where))

    assert (read.display_name, read.language, read.interrupt_mode) == ("R (Cellblock)", "R", "message")
    assert read.argv[1:5] == ["-P", "-m", "gateway.cli", "bridge"]
    assert read.argv[-2:] == ["--connection-file", "{connection_file}"]
    assert read.argv[-4:-2] == ["--key-file", "/home/ada/key"]
    assert (where / "logo-64x64.png").read_bytes() == b"\x89PNG"


def test_others_can_read_what_is_for_all(jupyter: Path) -> None:
    """Below a prefix the files are everybody's to read."""
    where = install(SPEC, prefix=str(jupyter / "prefix"))

    assert where == jupyter / "prefix" / "share" / "jupyter" / "kernels" / "cellblock-r"
    assert stat.S_IMODE(where.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in where.iterdir()} == {0o644}


def test_ours_is_replaced_and_removed(jupyter: Path) -> None:
    """Installing again replaces it; removing it leaves nothing."""
    where = install(SPEC, prefix=None)
    (where / "old").touch()
    install(SPEC, prefix=None)
    assert not (where / "old").exists()
    [listed] = installed()
    assert (listed.name, listed.gateway, listed.kernel) == ("cellblock-r", SPEC.url, "ir")

    assert remove("Cellblock-R") == str(where)
    assert installed() == []
    with pytest.raises(NotFound):
        remove("cellblock-r")


def test_anothers_is_left_alone(jupyter: Path) -> None:
    """A kernelspec that is not of ours is neither replaced nor removed."""
    theirs = jupyter / "data" / "kernels" / "cellblock-r"
    theirs.mkdir(parents=True)
    (theirs / "kernel.json").write_text(json.dumps({"argv": ["R"], "display_name": "R", "language": "R"}))
    with pytest.raises(BadRequest, match="another program's"):
        install(SPEC, prefix=None)
    with pytest.raises(NotFound):
        remove("cellblock-r")

    assert KernelSpec.from_resource_dir(str(theirs)).argv == ["R"]


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "ä", "-x", "x" * 65])
def test_names_that_are_none(name: str) -> None:
    """A name is a file's name, too: what Jupyter does not take is refused."""
    with pytest.raises(BadRequest):
        install(BridgeSpec(name, "n", "python", "http://127.0.0.1:1", "k"), prefix=None)
