"""Webhooks: notices sent to an operator's own addresses, signed as Standard Webhooks has it, and retried."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import random
import stat
from collections import deque
from contextlib import asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
import orjson
import structlog

from gateway.errors import ConfigurationError
from gateway.models import timestamp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from prometheus_client import Counter, Gauge

    from gateway.models.notices import Notice
    from gateway.ports import Clock
    from gateway.settings import Settings, WebhookSettings

# between two tries: doubled each time, up to a bound, with half of it left to chance
BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 300.0
# how often it is said that notices were dropped
SAY_S = 60.0
PREFIX = "whsec_"
SECRET_BYTES = range(24, 65)
TOO_MANY, SERVER_ERRORS = 429, 500

log = structlog.get_logger(__name__)


class Endpoint:
    """One address: a bounded queue, and one notice at a time on its way, in the order in which they came."""

    def __init__(
        self,
        settings: WebhookSettings,
        secret: bytes,
        session: aiohttp.ClientSession,
        clock: Clock,
        deliveries: Counter,
        *,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self._settings = settings
        self._secret = secret
        self._session = session
        self._clock = clock
        self._count = deliveries
        self._backoff_s = backoff_s
        self._waiting: deque[Notice] = deque()
        self._news, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._lost = 0
        self._lost_said = -SAY_S
        # paths and queries of such addresses are often secrets
        self._log = log.bind(webhook=urlsplit(settings.url).netloc)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, notice: Notice) -> None:
        """Queue a notice that this address wants; where there is no room the oldest gives way."""
        wanted = self._settings.principals
        if notice.kind not in self._settings.events or (wanted is not None and notice.owner not in wanted):
            return
        if len(self._waiting) >= self._settings.queue:
            self._waiting.popleft()
            self._lose(1)
        self._waiting.append(notice)
        self._idle.clear()
        self._news.set()

    async def run(self) -> None:
        """Deliver what is queued, until cancelled."""
        try:
            await self._run()
        finally:
            if self._lost:
                self._say_lost()

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            while self._waiting:
                notice = self._waiting.popleft()
                try:
                    await self._deliver(notice)
                except asyncio.CancelledError:
                    self._lose(1 + len(self._waiting))
                    raise
                except Exception:  # noqa: BLE001 - one that cannot be sent must not keep the others
                    self._count.labels("failed").inc()
                    self._log.exception("webhook_failed", kind=notice.kind.value, id=notice.id)
            self._news.clear()
            self._idle.set()

    async def drained(self) -> None:
        """Wait until nothing is queued and nothing on its way."""
        await self._idle.wait()

    async def _deliver(self, notice: Notice) -> None:
        body = body_of(notice)
        for attempt in range(self._settings.max_attempts):
            if attempt:
                self._count.labels("retried").inc()
            status, retry_after_s = await self._send(notice.id, body)
            if status is not None and status // 100 == 2:
                self._count.labels("delivered").inc()
                return
            again = status is None or status == TOO_MANY or status >= SERVER_ERRORS
            if not again:
                break
            if attempt + 1 < self._settings.max_attempts:
                await asyncio.sleep(max(self._backoff(attempt), retry_after_s))
        self._count.labels("failed").inc()
        self._log.warning("webhook_failed", kind=notice.kind.value, id=notice.id, status=status)

    async def _send(self, notice_id: str, body: bytes) -> tuple[int | None, float]:
        """Return the answer's status, None where there was none, and how long it asks to be left alone."""
        sent_at = int(self._clock.now().timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "cellblock",
            "webhook-id": notice_id,
            "webhook-timestamp": str(sent_at),
            "webhook-signature": sign(self._secret, notice_id, sent_at, body),
        }
        try:
            async with self._session.post(
                self._settings.url,
                data=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s),
                allow_redirects=False,
            ) as response:
                return response.status, self._retry_after(response.headers)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None, 0.0

    def _backoff(self, attempt: int) -> float:
        most = min(LONGEST_BACKOFF_S, self._backoff_s * 2.0**attempt)
        return most * (0.5 + random.random() / 2)  # noqa: S311 - no secret hangs on it

    def _retry_after(self, headers: Mapping[str, str]) -> float:
        said, wait_s = headers.get("Retry-After", ""), 0.0
        if said.isascii() and said.isdigit():
            wait_s = float(said[:9])
        elif said:
            with suppress(ValueError, TypeError):
                # without a time zone it is no HTTP date, and cannot be subtracted
                wait_s = (parsedate_to_datetime(said) - self._clock.now()).total_seconds()
        return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_S)

    def _lose(self, number: int) -> None:
        self._count.labels("dropped").inc(number)
        self._lost += number
        if self._clock.monotonic() - self._lost_said >= SAY_S:
            self._say_lost()

    def _say_lost(self) -> None:
        self._log.warning("webhook_notices_dropped", number=self._lost)
        self._lost, self._lost_said = 0, self._clock.monotonic()


