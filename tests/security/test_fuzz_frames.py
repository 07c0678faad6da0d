"""Frames, fuzzed: on both framings of a live WebSocket, and in a kernel's name with its right signature."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.models import CHANNELS
from gateway.protocol.messages import MalformedMessage, Signer, make, parse, to_frames
from gateway.protocol.outputs import Collector
from gateway.protocol.websocket import V1, framing
from tests.gateway import Channels, Client, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.models import Message

EXAMPLES = 150
# what a frame may end its own socket with: no UTF-8 or no message, a policy, too large
CLOSES = {1002, 1003, 1007, 1008, 1009}
SIGNER = Signer(b"a kernel's own key")
REQUESTS: tuple[tuple[Any, str, dict[str, Any]], ...] = (
    ("shell", "execute_request", {"code": "1", "silent": False, "user_expressions": {}}),
    ("shell", "complete_request", {"code": "pri", "cursor_pos": 3}),
    ("shell", "comm_open", {"comm_id": "c", "target_name": "t", "data": {}}),
    ("shell", "history_request", {"hist_access_type": "tail", "n": 3}),
    ("control", "usage_request", {}),
    ("control", "debug_request", {"type": "request", "seq": 1, "command": "initialize"}),
    ("stdin", "input_reply", {"value": "x", "status": "ok"}),
)
OUTPUTS: tuple[tuple[Any, str, dict[str, Any]], ...] = (
    ("iopub", "stream", {"name": "stdout", "text": "x\ny\r"}),
    (
        "iopub",
        "display_data",
        {"data": {"text/plain": "x"}, "metadata": {}, "transient": {"display_id": "d"}},
    ),
    ("iopub", "update_display_data", {"data": {}, "metadata": {}, "transient": {"display_id": "d"}}),
    ("iopub", "execute_result", {"data": {"text/plain": "1"}, "metadata": {}, "execution_count": 1}),
    ("iopub", "error", {"ename": "E", "evalue": "v", "traceback": ["t"]}),
    ("iopub", "clear_output", {"wait": True}),
    ("iopub", "status", {"execution_state": "busy"}),
    ("shell", "execute_reply", {"status": "ok", "execution_count": 1}),
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Return bytes cut, stretched, doubled or overwritten somewhere."""
    at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 16))
    match draw(st.sampled_from(("cut", "insert", "overwrite", "drop", "double"))):
        case "cut":
            return data[:at]
        case "insert":
            return data[:at] + draw(st.binary(max_size=16)) + data[at:]
        case "overwrite":
            return data[:at] + draw(st.binary(min_size=length, max_size=length)) + data[at + length :]
        case "drop":
            return data[:at] + data[at + length :]
        case _:
            return data[:at] + data[at:] * 2


@st.composite
def twisted(draw: st.DrawFn, data: bytes) -> bytes:
    """Return a JSON object with one of its values, at the top or one below, made something else."""
    value = json.loads(data)
    target = value
    if nested := [name for name, inner in value.items() if isinstance(inner, dict) and inner]:
        target = draw(st.sampled_from([value, *(value[name] for name in nested)]))
    name = draw(st.sampled_from([*target, "new"]))
    if draw(st.booleans()):
        target.pop(name, None)
    else:
        target[name] = draw(json_values)
    return json.dumps(value).encode()


def request(which: tuple[Any, str, dict[str, Any]]) -> Message:
    """Return one of the requests as a client would make it."""
    channel, msg_type, content = which
    return make(channel, msg_type, content, parent=None, session="fuzz")


@st.composite
def v1_frames(draw: st.DrawFn) -> bytes:
    """Return a frame of the v1 framing with something wrong about it."""
    data = framing(V1).encode(request(draw(st.sampled_from(REQUESTS))))
    assert isinstance(data, bytes)
    return draw(mutated(data) | st.binary(max_size=200))


@st.composite
def legacy_frames(draw: st.DrawFn) -> bytes | str:
    """Return a frame of the legacy framing with something wrong about it, as text or as bytes."""
    data = framing(None).encode(request(draw(st.sampled_from(REQUESTS))))
    assert isinstance(data, str)
    raw = draw(twisted(data.encode()) | mutated(data.encode()) | st.binary(max_size=200))
    if draw(st.booleans()):
        return raw.decode("utf-8", "replace")
    return draw(st.just(raw) | st.just(b"\0\0\0\1\0\0\0\x08" + raw))


