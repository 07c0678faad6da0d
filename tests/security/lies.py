"""What a hostile kernel says over its own sockets: code for a cell, by what it tries."""

from __future__ import annotations

# What hostile code finds in its own kernel: the session that signs, the sockets, and a way to send frames.
PRELUDE = """
import json
kernel = get_ipython().kernel
session, header, pub = kernel.session, kernel.get_parent()["header"], kernel.iopub_thread

def part(value):
    return value if isinstance(value, bytes) else json.dumps(value, default=str).encode()

def signed(kind, content, of=None, own=None):
    "A message of this kernel's, with a right signature; `of` is its parent's header, `own` its own."
    own = session.msg_header(kind) if own is None else own
    parts = [part(own), part(header if of is None else of), b"{}", part(content)]
    return [b"<IDS|MSG>", session.sign(parts), *parts]

def say(text, **how):
    return signed("stream", {"name": "stdout", "text": text}, **how)

def publish(frames):
    pub.send_multipart([b"topic", *frames])
"""

GARBAGE = {
    "wrong signature": """
frames = say("FORGED")
for signature in (b"0" * 64, b"", frames[1][:-1], frames[1] + b"0", b"\\xff" * 64):
    frames[1] = signature
    publish(frames)
""",
    "another's parent": """
publish(say("FORGED", of={"msg_id": "someone-elses"}))
publish(signed("status", {"execution_state": "idle"}, of={"msg_id": "someone-elses"}))
""",
    "strange parents": """
ids = [{"msg_id": value} for value in (7, None, [], "x" * 10**6)]
for of in ({}, [], "x", 7, *ids, b"null", b"{", b"", b"\\xff"):
    publish(say("FORGED", of=of))
""",
    "strange headers": """
for own in (b"{}", b"[]", b"null", b"7", b"", b"{", b"\\xff", b'{"msg_id": 1, "msg_type": []}', b"[" * 60000):
    publish(say("FORGED", own=own))
""",
    "strange contents": """
contents = (b"[]", b"null", b"7", b'"x"', b"{", b"", b"\\xff", b'{"data": 7, "name": [], "text": {}}')
for kind in "stream display_data execute_result error status update_display_data".split():
    for content in contents:
        publish(signed(kind, content))
""",
    "no numbers": """
publish(signed("display_data", b'{"data": {"application/json": [NaN, Infinity, -Infinity]}, "metadata": {}}'))
publish(signed("display_data", b'{"data": {"application/json": ' + b"9" * 100000 + b"}}"))
publish(signed("display_data", b'{"data": {"application/json": 1e999999}}'))
""",
    "deep nesting": """
deep = b"[" * 100000 + b"]" * 100000
publish(signed("display_data", b'{"data": {"application/json": ' + deep + b"}}"))
publish(signed("display_data", b'{"a":' * 100000))
publish(signed("error", b'{"ename": "x", "evalue": "y", "traceback": ' + deep + b"}"))
publish(say("FORGED", of=b'{"msg_id": ' + deep[:50] + b"}"))
""",
    "many frames": """
publish([*say("x"), *[b"f"] * 50_000])
pub.send_multipart([b"a"] * 50_000)
""",
    "broken frames": """
for frames in ([b"a"] * 40, [b""] * 7, [b"<IDS|MSG>"], [b"<IDS|MSG>", b"x"], [b"<IDS|MSG>"] * 9, [b""]):
    pub.send_multipart(frames)
""",
    "one message many times": """
frames = say("")
for _ in range(1000):
    publish(frames)
""",
    "unknown kinds": """
body = {"status": "ok", "restart": True, "prompt": "p", "execution_state": "dead", "execution_count": 777}
for kind in ("shutdown_reply", "input_request", "iopub_welcome", "x" * 200, "execute_reply", "comm_msg", ""):
    publish(signed(kind, body))
""",
    "dead by its own word": """
for state in ("dead", "restarting", "starting", "terminating", "x" * 1000, 7, None):
    publish(signed("status", {"execution_state": state}))
""",
}
"""On iopub, within an execution that goes on as if nothing were."""

EARLY_IDLE = 'publish(signed("status", {"execution_state": "idle"}))'

UNASKED = """
ident = b"cellblock-" + kernel.parent.ip.split("/")[-3].encode()
reply = {"status": "ok", "execution_count": 777, "user_expressions": {}, "payload": []}
for channel in (kernel.shell_stream, kernel.control_stream, kernel.stdin_socket):
    for frames in (
        signed("execute_reply", reply, of={"msg_id": "someone-elses"}),
        [b"<IDS|MSG>", b"0" * 64, *signed("execute_reply", reply)[2:]],
        [b"garbage"],
        signed("input_request", {"prompt": "password:", "password": True}, of={"msg_id": "someone-elses"}),
    ):
        channel.send_multipart([ident, *frames])
"""
"""Replies that nobody asked for, on the other channels."""

LARGE = 'publish(say("A" * (64 << 20)))'

FLOOD = """
frames = signed("display_data", {"data": {"text/plain": "y" * 1000}, "metadata": {}})
for _ in range(50_000):
    publish(frames)
"""

STRANGE_IDENTITY = """
kind = type(kernel)
kind.implementation, kind.banner = "../../etc/passwd", "B" * (4 << 20)
kind.language_info = {"name": "../../x", "file_extension": "/../../etc/cron.d/x", "more": ["y"] * 1000}
"""

SILENCE = {
    "another key": 'session.key = b"another key"',
    "no sending": "session.send = lambda *a, **k: None",
    "no executing": "kernel.do_execute = kernel.execute_request = None",
    "no descriptors": """
import os
for descriptor in range(3, 256):
    try:
        os.close(descriptor)
    except OSError:
        pass
""",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "stubborn": """
import time
while True:
    try:
        time.sleep(1)
    except BaseException:
        pass
""",
}
"""After which a kernel says no more."""
