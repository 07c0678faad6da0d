"""The doctor's probes: what their outputs mean, and that they go red where nothing holds."""

from __future__ import annotations

import os
import subprocess

import pytest

from gateway.doctor.findings import Grade
from gateway.doctor.trial import CANARY_NAME, Probe, judge, laid, load_probes

# what an ordinary user cannot do anywhere, cell or no cell
HELD_BY_THE_SYSTEM = {"writing"}


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        ("HELD EPERM\n", Grade.OK),
        ("a warning\nHELD EPERM\n", Grade.OK),
        ("BREACH mount: done\n", Grade.FAIL),
        ("BREACH one\nHELD the other\n", Grade.FAIL),
        ("HELD one\nand then what\n", Grade.FAIL),
        ("", Grade.FAIL),
    ],
)
def test_only_a_clear_word_counts(said: str, grade: Grade) -> None:
    """A probe that did not end, or says anything else, proves nothing."""
    assert judge("check", "why", said, "timeout").grade == grade


@pytest.mark.parametrize("probe", load_probes(), ids=lambda probe: probe.name)
def test_probes_go_red_without_a_cell(probe: Probe) -> None:
    """The control: run by an ordinary user outside of any cell, each probe gets what it must not get."""
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    with laid() as bait:
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", CANARY_NAME: bait.canary}
        command = [*drop, "/usr/bin/python3", "-I", "-c", bait.into(probe.code)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, env=environment, check=False
        )

    assert done.returncode == 0, done.stderr
    grade = judge(probe.name, probe.why, done.stdout, "end").grade
    assert grade == (Grade.OK if probe.name in HELD_BY_THE_SYSTEM else Grade.FAIL), done.stdout


def test_bait_is_taken_away() -> None:
    """The secret leaves the environment with the trial."""
    with laid() as bait:
        assert os.environ[CANARY_NAME] == bait.canary
    assert CANARY_NAME not in os.environ
