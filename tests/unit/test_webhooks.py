"""Webhooks: signed, retried, in order, bounded, and never in anybody's way."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from gateway.clock import SystemClock
from gateway.errors import ConfigurationError
from gateway.models import AuditAction, AuditEvent, AuditOutcome, Origin
from gateway.models.notices import Notice, NoticeKind
from gateway.origin import acting
from gateway.settings import ServerSettings, Settings, load
from gateway.telemetry import AuditWatch, Metrics
from gateway.webhooks import Webhooks, notifying, read_secret
from tests.doubles import ManualClock, MemoryAudit
from tests.receiver import Receiver, receiving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

SECRET = b"0123456789abcdef0123456789abcdef"
BACKOFF_S = 0.05


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that listens."""
    async with receiving() as made:
        yield made


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    """A file with the secret."""
    path = tmp_path / "secret"
    path.write_text(f"whsec_{base64.b64encode(SECRET).decode()}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def metrics() -> Metrics:
    """Metrics of the test's own."""
    return Metrics()


@pytest.fixture
def hooked(secret_file: Path, metrics: Metrics) -> Callable[..., Any]:
    """Return what gives webhooks to some addresses; `drain_s` is the server's, the rest are a webhook's."""

    def make(*urls: str, drain_s: float = 0.2, **options: Any) -> Any:
        hooks = [{"url": url, "secret_file": secret_file, **options} for url in urls]
        settings = Settings(server=ServerSettings(drain_s=drain_s), webhooks=hooks)
        count, queue = metrics.webhook_deliveries, metrics.webhook_queue
        return notifying(settings, SystemClock(), count, queue, backoff_s=BACKOFF_S)

    return make


def notice(number: int = 0, **facts: Any) -> Notice:
    """Return a notice that can be told from others by its duration."""
    kind = facts.pop("kind", NoticeKind.EXECUTION_FINISHED)
    fields = {"owner": "alice", "status": "ok", "duration_s": float(number), **facts}
    return Notice(kind=kind, at=datetime(2026, 1, 2, tzinfo=UTC), **fields)


def counted(metrics: Metrics, outcome: str) -> float:
    """Return how many notices had this outcome."""
    return metrics.webhook_deliveries.labels(outcome)._value.get()


def verified(headers: dict[str, str], body: bytes) -> bool:
    """Check a signature by the book: HMAC-SHA256 of id.timestamp.body, base64, v1."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    good = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    return headers["webhook-signature"] == f"v1,{good}"


async def test_what_arrives_is_signed_json(hooked, receiver, metrics):
    """A notice arrives once, as JSON with its type and time, under a signature that verifies."""
    async with hooked(receiver.url) as hooks:
        hooks.tell(notice(3, kernel_id="k", queue_s=0.5))
        await receiver.got(1)

    [(_, headers, body)] = receiver.requests
    assert headers["Content-Type"] == "application/json"
    assert headers["webhook-id"].startswith("msg_")
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 5
    assert verified(headers, body)
    assert not verified(headers, body + b" ")
    assert json.loads(body) == {
        "type": "execution.finished",
        "timestamp": "2026-01-02T00:00:00.000000Z",
        "data": {"owner": "alice", "kernel_id": "k", "status": "ok", "duration_s": 3.0, "queue_s": 0.5},
    }
    assert (counted(metrics, "delivered"), counted(metrics, "retried")) == (1, 0)


async def test_a_failure_is_tried_again(hooked, receiver, metrics):
    """5xx and 429 are tried again with the same id and a valid signature, ever later, until it is taken."""
    receiver.answers = [(500, {}), (503, {}), (429, {})]
    async with hooked(receiver.url) as hooks:
        hooks.tell(notice())
        await receiver.got(4)

    moments = [moment for moment, _, _ in receiver.requests]
    assert len({headers["webhook-id"] for _, headers, _ in receiver.requests}) == 1
    assert all(verified(headers, body) for _, headers, body in receiver.requests)
    waits = [later - sooner for sooner, later in pairwise(moments)]
    for attempt, wait in enumerate(waits):
        assert wait >= BACKOFF_S * 2**attempt / 2
    assert (counted(metrics, "delivered"), counted(metrics, "retried")) == (1, 3)


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_honoured(hooked, receiver, form):
    """An address that names a time is left alone until then."""
    asked = "1" if form == "seconds" else format_datetime(datetime.fromtimestamp(int(time.time()) + 2, UTC))
    receiver.answers = [(429, {"Retry-After": asked})]
    began = time.time()
    async with hooked(receiver.url) as hooks:
        hooks.tell(notice())
        await receiver.got(2)

    assert time.time() - began >= 1


@pytest.mark.parametrize("said", ["soon", "-5", "Tue, 99 Foo", "9" * 400, "Mon, 02 Jan 2034 00:00:00"])
async def test_an_odd_retry_after_harms_nobody(hooked, receiver, said):
    """What is no time is no reason to fail, and the longest wait is bounded."""
    receiver.answers = [(503, {"Retry-After": said})]
    async with hooked(receiver.url) as hooks:
        hooks.tell(notice())
        await receiver.got(1)
        await asyncio.sleep(0.2)

    assert len(receiver.requests) == (1 if said.startswith("9") else 2)


@pytest.mark.parametrize("status", [400, 404, 410, 301, 302, 307])
async def test_a_refusal_is_final_and_redirects_are_not_followed(hooked, receiver, metrics, status):
    """Other answers are not tried again; a redirect leads nowhere, as signed data goes to the one address."""
    async with receiving() as elsewhere:
        receiver.answers = [(status, {"Location": elsewhere.url})]
        async with hooked(receiver.url) as hooks:
            hooks.tell(notice(1))
            hooks.tell(notice(2))
            await receiver.got(2)

        assert elsewhere.requests == []
    assert [data["duration_s"] for data in receiver.data] == [1, 2]
    assert (counted(metrics, "failed"), counted(metrics, "retried")) == (1, 0)


async def test_it_gives_up_in_the_end(hooked, receiver, metrics):
    """After `max_attempts` a notice is given up, said in the log without the address's secrets."""
    receiver.answers = [(500, {})] * 3
    with capture_logs() as logs:
        async with hooked(receiver.url, max_attempts=3) as hooks:
            hooks.tell(notice(1))
            hooks.tell(notice(2))
            await receiver.got(4)

    assert [data["duration_s"] for data in receiver.data] == [1, 1, 1, 2]
    assert (counted(metrics, "failed"), counted(metrics, "delivered")) == (1, 1)
    [line] = [line for line in logs if line["event"] == "webhook_failed"]
    assert line["status"] == 500
    assert "s3cret" not in str(line)


async def test_order_is_kept(hooked, receiver):
    """Notices arrive in the order in which they came, those that were tried again too."""
    receiver.answers = [(204, {}), (500, {}), (204, {}), (503, {})]
    async with hooked(receiver.url) as hooks:
        for number in range(20):
            hooks.tell(notice(number))
        await receiver.got(22)

    taken = [data["duration_s"] for data in receiver.data]
    assert list(dict.fromkeys(taken)) == list(range(20))
    assert taken == sorted(taken)


async def test_the_oldest_give_way(hooked, receiver, metrics):
    """A full queue drops its oldest, counts them, and says so once a minute and at the end."""
    receiver.delay_s = 0.3
    with capture_logs() as logs:
        async with hooked(receiver.url, queue=5, drain_s=3.0) as hooks:
            hooks.tell(notice(0))
            await receiver.got(1)
            for number in range(1, 21):
                hooks.tell(notice(number))
            assert metrics.render().decode().count("cellblock_webhook_queue 5.0") == 1
            receiver.delay_s = 0.0
            await receiver.got(6)

    assert [data["duration_s"] for data in receiver.data] == [0, 16, 17, 18, 19, 20]
    assert counted(metrics, "dropped") == 15
    said = [line["number"] for line in logs if line["event"] == "webhook_notices_dropped"]
    assert said == [1, 14]


async def test_a_slow_receiver_blocks_nobody(hooked, receiver, metrics):
    """While one address does not answer, telling costs nothing and another gets everything at once."""
    receiver.delay_s = 10.0
    async with receiving() as quick:
        async with hooked(receiver.url, quick.url) as hooks:
            began = time.perf_counter()
            for number in range(100):
                hooks.tell(notice(number))
            told_s = time.perf_counter() - began
            await quick.got(100)
            assert time.perf_counter() - began < 2
        assert time.perf_counter() - began < 3, "the end waits for the drain's time, not for the receiver"

    assert told_s < 0.1
    assert len(receiver.requests) == 1
    assert counted(metrics, "dropped") == 100


async def test_no_answer_in_time_is_tried_again(hooked, receiver, metrics):
    """A try ends after `timeout_s`; one that cannot connect at all is tried again likewise."""
    receiver.delay_s = 0.5
    async with hooked(receiver.url, timeout_s=0.1) as hooks:
        hooks.tell(notice())
        await receiver.got(2)
        receiver.delay_s = 0.0
        await receiver.got(3)
    assert counted(metrics, "retried") >= 2

    async with hooked("http://127.0.0.1:9/x", max_attempts=2) as hooks:
        hooks.tell(notice())
        async with asyncio.timeout(5):
            while not counted(metrics, "failed"):
                await asyncio.sleep(0.01)


async def test_the_end_waits_for_what_is_queued(hooked, receiver):
    """At shutdown what is queued is still delivered, for `server.drain_s` at most."""
    receiver.delay_s = 0.02
    async with hooked(receiver.url, drain_s=5.0) as hooks:
        for number in range(10):
            hooks.tell(notice(number))

    assert len(receiver.requests) == 10


async def test_each_gets_what_it_wants(hooked, receiver):
    """An address is told of its events and of its principals alone."""
    options = {"events": ["kernel.died"], "principals": ["bob"]}
    async with hooked(receiver.url, **options) as hooks:
        hooks.tell(notice(1))
        hooks.tell(notice(2, owner="bob"))
        hooks.tell(notice(3, kind=NoticeKind.KERNEL_DIED))
        hooks.tell(notice(4, kind=NoticeKind.KERNEL_DIED, owner="bob"))
        await receiver.got(1)

    assert [data["duration_s"] for data in receiver.data] == [4]


async def test_without_webhooks_nothing_happens(hooked):
    """Without any the notices go nowhere, and the end comes at once."""
    async with hooked() as hooks:
        assert isinstance(hooks, Webhooks)
        hooks.tell(notice())


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/x",
        "http://127.0.0.1.example/x",
        "http://10.0.0.1/x",
        "ftp://hooks.example",
        "https://user@hooks.example/",
        "file:///etc/passwd",
        "https://",
        "",
    ],
)
def test_addresses_that_are_refused(url, secret_file):
    """What would travel in clear beyond this machine, or carries a password, is no webhook."""
    with pytest.raises(ConfigurationError, match="webhooks"):
        load(webhooks=[{"url": url, "secret_file": secret_file}])


