"""Adaptation, a part of the in-cell boot step: ipykernel as it is at home in a cell."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# characters of stdout or stderr that are sent in one message, and messages that wait for a slow reader
STREAM_PIECE, IOPUB_WAITING = 256 << 10, 100
# Table Schema, and how many rows of a DataFrame it shows
FRAMES, FRAME_ROWS = "application/vnd.dataresource+json", 1000


def adapt_ipykernel() -> None:
    """Make ipykernel at home in a cell; a kernel that is none of its children is left as it is."""
    import zmq
    from ipykernel.iostream import IOPubThread, OutStream
    from ipykernel.kernelapp import IPKernelApp
    from zmq.eventloop.zmqstream import ZMQStream

    def pipe_in(self: Any) -> None:
        """Take the prints of forked children over a unix socket: a cell has no TCP."""
        self._pipe_uuid = os.urandom(16)
        self._pipe_port = f"ipc://@kernel-{self._pipe_uuid.hex()}"
        socket_in = self.socket.context.socket(zmq.PULL)
        socket_in.linger = 0
        socket_in.bind(self._pipe_port)
        self._pipe_in = ZMQStream(socket_in, self.io_loop)
        self._pipe_in.on_recv(self._handle_pipe_msg)

    def pipe_out(self: Any) -> tuple[Any, Any]:
        """Send a forked child's prints to its parent."""
        context = zmq.Context()
        socket_out = context.socket(zmq.PUSH)
        socket_out.linger = 3000
        socket_out.connect(self._pipe_port)
        return context, socket_out

    plain_write, plain_bind = OutStream.write, IPKernelApp._bind_socket
    plain_init = IPKernelApp.init_kernel

    def write(self: Any, string: str) -> int | None:
        """Send a flood of output as it comes, in messages of a size that clients take."""
        if not isinstance(string, str):
            return plain_write(self, string)
        for start in range(0, len(string), STREAM_PIECE):
            piece = string[start : start + STREAM_PIECE]
            self._unsent = getattr(self, "_unsent", 0) + len(piece)
            plain_write(self, piece)
            if self._unsent >= STREAM_PIECE:
                self._unsent = 0
                self.flush()
        return len(string)

    def bind(self: Any, s: Any, port: int) -> int:
        """Let output wait for a slow reader: by default it would be dropped without a word."""
        if s.type == zmq.XPUB:
            s.setsockopt(zmq.XPUB_NODROP, 1)
            s.setsockopt(zmq.SNDHWM, IOPUB_WAITING)
        return int(plain_bind(self, s, port))

    def init_kernel(self: Any) -> None:
        """Show DataFrames as JSON to who asks for it."""
        plain_init(self)
        offer_frames(self.kernel)

    IOPubThread._setup_pipe_in, IOPubThread._setup_pipe_out = pipe_in, pipe_out
    OutStream.write, IPKernelApp._bind_socket = write, bind
    IPKernelApp.init_kernel = init_kernel


def offer_frames(kernel: Any) -> None:
    """Add Table Schema to what pandas' DataFrames are shown as, where an execution's metadata asks for it."""
    if not hasattr(kernel, "shell"):
        # it is for another language
        return
    import json

    from IPython.core.formatters import BaseFormatter

    class FrameFormatter(BaseFormatter):  # type: ignore[misc]
        """A formatter that is asked by type alone."""

        format_type, print_method, _return_type = FRAMES, "_repr_nothing_", dict

    def frame(table: Any) -> dict[str, Any] | None:
        """Return a DataFrame's first rows; None where that is not asked for, or pandas cannot."""
        asked = kernel.get_parent().get("metadata", {}).get("cellblock")
        if not isinstance(asked, dict) or not asked.get("dataframes"):
            return None
        try:
            shown: dict[str, Any] = json.loads(table.head(FRAME_ROWS).to_json(orient="table"))
        except Exception:  # noqa: BLE001 - whatever it is, the other forms are shown
            return None
        return shown

    formatter: Any = FrameFormatter(parent=kernel.shell.display_formatter)
    for module in ("pandas", "pandas.core.frame"):
        formatter.for_type_by_name(module, "DataFrame", frame)
    kernel.shell.display_formatter.formatters[FRAMES] = formatter
