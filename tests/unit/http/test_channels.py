"""A kernel's channels over real WebSockets, in both framings."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import WSMsgType, WSServerHandshakeError

from gateway.errors import LimitReached
from gateway.http.app import drain
from gateway.http.authored import CUT, NOT_SHOWN
from gateway.http.context import CONTEXT
from gateway.models import DeathReason, Message
from gateway.protocol.messages import content, make
from gateway.protocol.websocket import V1, V1Framing
from tests.unit.http.conftest import opened

LYING = b"\x00\x00\x00\x02\xff\xff\xff\xff\x00\x00\x00\x01"
FOREIGN = "11111111-2222-3333-4444-555555555555"


def request(code: str = "1 + 1", kind: str = "execute_request", **frame: Any) -> str:
    """Return a legacy frame as Open WebUI sends it: no date, no buffers, a session of its own."""
    header = {"msg_id": f"id-{code[:9]}", "username": "", "session": "x", "version": "5.0", "date": ""}
    whole = {"header": header | {"msg_type": kind}, "content": {"code": code}, "channel": "shell"}
    return json.dumps({"parent_header": {}, "metadata": {}} | whole | frame)


async def until(socket: Any, kind: str, state: str | None = None) -> list[dict[str, Any]]:
    """Read legacy frames up to one of this type (a status of this state)."""
    frames: list[dict[str, Any]] = []
    while True:
        frames.append(await socket.receive_json(timeout=10))
        if frames[-1]["msg_type"] == kind and state in {None, frames[-1]["content"].get("execution_state")}:
            return frames


async def eventually(true: Any) -> None:
    """Wait until something holds, for a moment."""
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)


async def closing(socket: Any) -> Any:
    """Read up to the close and return its code and reason."""
    while True:
        frame = await socket.receive(timeout=10)
        if frame.type in {WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR}:
            return socket.close_code, frame.extra


def output(kind: str = "stream", body: Any = None, buffers: Any = ()) -> Message:
    """Return output as a kernel makes it."""
    made = make("iopub", kind, body or {"name": "stdout", "text": "x"}, parent=None, session="k")
    return replace(made, authored=False, buffers=list(buffers))


async def test_legacy_framing(door):
    """Without a subprotocol an old client is served: its replies name their type and id on top."""
    kernel = await door.kernel()
    async with door.channels(kernel.id, query="?session_id=a") as socket:
        assert socket.protocol is None
        assert kernel.connections == 1
        await socket.send_str(request("print hi", channel=None, buffers={}))
        frames = await until(socket, "status", "idle")

    kinds = [frame["msg_type"] for frame in frames]
    assert kinds == ["status", "execute_input", "stream", "execute_reply", "status"]
    assert all(frame["parent_header"]["msg_id"] == "id-print hi" for frame in frames)
    assert all(frame["msg_id"] == frame["header"]["msg_id"] for frame in frames)
    assert frames[2]["content"]["text"] == "hi\n"
    await eventually(lambda: kernel.subscribers == 0)


async def test_v1_framing(door):
    """The v1 subprotocol is chosen when offered, among others too, and its frames are binary both ways."""
    kernel, framing = await door.kernel(), V1Framing()
    sent = make("shell", "execute_request", {"code": "2"}, parent=None, session="s")
    async with door.channels(kernel.id, protocols=("other", V1)) as socket:
        assert socket.protocol == V1
        await socket.send_bytes(framing.encode(sent))
        messages = []
        while not messages or content(messages[-1]).get("execution_state") != "idle":
            messages.append(framing.decode(await socket.receive_bytes(timeout=10)))

    assert {message.parent_id for message in messages} == {sent.msg_id}
    assert "execute_reply" in [message.msg_type for message in messages if message.channel == "shell"]
    assert kernel.sent[0][0].header == sent.header


async def test_iopub_is_for_all_and_replies_for_the_asker(door):
    """Every socket sees what a kernel publishes; a reply goes to the socket that asked."""
    kernel = await door.kernel()
    async with door.channels(kernel.id) as asking, door.channels(kernel.id) as watching:
        assert kernel.connections == 2
        await asking.send_str(request())
        asked = [frame["msg_type"] for frame in await until(asking, "status", "idle")]
        watched = [frame["msg_type"] for frame in await until(watching, "status", "idle")]

    assert "execute_reply" in asked
    assert watched == [kind for kind in asked if kind != "execute_reply"]


@pytest.mark.parametrize(("who", "status"), [("bob", 404), (None, 401)])
async def test_refusals_come_before_the_upgrade(door, who, status):
    """Who may not have the kernel is told by plain HTTP, and the kernel sees nothing of it."""
    kernel = await door.kernel()
    with pytest.raises(WSServerHandshakeError) as refused:
        await door.channels(kernel.id, who=who)

    assert refused.value.status == status
    assert kernel.subscribers == 0


async def test_no_kernel_and_no_websocket(door):
    """An unknown kernel is 404, a request that is no WebSocket 400."""
    kernel = await door.kernel()
    with pytest.raises(WSServerHandshakeError) as refused:
        await door.channels(FOREIGN)

    assert refused.value.status == 404
    assert (await door.call("GET", f"/api/kernels/{kernel.id}/channels"))[0] == 400


async def test_the_token_may_come_in_the_query(door):
    """Clients that cannot set headers put the key into the query."""
    kernel = await door.kernel()
    async with door.channels(kernel.id, who=None, query=f"?token={door.tokens['alice']}") as socket:
        await socket.send_str(request())
        await until(socket, "execute_reply")


@pytest.mark.parametrize("frame", ["garbage", "[]", "{}", b"\xff" * 40, LYING, b""])
async def test_garbage_closes_its_own_socket_alone(door, frame):
    """A frame that is no message closes its socket with 1007 and a reason; other sockets go on."""
    kernel = await door.kernel()
    async with door.channels(kernel.id) as good, door.channels(kernel.id) as bad:
        await (bad.send_bytes(frame) if isinstance(frame, bytes) else bad.send_str(frame))
        code, reason = await closing(bad)
        await good.send_str(request())
        await until(good, "execute_reply")

    assert (code, bool(reason)) == (1007, True)
    assert 'reason="malformed"} 1.0' in door.metrics.render().decode()


async def test_frames_are_bounded():
    """A frame past the limit closes with 1009, one within is taken."""
    async with opened(max_frame_bytes=20_000) as door:
        kernel = await door.kernel()
        async with door.channels(kernel.id) as socket:
            await socket.send_str(request("1" * 15_000))
            await until(socket, "execute_reply")
            await socket.send_str(request("1" * 25_000))
            assert (await closing(socket))[0] == 1009


async def test_only_requests_are_passed_on(door):
    """What no client has to send does not reach the kernel, and costs the socket nothing."""
    kernel = await door.kernel()
    async with door.channels(kernel.id) as socket:
        await socket.send_str(request("a", channel="iopub"))
        await socket.send_str(request("b", kind="status"))
        await socket.send_str(request("c", kind="execute_reply"))
        await socket.send_str(request("d", kind="kernel_info_request"))
        await until(socket, "kernel_info_reply")

    assert [message.msg_type for message, _ in kernel.sent] == ["kernel_info_request"]


async def test_refused_requests_are_answered(door):
    """A request that the kernel's queue has no room for is answered as a failed one: nobody waits for it."""
    kernel = await door.kernel()

    def full(*_args: Any, **_more: Any) -> None:
        raise LimitReached("Too many requests wait.")

    kernel.send = full
    async with door.channels(kernel.id) as socket:
        await socket.send_str(request("9"))
        frames = await until(socket, "status", "idle")

    assert [frame["msg_type"] for frame in frames] == ["status", "error", "execute_reply", "status"]
    assert frames[2]["channel"] == "shell"
    assert (frames[2]["content"]["status"], frames[2]["content"]["ename"]) == ("error", "LimitReached")
    assert {frame["parent_header"]["msg_id"] for frame in frames} == {"id-9"}


