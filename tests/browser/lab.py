"""A real `jupyter lab` on loopback, with everything that it keeps in a directory of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

JUPYTER = Path(sys.executable).with_name("jupyter-lab")
TOKEN = "the-lab-users-own"
START_S = 40.0
# what a fresh JupyterLab asks its user about, and what keeps a cell that is out of sight out of the page
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}


class Lab:
    """A JupyterLab server: where it is, and the notebooks that it has."""

    def __init__(self, home: Path, kernel: str, process: subprocess.Popen[bytes]) -> None:
        self.home = home
        self.kernel = kernel
        self.process = process
        self.port = 0

    @property
    def log(self) -> str:
        """What the server has said."""
        return (self.home / "log").read_text(errors="replace")

    def write(self, name: str, cells: Sequence[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Put a notebook of code cells into the server's directory; `metadata` is every cell's."""
        made = [
            nbformat.v4.new_code_cell(source, metadata=dict(metadata or {}))  # type: ignore[no-untyped-call]
            for source in cells
        ]
        spec = {"name": self.kernel, "display_name": self.kernel, "language": "python"}
        facts = {"kernelspec": spec}
        notebook = nbformat.v4.new_notebook(cells=made, metadata=facts)  # type: ignore[no-untyped-call]
        nbformat.write(notebook, self.home / "notebooks" / name)  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Wait until the server has written where it listens."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for file in (self.home / "runtime").glob("jpserver-*.json"):
                with contextlib.suppress(ValueError):
                    self.port = json.loads(file.read_text())["port"]
                    return
            assert self.process.poll() is None, self.log
            time.sleep(0.05)
        raise AssertionError(self.log)


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a Jupyter whose every directory is below `home`."""
    mine = {
        "HOME": home,
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "IPYTHONDIR": home / "ipython",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
    }
    return {**os.environ, **{name: str(path) for name, path in mine.items()}}


@contextlib.contextmanager
def running(home: Path, kernel: str, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Lab]:
    """Give a JupyterLab server whose notebooks have this kernel; it is ended afterwards."""
    (home / "notebooks").mkdir()
    for plugin, values in SETTINGS.items():
        file = home / "settings" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    command = [
        str(JUPYTER),
        "--allow-root",
        "--no-browser",
        "--ServerApp.port=0",
        f"--ServerApp.root_dir={home / 'notebooks'}",
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly",
        "--LabApp.news_url=",
        *arguments,
    ]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**environment(home), **(env or {})}, cwd=home, stdout=log, stderr=log
        )
    lab = Lab(home, kernel, process)
    try:
        lab.wait()
        yield lab
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
