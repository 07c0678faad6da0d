"""The framing of ZMTP 3, as far as it takes to bound a stranger's messages before libzmq gathers them.

Source: ZMTP 3.1, https://rfc.zeromq.org/spec/37/. libzmq bounds one part (`ZMQ_MAXMSGSIZE`), and no message.
"""

from __future__ import annotations

GREETING_BYTES = 64
SIGNATURE_END, VERSION_AT = 9, 10
MORE, LONG, COMMAND = 1, 2, 4
MAX_COMMAND_BYTES = 4096
# more of them make no message that could be meant: who sends them wants to be costly
MAX_PARTS = 1 << 16
# what a look at a part, and at whatever comes at once, is worth in bytes
PART_COST, FEED_COST = 64, 1024
# pieces that are held are gathered up to this size: they may have come byte by byte
PIECE_BYTES = 4096


class NotZmtp(ValueError):
    """A peer does not speak ZMTP 3; the text says in one sentence what it does instead."""


class MessageFilter:
    """Passes on what one peer sends, without the messages that are too large or have too many parts.

    A message is passed on as soon as the size of its last part is known. Until then it is held: at most
    `max_bytes` of it. Commands and the greeting pass at once, since the peers wait for them in turn.
    """

    def __init__(self, *, max_bytes: int, max_parts: int) -> None:
        self._max_bytes = max_bytes
        self._max_parts = max_parts
        self._greeting = b""
        self._tail = b""
        self._held: list[bytes] = []
        self._size = self._parts = 0
        self._left = 0
        self._last = self._passing = self._dropping = False
        # how many messages have gone on whole, how many were kept back; and what was looked at, in bytes
        self.passed = 0
        self.dropped = 0
        self.cost = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take what has come and return what may go on, in its order.

        Raises:
            NotZmtp: the connection is to be closed; what it was fed last does not go on.
        """
        self.cost += len(data) + FEED_COST
        if len(self._greeting) < GREETING_BYTES:
            return self._greet(data)
        if self._tail:
            data, self._tail = self._tail + data, b""
        passed: list[bytes] = []
        at = begun = message = 0
        end = len(data)
        while at < end:
            if not self._left:
                body = self._head(data, at)
                if not body:
                    self._tail, end = data[at:], at
                    break
                at = body
                passed += self._decided()
            step = min(self._left, end - at)
            at += step
            self._left -= step
            if self._last and not self._left:
                if self._dropping:
                    passed.append(data[begun:message])
                    begun = at
                message = at
                self.passed += self._parts > 0 and not self._dropping
                self._size = self._parts = 0
                self._last = self._passing = self._dropping = False
        if self._passing:
            message = end
        elif not self._dropping and message < end:
            self._hold(data[message:end])
        passed.append(data[begun:message])
        return [piece for piece in passed if piece]

    def _decided(self) -> list[bytes]:
        """Return what was held of a message that passes; forget it where the message is dropped."""
        held, passes = self._held, self._passing
        if passes or self._dropping:
            self._held = []
        return held if passes else []

    def _hold(self, piece: bytes) -> None:
        if self._held and len(self._held[-1]) + len(piece) <= PIECE_BYTES:
            self._held[-1] += piece
        else:
            self._held.append(piece)

    def _greet(self, data: bytes) -> list[bytes]:
        """Pass a greeting on as it comes: the peers send it in pieces, each in answer to the other's."""
        missing = GREETING_BYTES - len(self._greeting)
        self._greeting += data[:missing]
        known = self._greeting
        # an older version's framing would be another
        if known[0] != 0xFF or (len(known) > SIGNATURE_END and not known[SIGNATURE_END] & 1):
            raise NotZmtp("It does not greet as ZMTP does.")
        if len(known) > VERSION_AT and known[VERSION_AT] != 3:
            raise NotZmtp("It speaks a version of ZMTP other than 3.")
        rest = data[missing:]
        return [data[:missing], *(self.feed(rest) if rest else [])]

    def _head(self, data: bytes, at: int) -> int:
        """Read a frame's head and decide on its message; return where its body begins, or 0 for more."""
        flags = data[at]
        body = at + (9 if flags & LONG else 2)
        if body > len(data):
            return 0
        self._left = size = int.from_bytes(data[at + 1 : body], "big")
        self.cost += PART_COST
        if flags & COMMAND:
            if flags & MORE or self._parts or size > MAX_COMMAND_BYTES:
                raise NotZmtp("It sends a command that is none.")
            self._last = self._passing = True
            return body
        if flags > MORE | LONG:
            raise NotZmtp("It sends a frame of no known kind.")
        self._last = not flags & MORE
        self._size += size
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise NotZmtp(f"It sends a message of more than {MAX_PARTS} parts.")
        if not self._dropping and (self._size > self._max_bytes or self._parts > self._max_parts):
            self._dropping = True
            self.dropped += 1
        elif self._last and not self._dropping:
            self._passing = True
        return body
