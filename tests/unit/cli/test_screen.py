"""What outputs look like in a terminal."""

from __future__ import annotations

import base64
import struct

import pytest

from gateway.cli.screen import Screen, describe, harmless
from tests.fake_gateway import PICTURE

GIF = base64.b64encode(b"GIF89a" + struct.pack("<HH", 32, 16) + bytes(20)).decode()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"text/plain": "42"}, "42"),
        ({"text/plain": ["a\n", "b"]}, "a\nb"),
        ({"text/html": "<b>", "text/plain": "frame"}, "frame"),
        ({"text/plain": "<Figure>", "image/png": PICTURE}, "[image/png 640x480]"),
        ({"image/gif": GIF}, "[image/gif 32x16]"),
        ({"image/svg+xml": "<svg/>"}, "[image/svg+xml]"),
        ({"image/png": "not base64!"}, "[image/png]"),
        ({"image/png": "é"}, "[image/png]"),
        ({"image/png": "YQ=="}, "[image/png]"),
        ({"image/png": {"odd": 1}}, "[image/png]"),
        ({"text/html": "<b>", "application/json": {}}, "[text/html, application/json]"),
        ({}, ""),
    ],
)
def test_describe(data: dict[str, object], text: str) -> None:
    """A bundle is its image's kind and size, else its plain text, else its types."""
    assert describe(data) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("\x1b[1;31mred\x1b[0m\tand\n", "\x1b[1;31mred\x1b[0m\tand\n"),
        ("50%\r100%\n", "50%\r100%\n"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]52;c;ZXZpbA==\x1b\\x", "x"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1b[1Ax\x1b[?1049h", "x"),
        ("\x1bP+q\x1b\\x\x1bc", "x"),
        ("\x9b2Jx\x08\x07\x00", "2Jx"),
    ],
)
def test_harmless(text: str, left: str) -> None:
    """Colours and line ends stay; whatever else a terminal acts on goes."""
    assert harmless(text) == left


@pytest.mark.parametrize(
    "content",
    [{}, {"name": 3, "text": None, "data": [1], "traceback": "x", "ename": {}}, {"data": {"text/plain": 5}}],
)
@pytest.mark.parametrize("kind", ["stream", "display_data", "execute_result", "error", "status", "odd"])
def test_odd_messages(kind: str, content: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel's messages may hold anything: whatever it is, showing it does not fail."""
    with Screen() as screen:
        screen.show(kind, content)
    capsys.readouterr()
