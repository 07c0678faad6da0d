"""Write requirements/*.txt afresh: every package pinned, by pip's own resolver.

The sources are pyproject.toml (its dependencies, and its groups `test` and `lint`) and requirements/*.in.
There a line `--no-deps NAME==VERSION` pins a package without what it asks for.
Run it with the oldest Python that the project supports: `make lock`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
ALONE = "--no-deps "


def resolve(wanted: list[str], constraint: Path | None = None) -> dict[str, str]:
    """Return name to version of everything that `wanted` needs, as a fresh install would choose it."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        if constraint:
            command += ["--constraint", str(constraint)]
        command += ["--report", str(report), *wanted]
        subprocess.run(command, check=True)
        found = json.loads(report.read_text())["install"]
    pins = {item["metadata"]["name"]: item["metadata"]["version"] for item in found}
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}


def sources(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return what a source wants, and the pins of what it wants alone."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    wanted = [line for line in lines if line and not line.startswith(ALONE)]
    return wanted, dict(line.removeprefix(ALONE).split("==") for line in lines if line.startswith(ALONE))


def write(name: str, source: str, pins: dict[str, str], base: str | None = None) -> Path:
    """Write one lock; `base` names the lock that it adds to."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    lines = [f"# Locked from {source} on Python {python} by `make lock`: do not edit."]
    lines += [f"-r {base}"] if base else []
    lines += [f"{package}=={version}" for package, version in sorted(pins.items())]
    path = REQUIREMENTS / f"{name}.txt"
    path.write_text("\n".join(lines) + "\n")
    print(f"{path.relative_to(ROOT)}: {len(pins)} packages", flush=True)
    return path


def main() -> None:
    """Resolve and write every lock."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    gateway = resolve(pyproject["project"]["dependencies"])
    base = write("gateway", "pyproject.toml", gateway)
    for group in ("test", "lint"):
        wanted = pyproject["project"]["dependencies"] + pyproject["dependency-groups"][group]
        added = {name: pin for name, pin in resolve(wanted, base).items() if name not in gateway}
        write(group, f"pyproject.toml, group {group}", added, base.name)
    for source in sorted(REQUIREMENTS.glob("*.in")):
        wanted, alone = sources(source)
        write(source.stem, f"requirements/{source.name}", resolve(wanted) | alone)


if __name__ == "__main__":
    main()
