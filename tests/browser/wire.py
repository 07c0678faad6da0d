"""A network of the tests': a TCP relay on loopback that can be cut and mended."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Self

CHUNK = 1 << 16
# closing with this option set sends RST, as a network that breaks does
RESET = struct.pack("ii", 1, 0)


class Wire:
    """Relays connections from a free port to another one; while cut, it ends them and takes no others."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._whole = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # a thread that waits in accept() is not woken by close()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def lead_to(self, port: int) -> None:
        """Relay what comes from now on to another port."""
        self._target = ("127.0.0.1", port)

    def cut(self) -> int:
        """End every connection, and each that comes until it is mended; return how many there were."""
        with self._lock:
            self._whole = False
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    end.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def mend(self) -> None:
        """Let connections through again."""
        self._whole = True

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                if self._whole:
                    self._pairs.add((near, far))
                    relayed = True
                else:
                    relayed = False
            if not relayed:
                near.close()
                far.close()
                continue
            ends = threading.Barrier(2)
            for source, sink in ((near, far), (far, near)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._relay, args=(source, sink, ends), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, ends: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        # both directions are over: only then the descriptors are free
        if ends.wait() == 0:
            with self._lock:
                self._pairs.discard((source, sink))
                self._pairs.discard((sink, source))
            source.close()
            sink.close()
