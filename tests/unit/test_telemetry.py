"""Logs carry no secrets, whoever wrote them, and metrics stand in a registry of their own."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from gateway.errors import InsufficientStorage, NotFound
from gateway.models import DeathReason, Limits
from gateway.settings import LogSettings
from gateway.store import SqlStore
from gateway.telemetry import ExecutionNotices, Metrics, configure_logging, scrub_text
from gateway.telemetry.metrics import MOST_LIMITS
from tests.doubles import ManualClock, MemoryHost, MemoryKernel, kernelspec

SECRET = "s3cretpart" + "A" * 33
TOKEN = f"cb_0123456789ab_{SECRET}"


@pytest.fixture
def stderr(capsys):
    """Return a reader of what was written to stderr since the last call; put the logging back."""
    root = logging.getLogger()
    before, level, raising = root.handlers, root.level, logging.raiseExceptions
    yield lambda: capsys.readouterr().err
    root.handlers, logging.raiseExceptions = before, raising
    root.setLevel(level)
    logging.getLogger("aiosqlite").setLevel(logging.NOTSET)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(text: str) -> list[dict[str, Any]]:
    """Return the events of some JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_carry_level_time_and_request_id(stderr):
    """A structlog event is one JSON line with an ISO UTC time and what the context has bound."""
    configure_logging(LogSettings(format="json"))
    structlog.contextvars.bind_contextvars(request_id="r1")

    structlog.get_logger("gateway.x").info("kernel started", kernel="k1", count=3, fine=True, none=None)

    (line,) = lines(stderr())
    assert {key: value for key, value in line.items() if key != "timestamp"} == {
        "event": "kernel started",
        "kernel": "k1",
        "count": 3,
        "fine": True,
        "none": None,
        "request_id": "r1",
        "level": "info",
        "logger": "gateway.x",
    }
    assert datetime.fromisoformat(line["timestamp"]).utcoffset() == timedelta(0)


def test_standard_library_records_take_the_same_way(stderr):
    """A library's record has the same fields, and its secrets are scrubbed too."""
    configure_logging(LogSettings(format="json"))
    structlog.contextvars.bind_contextvars(request_id="r2")

    logging.getLogger("aiohttp.access").info('"GET /api/kernels?token=%s&x=1 HTTP/1.1" %d', "hunter2", 200)

    (line,) = lines(stderr())
    assert line["event"] == '"GET /api/kernels?token=***&x=1 HTTP/1.1" 200'
    assert (line["logger"], line["level"], line["request_id"]) == ("aiohttp.access", "info", "r2")


def test_level_holds_for_both_worlds(stderr):
    """What is below the level is not written."""
    configure_logging(LogSettings(format="json", level="warning"))

    structlog.get_logger().info("no")
    logging.getLogger("lib").info("no")
    structlog.get_logger().warning("yes")
    logging.getLogger("lib").warning("yes")

    assert [line["event"] for line in lines(stderr())] == ["yes", "yes"]


def test_configuring_twice_does_not_double_the_lines(stderr):
    """The last configuration is the only one."""
    configure_logging(LogSettings(format="json"))
    configure_logging(LogSettings(format="json"))

    structlog.get_logger().info("once")

    assert len(lines(stderr())) == 1


def test_auto_is_console_on_a_terminal_and_json_elsewhere(stderr, monkeypatch):
    """The format follows stderr."""
    configure_logging(LogSettings())
    structlog.get_logger().info("plain")
    assert lines(stderr())

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure_logging(LogSettings())
    structlog.get_logger().info("pretty")

    text = stderr()
    assert "pretty" in text
    assert "\x1b[" in text


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_reaches_the_log(stderr, form):
    """Secrets vanish from values, nested ones, keys, objects, exceptions and causes, in both formats."""
    configure_logging(LogSettings(format=form))
    log = structlog.get_logger()

    event = f"key {TOKEN} made"
    log.info(event, url=f"http://h/?token={SECRET}&a=1", password=SECRET, key_hash=SECRET)
    log.info(
        "nested",
        headers={
            "Authorization": f"token {SECRET}",
            "x-secret-y": [SECRET],
            TOKEN: 1,
            "Cookie": f"a={SECRET}",
        },
        rows=[{"deep": ({"my_token": SECRET},)}, {f"Bearer {SECRET}"}, TOKEN.encode()],
        thing=SimpleNamespace(token=SECRET, at=1),
    )
    try:
        try:
            int(f"{{'authorization': 'Bearer {SECRET}'}}")
        except ValueError as cause:
            raise RuntimeError(f"secret_hash='{SECRET}' for {TOKEN}") from cause
    except RuntimeError:
        log.exception("failed")
        logging.getLogger("aiohttp.server").exception("failed %s", TOKEN)

    text = stderr()
    assert "s3cretpart" not in text
    assert "RuntimeError" in text
    assert "cb_0123456789ab_***" in text, "the id of a key is no secret and helps"
    assert len(text.splitlines()) >= 4


def test_broken_log_call_does_not_dump_its_arguments(stderr):
    """A record whose arguments do not fit is lost rather than written raw."""
    configure_logging(LogSettings(format="json"))

    logging.getLogger("lib").info("count %d", TOKEN)

    assert stderr() == ""


def test_deep_and_circular_values_are_logged(stderr):
    """A value that contains itself ends somewhere, scrubbed."""
    configure_logging(LogSettings(format="json"))
    loop: dict[str, Any] = {"t": TOKEN}
    loop["self"] = [loop]

    structlog.get_logger().info("loop", loop=loop)

    text = stderr()
    assert "s3cretpart" not in text
    assert lines(text)[0]["event"] == "loop"


