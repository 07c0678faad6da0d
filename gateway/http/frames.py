"""WebSocket frames on their way to one client: small ones are written together, large ones as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import WSMsgType

if TYPE_CHECKING:
    from aiohttp import web

# what is written in one go, before others have their turn; a larger payload is not copied to be with others
TOGETHER_BYTES, TOGETHER = 64 << 10, 64
ALONE_BYTES = 16 << 10
FINAL = 0x80


class Frames:
    """Gathers a server's frames, which are whole and not masked (RFC 6455, 5.2), until they are flushed."""

    def __init__(self, socket: web.WebSocketResponse, protocol: web.RequestHandler) -> None:
        self._socket = socket
        self._protocol = protocol
        self._gathered: list[tuple[bytes, WSMsgType]] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._gathered)

    @property
    def full(self) -> bool:
        """Whether enough is gathered to be written."""
        return self._size >= TOGETHER_BYTES or len(self._gathered) >= TOGETHER

    def add(self, frame: bytes | str) -> None:
        """Take a binary or a text frame."""
        if isinstance(frame, str):
            self._gather(frame.encode(), WSMsgType.TEXT)
        else:
            self._gather(frame, WSMsgType.BINARY)

    def ping(self, data: bytes) -> None:
        """Take a ping."""
        self._gather(data, WSMsgType.PING)

    async def flush(self) -> None:
        """Write what is gathered, and wait while the client takes nothing. Raises ConnectionError."""
        gathered, self._gathered, self._size = self._gathered, [], 0
        transport = self._protocol.transport
        if transport is None or transport.is_closing() or self._socket.closed:
            raise ConnectionResetError("The client has gone.")
        if self._protocol.writing_paused:
            for payload, kind in gathered:
                # this one knows when the client takes more
                await self._socket.send_frame(payload, kind)
            return
        together: list[bytes] = []
        for payload, kind in gathered:
            together.append(head(len(payload), kind))
            if len(payload) > ALONE_BYTES:
                transport.write(b"".join(together))
                transport.write(payload)
                together = []
            else:
                together.append(payload)
        if together:
            transport.write(b"".join(together))

    def _gather(self, payload: bytes, kind: WSMsgType) -> None:
        self._gathered.append((payload, kind))
        self._size += len(payload)


def head(size: int, kind: WSMsgType) -> bytes:
    """Return what stands before a payload."""
    if size < 126:
        return bytes((FINAL | kind, size))
    if size < 1 << 16:
        return bytes((FINAL | kind, 126)) + size.to_bytes(2, "big")
    return bytes((FINAL | kind, 127)) + size.to_bytes(8, "big")
