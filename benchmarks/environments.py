"""The environments of a benchmark: one for the client and the plots, one for each incumbent.

Run as a program it makes them below .venv-bench, from the locks in requirements/; the standard library is all
that it needs. An environment counts as made once its stamp holds the hash of its lock.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv-bench"
LOCKS = {
    "client": "bench.txt",
    "kernel-gateway": "bench-kernel-gateway.txt",
    "jupyter-server": "bench-jupyter-server.txt",
}


def python_of(name: str) -> str:
    """Return the Python of an environment."""
    return str(HOME / name / "bin" / "python")


def install(name: str) -> None:
    """Make an environment, unless it is there as its lock wants it. Raises CalledProcessError."""
    lock = ROOT / "requirements" / LOCKS[name]
    wanted = hashlib.sha256(f"{sys.version}\n{ROOT}\n{lock.read_text()}".encode()).hexdigest()
    stamp = HOME / name / ".complete"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"Making {(HOME / name).relative_to(ROOT)} ...", flush=True)
    HOME.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME / name)], check=True)
    pip = [python_of(name), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    subprocess.run([*pip, "-r", str(lock)], check=True)
    stamp.write_text(wanted)


if __name__ == "__main__":
    for environment in LOCKS:
        install(environment)