class Webhooks:
    """Passes notices on to all addresses that want them: a `ports.events.Notifier`."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints

    @property
    def listens(self) -> bool:
        """Whether there is an address at all."""
        return bool(self._endpoints)

    def tell(self, event: Notice) -> None:
        """Take a notice."""
        for endpoint in self._endpoints:
            endpoint.put(event)

    async def run(self, drain: asyncio.Event, within_s: float) -> None:
        """Deliver until told to drain, and after that for some seconds at most."""
        tasks = [asyncio.create_task(endpoint.run()) for endpoint in self._endpoints]
        try:
            await drain.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await asyncio.gather(*(endpoint.drained() for endpoint in self._endpoints))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def notifying(
    settings: Settings, clock: Clock, deliveries: Counter, queue: Gauge, *, backoff_s: float = BACKOFF_S
) -> AsyncIterator[Webhooks]:
    """Give the webhooks of the settings; afterwards what is queued has `server.drain_s` to be delivered.

    `deliveries` counts by outcome, `queue` shows how many notices wait.

    Raises ConfigurationError where a secret cannot be used.
    """
    secrets = [await asyncio.to_thread(read_secret, hook.secret_file) for hook in settings.webhooks]
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        endpoints = [
            Endpoint(hook, secret, session, clock, deliveries, backoff_s=backoff_s)
            for hook, secret in zip(settings.webhooks, secrets, strict=True)
        ]
        queue.set_function(lambda: sum(map(len, endpoints)))
        webhooks, drain = Webhooks(endpoints), asyncio.Event()
        task = asyncio.create_task(webhooks.run(drain, settings.server.drain_s))
        try:
            yield webhooks
        finally:
            drain.set()
            await task


def sign(secret: bytes, notice_id: str, sent_at: int, body: bytes) -> str:
    """Return the signature of a notice, as Standard Webhooks writes it."""
    digest = hmac.digest(secret, f"{notice_id}.{sent_at}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def body_of(notice: Notice) -> bytes:
    """Return a notice as it is sent: its type, its time, and what is known of it."""
    data = notice.model_dump(mode="json", exclude={"id", "kind", "at"}, exclude_none=True)
    return orjson.dumps({"type": notice.kind.value, "timestamp": timestamp(notice.at), "data": data})


def read_secret(path: Path) -> bytes:
    """Return the secret in a file that others cannot read. Blocks, on the disk. Raises ConfigurationError."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o007:
            raise ConfigurationError(
                f"The secret {path} is open to other users; its mode must be 0640 or less."
            )
        text = path.read_text("ascii").strip()
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except OSError as error:
        raise ConfigurationError(f"The secret {path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, binascii.Error):
        text, secret = "", b""
    if not text.startswith(PREFIX) or len(secret) not in SECRET_BYTES:
        raise ConfigurationError(f"The secret {path} must be {PREFIX} and base64 of 24 to 64 bytes.")
    return secret
