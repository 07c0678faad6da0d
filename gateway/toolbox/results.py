"""What code displayed, as far as a conversation has room for it."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

import orjson

from gateway.protocol.narration import shorten

if TYPE_CHECKING:
    from collections.abc import Iterable

# By what they begin with: what is none would spoil a conversation for good.
IMAGES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
JSON = "application/json"
# In this order; what a host cannot show is left out.
SHOWN = ("text/plain", "text/markdown", "text/latex", JSON, "text/html", "image/svg+xml", *IMAGES)
WIDEST = 32
# times the size of one text
ROOM = 2


def fitted(
    bundles: Iterable[dict[str, Any] | None], *, text_chars: int, image_bytes: int
) -> list[dict[str, Any]]:
    """Return mime bundles with what there is room for: some for images, some for all the rest.

    They come from a kernel, which may claim anything.
    """
    left = {True: image_bytes, False: ROOM * text_chars}
    results = []
    for bundle in [bundle for bundle in bundles if bundle][:WIDEST]:
        shown: dict[str, Any] = {}
        for kind in [kind for kind in SHOWN if kind in bundle]:
            value, size = _sized(kind, bundle[kind], text_chars)
            if size is None:
                shown[kind] = "[cellblock: left out, as it is not what it is said to be]"
            elif size > left[kind in IMAGES]:
                shown[kind] = f"[cellblock: {size} characters left out]"
            else:
                shown[kind] = value
                left[kind in IMAGES] -= size
        if shown:
            results.append(shown)
    return results


def json_size(value: object) -> int | None:
    """Return how many bytes a value takes as JSON, or None where it is nested too deeply to be passed on."""
    try:
        # with what it will be wrapped in
        return len(orjson.dumps([[[[[[[[value]]]]]]]])) - 16
    except TypeError:
        return None


def _sized(kind: str, value: object, most: int) -> tuple[object, int | None]:
    if kind == JSON:
        return value, json_size(value)
    if kind not in IMAGES:
        text = shorten(_text(value), most)
        return text, len(text)
    image = _text(value).replace("\n", "")
    try:
        known = base64.b64decode(image, validate=True).startswith(IMAGES[kind])
    except (binascii.Error, ValueError):
        known = False
    return image, len(image) if known else None


def _text(value: object) -> str:
    # nbformat allows lists of lines
    if isinstance(value, list):
        return "".join(line for line in value if isinstance(line, str))
    return value if isinstance(value, str) else ""
