"""`cellblock doctor` on this very machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from gateway.doctor.attacks import load
from gateway.doctor.trial import load_probes
from tests.gateway import COMMAND, Gateway, new_state_dir
from tests.security import standins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that a service user can reach."""
    directory = new_state_dir()
    yield directory
    shutil.rmtree(directory)


def examine(*arguments: str, timeout: float = 100, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the doctor."""
    return subprocess.run(
        [COMMAND, "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "COLUMNS": "200", **env},
        cwd="/",
    )


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Return the findings of a JSON report by check."""
    report = json.loads(done.stdout)
    assert report["holds"] == (done.returncode == 0)
    return {finding["check"]: finding for finding in report["findings"]}


def test_this_machine_holds() -> None:
    """Where the tests run, all that is mandatory holds, and every probe was made."""
    done = examine("--json")

    assert done.returncode == 0, done.stdout
    found = findings(done)
    assert {f"cell: {probe.name}" for probe in load_probes()} <= set(found)
    assert {"firejail", "control groups", "landlock", "disk", "kernel python3"} <= set(found)
    assert all(finding["grade"] in ("ok", "warn") for finding in found.values())


def test_table_and_a_running_gateway(gateway: Gateway) -> None:
    """The table is for people; a gateway that runs on the same state directory is not disturbed."""
    before = gateway.warden_pids()
    done = examine(CELLBLOCK_STATE_DIR=str(gateway.state_dir))

    assert done.returncode == 0, done.stdout
    assert "All that is mandatory holds" in done.stdout
    assert gateway.warden_pids() == before
    assert not list(gateway.state_dir.glob("doctor-*"))


def test_firejail_that_fails_open(place: Path) -> None:
    """A firejail that runs programs without a cell is told by what is missing, with exit code 1."""
    firejail = standins.install(place / "bin" / "firejail", standins.RUNS_UNCONFINED)

    done = examine(
        "--json", CELLBLOCK_SANDBOX__FIREJAIL=str(firejail), CELLBLOCK_STATE_DIR=str(place / "state")
    )

    assert done.returncode == 1
    found = findings(done)
    assert found["kernel python3"]["grade"] == "FAIL"
    assert "Seccomp is not 2" in found["kernel python3"]["why"]


def test_firejail_missing() -> None:
    """Without firejail the doctor says so and what to install, in sentences."""
    done = examine(CELLBLOCK_SANDBOX__FIREJAIL="/nowhere/firejail")

    assert done.returncode == 1
    assert "apt-get install firejail" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_kernelspec_without_its_environment(place: Path) -> None:
    """A kernelspec whose environment is not there is a failure of that kernel alone."""
    spec = place / "specs" / "broken"
    spec.mkdir(parents=True)
    argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    cellblock = {"environment": "/srv/cellblock/envs/not-there"}
    body = {"argv": argv, "display_name": "b", "language": "python", "metadata": {"cellblock": cellblock}}
    (spec / "kernel.json").write_text(json.dumps(body))

    found = findings(examine("--json", CELLBLOCK_KERNELS__SPEC_DIRS=json.dumps([str(place / "specs")])))

    assert found["kernel broken"]["grade"] == "FAIL"
    assert "/srv/cellblock/envs/not-there" in found["kernel broken"]["why"]
    assert found["kernel python3"]["grade"] == "ok"


def test_settings_that_are_wrong() -> None:
    """A wrong setting is a sentence and exit code 2, as with every command."""
    done = examine(CELLBLOCK_SERVER__PORT="many")

    assert done.returncode == 2
    assert "server.port" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_left(place: Path) -> None:
    """A trial leaves no directory and no warden."""
    examine("--json", CELLBLOCK_STATE_DIR=str(place / "state"))

    assert list(place.iterdir()) == []
    assert Gateway(state_dir=place).warden_pids() == []


@pytest.mark.timeout(320)
def test_attacks_are_counted(place: Path) -> None:
    """`--attack` makes the whole table in cells of a profile, at its own limits; nothing of it is left."""
    state = str(place / "state")
    # gigabytes are filled, which a machine that has not touched its memory yet takes its time for
    done = examine("--attack", "--profile", "scientific", "--json", timeout=300, CELLBLOCK_STATE_DIR=state)

    report = json.loads(done.stdout)
    assert done.returncode == 0, [found for found in report["attacks"] if found["verdict"] != "held"]
    assert report["holds"]
    assert report["profile"] == "scientific"
    assert [found["id"] for found in report["attacks"]] == [attack.id for attack in load()]
    allowed = {"held"} if report["multi_tenant"] else {"held", "open in single-tenant mode"}
    assert {found["verdict"] for found in report["attacks"]} <= allowed
    assert list(place.iterdir()) == []
    assert Gateway(state_dir=place).warden_pids() == []


def test_attacks_that_succeed_are_told(place: Path) -> None:
    """Where firejail forgets a line, `--attack` fails and says which attack got through."""
    firejail = standins.install(place / "bin" / "firejail", standins.without("'--hostname=kernel'"))

    done = examine(
        "--attack", CELLBLOCK_SANDBOX__FIREJAIL=str(firejail), CELLBLOCK_STATE_DIR=str(place / "state")
    )

    assert done.returncode == 1, done.stdout
    assert "e05 FAILED: host identity" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("option", [("--profile", "nowhere"), ("--kernel", "nowhere")])
def test_attack_on_what_is_not_there(option: tuple[str, str], place: Path) -> None:
    """A profile or kernelspec that does not exist is a sentence and exit code 2."""
    done = examine("--attack", *option, CELLBLOCK_STATE_DIR=str(place / "state"))

    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
