"""Calls of tools: code in the cell connects to a socket, says one line of JSON, and gets one back."""

import contextlib
import json
import select
import socket
import time

from gateway.sandbox.attendant.wires import Wires

# bytes of one call, calls at a time, and how long one waits for a gateway that has not said hello
CALL, CALLS, HOLD_S = 1 << 20, 64, 2.0


class Call:
    """A connection: `line` is what it asks; `asked` and `answered` say how far it is."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.line, self.answer = bytearray(), bytearray()
        self.asked = self.passed = self.answered = False
        self.since = time.monotonic()


class Calls:
    """Answers at a door; `greeted` says that there is a gateway to pass calls on to."""

    def __init__(self, wires: Wires, door: socket.socket | None) -> None:
        self._wires = wires
        self._door = door
        self._calls: dict[int, Call] = {}
        self._last = 0
        self._greeted = False
        if door:
            door.setblocking(False)
            self._open()

    @property
    def patience_s(self) -> float | None:
        """How long the loop may wait before a call is to be given up."""
        held = [call.since for call in self._calls.values() if call.asked and not call.passed]
        return max(0.0, min(held) + HOLD_S - time.monotonic()) if held else None

    def greet(self) -> None:
        """Serve a gateway: what an earlier one was asked is answered here, what has waited is passed on."""
        self._greeted = True
        for number, call in list(self._calls.items()):
            if call.passed and not call.answered:
                self.refuse(number, "no_tools", "The gateway was restarted meanwhile.")
            elif call.asked and not call.answered:
                self._pass_on(number, call)

    def give_up(self) -> None:
        """Answer calls that have waited for a gateway for too long."""
        for number, call in list(self._calls.items()):
            if call.asked and not call.passed and time.monotonic() - call.since >= HOLD_S:
                self.refuse(number, "no_tools", "Nobody offers tools to this kernel.")

    def answer(self, number: int, answer: bytes) -> None:
        """Give a call its answer, unless it is gone."""
        call = self._calls.get(number)
        if call and not call.answered:
            call.asked = call.passed = call.answered = True
            call.answer += answer + b"\n"
            self._write(number, call)

    def refuse(self, number: int, code: str, message: str) -> None:
        """Give a call an error as its answer."""
        self.answer(number, json.dumps({"error": {"code": code, "message": message}}).encode())

    def _open(self) -> None:
        if self._door:
            self._wires.watch(self._door.fileno(), select.EPOLLIN, self._accept)

    def _accept(self, _events: int) -> None:
        assert self._door is not None  # noqa: S101 - it is watched
        with contextlib.suppress(OSError):
            connection, _ = self._door.accept()
            connection.setblocking(False)
            self._last += 1
            number = self._last
            self._calls[number] = Call(connection)
            self._wires.source(connection.fileno(), lambda: self._read(number))
        if len(self._calls) >= CALLS:
            # the others wait at the door
            self._wires.unwatch(self._door.fileno())

    def _read(self, number: int) -> None:
        call = self._calls[number]
        try:
            piece = call.connection.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        line, end, _ = piece.partition(b"\n")
        call.line += line
        if not piece:
            self._close(number)
        elif end or len(call.line) > CALL:
            self._wires.unsource(call.connection.fileno())
            # an end of both directions is always told; who has only said all that there is may still listen
            self._wires.watch(call.connection.fileno(), 0, lambda _: self._close(number))
            call.asked, call.since = True, time.monotonic()
            if len(call.line) > CALL:
                self.refuse(number, "payload_too_large", f"A call may have {CALL} bytes.")
            elif self._greeted:
                self._pass_on(number, call)

    def _pass_on(self, number: int, call: Call) -> None:
        call.passed = True
        self._wires.say({"op": "call", "c": number}, bytes(call.line))
        call.line.clear()

    def _write(self, number: int, call: Call) -> None:
        try:
            while call.answer:
                del call.answer[: call.connection.send(call.answer[: 1 << 16], socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            events = select.EPOLLOUT
            self._wires.watch(call.connection.fileno(), events, lambda _: self._write(number, call))
            return
        except OSError:
            pass
        self._close(number)

    def _close(self, number: int) -> None:
        call = self._calls.pop(number)
        self._wires.unsource(call.connection.fileno())
        self._wires.unwatch(call.connection.fileno())
        call.connection.close()
        if call.passed and not call.answered:
            self._wires.say({"op": "hangup", "c": number})
        if len(self._calls) == CALLS - 1:
            self._open()
