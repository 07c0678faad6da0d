"""Profiles: what ships, what may be written in one, and errors that name file and line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gateway.errors import ConfigurationError
from gateway.sandbox.profile import load_profile, load_profiles, profile_dirs, shipped_dir
from gateway.sandbox.syscalls import ESSENTIAL, WHY_NOT

BASE = """\
description = "a test"
[files]
private_etc = ["group", "ld.so.cache", "passwd"]
[syscalls]
keep = [
    "execve", "exit_group", "futex",
    "mmap", "read", "write",
]
"""


def written(directory: Path, text: str, name: str = "mine") -> Path:
    """Write a profile."""
    path = directory / f"{name}.toml"
    path.write_text(text)
    return path


def refused(directory: Path, text: str) -> str:
    """Return why a profile is refused, without the directory."""
    written(directory, text)
    with pytest.raises(ConfigurationError) as error:
        load_profile("mine", [directory])
    return error.value.message.replace(f"{directory}/", "")


def test_the_shipped_profiles_are_valid() -> None:
    """Both load, and differ in what the files say."""
    shipped = load_profiles(profile_dirs())
    default, scientific = shipped["default"], shipped["scientific"]

    assert default.name == "default"
    assert not default.memory.write_execute
    assert scientific.memory.write_execute
    assert scientific.syscalls == default.syscalls
    assert scientific.files == default.files
    assert scientific.limits.memory_bytes > default.limits.memory_bytes
    # what a child does not say is its parent's
    assert scientific.limits.interrupt_grace_s == default.limits.interrupt_grace_s


def test_the_shipped_list_keeps_what_a_kernel_and_its_boot_step_need() -> None:
    """The list is the measured one: essential calls and Landlock's in, nothing dangerous."""
    keep = set(load_profile("default", profile_dirs()).syscalls.keep)

    assert len(keep) == 224
    assert keep >= ESSENTIAL | {"$444", "$445", "$446", "clone3", "mbind", "sched_setaffinity"}
    assert not keep & set(WHY_NOT)


def test_every_line_of_the_shipped_limits_has_a_reason() -> None:
    """A person who edits a profile finds out why each value is what it is."""
    for path in shipped_dir().glob("*.toml"):
        limits = path.read_text().partition("[limits]")[2].split("\n\n")[0]
        for line in limits.strip().splitlines():
            assert "#" in line, line


def test_a_small_profile_has_strict_defaults(tmp_path: Path) -> None:
    """What is left out is the strict choice."""
    written(tmp_path, BASE)
    profile = load_profile("mine", [tmp_path])

    assert not profile.memory.write_execute
    assert profile.exec.noexec == ()
    assert profile.files.read_only == ()
    assert profile.limits.pids == 128


