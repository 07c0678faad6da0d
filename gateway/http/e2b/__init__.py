"""The API that E2B's SDKs speak: sandboxes, code, files and processes in them."""
