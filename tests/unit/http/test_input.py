"""What a process is to read, in base64: what is none is its sender's error, whatever it is instead."""

from __future__ import annotations

import pytest

from gateway.errors import BadRequest
from gateway.http.e2b.process import Input
from gateway.http.processes import ProcessInput


@pytest.mark.parametrize("text", ["!!", "a", "é", "🔑"])
def test_what_is_no_base64(text: str) -> None:
    """Bytes outside of ASCII are no base64 either, at both doors."""
    with pytest.raises(BadRequest):
        ProcessInput(data=text).content()
    with pytest.raises(BadRequest):
        Input(stdin=text).data()


def test_what_is() -> None:
    """Any bytes come through."""
    assert ProcessInput(data="AP8=").content() == Input(stdin="AP8=").data() == b"\0\xff"
