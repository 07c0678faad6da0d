"""One line of the trail: canonical JSON, and a keyed hash that covers the record before it."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from typing import Any

import orjson

from gateway.models import AuditEvent, AuditHead, timestamp

HASH = "hash"


def seal(event: AuditEvent, at: datetime, after: AuditHead, key: bytes) -> tuple[bytes, AuditHead]:
    """Return the line that records an event after another record, and the trail's new head."""
    body = event.model_dump(mode="json", exclude_none=True) | {
        "seq": after.seq + 1,
        "at": timestamp(at),
        "prev_hash": after.hash,
    }
    digest = _digest(body, key)
    return _canonical(body | {HASH: digest}) + b"\n", AuditHead(seq=after.seq + 1, hash=digest)


def parse(line: bytes) -> dict[str, Any] | None:
    """Return a line's record, unproved; None when it is no record at all."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("seq"), int):
        return None
    return record if isinstance(record.get(HASH), str) else None


def genuine(line: bytes, record: dict[str, Any], key: bytes) -> bool:
    """Tell whether a line is byte for byte what the holder of the key wrote."""
    body = {name: value for name, value in record.items() if name != HASH}
    return _canonical(record) + b"\n" == line and hmac.compare_digest(_digest(body, key), record[HASH])


def _canonical(body: dict[str, Any]) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


def _digest(body: dict[str, Any], key: bytes) -> str:
    return hmac.new(key, _canonical(body), hashlib.sha256).hexdigest()