def test_never_means_no_limit_of_time(tmp_path: Path) -> None:
    """TOML has no null, so two limits take a word."""
    written(tmp_path, BASE + '[limits]\nidle_timeout_s = "never"\nmax_lifetime_s = "never"\n')
    limits = load_profile("mine", [tmp_path]).limits

    assert limits.idle_timeout_s is None
    assert limits.max_lifetime_s is None


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("net = true\n" + BASE, "mine.toml:1: net: unknown option"),
        (BASE + "[memory]\nwrite_exec = true\n", "mine.toml:10: memory.write_exec: unknown option"),
        (BASE + "[seccomp]\nx = 1\n", "mine.toml:9: seccomp: unknown option"),
        (BASE + '[memory]\n\nwrite_execute = "yes"\n', "mine.toml:11: memory.write_execute: Input should be"),
        (BASE + "[limits]\npids = 1\n", "mine.toml:10: limits.pids: Input should be greater"),
        (BASE + '[limits]\npids = "128"\n', "mine.toml:10: limits.pids: Input should be a valid integer"),
        (BASE + "[limits]\npids = true\n", "mine.toml:10: limits.pids: Input should be a valid integer"),
        (BASE + "[limits]\ncpus = inf\n", "mine.toml:10: limits"),
        (BASE + "[limits]\nhome_bytes = 9_000_000_000\n", "mine.toml:10: limits: home_bytes exceeds"),
        (BASE + '[exec]\nnoexec = [\n  "home",\n  "etc",\n]\n', "mine.toml:12: exec.noexec: Input should be"),
        (BASE + '[environment]\nLD_PRELOAD = "x"\n', "mine.toml:10: environment"),
        (BASE + '[environment]\nA = "b"\nPATH = "x"\n', "mine.toml:11: environment"),
        (BASE + '[environment]\nPYTHONPATH = "x"\n', "mine.toml:10: environment"),
        (BASE + '[environment]\n"A B" = "x"\n', "environment: 'A B' may not be set"),
        (BASE + '[environment]\nA = 1\n', "mine.toml:10: environment.A: Input should be a valid string"),
        (BASE.replace('"read"', '"read", "mount"'), "mine.toml:7: syscalls.keep: 'mount' may not be kept"),
        (BASE.replace('"read"', '"read", "$165"'), "mine.toml:7: syscalls.keep: '$165' may not be kept"),
        (BASE.replace('"read"', '"read", "!chroot"'), "mine.toml:7: syscalls.keep: '!chroot' is not"),
        (BASE.replace('"read"', '"read", "@mount"'), "mine.toml:7: syscalls.keep: '@mount' is not the name"),
        (BASE.replace('"read"', '"read", "stat,mount"'), "mine.toml:7: syscalls.keep: 'stat,mount' is not"),
        (BASE.replace('"read"', '"read", "read"'), "mine.toml:7: syscalls.keep: 'read' stands there twice"),
        (BASE.replace('"read"', '"read", 5'), "mine.toml:5: syscalls.keep: Input should be a valid string"),
        (BASE.replace('"futex"', '"stat"'), "mine.toml:5: syscalls.keep: no kernel runs without futex"),
        (BASE.partition("keep")[0] + "keep = []\n", "mine.toml:5: syscalls.keep: no kernel runs without"),
        (BASE.partition("[syscalls]")[0], "mine.toml:1: syscalls: Field required"),
        (BASE.replace("description", "# "), "mine.toml:1: description: Field required"),
        (BASE.replace('"group"', '"shadow"'), "mine.toml:3: files.private_etc: 'shadow' holds what no cell"),
        (BASE.replace('"group"', '"group", "../x"'), "mine.toml:3: files.private_etc: '../x' is not"),
        (BASE.replace('"passwd"', '"fonts"'), "mine.toml:3: files.private_etc: no kernel starts without"),
        ('name = "other"\n' + BASE, "mine.toml:1: name: unknown option"),
        (BASE + "[memory\n", "mine.toml:9: not valid TOML"),
        (BASE + "x = 'open", "mine.toml:9: not valid TOML"),
        (BASE + '[syscalls]\nkeep = ["read"]\n', "mine.toml:9: not valid TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, where: str) -> None:
    """Unknown options, wrong types, contradictions and weakenings point at their place in the file."""
    message = refused(tmp_path, text)

    assert where in message
    assert message.startswith("mine.toml:")


@pytest.mark.parametrize("name", sorted(WHY_NOT))
def test_no_dangerous_call_can_be_kept(tmp_path: Path, name: str) -> None:
    """Each call that could open a cell is refused with the reason."""
    message = refused(tmp_path, BASE.replace('"read"', f'"read", "{name}"'))

    assert f"'{name}' may not be kept: it {WHY_NOT[name]}" in message


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('blacklist = ["data"]', "not a plain absolute path"),
        ('blacklist = ["/a/../b"]', "not a plain absolute path"),
        ('blacklist = ["/a/*"]', "not a plain absolute path"),
        ('blacklist = ["/a,/b"]', "not a plain absolute path"),
        ('blacklist = ["/a b"]', "not a plain absolute path"),
        ('blacklist = ["/a\\nb"]', "not a plain absolute path"),
        ('blacklist = ["/"]', "not a plain absolute path"),
        ('blacklist = ["${HOME}"]', "not a plain absolute path"),
        ('blacklist = ["/usr/local"]', "every cell needs"),
        ('blacklist = ["/usr"]', "every cell needs"),
        ('blacklist = ["/run/firejail"]', "every cell needs"),
        ('blacklist = ["/home"]', "every cell needs"),
        ('read_only = ["/etc/ssl"]', "cannot be shared"),
        ('read_only = ["/home/anna"]', "cannot be shared"),
        ('read_only = ["/var/lib/data"]', "cannot be shared"),
        ('read_only = ["/root"]', "cannot be shared"),
        ('read_only = ["/run"]', "cannot be shared"),
        ('read_only = ["/lib64/x"]', "cannot be shared"),
        (
            'read_only = ["/srv/data"]\nblacklist = ["/srv"]',
            "read_only shows /srv/data and blacklist hides it",
        ),
        ('read_only = ["/srv/data"]\nblacklist = ["/srv/data"]', "read_only shows"),
    ],
)
def test_paths_that_break_or_open_a_cell_are_refused(tmp_path: Path, line: str, why: str) -> None:
    """Paths are plain, hide nothing that every cell needs and share nothing of the system's."""
    message = refused(tmp_path, BASE.replace("[syscalls]", f"{line}\n[syscalls]"))

    assert why in message


