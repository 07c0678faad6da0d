"""Jupyter messaging without I/O: bytes in, values out."""
