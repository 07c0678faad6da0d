"""JSON-RPC 2.0 over a WebSocket: the whole API on one connection, with notifications and calls back."""
