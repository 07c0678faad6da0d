"""Dashboard, alerts and the page on observability name what is there, and its receiver verifies."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import yaml

from gateway.clock import SystemClock
from gateway.models.notices import Notice, NoticeKind
from gateway.settings import Settings, WebhookSettings
from gateway.telemetry import Metrics
from gateway.webhooks import body_of, notifying
from tests.docs.markdown import ROOT, blocks, code, page, rows, section

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = page("observability.md")
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "cellblock.json").read_text())
ALERTS = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
SECRET = f"whsec_{base64.b64encode(b'k' * 32).decode()}"


def known() -> dict[str, set[str]]:
    """Return the name of every series of ours with its labels."""
    found: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        if not hasattr(metric, "_labelnames"):
            continue
        [family] = metric.describe()
        labels = set(metric._labelnames)
        if family.type == "histogram":
            found |= {f"{family.name}_{part}": labels for part in ("sum", "count")}
            found[f"{family.name}_bucket"] = labels | {"le"}
        else:
            found[family.name + ("_total" if family.type == "counter" else "")] = labels
    return found


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels that show something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    """Return all alerts."""
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


EXPRESSIONS = [
    *((panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]),
    *((rule["alert"], rule["expr"]) for rule in rules()),
]


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_what_is_asked_for_is_there(title: str, expression: str) -> None:
    """Every metric and label that a panel or an alert uses is one of the gateway's, or Prometheus' own."""
    series, allowed = known(), {"instance"}
    named = set(re.findall(r"\bcellblock_\w+", re.sub(r'"[^"]*"', '""', expression)))
    if title != "CellblockDown":
        assert named
    for name in named:
        assert name in series, f"{title}: {name}"
        allowed |= series[name]
    used = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', expression))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        used |= {label.strip() for label in group.split(",")}
    assert used <= allowed | ({"job"} if title == "CellblockDown" else set()), title


def test_every_metric_is_shown() -> None:
    """No metric is left out of the dashboard."""
    shown = " ".join(expression for _, expression in EXPRESSIONS)
    # by route it is an alert's
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known()}

    assert {family for family in families if family not in shown} == set()


def test_the_dashboard_is_one_for_grafana_10() -> None:
    """It is importable: one data source, by a variable, ids and places of its own for each panel."""
    assert DASHBOARD["schemaVersion"] >= 38
    assert "__inputs" not in DASHBOARD
    assert [one["type"] for one in DASHBOARD["templating"]["list"]] == ["datasource", "query"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["description"]
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_alerts_say_what_is_wrong() -> None:
    """Every alert has a name of its own, a severity, and a sentence that names the gateway."""
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) >= 5
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert "$labels.instance" in rule["annotations"]["summary"]


def test_the_page_has_every_field_and_event() -> None:
    """The page has every field of a webhook with its default, and every event."""
    documented = {code(cells[0])[0]: cells[1] for cells in rows(PAGE, "field", "default", "meaning")}
    fields = WebhookSettings.model_fields
    assert set(documented) == set(fields)
    for name in ("timeout_s", "max_attempts", "queue"):
        assert float(code(documented[name])[0]) == fields[name].default
    assert [code(cells[0])[0] for cells in rows(PAGE, "event", "when")] == [kind.value for kind in NoticeKind]


def test_the_example_of_a_notice_is_one() -> None:
    """The notice that the page shows has the form of those that are sent, and fields that there are."""
    [example] = [json.loads(text) for text in blocks(section(PAGE, "Webhooks"), "json")]
    real = json.loads(body_of(Notice(kind="execution.finished", at=SystemClock().now(), owner="alice")))
    assert set(example) == set(real)
    assert set(example["data"]) <= set(Notice.model_fields)


@contextmanager
def receiver() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the page's receiver on a free port."""
    [text] = blocks(PAGE, "python")
    assert len(text.strip().splitlines()) <= 20
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", text],
        env={**os.environ, "WEBHOOK_SECRET": SECRET, "PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield f"http://127.0.0.1:{port}/", process
    finally:
        process.kill()
        process.communicate()


async def test_the_receiver_takes_ours_and_no_others(tmp_path: Path) -> None:
    """The page's receiver takes what the gateway sends, and refuses what was signed by another or changed."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    metrics = Metrics()
    with receiver() as (url, process):
        settings = Settings(webhooks=[{"url": url, "secret_file": secret, "max_attempts": 20}])
        count, queue = metrics.webhook_deliveries, metrics.webhook_queue
        async with notifying(settings, SystemClock(), count, queue, backoff_s=0.1) as hooks:
            hooks.tell(
                Notice(kind=NoticeKind.KERNEL_DIED, at=SystemClock().now(), owner="alice", reason="oom")
            )

        assert count.labels("delivered")._value.get() == 1
        assert process.stdout is not None
        name, _, body = process.stdout.readline().partition(" ")
        assert name.startswith("msg_")
        assert json.loads(body)["data"] == {"owner": "alice", "reason": "oom"}

        forged = {"webhook-id": "msg_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA v2,x"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=b"{}", headers=forged) as answer,
        ):
            assert answer.status == 401
