"""The platform's tables as the newest migration leaves them, for building statements. Values are JSON as text."""

from typing import Final

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite

metadata: Final = sql.MetaData()

live_executions: Final = sql.Table(
    "live_executions",
    metadata,
    sql.Column("id", sql.String(64), primary_key=True),
    sql.Column("job_id", sql.Text),
    sql.Column("user_id", sql.Text, nullable=False),
    sql.Column("host", sql.Text),
    sql.Column("context", sql.Text, nullable=False),
    sql.Column("input", sql.Text, nullable=False),
    sql.Column("output", sql.Text),
    sql.Column("condition", sql.Boolean),
    sql.Column("registered_at", sql.Double, nullable=False),
    sql.Column("revoked_at", sql.Double),
)
grants: Final = sql.Table(
    "grants",
    metadata,
    sql.Column("jti", sql.String(64), primary_key=True),
    sql.Column("execution_id", sql.String(64), sql.ForeignKey("live_executions.id"), nullable=False),
    sql.Column("issued_at", sql.Double, nullable=False),
    sql.Column("expires_at", sql.Double, nullable=False),
    sql.Column("revoked_at", sql.Double),
)
variables: Final = sql.Table(
    "variables",
    metadata,
    sql.Column("scope", sql.String(9), primary_key=True),
    sql.Column("owner", sql.Text, primary_key=True),
    # Bytes: a name may hold any character, and PostgreSQL's texts can't hold a NUL.
    sql.Column("name", sql.LargeBinary, primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
    sql.Column("changed_at", sql.Double, nullable=False),
)
applied_writes: Final = sql.Table(
    "applied_writes",
    metadata,
    sql.Column("execution_id", sql.String(64), sql.ForeignKey("live_executions.id"), primary_key=True),
    sql.Column("sequence", sql.BigInteger, primary_key=True),
    sql.Column("digest", sql.LargeBinary, nullable=False),
)
audit_log: Final = sql.Table(
    "audit_log",
    metadata,
    sql.Column("id", sql.BigInteger().with_variant(sql.Integer, "sqlite"), primary_key=True),
    sql.Column("at", sql.Double, nullable=False),
    sql.Column("actor", sql.Text, nullable=False),
    sql.Column("host", sql.Text),
    sql.Column("peer", sql.Text),
    sql.Column("action", sql.Text, nullable=False),
    sql.Column("execution_id", sql.String(64)),
    sql.Column("subject", sql.Text),
    sql.Column("sequence", sql.BigInteger),
    sql.Column("detail", sql.Text, nullable=False),
)
# What each execution has stored: `quotas` counts it. The name is empty for the output.
stored_values: Final = sql.Table(
    "stored_values",
    metadata,
    sql.Column("execution_id", sql.String(64), primary_key=True),
    sql.Column("name", sql.LargeBinary, primary_key=True),
    sql.Column("bytes", sql.BigInteger, nullable=False),
)
stored_totals: Final = sql.Table(
    "stored_totals",
    metadata,
    sql.Column("execution_id", sql.String(64), primary_key=True),
    sql.Column("keys", sql.BigInteger, nullable=False),
    sql.Column("bytes", sql.BigInteger, nullable=False),
)


def upsert(dialect: str, table: sql.Table) -> postgresql.Insert | sqlite.Insert:
    """An insert that can say what to do about a row that is there; both databases spell it the same."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
