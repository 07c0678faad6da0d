"""The HTTP and WebSocket door: parse a request, call a use case, answer with a model."""
