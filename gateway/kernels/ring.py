"""The last output of one process, by byte positions."""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass

from gateway.models.processes import Chunk, Stream

# a block is as long as this at most, and counts so much beside its bytes
BLOCK, BLOCK_COST = 16 << 10, 128


@dataclass(slots=True)
class _Block:
    """Bytes of one stream that came one after the other."""

    start: int
    stream: Stream
    data: bytearray


class OutputRing:
    """Keeps at most `most` bytes of output in the order in which it came; older ones are let go of.

    Positions count the bytes since the process began, those included that were never seen here.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._blocks: deque[_Block] = deque()
        self._size = 0
        self._halves: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
        self._seen = 0
        self._end = 0

    @property
    def end(self) -> int:
        """The position after all that can be read."""
        return self._end

    def add(self, stream: Stream, at: int, data: bytes) -> None:
        """Take output, before which the process had sent `at` bytes. Raises ValueError when those went back.

        The beginning of a character waits for its rest.
        """
        if at < self._seen:
            raise ValueError
        if at > self._seen:
            self.skip(at)
        self._seen += len(data)
        data = self._halves[stream] + data
        cut = len(data) - unfinished(data)
        self._halves[stream] = data[cut:]
        self._append(stream, data[:cut])

    def skip(self, at: int) -> None:
        """Note that output before a position will not come any more."""
        self.finish()
        self._seen = self._end = max(self._end, at)

    def finish(self) -> None:
        """Take what waited in vain for the rest of a character."""
        for stream, half in self._halves.items():
            self._halves[stream] = b""
            self._append(stream, half)

    def read(self, cursor: int, most: int) -> tuple[list[Chunk], int, int]:
        """Return up to `most` bytes from a position on, the position after them, and how many are lost."""
        runs: list[tuple[Stream, bytearray]] = []
        cursor, lost = min(cursor, self._end), 0
        for block in self._blocks:
            if block.start + len(block.data) <= cursor:
                continue
            lost += max(0, block.start - cursor)
            cursor = max(cursor, block.start)
            piece = block.data[cursor - block.start :][:most]
            if not runs or runs[-1][0] != block.stream:
                runs.append((block.stream, bytearray()))
            runs[-1][1].extend(piece)
            most -= len(piece)
            cursor += len(piece)
            if most <= 0:
                # the next read begins with a whole character
                half = unfinished(runs[-1][1])
                if half < len(runs[-1][1]):
                    del runs[-1][1][len(runs[-1][1]) - half :]
                    cursor -= half
                break
        else:
            lost += self._end - cursor
            cursor = self._end
        chunks = [Chunk(stream=stream, text=data.decode("utf-8", "replace")) for stream, data in runs]
        return chunks, cursor, lost

    def _append(self, stream: Stream, data: bytes) -> None:
        for start in range(0, len(data), BLOCK):
            piece = data[start : start + BLOCK]
            last = self._blocks[-1] if self._blocks else None
            if (
                last is not None
                and last.stream == stream
                and last.start + len(last.data) == self._end
                and len(last.data) + len(piece) <= BLOCK
            ):
                last.data += piece
            else:
                self._blocks.append(_Block(self._end, stream, bytearray(piece)))
                self._size += BLOCK_COST
            self._size += len(piece)
            self._end += len(piece)
        while self._size > self._most and len(self._blocks) > 1:
            self._size -= len(self._blocks.popleft().data) + BLOCK_COST


def unfinished(data: bytes | bytearray) -> int:
    """Return how many bytes at the end begin a character of UTF-8 whose rest is missing."""
    tail = bytes(data[-4:])
    return len(tail) - codecs.utf_8_decode(tail, "replace", False)[1]
