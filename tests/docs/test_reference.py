"""The reference pages say what the code has: no more, no less."""

from __future__ import annotations

import ast
import inspect
import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from gateway import errors
from gateway.cli import app
from gateway.http.access import Rule
from gateway.http.route import Route
from gateway.http.routes import ROUTES
from gateway.models import (
    AuditAction,
    DeathReason,
    ExecuteRequest,
    ExecutionResult,
    ExecutionState,
    ExecutionStatus,
    Limits,
    Scope,
)
from gateway.sandbox.profile import SandboxProfile, load_profile, shipped_dir
from gateway.settings import Settings
from gateway.telemetry import Metrics
from tests.docs.markdown import ROOT, code, page, rows, section

API, CLI, DEADLINES, OPERATIONS = (page(f"{name}.md") for name in ("api", "cli", "deadlines", "operations"))


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and field of everything in a tree of models that is no model itself."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def commands(group: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """Yield every command of the command line with its full name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


def kinds(base: type[errors.GatewayError]) -> Iterator[type[errors.GatewayError]]:
    """Yield the error classes of gateway.errors."""
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from kinds(kind)


def who(route: Route) -> str:
    """Say in the docs' words who may use a route."""
    return {
        Rule.PUBLIC: "everybody",
        Rule.PRINCIPAL: "any key",
        Rule.ADMIN: "`admin`",
        Rule.OWNER: f"owner, `{route.access.scope}`",
    }[route.access.rule]


def test_settings() -> None:
    """settings.md has every setting with its default, and no other."""
    documented = {code(cells[0])[0]: cells[1] for cells in rows(page("settings.md"), "setting", "default")}
    expected = {}
    for name, field in leaves(Settings):
        if name == "state_dir":
            expected[name] = '`"/var/lib/cellblock"`'  # root's; the text names the other
            continue
        value = json.loads(json.dumps(field.default, default=str))
        expected[name] = "unset" if value is None else f"`{json.dumps(value)}`"

    assert documented == expected


def test_commands() -> None:
    """cli.md has a section for every command, with its options and arguments, and no others."""
    titles = set(re.findall(r"^## cellblock (.+)$", CLI, re.MULTILINE))
    known = dict(commands(get_command(app)))

    assert titles == set(known)

    for name, command in known.items():
        documented = set()
        for cells in rows(section(CLI, f"cellblock {name}"), "option", "meaning"):
            documented |= {*code(cells[0])} or {cells[0]}
        expected = set()
        for parameter in command.params:
            if parameter.param_type_name == "option":
                expected |= {*parameter.opts, *parameter.secondary_opts}
            else:
                expected.add(parameter.metavar)

        assert documented == expected, name


def test_routes() -> None:
    """api.md has every method and path, who may use it and its success status, and no others."""
    documented = {
        (cells[0], code(cells[1])[0], cells[2], cells[3])
        for cells in rows(section(API, "Routes"), "method", "path")
    }
    expected = {
        (route.method, route.path, who(route), ", ".join(map(str, route.responses))) for route in ROUTES
    }

    assert documented == expected


def test_errors() -> None:
    """api.md has every error code with its status, and no others."""
    documented = {
        (code(cells[0])[0], int(cells[1])) for cells in rows(section(API, "Errors"), "code", "status")
    }

    assert documented == {(kind.code, kind.status) for kind in kinds(errors.GatewayError)}


def test_scopes() -> None:
    """api.md has every scope."""
    assert {code(cells[0])[0] for cells in rows(API, "scope", "allows")} == set(Scope)


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("| field | default | meaning |", ExecuteRequest),
        ("| field | meaning |", ExecutionResult),
    ],
)
def test_execute(heading: str, model: type[BaseModel]) -> None:
    """api.md has every field of an execution's request and result."""
    header = [cell.strip() for cell in heading.split("|")[1:-1]]
    text = section(API, "POST /api/kernels/{kernel_id}/execute")
    documented = {name for cells in rows(text, *header) for name in code(cells[0])}

    assert documented == set(model.model_fields)


def test_close_codes() -> None:
    """api.md has every WebSocket close code that the code names, and 1009, which is aiohttp's."""
    used = {1009}
    for path in (ROOT / "gateway" / "http").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and type(node.value) is int and 1000 <= node.value < 1016:
                used.add(node.value)
    documented = {int(cells[0]) for cells in rows(section(API, "WebSocket"), "close code", "when")}

    assert documented == used


def test_states_and_reasons() -> None:
    """deadlines.md has every execution state, reason of death and status of an execution."""
    for heading, column, known in (
        ("What a kernel is doing", "state", ExecutionState),
        ("Why a kernel died", "reason", DeathReason),
        ("How an execution ends", "status", ExecutionStatus),
    ):
        documented = [code(cells[0])[0] for cells in rows(section(DEADLINES, heading), column, "meaning")]

        assert sorted(documented) == sorted(known), heading


def test_metrics() -> None:
    """operations.md has every metric with its type and labels, and no others."""
    documented = {
        (code(cells[0])[0], cells[1], tuple(code(cells[2])))
        for cells in rows(OPERATIONS, "metric", "type", "labels")
    }
    expected = set()
    for metric in vars(Metrics()).values():
        if hasattr(metric, "_labelnames"):
            [family] = metric.describe()
            suffix = "_total" if family.type == "counter" else ""
            expected.add((family.name + suffix, family.type, tuple(metric._labelnames)))

    assert documented == expected


def test_profile_options() -> None:
    """profiles.md has every option of a profile, and `extends`."""
    text = section(page("profiles.md"), "Options")
    documented = {code(cells[0])[0] for cells in rows(text, "option")}
    expected = {name for name, _ in leaves(SandboxProfile) if name != "name"} | {"extends"}

    assert documented == expected


def test_limits_of_the_shipped_profiles() -> None:
    """profiles.md shows every limit with its value in both shipped profiles."""
    shown = {
        code(cells[0])[0].removeprefix("limits."): tuple(code(cell)[0] for cell in cells[1:3])
        for cells in rows(page("profiles.md"), "option", "default", "scientific")
    }
    default, scientific = (load_profile(name, [shipped_dir()]).limits for name in ("default", "scientific"))

    assert shown == {
        name: (str(getattr(default, name)), str(getattr(scientific, name))) for name in Limits.model_fields
    }


def test_audit_actions() -> None:
    """audit.md says of every action when it is recorded."""
    named = [name for cells in rows(page("audit.md"), "action", "when") for name in code(cells[0])]

    assert sorted(named) == sorted(action.value for action in AuditAction)


def test_default_profile_shows_every_limit() -> None:
    """sandbox_profiles/README.md sends people to default.toml for every key: each limit stands there."""
    shown = tomllib.loads((shipped_dir() / "default.toml").read_text())["limits"]

    assert set(shown) == set(Limits.model_fields)


def test_layers() -> None:
    """architecture.md shows the layers that import-linter enforces."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    enforced = "\n".join(layer.replace("gateway.", "") for layer in layers)

    assert f"```text\n{enforced}\n```" in page("architecture.md")


def test_rooms() -> None:
    """architecture.md names every part of the package, and none that is not there."""
    named = {
        name for cells in rows(section(page("architecture.md"), "Rooms"), "module") for name in code(cells[0])
    }
    package = ROOT / "gateway"
    parts = {f"gateway/{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    files = {f"gateway/{path.name}" for path in package.glob("*.py") if not path.name.startswith("_")}

    assert named <= parts | files
    assert parts <= named
    assert files - named <= {"gateway/clock.py", "gateway/privilege.py"}
