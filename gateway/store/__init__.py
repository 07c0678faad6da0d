"""What survives the process, in SQLite or a database that speaks the same SQL."""

from gateway.store.sql import SqlStore

__all__ = ["SqlStore"]