def test_data_can_be_shared_and_more_be_hidden(tmp_path: Path) -> None:
    """What an operator may wish for is possible."""
    text = BASE.replace(
        "[syscalls]", 'read_only = ["/srv/data", "/datasets"]\nblacklist = ["/usr/games"]\n[syscalls]'
    )
    written(tmp_path, text)
    files = load_profile("mine", [tmp_path]).files

    assert files.read_only == ("/srv/data", "/datasets")
    assert files.blacklist == ("/usr/games",)


def test_a_child_overrides_its_parent_key_by_key(tmp_path: Path) -> None:
    """One table can be changed in part; errors in the parent name the parent's line."""
    written(tmp_path, 'extends = "default"\ndescription = "big"\n[limits]\npids = 999\n')
    profile = load_profile("mine", [tmp_path, shipped_dir()])

    assert profile.limits.pids == 999
    assert profile.limits.open_files == 512
    assert profile.description == "big"
    written(tmp_path, BASE + "[limits]\npids = 3\n", "base")
    assert refused(tmp_path, 'extends = "base"\n').startswith("base.toml:10: limits.pids")


def test_a_child_can_contradict_its_parent(tmp_path: Path) -> None:
    """What only is wrong together is found too."""
    written(tmp_path, BASE + "[limits]\nhome_bytes = 200_000_000\n", "base")

    assert "home_bytes exceeds" in refused(
        tmp_path, 'extends = "base"\n[limits]\nmemory_bytes = 100_000_000\n'
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('extends = "mine"', "mine.toml:1: extends: mine extends mine: a circle"),
        ('extends = "none"', "mine.toml:1: There is no profile 'none'"),
        ('extends = "../x"', "mine.toml:1: '../x' is not the name of a profile"),
        ("extends = 3", "mine.toml:1: extends: Input should be the name"),
        ('extends = ["a"]', "mine.toml:1: extends: Input should be the name"),
    ],
)
def test_extends_names_one_other_profile(tmp_path: Path, line: str, why: str) -> None:
    """Circles, paths and profiles that do not exist are refused."""
    assert why in refused(tmp_path, f"{line}\n{BASE}")


def test_long_circles_are_found(tmp_path: Path) -> None:
    """A circle over several files ends with an error, too."""
    written(tmp_path, 'extends = "b"', "a")
    written(tmp_path, 'extends = "mine"', "b")

    assert "mine extends a extends b extends mine: a circle" in refused(tmp_path, 'extends = "a"')


@pytest.mark.parametrize(
    "name", ["", "../default", "/etc/passwd", "Default", "a.b", "a" * 40, "default\n", "-x"]
)
def test_a_name_is_never_a_path(name: str) -> None:
    """Names come from kernelspecs and lead to no other file."""
    with pytest.raises(ConfigurationError, match="not the name of a profile"):
        load_profile(name, profile_dirs())


def test_the_first_directory_counts(tmp_path: Path) -> None:
    """An operator's own profile of a shipped name is used in its place."""
    written(tmp_path, BASE, "default")

    found = load_profiles(profile_dirs([tmp_path]))
    assert found["default"].description == "a test"
    # and what extends that name, extends it
    assert len(found["scientific"].syscalls.keep) == 6


@pytest.mark.parametrize("content", [b"\xff\xfe", b"# " + b"x" * 300_000])
def test_unreadable_files_are_named(tmp_path: Path, content: bytes) -> None:
    """Binary files, huge ones and odd names are errors with the file's name."""
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"mine\.toml: "):
        load_profile("mine", [tmp_path])


def test_a_stray_file_among_the_profiles_is_an_error(tmp_path: Path) -> None:
    """A file whose name no kernelspec could use is a mistake, not to be skipped in silence."""
    written(tmp_path, BASE, "My Profile")

    with pytest.raises(ConfigurationError, match="'My Profile' is not the name"):
        load_profiles([tmp_path])


def test_profiles_never_change(tmp_path: Path) -> None:
    """A loaded profile is a value."""
    profile = load_profile("default", profile_dirs())

    with pytest.raises(ValueError, match="frozen"):
        profile.description = "other"  # type: ignore[misc]
    assert hash(profile.files) == hash(profile.files)


def test_a_copied_tree_finds_its_own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an installed package the profiles lie in its data."""
    package = tmp_path / "gateway"
    shutil.copytree(shipped_dir(), package / "data" / "sandbox_profiles")
    monkeypatch.setattr("gateway.sandbox.profile.__file__", str(package / "sandbox" / "profile.py"))

    assert shipped_dir() == package / "data" / "sandbox_profiles"
    assert set(load_profiles([shipped_dir()])) == {"bubblewrap", "default", "r", "scientific"}