async def test_a_deleted_kernel_closes_with_1000(door):
    """A kernel that is deleted ends its sockets with 1000, after all that it said."""
    kernel = await door.kernel()
    async with door.channels(kernel.id) as socket:
        await socket.send_str(request("wait"))
        await until(socket, "execute_input")
        await door.call("DELETE", f"/api/kernels/{kernel.id}")
        answered = await until(socket, "execute_reply")
        assert answered[-1]["content"]["status"] == "error"
        assert (await closing(socket))[0] == 1000


async def test_a_lost_kernel_closes_with_1011(door):
    """A kernel that is gone and was not ended on purpose closes with 1011."""
    kernel = await door.kernel()
    async with door.channels(kernel.id) as socket:
        await kernel.shutdown(DeathReason.CRASHED)
        assert (await closing(socket))[0] == 1011


async def test_draining_closes_with_1012(door):
    """A gateway that goes down closes with 1012, so that clients come back, and lets nobody in."""
    kernel = await door.kernel()
    async with door.channels(kernel.id) as socket:
        draining = asyncio.create_task(drain(door.app))
        assert (await closing(socket))[0] == 1012
        await draining

    with pytest.raises(WSServerHandshakeError) as refused:
        await door.channels(kernel.id)
    assert refused.value.status == 503
    await eventually(lambda: kernel.subscribers == 0)


