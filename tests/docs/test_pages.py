"""The pages as such: links lead somewhere, commands exist, examples are taken by the code they are for."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from pathlib import Path

import pytest

from gateway.kernels.specs import parse
from gateway.sandbox.profile import load_profile, shipped_dir
from gateway.settings import load
from tests.docs.markdown import PAGES, ROOT, anchors, blocks, links, page, section

UNIT = ROOT / "deploy" / "systemd" / "cellblock.service"
# What systemd builds on seccomp (or sets itself), and what gives a unit a mount namespace (systemd.exec(5)).
BLINDS_THE_PROOF = {
    *(
        "NoNewPrivileges",
        "SystemCallFilter",
        "SystemCallArchitectures",
        "SystemCallLog",
        "MemoryDenyWriteExecute",
    ),
    *(
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "LockPersonality",
    ),
    *("PrivateDevices", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectClock"),
    "ProtectHostname",
}
PREVENTS_ADOPTION = {
    *("ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateMounts", "ReadOnlyPaths", "InaccessiblePaths"),
    *(
        "ReadWritePaths",
        "ProtectControlGroups",
        "ProtectProc",
        "ProcSubset",
        "TemporaryFileSystem",
        "BindPaths",
    ),
    *("RootDirectory", "DynamicUser", "MountFlags"),
}


def make_targets() -> set[str]:
    """Return the targets of the Makefile."""
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link of a page names a file that is there and, with an anchor, a heading in it."""
    text = path.read_text()
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path

        assert target.exists(), link

        if anchor:
            assert anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_make_commands_exist(path: Path) -> None:
    """Every `make TARGET` that a page names is a target of the Makefile."""
    # "make" is also an English word: commands stand in backquotes or at the start of a line of a block
    named = re.findall(r"(?:`|^\s*|&& |sudo )make ([a-z]+)", path.read_text(), re.MULTILINE)

    assert set(named) <= make_targets()


def test_readme_starts_with_the_two_commands() -> None:
    """The README's first commands are `make run` and `make demo`, and no more are needed."""
    shown = blocks(section((ROOT / "README.md").read_text(), "Two commands"), "sh")

    assert [line.split("#")[0].strip() for line in shown[0].splitlines()] == ["make run", "make demo"]


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    """No page of docs/ is lost."""
    linked = set(links((ROOT / "README.md").read_text()))

    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= linked


def test_the_settings_example_loads(tmp_path: Path) -> None:
    """The TOML file that settings.md shows is taken as it stands, and says something."""
    [example] = blocks(page("settings.md"), "toml")
    file = tmp_path / "cellblock.toml"
    file.write_text(example)

    assert load(file).kernels.max_kernels_per_owner == 5


@pytest.mark.parametrize("where", [ROOT / "docs" / "profiles.md", ROOT / "sandbox_profiles" / "README.md"])
def test_the_profile_example_loads(tmp_path: Path, where: Path) -> None:
    """The profile that a page shows is a valid profile over `default`."""
    [example] = blocks(where.read_text(), "toml")
    (tmp_path / "example.toml").write_text(example)
    profile = load_profile("example", [tmp_path, shipped_dir()])

    assert profile.limits.timeout_s == tomllib.loads(example)["limits"]["timeout_s"]


def test_the_kernelspec_example_parses(tmp_path: Path) -> None:
    """The kernel.json that kernelspecs.md shows is a kernelspec with profile and environment."""
    [example] = blocks(page("kernelspecs.md"), "json")
    spec = parse("lab", tmp_path, json.loads(example))

    assert (spec.profile, spec.environment) == ("default", "/srv/cellblock/envs/lab")


def test_python_examples_compile() -> None:
    """Python in the docs is Python."""
    examples = [example for path in PAGES for example in blocks(path.read_text(), "python")]

    assert len(examples) >= 2

    for example in examples:
        compile(example, "docs", "exec")


def test_the_unit_neither_blinds_the_proof_nor_prevents_adoption() -> None:
    """The systemd unit has no option that cells inherit as a false proof, or that hides kept sockets."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    service = parser["Service"]

    assert not (BLINDS_THE_PROOF | PREVENTS_ADOPTION) & set(service)
    assert service["KillMode"] == "process"
