"""The doctor's checks of the host, on directories and programs made for it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from gateway.doctor import host
from gateway.doctor.findings import Finding, Grade, guarded, ok
from gateway.errors import ConfigurationError
from gateway.settings import SandboxSettings


def program(path: Path, text: str, mode: int = 0o755) -> Path:
    """Write a program called firejail."""
    path = path / "firejail"
    path.write_text(text)
    path.chmod(mode)
    return path


def grades(findings: list[Finding]) -> dict[str, str]:
    """Return how each check ended."""
    return {finding.check: str(finding.grade) for finding in findings}


def test_firejail_missing_or_old(tmp_path: Path) -> None:
    """No firejail, and one too old, are failures that say so and what to install."""
    (missing,) = host.firejail(tmp_path / "firejail", root=True)
    (old,) = host.firejail(program(tmp_path, '#!/bin/sh\necho "firejail version 0.9.60"\n'), root=True)

    assert missing.grade == old.grade == Grade.FAIL
    assert "No such file" in missing.why
    assert "0.9.60" in old.why
    assert "apt-get install firejail" in old.remedy


def test_firejail_that_others_can_change(tmp_path: Path) -> None:
    """A firejail that others than root may write is a failure."""
    path = program(tmp_path, '#!/bin/sh\necho "firejail version 0.9.72"\n', 0o777)

    (finding,) = host.firejail(path, root=True)

    assert finding.grade == Grade.FAIL
    assert "can be changed" in finding.why


@pytest.mark.parametrize(("root", "grade"), [(True, Grade.WARN), (False, Grade.OK)])
def test_suid_bit_of_the_real_firejail(*, root: bool, grade: Grade) -> None:
    """As installed it has the bit: needed by an ordinary user, one too many beside root's warden."""
    version, suid = host.firejail(Path("/usr/bin/firejail"), root=root)

    assert version.grade == Grade.OK
    assert suid.grade == grade


def test_bubblewrap_is_only_needed_by_those_who_name_it(tmp_path: Path) -> None:
    """A bubblewrap that is missing, old or without user namespaces is a warning that says who is refused."""
    (there,) = host.bubblewrap(Path("/usr/bin/bwrap"), tmp_path)
    (missing,) = host.bubblewrap(tmp_path / "bwrap", tmp_path)
    (old,) = host.bubblewrap(program(tmp_path, '#!/bin/sh\necho "bubblewrap 0.4.1"\n'), tmp_path)
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "unprivileged_userns_clone").write_text("0\n")
    (closed,) = host.bubblewrap(Path("/usr/bin/bwrap"), tmp_path)

    assert there.grade == Grade.OK
    for finding in (missing, old, closed):
        assert finding.grade == Grade.WARN
        assert "they answer 503" in finding.why
        assert finding.remedy
    assert "0.8.0 or newer" in old.why


def test_firejail_settings_of_an_ordinary_user(tmp_path: Path) -> None:
    """What cells need and what would be tighter is found in firejail's own settings."""
    (tmp_path / "firejail.config").write_text("# seccomp yes\nseccomp no\njoin no\nforce-nonewprivs yes\n")
    me = pwd.getpwuid(os.getuid()).pw_name
    (tmp_path / "firejail.users").write_text(f"somebody\n{me}\n")

    found = list(host.firejail_settings(tmp_path, root=False))

    assert grades(found) == {"firejail settings": "FAIL", "firejail.users": "ok"}
    assert "seccomp" in found[0].why


def test_firejail_users_without_this_user(tmp_path: Path) -> None:
    """A firejail.users that leaves this user out means no cells at all; none means everybody."""
    assert grades(list(host.firejail_settings(tmp_path, root=False))) == {
        "firejail settings": "ok",
        "firejail.users": "warn",
        "firejail.config": "warn",
    }

    (tmp_path / "firejail.users").write_text("somebody\n")

    assert grades(list(host.firejail_settings(tmp_path, root=False)))["firejail.users"] == "FAIL"


@pytest.mark.parametrize(("most", "grade"), [("0", Grade.FAIL), ("1000", Grade.OK)])
def test_user_namespaces(tmp_path: Path, most: str, grade: Grade) -> None:
    """A system without user namespaces has no cells."""
    (tmp_path / "user").mkdir()
    (tmp_path / "user/max_user_namespaces").write_text(f"{most}\n")

    (finding,) = host.namespaces(tmp_path)

    assert finding.grade == grade


@pytest.mark.parametrize(("abi", "grade"), [(0, Grade.WARN), (2, Grade.WARN), (4, Grade.WARN), (7, Grade.OK)])
def test_landlock(abi: int, grade: Grade) -> None:
    """Landlock is the second layer: less of it is said, and no failure."""
    (finding,) = host.landlock(abi)

    assert finding.grade == grade


def test_users_of_a_pool_that_is_taken() -> None:
    """Uids that are others' already are told, a pool of nothing else is a failure."""
    entry = next(entry for entry in pwd.getpwall() if entry.pw_uid >= 1000)
    taken = SandboxSettings(pool_first_uid=entry.pw_uid, pool_size=1, pool_prefix="zzzz")
    partly = SandboxSettings(pool_first_uid=entry.pw_uid, pool_size=2, pool_prefix="zzzz")

    assert [finding.grade for finding in host.users(taken, root=True)] == [Grade.FAIL]
    assert [finding.grade for finding in host.users(partly, root=True)] == [Grade.WARN]
    assert [finding.grade for finding in host.users(taken, root=False)] == [Grade.WARN]


def test_disk_of_a_directory_to_come(tmp_path: Path) -> None:
    """The room is measured where the state directory will be."""
    (finding,) = host.disk(tmp_path / "not" / "yet")

    assert str(tmp_path) in finding.why


def test_a_check_never_ends_the_doctor() -> None:
    """An error in a check is a failed finding of its own."""

    def refuses() -> list[Finding]:
        raise ConfigurationError("The profile is wrong.")

    def breaks() -> list[Finding]:
        raise OSError(5, "Input/output error")

    assert guarded("a", lambda: [ok("a", "well")])[0].grade == Grade.OK
    assert guarded("a", refuses)[0].why == "The profile is wrong."
    assert guarded("a", breaks)[0].grade == Grade.FAIL
