"""What the attendant does for its gateway."""

import json
import os
import select
import signal
import socket
from typing import Any

from gateway.sandbox.attendant.calls import Calls
from gateway.sandbox.attendant.children import Child, Refused, close, kill
from gateway.sandbox.attendant.views import snapshot, tree
from gateway.sandbox.attendant.wires import Wires

# ended processes that are remembered
KEPT = 64


class Attendant:
    """Serves one gateway at a time over `link`, and code in the cell over `door`.

    `kernel` is the kernel's pidfd: it ends with the kernel. `python` tells that this interpreter is the
    kernel's own.
    """

    def __init__(self, link: socket.socket, door: socket.socket | None, kernel: int, *, python: bool) -> None:
        self._python = python
        self._wires = Wires(link, self._take)
        self._calls = Calls(self._wires, door)
        self._children: dict[int, Child] = {}
        self._wires.watch(kernel, select.EPOLLIN, lambda _: os._exit(0))

    def run(self) -> None:
        """Serve until the kernel has ended."""
        while True:
            self._wires.turn(self._calls.patience_s)
            self._calls.give_up()
            self._wires.flush()

    def _take(self, head: dict[str, Any], body: bytes) -> None:
        try:
            answer = getattr(self, f"_do_{head['op']}")(head, body)
        except Refused as refused:
            answer = {"error": refused.args}
        except OSError as error:
            answer = {"error": ("failed", f"{error.strerror}.")}
        if "id" in head and answer is not None:
            self._wires.say({"re": head["id"]}, json.dumps(answer).encode())

    def _do_hello(self, head: dict[str, Any], _body: bytes) -> None:
        """Begin anew: another gateway learns what there is. What still waits goes before this."""
        known = [
            {
                "p": child.number,
                "note": child.note,
                "pid": child.pid,
                # what is still to be told comes after its last output
                "code": child.code if child.told else None,
                "sent": child.sent,
                "ended_at": child.ended_at,
            }
            for child in self._children.values()
            if not child.forgotten
        ]
        body = json.dumps({"processes": known}, ensure_ascii=False).encode()
        self._wires.say({"op": "hello", "epoch": head["epoch"]}, body)
        self._calls.greet()

    def _do_start(self, head: dict[str, Any], body: bytes) -> dict[str, Any]:
        """Start a process."""
        child = Child(self._wires, head["p"], json.loads(body), self._changed)
        self._children[child.number] = child
        return {"pid": child.pid}

    def _do_input(self, head: dict[str, Any], body: bytes) -> dict[str, Any]:
        """Write to a process's standard input."""
        self._child(head).write(body, eof=bool(head["eof"]))
        return {}

    def _do_signal(self, head: dict[str, Any], _body: bytes) -> dict[str, Any]:
        """Signal a process and its group."""
        self._child(head).signal(head["number"])
        return {}

    def _do_forget(self, head: dict[str, Any], _body: bytes) -> None:
        """Tell of a process no more."""
        if child := self._children.get(head["p"]):
            child.forget()

    def _do_kill(self, head: dict[str, Any], _body: bytes) -> dict[str, Any]:
        """Signal any process of the cell."""
        kill(head["pid"], head["number"])
        return {}

    def _do_tree(self, _head: dict[str, Any], _body: bytes) -> dict[str, Any]:
        """Show every process of the cell."""
        return {"processes": tree()}

    def _do_snapshot(self, head: dict[str, Any], _body: bytes) -> None:
        """Show the system, from a process of its own: what that has to load is not kept."""
        packages = bool(head["packages"]) and self._python
        reader, writer = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            close(reader, writer)
            raise Refused("no_room", f"No process can be started: {error.strerror}.") from None
        if not pid:
            try:
                with open(writer, "wb") as said:
                    said.write(json.dumps(snapshot(packages=packages)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        text = bytearray()

        def more(_events: int) -> None:
            if piece := os.read(reader, 1 << 16):
                text.extend(piece)
                return
            self._wires.unwatch(reader)
            os.close(reader)
            os.waitpid(pid, 0)
            failed = json.dumps({"error": ("failed", "It cannot be seen.")}).encode()
            self._wires.say({"re": head["id"]}, bytes(text) or failed)

        self._wires.watch(reader, select.EPOLLIN, more)

    def _do_answer(self, head: dict[str, Any], body: bytes) -> None:
        """Give a call its answer."""
        self._calls.answer(head["c"], body)

    def _child(self, head: dict[str, Any]) -> Child:
        try:
            return self._children[head["p"]]
        except KeyError:
            raise Refused("gone", "There is no such process.") from None

    def _changed(self, child: Child) -> None:
        ended = [each for each in self._children.values() if each.code is not None and not each.forgotten]
        for each in ended[:-KEPT]:
            each.forgotten = True
        for each in [child, *ended[:-KEPT]]:
            if each.forgotten and each.over:
                self._children.pop(each.number, None)


def attend(link: socket.socket, door: socket.socket | None, kernel: int, *, python: bool) -> None:
    """Be the attendant until the kernel has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Attendant(link, door, kernel, python=python).run()