class Live:
    """A socket that is opened anew when a frame has closed it; who uses it checks how."""

    def __init__(self, client: Client, kernel: str) -> None:
        self._client, self._kernel = client, kernel
        self._open: dict[bool, tuple[Any, Channels]] = {}

    async def channels(self, *, v1: bool) -> Channels:
        """Return the socket of a framing."""
        if v1 not in self._open or self._open[v1][1].socket.closed:
            await self.close(v1=v1)
            context = self._client.channels(self._kernel, v1=v1, session_id=f"fuzz-{v1}")
            self._open[v1] = context, await context.__aenter__()
        return self._open[v1][1]

    async def close(self, *, v1: bool) -> None:
        """Close it."""
        if v1 in self._open:
            await self._open.pop(v1)[0].__aexit__(None, None, None)

    async def survives(self, frame: bytes | str, *, v1: bool) -> None:
        """Send a frame, and see that the socket answers after it, or was closed with a code for that."""
        channels = await self.channels(v1=v1)
        socket = channels.socket
        await (socket.send_bytes(frame) if isinstance(frame, bytes) else socket.send_str(frame))
        try:
            asked = await channels.send("control", "kernel_info_request", {})
            async with asyncio.timeout(20):
                while (await channels.receive()).parent_id != asked:
                    pass
        except (AssertionError, ConnectionError):
            assert await channels.closing() in CLOSES, socket.close_code


@pytest.fixture(scope="module")
async def live() -> AsyncIterator[Live]:
    """A kernel's sockets on a gateway of one's own, which is unhurt at the end."""
    with running("--no-keep", env={"CELLBLOCK_EXECUTIONS__MAX_TIMEOUT_S": "2"}) as gateway:
        async with gateway.client() as client, gateway.client("bob") as bob:
            bobs = await bob.start()
            live = Live(client, await client.start())
            yield live
            for v1 in (True, False):
                await live.close(v1=v1)
            assert await bob.out(bobs, "print(6 * 7)") == "42\n"
        crashed = [line for line in gateway.log() if line["event"] in {"socket_crashed", "request_crashed"}]
        assert crashed == []


fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@fuzzed
@given(frame=v1_frames())
async def test_the_v1_framing(live: Live, frame: bytes) -> None:
    """No frame of the v1 framing does more than close its own socket, with a code that says why."""
    await live.survives(frame, v1=True)


@fuzzed
@given(frame=legacy_frames())
async def test_the_legacy_framing(live: Live, frame: bytes | str) -> None:
    """No frame of the legacy framing does either."""
    await live.survives(frame, v1=False)


@st.composite
def kernel_frames(draw: st.DrawFn) -> tuple[Any, list[bytes]]:
    """Return a channel and a kernel's message for it: mutated, and then signed rightly or not at all."""
    channel, msg_type, content = draw(st.sampled_from(OUTPUTS))
    parent = request(REQUESTS[0])
    frames = to_frames(make(channel, msg_type, content, parent=parent, session="k"), SIGNER)
    start = frames.index(b"<IDS|MSG>")
    parts = frames[start + 2 :]
    which = draw(st.integers(0, 3))
    parts[which] = draw(mutated(parts[which]) | twisted(parts[which]))
    signature = SIGNER.sign(parts[:4]) if draw(st.integers(0, 4)) else draw(st.binary(max_size=70))
    idents = draw(st.lists(st.binary(max_size=8), max_size=3))
    buffers = draw(st.lists(st.binary(max_size=8), max_size=3))
    return draw(st.sampled_from(CHANNELS)), [*idents, b"<IDS|MSG>", signature, *parts, *buffers]


@settings(max_examples=400, deadline=None, database=None)
@given(given_frames=st.lists(kernel_frames(), min_size=1, max_size=8))
def test_a_kernels_signed_garbage(given_frames: list[tuple[Any, list[bytes]]]) -> None:
    """What a kernel signs is a message or malformed; what is folded of it is a result that can be sent."""
    collector = None
    for channel, frames in given_frames:
        try:
            message = parse(frames, channel, SIGNER, max_bytes=1 << 20)
        except MalformedMessage:
            continue
        collector = collector or Collector(message.parent_id or "none", max_bytes=1 << 20, started=0.0)
        collector.feed(message)
        for each in (framing(V1), framing(None)):
            try:
                each.encode(message)
            except MalformedMessage:
                continue
    if collector is not None:
        result = json.loads(collector.result(1.0).model_dump_json())
        assert isinstance(result["outputs"], list)