def test_addresses_that_are_taken(secret_file):
    """Https anywhere, http on loopback, in every way to write that."""
    for url in ("https://h.example/x", "http://localhost:1/", "http://127.0.0.1/", "http://[::1]:8/"):
        assert load(webhooks=[{"url": url, "secret_file": secret_file}]).webhooks[0].url == url


@pytest.mark.parametrize(
    "text", ["", "secret", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!", "whsec_" + "A" * 200]
)
def test_secrets_that_are_refused(tmp_path, text):
    """A secret that is short, long, or written otherwise is refused by its file's name."""
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(0o600)

    with pytest.raises(ConfigurationError, match=str(path)):
        read_secret(path)


def test_a_secret_that_others_can_read_is_refused(secret_file, tmp_path):
    """A secret lies in a file that is closed to others, or the gateway does not start."""
    assert read_secret(secret_file) == SECRET
    secret_file.chmod(0o640)
    assert read_secret(secret_file) == SECRET
    secret_file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="0640"):
        read_secret(secret_file)
    with pytest.raises(ConfigurationError, match="cannot be read: " + os.strerror(2)):
        read_secret(tmp_path / "none")


class Told:
    """Keeps notices: a `ports.events.Notifier`."""

    listens = True

    def __init__(self) -> None:
        self.notices: list[Notice] = []

    def tell(self, event: Notice) -> None:
        """Take a notice."""
        self.notices.append(event)


