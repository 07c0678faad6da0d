"""Structured logs without secrets."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

    from gateway.settings import LogSettings

REDACTED = "***"

_DEPTH = 8
_NAMES = r"(?:token|secret|passw(?:or)?d|key_hash|authorization|cookie|pepper)"
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
# What every scrub below begins with: a text without any of it needs no closer look.
_SUSPECT = re.compile(rf"cb_|{_NAMES}|bearer|basic", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_QUOTED = r""""(?:\\.|[^"\\\r\n])*"?|'(?:\\.|[^'\\\r\n])*'?"""
_NAMED = rf"{_NAMES}[\w-]{{0,32}}"
_AFTER_COLON = rf"""(?:{_QUOTED}|[^\s"'][^\r\n]*)"""
_AFTER_EQUALS = rf"""(?:{_QUOTED}|(?:(?:token|bearer|basic)\s)?[^\s&"'#;,)\]}}]+)"""
# Each pattern begins with a word and looks a bounded way on, so that hostile text cannot make it slow.
_SCRUBS = tuple(
    (re.compile(pattern, re.IGNORECASE), rf"\g<1>{REDACTED}")
    for pattern in (
        # our tokens, wherever they stand; the id says which key it was
        r"(cb_[0-9a-f]{12}_)[\w-]+",
        # Authorization: Bearer x   'Cookie': 'a=b'   {\"secret\": \"x\"}   (b'Authorization', b'x')
        rf"""({_NAMED}(?:\\{{0,4}}["']\s{{0,8}}[:,=]|\s{{0,8}}:)\s{{0,8}}(?:b(?=["']))?){_AFTER_COLON}""",
        # ?token=x   token%3Dx   secret_hash='x'   authorization=Bearer x
        rf"({_NAMED}(?:=|%3D)\s{{0,8}}){_AFTER_EQUALS}",
        # a credential that lost its header's name
        r"\b((?:bearer|basic)\s{1,8})[\w.~+/=-]{8,}",
    )
)


def scrub_text(text: str) -> str:
    """Return a text without the secrets in it, and with control characters written out."""
    if _SUSPECT.search(text):
        for pattern, replacement in _SCRUBS:
            text = pattern.sub(replacement, text)
    if text.isprintable():
        return text
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def scrub(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Remove secrets from everything in a log event: a structlog processor, to stand before the renderer."""
    return {key: _scrubbed(key, value, _DEPTH) for key, value in event.items()}


def _scrubbed(name: str, value: Any, depth: int) -> Any:
    """Return a value fit for the log; what is no plain value becomes its scrubbed repr."""
    if value is None or isinstance(value, bool):
        return value
    if _SECRET_NAME.search(name):
        return REDACTED
    if isinstance(value, int | float):
        return value
    if depth and isinstance(value, Mapping):
        return {scrub_text(str(key)): _scrubbed(str(key), item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_scrubbed("", item, depth - 1) for item in value]
    return scrub_text(value if isinstance(value, str) else repr(value))


def configure_logging(settings: LogSettings) -> None:
    """Send structlog's and the standard library's records to stderr, in one format and without secrets.

    What is bound by `structlog.contextvars` (the request id) is on every line. Meant to be called once, at
    the start of a process: it replaces the handlers of the root logger.
    """
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: Processor = (
        # plain tracebacks: the pretty ones print local variables, unscrubbed
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if console
        else structlog.processors.JSONRenderer()
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                scrub,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level.upper())
    # At debug it logs the parameters of every statement, environments and hashes among them.
    logging.getLogger("aiosqlite").setLevel(logging.INFO)
    # At debug they log what clients send, and at info every exchange, which has its line already.
    for name in ("mcp", "sse_starlette"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A record that cannot be formatted would be dumped to stderr as it is, arguments and all.
    logging.raiseExceptions = False
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
    )