async def test_draining_does_not_wait_for_those_who_do_not_read():
    """A client that reads nothing does not hold up the end."""
    async with opened(drain_s=0.3) as door:
        kernel = await door.kernel()
        async with door.channels(kernel.id):
            parent = make("shell", "execute_request", {}, parent=None, session="")
            for _ in range(40):
                kernel._publish(parent, "stream", {"name": "stdout", "text": "y" * 400_000})
            async with asyncio.timeout(3):
                await drain(door.app)
            await eventually(lambda: kernel.subscribers == 0)


async def test_a_revoked_key_closes_its_sockets(door):
    """A revoked key's sockets close with 1008 within two seconds; others stay."""
    kernel = await door.kernel()
    async with door.channels(kernel.id) as socket, door.channels(kernel.id, who="root") as other:
        await door.store.revoke_key(door.tokens["alice"].split("_")[1], door.clock.now())
        async with asyncio.timeout(2):
            assert (await closing(socket))[0] == 1008
        await other.send_str(request())
        await until(other, "execute_reply")


async def test_a_store_that_fails_keeps_sockets_and_goes_on_looking(door):
    """While the store does not answer sockets stay; once it does, revoked keys are noticed again."""
    kernel = await door.kernel()
    async with door.channels(kernel.id) as socket:
        door.store.broken = True
        await asyncio.sleep(1.2)
        await socket.send_str(request())
        await until(socket, "status", "idle")
        door.store.broken = False
        await door.store.revoke_key(door.tokens["alice"].split("_")[1], door.clock.now())
        assert (await closing(socket))[0] == 1008


async def test_a_newer_socket_replaces_the_older(door):
    """A second socket of the same client closes the first with 1000, and no other client's."""
    kernel = await door.kernel()
    async with (
        door.channels(kernel.id, query="?session_id=a") as first,
        door.channels(kernel.id, query="?session_id=b") as other,
        door.channels(kernel.id, query="?session_id=a", who="root") as admins,
        door.channels(kernel.id, query="?session_id=a") as second,
    ):
        assert (await closing(first))[0] == 1000
        for socket in (other, admins, second):
            await socket.send_str(request())
            await until(socket, "execute_reply")


async def test_large_streams_are_split(door):
    """No frame of a stream is larger than what clients of 1 MiB take, and no byte is lost."""
    kernel, text = await door.kernel(), "ä" * 1_500_000
    parent = make("shell", "execute_request", {}, parent=None, session="")
    async with door.channels(kernel.id, max_msg_size=1 << 20) as socket:
        for body in ({"name": "stdout", "text": text}, {"name": "stdout", "text": "end"}):
            kernel._publish(parent, "stream", body)
        kernel._publish(parent, "status", {"execution_state": "idle"})
        frames = await until(socket, "status", "idle")

    pieces = [frame["content"]["text"] for frame in frames if frame["msg_type"] == "stream"]
    assert len(pieces) > 3
    assert "".join(pieces) == text + "end"