def test_the_watch_tells_of_deaths_culls_and_limits(metrics):
    """What the trail records of deaths, culls and limits becomes a notice, and nothing else does."""
    audit, told, clock = MemoryAudit(), Told(), ManualClock()
    watch = AuditWatch(audit, metrics, told, clock)
    alices = {"door": "gateway", "kernel_id": "k", "extra": {"owner": "alice"}}
    events = [
        AuditEvent(action=AuditAction.KERNEL_DIE, reason="oom", **alices),
        AuditEvent(action=AuditAction.KERNEL_CULL, reason="idle", **alices),
        AuditEvent(
            action=AuditAction.LIMIT_REFUSED,
            outcome=AuditOutcome.REFUSED,
            who="bob",
            door="rest",
            request_id="r",
            reason="sockets",
        ),
        AuditEvent(action=AuditAction.LIMIT_REFUSED, outcome=AuditOutcome.REFUSED, reason="sockets"),
        AuditEvent(action=AuditAction.KERNEL_CREATE, who="alice"),
    ]
    for event in events:
        watch.record(event)

    assert audit.events == events
    said = [(note.kind, note.owner, note.reason, note.kernel_id) for note in told.notices]
    assert said == [
        ("kernel.died", "alice", "oom", "k"),
        ("kernel.culled", "alice", "idle", "k"),
        ("limit.hit", "bob", "sockets", None),
    ]
    assert (told.notices[2].door, told.notices[2].request_id) == ("rest", "r")
    assert b'cellblock_limits_hit_total{limit="memory"} 1.0' in metrics.render()


