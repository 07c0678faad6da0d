"""The framing of ZMTP 3: a handshake that others make, and messages, read from a stranger and written.

Source: ZMTP 3.1, https://rfc.zeromq.org/spec/37/.
"""

from __future__ import annotations

from collections.abc import Sequence

GREETING_BYTES = 64
SIGNATURE_END, VERSION_AT = 9, 10
MORE, LONG, COMMAND = 1, 2, 4
MAX_COMMAND_BYTES = 4096
READY, PING, PONG = b"\x05READY", b"\x04PING", b"\x04PONG"
# a ping begins with how long its sender waits for more; at most so much of its context comes back
TTL_BYTES, CONTEXT_BYTES = 2, 16
# more of them make no message that could be meant: who sends them wants to be costly
MAX_PARTS = 1 << 16
# what a look at a part, and at whatever comes at once, is worth in bytes
PART_COST, FEED_COST = 64, 1024
# parts looked at before the caller has its turn
PARTS_AT_ONCE = 512
# pieces of a part are gathered up to this size: they may have come byte by byte
PIECE_BYTES = 4096


class NotZmtp(ValueError):
    """A peer does not speak ZMTP 3; the text says in one sentence what it does instead."""


class Handshake:
    """What one peer says before its messages: a greeting, READY, and `more` frames of any kind."""

    def __init__(self, *, more: int = 0) -> None:
        self._left = 1 + more
        self._seen = b""
        self._at = GREETING_BYTES
        self.over = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what may go on of what has come, and what follows the handshake.

        All goes on as it comes: the peers send it in pieces, each in answer to the other's.

        Raises:
            NotZmtp: the connection is to be closed; what it was fed last does not go on.
        """
        before = len(self._seen)
        seen = self._seen = self._seen + data
        _greet(seen)
        while self._left and len(seen) >= self._at + 2:
            flags = seen[self._at]
            body = self._at + (9 if flags & LONG else 2)
            size = int.from_bytes(seen[self._at + 1 : body], "big")
            if len(seen) >= body and size > MAX_COMMAND_BYTES:
                raise NotZmtp("It sends a command that is none.")
            if len(seen) < body + size:
                break
            if self._at == GREETING_BYTES and (flags & ~LONG != COMMAND or not seen.startswith(READY, body)):
                raise NotZmtp("It does not say that it is ready.")
            self._at = body + size
            self._left -= 1
        if self._left:
            return data, b""
        self.over = True
        self._seen = b""
        return data[: self._at - before], data[self._at - before :]


class MessageReader:
    """Reads the messages of one peer after the handshake, but for those too large or of too many parts.

    Of a message that is not whole at most `max_bytes` are held, and none of one that is dropped.
    """

    def __init__(self, *, max_bytes: int, max_parts: int) -> None:
        self._max_bytes = max_bytes
        self._max_parts = max_parts
        self._data = b""
        self._at = 0
        # of the message that comes: its whole parts, the pieces of the next and what it lacks, what was seen
        self._parts: list[bytes] = []
        self._pieces: list[bytes] = []
        self._left = 0
        self._size = self._count = 0
        self._last = self._dropping = False
        # how many messages were dropped; what was looked at, in bytes; what the peer is to be sent
        self.dropped = 0
        self.cost = 0
        self.answers: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        self.cost += len(data) + FEED_COST
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    def take(self) -> list[bytes] | None:
        """Return the parts of the next message: none of what is no message, None when more must come first.

        Raises:
            NotZmtp: the connection is to be closed.
        """
        if self._left and self._continue():
            return self._whole()
        data, at, end = self._data, self._at, len(self._data)
        for _ in range(PARTS_AT_ONCE):
            if end - at < 2:
                break
            flags = data[at]
            body = at + (9 if flags & LONG else 2)
            if body > end:
                break
            size = int.from_bytes(data[at + 1 : body], "big") if flags & LONG else data[at + 1]
            self.cost += PART_COST
            if flags > MORE | LONG:
                self._at = at
                return self._command(flags, body, body + size)
            self._begin(flags, size)
            at = body + size
            if not self._dropping:
                (self._parts if at <= end else self._pieces).append(data[body:at])
            if at > end:
                self._left, at = at - end, end
            elif self._last:
                self._at = at
                return self._whole()
        else:
            self._at = at
            return []
        self._at = at
        return None

    def _begin(self, flags: int, size: int) -> None:
        """Note that a part begins, and whether its message is to be dropped."""
        self._last = not flags & MORE
        self._size += size
        self._count += 1
        if self._count > MAX_PARTS:
            raise NotZmtp(f"It sends a message of more than {MAX_PARTS} parts.")
        if not self._dropping and (self._size > self._max_bytes or self._count > self._max_parts):
            self._dropping = True
            self.dropped += 1
            self._parts = []

    def _continue(self) -> bool:
        """Go on with a part whose beginning came earlier, and tell whether a message ends with it."""
        piece = self._data[self._at : self._at + self._left]
        self._at += len(piece)
        self._left -= len(piece)
        if self._dropping:
            return self._last and not self._left
        if len(self._pieces[-1]) + len(piece) <= PIECE_BYTES:
            self._pieces[-1] += piece
        else:
            self._pieces.append(piece)
        if self._left:
            return False
        self._parts.append(b"".join(self._pieces))
        self._pieces = []
        return self._last

    def _whole(self) -> list[bytes]:
        """Return the message whose last part has come, and be ready for the next."""
        parts, self._parts = self._parts, []
        self._size = self._count = 0
        self._dropping = False
        return parts

    def _command(self, flags: int, begin: int, end: int) -> list[bytes] | None:
        """Answer a ping, and pass over every other command."""
        if not flags & COMMAND or flags > COMMAND | LONG | MORE:
            raise NotZmtp("It sends a frame of no known kind.")
        if flags & MORE or self._count or end - begin > MAX_COMMAND_BYTES:
            raise NotZmtp("It sends a command that is none.")
        if end > len(self._data):
            return None
        self._at = end
        if self._data.startswith(PING, begin):
            context = self._data[begin + len(PING) + TTL_BYTES : end][:CONTEXT_BYTES]
            self.answers.append(framed([PONG + context], COMMAND))
        return []


def framed(parts: Sequence[bytes], kind: int = 0) -> bytes:
    """Return the frames of a message, or those of a `COMMAND`."""
    frames: list[bytes] = []
    last = len(parts) - 1
    for index, part in enumerate(parts):
        flags = kind | (MORE if index < last else 0)
        size = len(part)
        frames.append(
            bytes((flags, size)) if size < 256 else bytes((flags | LONG,)) + size.to_bytes(8, "big")
        )
        frames.append(part)
    return b"".join(frames)


def _greet(known: bytes) -> None:
    """Check as much of a greeting as has come: an older version's framing would be another."""
    if known[0] != 0xFF or (len(known) > SIGNATURE_END and not known[SIGNATURE_END] & 1):
        raise NotZmtp("It does not greet as ZMTP does.")
    if len(known) > VERSION_AT and known[VERSION_AT] != 3:
        raise NotZmtp("It speaks a version of ZMTP other than 3.")