async def test_a_slow_reader_is_cut_and_the_others_are_not():
    """A client that does not read has its output cut with a mark; others get everything."""
    async with opened(queue_bytes=1 << 20, queue_messages=100, max_frame_bytes=1 << 20) as door:
        kernel = await door.kernel()
        parent = make("shell", "execute_request", {}, parent=None, session="")
        piece, count = "z" * 100_000, 300
        async with door.channels(kernel.id) as slow, door.channels(kernel.id) as quick:
            slow._conn.protocol.pause_reading()
            got = 0
            for _ in range(count):
                kernel._publish(parent, "stream", {"name": "stdout", "text": piece})
                got += (await quick.receive_json(timeout=10))["content"]["text"] == piece
            kernel._publish(parent, "status", {"execution_state": "idle"})
            slow._conn.protocol.resume_reading()
            frames = await until(slow, "status", "idle")

    assert got == count
    texts = [frame["content"].get("text") for frame in frames]
    assert texts.count(CUT) == 1
    assert 0 < texts.count(piece) < count
    assert texts.index(CUT) == len(texts) - 2


async def test_jupyter_server_gets_text_alone(door):
    """jupyter_server as the client gets no binary frame: one note stands for them, and all else goes on."""
    kernel = await door.kernel()
    async with door.channels(kernel.id, headers={"User-Agent": "Tornado/6.5"}) as socket:
        (box,) = [one for one, _ in kernel._subscribers.values()]
        for _ in range(2):
            box.deliver(output("comm_msg", {"data": {}}, [b"\x00\x01"]))
        box.deliver(output("display_data", {"data": {"text/html": "x" * (10 << 20)}}))
        box.deliver(replace(output("comm_info_reply", {}, [b"1"]), channel="shell"))
        box.deliver(output())
        frames = [await socket.receive(timeout=10) for _ in range(3)]

    assert all(frame.type is WSMsgType.TEXT for frame in frames)
    shown = [json.loads(frame.data) for frame in frames]
    assert shown[0]["content"] == {"name": "stderr", "text": NOT_SHOWN}
    assert (shown[1]["msg_type"], shown[1]["content"]["status"]) == ("comm_info_reply", "error")
    assert shown[2]["content"]["text"] == "x"


async def test_content_that_is_no_json_is_marked(door):
    """What the old framing cannot carry is left out with a note; the socket lives."""
    kernel = await door.kernel()
    async with door.channels(kernel.id) as socket:
        (box,) = [one for one, _ in kernel._subscribers.values()]
        box.deliver(replace(output(), content=b"{not json"))
        box.deliver(output())
        frames = [await socket.receive_json(timeout=10) for _ in range(2)]

    assert [frame["content"]["text"] for frame in frames] == [NOT_SHOWN, "x"]


async def test_pings():
    """The gateway pings, and drops a client that does not answer."""
    async with opened(ping_interval_s=0.2) as door:
        kernel = await door.kernel()
        async with door.channels(kernel.id, autoping=False) as socket:
            assert (await socket.receive(timeout=5)).type is WSMsgType.PING
            await eventually(lambda: kernel.subscribers == 0)


async def test_a_bug_closes_its_socket_alone(door):
    """An unexpected exception in one socket ends it with 1011 and leaves nothing attached."""
    kernel = await door.kernel()
    good = kernel.send

    def broken(*_args: Any, **_more: Any) -> None:
        raise ZeroDivisionError

    async with door.channels(kernel.id) as socket, door.channels(kernel.id) as other:
        kernel.send = broken
        await socket.send_str(request())
        assert (await closing(socket))[0] == 1011
        kernel.send = good
        await other.send_str(request())
        await until(other, "execute_reply")
    await eventually(lambda: kernel.subscribers == 0)


async def test_nothing_is_left_of_closed_sockets(door):
    """After sockets come and go, in order or torn, no subscriber, task or count is left."""
    kernel, before = await door.kernel(), len(asyncio.all_tasks())
    for torn in (False, True) * 5:
        socket = await door.channels(kernel.id)
        await socket.send_str(request())
        if torn:
            socket._response.connection.transport.abort()
        with suppress(ConnectionError):
            await socket.close()

    await eventually(lambda: kernel.subscribers == 0 and not door.app[CONTEXT].sockets._open)
    assert "cellblock_sockets 0.0" in door.metrics.render().decode()
    await eventually(lambda: len(asyncio.all_tasks()) <= before + 1)
