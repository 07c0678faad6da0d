"""What a job gave comes back from the store as it was, in whatever form it lies there."""

from __future__ import annotations

import zlib

import pytest

from gateway.models.jobs import Event, JobStatus, TaskResult, TaskView
from gateway.services.job import PLAIN_BYTES, JobBody


def a_body(text: str) -> JobBody:
    """Return a body with a text in it."""
    result = TaskResult(status="ok", stdout=text, duration_s=0.5)
    return JobBody(
        single=True,
        tasks=[TaskView(status=JobStatus.OK, result=result)],
        events=[Event(seq=1, type="stdout", text=text)],
    )


@pytest.mark.parametrize("text", ["", "ä {\n", "x" * PLAIN_BYTES, "é\x00" * 100_000])
def test_a_body_comes_back(text: str) -> None:
    """Small and large ones are the same afterwards, and large ones take less room."""
    body = a_body(text)
    packed, plain = body.packed(), body.model_dump_json(exclude_none=True).encode()

    assert JobBody.unpacked(packed) == body
    assert packed == plain if len(plain) <= PLAIN_BYTES else len(packed) < len(plain) / 10


def test_a_body_of_before_is_read() -> None:
    """A small body that an earlier gateway compressed is still one; of a job without an end there is none."""
    body = a_body("hello")

    assert JobBody.unpacked(zlib.compress(body.model_dump_json(exclude_none=True).encode(), 1)) == body
    assert JobBody.unpacked(b"") == JobBody(single=True)
