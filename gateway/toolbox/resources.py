"""What results link to: files of sessions, and full texts of executions, by addresses of our own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from gateway.errors import NotFound, PayloadTooLarge

if TYPE_CHECKING:
    from gateway.models import Principal
    from gateway.services.jobs import JobService
    from gateway.toolbox.files import FileTools

# name, what it is, the template of its address
TEMPLATES = (
    ("file", "A file of a session's home.", "cellblock://sessions/{session_id}/files/{+path}"),
    (
        "output",
        "A full text of an execution: stdout, stderr, error or result.",
        "cellblock://executions/{execution_id}/{what}",
    ),
)
_FILE = re.compile(r"cellblock://sessions/([^/]+)/files/(.+)", re.DOTALL)
_TEXT = re.compile(r"cellblock://executions/([^/]+)/(stdout|stderr|error|result)")


def file_uri(session_id: str, href: str) -> str:
    """Return the address of a file of a session's; `href` is its path, percent-encoded."""
    return f"cellblock://sessions/{quote(session_id, safe='')}/files/{href}"


def text_uri(execution_id: str, what: str) -> str:
    """Return the address of a full text of an execution."""
    return f"cellblock://executions/{quote(execution_id, safe='')}/{what}"


class Resources:
    """Reads what an address names, for its owner; what has more than `most` bytes is read by tools."""

    def __init__(self, files: FileTools, jobs: JobService, most: int) -> None:
        self._files = files
        self._jobs = jobs
        self._most = most

    async def read(self, principal: Principal, uri: str) -> tuple[str, bytes]:
        """Return a name by which its media type can be guessed, and the content.

        Raises Forbidden, NotFound, PayloadTooLarge (`mcp.file_bytes`), and what reading a file does.
        """
        if found := _FILE.fullmatch(uri):
            session_id, path = unquote(found[1]), unquote(found[2], errors="surrogateescape")
            return path, await self._files.whole(principal, session_id, path)
        if found := _TEXT.fullmatch(uri):
            page = await self._jobs.text(principal, unquote(found[1]), found[2], limit=self._most)
            text = page.text.encode("utf-8", "replace")
            if page.next_offset is not None or len(text) > self._most:
                raise PayloadTooLarge(
                    f"The text has more than {self._most} bytes (mcp.file_bytes): use get_execution."
                )
            return f"{found[2]}.txt", text
        raise NotFound("There is no such resource.")
