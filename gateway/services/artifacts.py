"""Artifacts: which files an execution made or changed, found by a look before and a look after."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from gateway.errors import GatewayError
from gateway.models import Artifact, Artifacts, AuditAction, FileFacts
from gateway.services.auditing import recorded
from gateway.services.files import pieces_of

if TYPE_CHECKING:
    from gateway.models import Principal
    from gateway.ports import KernelFiles
    from gateway.services.files import FileService

# each look costs the warden some 10 us an entry
MAX_LOOKED_AT, MAX_DEPTH = 5000, 16
MAX_LISTED = 200
MAX_HASHED_BYTES = 64 << 20

Look = Mapping[str, FileFacts]


class ArtifactService:
    """Compares homes. Hidden files, and what is in hidden directories, are no artifacts."""

    def __init__(self, files: FileService) -> None:
        self._files = files

    async def look(self, principal: Principal, kernel_id: str) -> Look:
        """Return the files that are there now. Raises Forbidden, NotFound, KernelDead."""
        return (await self._look(self._files.of(principal, kernel_id)))[0]

    async def since(self, principal: Principal, kernel_id: str, before: Look) -> Artifacts:
        """Return what was made or changed since a look; nothing where the home is gone."""
        extra = {"how": "artifacts"}
        try:
            with recorded(
                self._files.audit, AuditAction.FILE_LIST, principal, kernel_id=kernel_id, extra=extra
            ):
                return await self._since(principal, kernel_id, before)
        except GatewayError:
            return Artifacts(files=[], truncated=True)

    async def _since(self, principal: Principal, kernel_id: str, before: Look) -> Artifacts:
        files = self._files.of(principal, kernel_id)
        now, truncated = await self._look(files)
        changed = [facts for path, facts in now.items() if _version(before.get(path)) != facts.version]
        left = MAX_HASHED_BYTES
        found = []
        for facts in changed[:MAX_LISTED]:
            digest = await _sha256(files, facts) if facts.size <= left else None
            left -= facts.size if digest else 0
            found.append(_artifact(facts, known=facts.path in before, sha256=digest))
        return Artifacts(files=found, truncated=truncated or len(changed) > MAX_LISTED)

    async def _look(self, files: KernelFiles) -> tuple[dict[str, FileFacts], bool]:
        walk = await files.walk("", depth=MAX_DEPTH, limit=MAX_LOOKED_AT)
        shown = (
            facts
            for facts in walk.entries
            if facts.type == "file" and not any(name.startswith(".") for name in facts.path.split("/"))
        )
        return {facts.path: facts for facts in shown}, walk.truncated


def _version(facts: FileFacts | None) -> str | None:
    return facts.version if facts else None


def _artifact(facts: FileFacts, *, known: bool, sha256: str | None) -> Artifact:
    raw = os.fsencode(facts.path)
    return Artifact(
        path=raw.decode("utf-8", "replace"),
        href=quote(raw),
        size=facts.size,
        change="changed" if known else "made",
        sha256=sha256,
    )


async def _sha256(files: KernelFiles, facts: FileFacts) -> str | None:
    try:
        file = await files.open(facts.path, "read")
    except GatewayError:
        return None
    with file:
        digest = hashlib.sha256()
        async for piece in pieces_of(file, 0, facts.size):
            digest.update(piece)
        return digest.hexdigest()
