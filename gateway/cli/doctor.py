"""`cellblock doctor`: what holds on this machine, in a table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.connection import JsonOption
from gateway.cli.table import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.doctor.assault import Attacked, Report
    from gateway.doctor.findings import Finding
    from gateway.settings import Settings

ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings, as TOML.")]
COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}


AttackOption = Annotated[
    bool, typer.Option("--attack", help="Make every attack of the table instead; takes some minutes.")
]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", metavar="NAME", help="With --attack: in cells of this profile.")
]
KernelOption = Annotated[
    str | None, typer.Option("--kernel", metavar="SPEC", help="With --attack: in cells of this kernelspec.")
]


def doctor(
    config: ConfigOption = None,
    attack: AttackOption = False,
    profile: ProfileOption = None,
    kernel: KernelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at firejail, the host and the kernels, and attack a throw-away cell: a table of what holds.

    Needs no running gateway and disturbs none. Exit code: 0 all that is mandatory holds, 1 it does not.
    """
    if (profile or kernel) and not attack:
        raise typer.BadParameter("--profile and --kernel go with --attack.")
    from gateway import settings as configuration  # noqa: PLC0415 - pydantic-settings would slow every --help

    settings = configuration.load(config)

    from rich.console import Console  # noqa: PLC0415 - slow to import, and only needed here

    from gateway.doctor import host, trial  # noqa: PLC0415
    from gateway.doctor.findings import guarded  # noqa: PLC0415
    from gateway.privilege import service_user  # noqa: PLC0415
    from gateway.telemetry import configure_logging  # noqa: PLC0415

    configure_logging(settings.log.model_copy(update={"level": "error"}))
    root = os.geteuid() == 0
    if attack:
        if root:
            service_user(settings.sandbox.service_user)
        raise typer.Exit(not attack_all(settings, profile=profile, kernel=kernel, as_json=as_json))
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


def attack_all(settings: Settings, *, profile: str | None, kernel: str | None, as_json: bool) -> bool:
    """Make every attack of the table, print how each group stands, and tell whether all held."""
    from rich.console import Console  # noqa: PLC0415

    from gateway.doctor.assault import assault  # noqa: PLC0415
    from gateway.doctor.attacks import load  # noqa: PLC0415

    every, made = len(load()), 0
    with Console(stderr=True).status("Starting throw-away cells …") as status:

        def progress(attacked: Attacked) -> None:
            nonlocal made
            made += 1
            status.update(f"{made} of {every}: {attacked.group} {attacked.id} {attacked.verdict}")

        report = assault(settings, profile=profile, kernel=kernel, on_result=progress)
    if as_json:
        print_json({"holds": report.holds, **report.model_dump(mode="json")})
    else:
        print_report(report)
    return report.holds


def print_report(report: Report) -> None:
    """Print a line for each group, what did not hold and why that matters, and a closing line."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from gateway.doctor.attacks import Verdict  # noqa: PLC0415

    console = Console()
    mode = "multi-tenant" if report.multi_tenant else "single-tenant"
    console.print(
        f"{report.kernelspec}: profile {report.profile}, {report.backend}, {mode}, "
        f"control groups: {report.cgroups or 'none'}\n",
        highlight=False,
    )
    if report.lowered:
        console.print(
            f"Lowered, as this machine has no more to spare: {', '.join(report.lowered)}.\n", style="yellow"
        )
    table = Table(box=None, pad_edge=False)
    for column in ("group", *Verdict):
        table.add_column(str(column), justify="left" if column == "group" else "right")
    groups = list(dict.fromkeys(attacked.group for attacked in report.attacks))
    for group in (*groups, "all"):
        counts = [
            sum(a.verdict is verdict and group in {a.group, "all"} for a in report.attacks)
            for verdict in Verdict
        ]
        table.add_row(group, *(str(count or "-") for count in counts), style="bold" if group == "all" else "")
    console.print(table)
    for attacked in report.attacks:
        if attacked.verdict in {Verdict.FAILED, Verdict.OPEN}:
            style = "bold red" if attacked.verdict is Verdict.FAILED else "yellow"
            line = Text(f"\n{attacked.id} {attacked.verdict}", style=style)
            line.append(f": {attacked.why}", style="default")
            line.append(f"\n  expected: {attacked.expect}\n  found: {attacked.said}", style="dim")
            console.print(line)
    if report.holds:
        console.print("\nNothing mandatory failed.", style="green")
    else:
        console.print("\nServe nobody from this machine until it is understood.", style="bold red")