def test_console_writes_no_terminal_escapes_of_others(stderr):
    """A user's control characters are written out, so a log cannot drive the operator's terminal."""
    configure_logging(LogSettings(format="console"))

    logging.getLogger("lib").info("name \x1b]0;owned\x07")

    assert "\\x1b]0;owned\\x07" in stderr()


async def test_debug_level_does_not_log_statements_parameters(stderr, tmp_path):
    """The database driver's debug lines hold rows, so they stay off at any level."""
    configure_logging(LogSettings(format="json", level="debug"))

    store = await SqlStore.open(tmp_path / "s" / "s.db")
    await store.key("row-parameter")
    await store.close()

    assert "row-parameter" not in stderr()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Authorization: Bearer abc", "Authorization: ***"),
        ('Authorization: Digest u="x", r="y"', "Authorization: ***"),
        ("Cookie: a=b; c=d\nHost: z", "Cookie: ***\nHost: z"),
        ("{'Authorization': 'token a\\'b', 'x': 1}", "{'Authorization': ***, 'x': 1}"),
        ("(b'authorization', b'token a'), 1", "(b'authorization', b***), 1"),
        (r"{\"token\": \"a b\"}", r"{\"token\": ***"),
        ("authorization=token abc rest", "authorization=*** rest"),
        ("cellblock_token=abc; other=1", "cellblock_token=***; other=1"),
        ("next=%2Flab%3Ftoken%3Dabc", "next=%2Flab%3Ftoken%3D***"),
        ("sent Bearer abcdefgh to x", "sent Bearer *** to x"),
        ("a token is missing, basic things", "a token is missing, basic things"),
        ("the key cb_0123456789ab_abc-def", "the key cb_0123456789ab_***"),
        ("nothing here\x1b[2Jbut \x9b control", "nothing here\\x1b[2Jbut \\x9b control"),
    ],
)
def test_scrub_text(text, clean):
    """Every shape in which a secret comes along is known, and plain words stay."""
    assert clean == scrub_text(text)


class Deaf:
    """A `ports.events.Notifier` whom nobody has asked for anything."""

    listens = False

    def tell(self, event):
        """Fail."""
        raise AssertionError(event)


def test_no_notice_is_made_for_nobody():
    """Where there is no address, an execution's end makes no notice."""
    ExecutionNotices(Deaf(), ManualClock()).ended(None)


@pytest.mark.parametrize(
    "text",
    ["token" * 20_000, "token'" * 20_000, 'token="' * 20_000, "cb_" * 50_000, "token'" + " " * 100_000],
)
def test_scrubbing_is_linear(text):
    """Hostile text of 100 KB costs milliseconds, not minutes."""
    started = time.perf_counter()
    scrub_text(text)

    assert time.perf_counter() - started < 2


def test_metrics_render_with_help_and_prefix():
    """Every metric is ours by name, has a help text, and shows what was counted."""
    metrics = Metrics()
    metrics.requests.labels("/api/kernels/{id}", "GET", "200").inc()
    metrics.kernel_starts.labels("python3", "ok", "cold").inc()
    metrics.kernel_start_seconds.observe(0.3)
    metrics.kernel_deaths.labels("oom").inc(2)
    metrics.executions.labels("ok").inc()
    metrics.execution_seconds.observe(0.01)
    metrics.kernels.set(3)
    metrics.sockets.inc()
    metrics.dropped_messages.labels("slow_client").inc()

    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}

    assert all(name.startswith("cellblock_") and family.documentation for name, family in families.items())
    values = {sample.name: sample.value for family in families.values() for sample in family.samples}
    assert values["cellblock_kernel_deaths_total"] == 2
    assert values["cellblock_kernels"] == 3
    assert values["cellblock_requests_total"] == 1
    assert values["cellblock_execution_seconds_count"] == 1


def test_metrics_do_not_share():
    """Two gateways in one process do not meet, nor does anything reach the global registry."""
    first, second = Metrics(), Metrics()
    first.sockets.inc()

    assert b"cellblock_sockets 1.0" in first.render()
    assert b"cellblock_sockets 0.0" in second.render()
    assert b"cellblock_" not in prometheus_client.generate_latest()


def test_limits_fill_no_registry():
    """Names of limits past a bound become one, whoever should make them up."""
    metrics = Metrics()
    for number in range(1000):
        metrics.hit(f"limit_{number}")

    text = metrics.render().decode()
    assert text.count("cellblock_limits_hit_total{") == MOST_LIMITS + 1
    assert f'cellblock_limits_hit_total{{limit="other"}} {1000 - MOST_LIMITS}.0' in text


def test_refusals_are_counted_by_code():
    """Every error that somebody is answered with counts by its code, want of room as a limit too."""
    metrics = Metrics()
    metrics.refused(NotFound("none"))
    metrics.refused(InsufficientStorage("full", reason="disk"))

    text = metrics.render().decode()
    assert 'cellblock_refusals_total{code="not_found"} 1.0' in text
    assert 'cellblock_refusals_total{code="insufficient_storage"} 1.0' in text
    assert 'cellblock_limits_hit_total{limit="storage"} 1.0' in text


def test_states_are_those_of_the_moment():
    """The gauge of states asks the host whenever somebody looks."""
    metrics, host = Metrics(), MemoryHost(ManualClock())
    metrics.follow(host)
    host.kernels["k"] = MemoryKernel("k", "alice", kernelspec(), Limits(), ManualClock())
    assert b'cellblock_kernel_states{state="idle"} 1.0' in metrics.render()

    host.kernels["k"].die(DeathReason.OOM)

    assert b'cellblock_kernel_states{state="idle"} 0.0' in metrics.render()
    assert b'cellblock_kernel_states{state="dead"} 1.0' in metrics.render()
