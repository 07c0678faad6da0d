"""`cellblock doctor`: what holds on this machine, in a table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway import settings as configuration
from gateway.cli.connection import JsonOption
from gateway.cli.table import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.doctor.findings import Finding

ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings, as TOML.")]
COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}


def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look at firejail, the host and the kernels, and attack a throw-away cell: a table of what holds.

    Needs no running gateway and disturbs none. Exit code: 0 all that is mandatory holds, 1 it does not.
    """
    settings = configuration.load(config)

    from rich.console import Console  # noqa: PLC0415 - slow to import, and only needed here

    from gateway.doctor import host, trial  # noqa: PLC0415
    from gateway.doctor.findings import guarded  # noqa: PLC0415
    from gateway.privilege import service_user  # noqa: PLC0415
    from gateway.telemetry import configure_logging  # noqa: PLC0415

    configure_logging(settings.log.model_copy(update={"level": "error"}))
    root = os.geteuid() == 0
    with Console(stderr=True).status("Looking at the host, and starting throw-away cells …"):
        findings = host.examine(settings, root=root)
        if root:
            service_user(settings.sandbox.service_user)
        findings += guarded("cells", lambda: trial.examine(settings))
    holds = all(finding.grade != "FAIL" for finding in findings)
    if as_json:
        print_json({"holds": holds, "findings": [finding.model_dump(mode="json") for finding in findings]})
    else:
        print_findings(findings)
    raise typer.Exit(not holds)


def print_findings(findings: Sequence[Finding]) -> None:
    """Print the table, the remedies under what needs them, and a closing line."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for finding in findings:
        why = Text(finding.why)
        if finding.remedy:
            why.append(f"\n→ {finding.remedy}", style="dim")
        table.add_row(Text(finding.grade, style=COLOURS[finding.grade]), Text(finding.check), why)
    console = Console()
    console.print(table)
    counts = {grade: sum(finding.grade == grade for finding in findings) for grade in COLOURS}
    if counts["FAIL"]:
        console.print(f"\n{counts['FAIL']} of {len(findings)} checks failed.", style="bold red")
    else:
        console.print(f"\nAll that is mandatory holds; {counts['warn']} could be better.", style="green")