def test_the_watch_takes_who_from_the_request(metrics):
    """A record that leaves its request to the trail is the present request's here too."""
    told = Told()
    watch = AuditWatch(MemoryAudit(), metrics, told, ManualClock())
    with acting(Origin(principal="carol", key_id="k", door="websocket", request_id="r9")):
        watch.record(AuditEvent(action=AuditAction.LIMIT_REFUSED, outcome="refused", reason="max_pending"))

    [note] = told.notices
    assert (note.owner, note.door, note.request_id) == ("carol", "websocket", "r9")


def test_who_runs_into_a_limit_again_and_again_is_told_of_once_a_minute(metrics):
    """Notices of one principal's limit do not crowd out those of others."""
    told, clock = Told(), ManualClock()
    watch = AuditWatch(MemoryAudit(), metrics, told, clock)

    def refuse(who: str, reason: str = "starts_per_minute") -> None:
        watch.record(
            AuditEvent(
                action=AuditAction.LIMIT_REFUSED, outcome="refused", who=who, door="rest", reason=reason
            )
        )

    for _ in range(1000):
        refuse("alice")
    refuse("bob")
    refuse("alice", "sockets")
    assert [note.owner for note in told.notices] == ["alice", "bob", "alice"]
    clock.advance(61)
    refuse("alice")
    assert len(told.notices) == 4

    for number in range(5000):
        refuse(f"p{number}")
    assert len(watch._told) <= 1000
