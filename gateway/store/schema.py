"""The tables of the store, and what brings those of an earlier version up to date."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

SCHEMA_VERSION = 3


class UtcDateTime(sa.TypeDecorator[datetime]):
    """Keep aware moments in UTC, also where the database knows no zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        """Turn any aware moment into UTC; a naive one is refused."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a moment without a time zone cannot be stored")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        """Return an aware moment in UTC."""
        if value is not None and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value and value.astimezone(UTC)


metadata = sa.MetaData()

schema = sa.Table("schema", metadata, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("principal", sa.Text, nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("secret_hash", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("revoked_at", UtcDateTime),
)

kernels = sa.Table(
    "kernels",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("limits", sa.JSON, nullable=False),
    sa.Column("env", sa.JSON, nullable=False),
    sa.Column("secret_names", sa.JSON, nullable=False),
    sa.Column("workspace", sa.JSON(none_as_null=True)),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("kernel_id", sa.Text, nullable=False),
    sa.Column("kernel_name", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Index("sessions_owner_path", "owner", "path", unique=True),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("who", sa.Text),
    sa.Column("kernel_id", sa.Text),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("record", sa.JSON, nullable=False),
    sa.Index("audit_who", "who", "seq"),
    sa.Index("audit_kernel", "kernel_id", "seq"),
)

usage_days = sa.Table(
    "usage_days",
    metadata,
    sa.Column("principal", sa.Text, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("cpu_s", sa.Float, nullable=False),
    sa.Column("output_bytes", sa.BigInteger, nullable=False),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("request_sha256", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("kernel_id", sa.Text),
    sa.Column("context", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("jobs_owner_key", "owner", "idempotency_key", unique=True),
    sa.Index("jobs_owner_created", "owner", "created_at"),
)

sandboxes = sa.Table(
    "sandboxes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("credential_ends_at", UtcDateTime),
    sa.Column("template", sa.Text, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("workspace", sa.Text, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("env", sa.JSON, nullable=False),
    sa.Column("contexts", sa.JSON, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("end_at", UtcDateTime, nullable=False),
)

# What brings a store of the version before to the version that is the key; new tables are made anyway.
MIGRATIONS: Mapping[int, tuple[str, ...]] = {
    2: ("ALTER TABLE kernels ADD COLUMN secret_names JSON NOT NULL DEFAULT '[]'",),
    3: ("ALTER TABLE kernels ADD COLUMN workspace JSON",),
}

# What is done every day, made once: to build a statement costs more than to run it. WHICH is a row's id.
WHICH = "which"
_OWN_IDS = [table for table in metadata.sorted_tables if "id" in table.c]
ADD: Mapping[sa.Table, sa.Insert] = {table: table.insert() for table in metadata.sorted_tables}
ONE: Mapping[sa.Table, sa.Select[Any]] = {
    table: sa.select(table).where(table.c.id == sa.bindparam(WHICH)) for table in _OWN_IDS
}
CHANGE: Mapping[sa.Table, sa.Update] = {
    table: table.update().where(table.c.id == sa.bindparam(WHICH)) for table in _OWN_IDS
}
FORGET: Mapping[sa.Table, sa.Delete] = {
    table: table.delete().where(table.c.id == sa.bindparam(WHICH)) for table in _OWN_IDS
}
SESSION_AT = sa.select(sessions).where(
    (sessions.c.owner == sa.bindparam("owner")) & (sessions.c.path == sa.bindparam("path"))
)
