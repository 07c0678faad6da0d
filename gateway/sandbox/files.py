"""What the warden does with files of a home: small steps of its own, and descriptors for all the rest."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from gateway.errors import BadRequest
from gateway.models import FileFacts
from gateway.sandbox.beneath import facts_of, parts_of, refusal
from gateway.sandbox.home import Home
from gateway.sandbox.wire import FileOrder, MoveFile, OnPath, OpenFile, PlaceFile, WalkHome

# things that one request removes; who wants more gone asks again
REMOVED_AT_ONCE = 500

Answer = tuple[dict[str, Any], list[int]]


def encoded(path: str) -> str:
    """Return a path as it travels: percent-encoded bytes."""
    return quote(os.fsencode(path))


def decoded(path: str) -> str:
    """Return a path that has travelled."""
    return os.fsdecode(unquote_to_bytes(path))


def packed(facts: FileFacts) -> list[Any]:
    """Return facts as they travel."""
    return [encoded(facts.path), facts.type, facts.size, facts.mode, facts.modified_ns, facts.version]


def unpacked(fields: list[Any]) -> FileFacts:
    """Return facts that have travelled."""
    path, *others = fields
    return FileFacts(decoded(path), *others)


async def answer(home: Home, order: FileOrder, descriptors: Sequence[int]) -> Answer:
    """Do what an order wants of a home. Descriptors that came along stay the caller's.

    Raises:
        GatewayError: what stands against it.
    """
    path = decoded(order.path)
    try:
        match order:
            case OpenFile():
                return _open(home, order, path)
            case WalkHome():
                return await _walk(home, order, path)
            case PlaceFile() | MoveFile():
                return _name(home, order, path, descriptors), []
            case OnPath():
                return _on_path(home, order, path), []
    except OSError as error:
        raise refusal(error, path) from None


def _name(home: Home, order: PlaceFile | MoveFile, path: str, descriptors: Sequence[int]) -> dict[str, Any]:
    if isinstance(order, MoveFile):
        return {"facts": packed(home.move(path, decoded(order.to), replace=order.replace))}
    if len(descriptors) != 1:
        raise BadRequest("One descriptor belongs to this.")
    return {"facts": packed(home.place(descriptors[0], path, replace=order.replace, version=order.version))}


def _on_path(home: Home, order: OnPath, path: str) -> dict[str, Any]:
    match order.op:
        case "stat":
            return {"facts": packed(home.stat(path))}
        case "mkdir":
            return {"facts": packed(home.mkdir(path))}
        case "empty":
            return {"empty": home.empty(path, REMOVED_AT_ONCE)}
        case "remove":
            home.remove(path)
            return {}


def _open(home: Home, order: OpenFile, path: str) -> Answer:
    descriptor = (
        home.spool(executable=order.executable) if order.mode == "spool" else home.open(path, order.mode)
    )
    facts = facts_of("/".join(parts_of(path)), os.fstat(descriptor))
    return {"facts": packed(facts)}, [descriptor]


async def _walk(home: Home, order: WalkHome, path: str) -> Answer:
    listing = os.memfd_create("walk", os.MFD_CLOEXEC)
    truncated = False
    try:
        for batch in home.walk(path, order.depth, order.limit):
            entries = [packed(facts) for facts in batch if facts is not None]
            truncated = len(entries) < len(batch)
            os.write(listing, json.dumps(entries).encode() + b"\n")
            # others have their turn
            await asyncio.sleep(0)
    except BaseException:
        os.close(listing)
        raise
    return {"truncated": truncated}, [listing]
