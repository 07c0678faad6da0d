"""A kernel of a gateway as a local kernel process: ZMQ sockets here, a WebSocket there."""
