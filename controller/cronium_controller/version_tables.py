"""Tables of the controller's database for what has versions: runners on hosts, and payloads of events.

Only tables. `deployments` and `payload_versions` work with them; `store` makes them and owns the database.
"""

from typing import Final

import sqlalchemy as sql

metadata: Final = sql.MetaData()

runner_deployments: Final = sql.Table(
    "runner_deployments",
    metadata,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("host", sql.String, nullable=False),
    sql.Column("account", sql.String, nullable=False),
    sql.Column("version", sql.String),
    sql.Column("sha256", sql.String(64)),
    sql.Column("architecture", sql.String),
    sql.Column("deployed_at", sql.Float, nullable=False),
    sql.Column("duration_ms", sql.Float, nullable=False),
    sql.Column("bytes", sql.Integer, nullable=False),
    sql.Column("method", sql.String, nullable=False),
    sql.Column("attempts", sql.Integer, nullable=False),
    sql.Column("outcome", sql.String, nullable=False),
    sql.Column("error", sql.String),
    sql.Index("runner_deployments_by_account", "account", "id"),
)
runner_cache: Final = sql.Table(
    "runner_cache",
    metadata,
    sql.Column("account", sql.String, primary_key=True),
    sql.Column("root", sql.String, primary_key=True),
    # Version and the digest's first twelve digits, so this is the key by host, version and digest.
    sql.Column("folder", sql.String, primary_key=True),
    sql.Column("version", sql.String, nullable=False),
    sql.Column("sha256", sql.String(64)),
    sql.Column("architecture", sql.String, nullable=False),
    sql.Column("said_version", sql.String),
    sql.Column("tree_sha256", sql.String(64)),
    sql.Column("verified_at", sql.Float),
    sql.Column("checked_at", sql.Float),
    sql.Column("is_chosen", sql.Boolean, nullable=False, default=False, server_default=sql.text("0")),
)
events: Final = sql.Table(
    "events",
    metadata,
    sql.Column("id", sql.String(64), primary_key=True),
    sql.Column("name", sql.String),
    sql.Column("payload_version", sql.Integer, nullable=False, default=1, server_default=sql.text("1")),
)
runner_payloads: Final = sql.Table(
    "runner_payloads",
    metadata,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("event_id", sql.String(64), sql.ForeignKey("events.id"), nullable=False),
    sql.Column("version", sql.Integer, nullable=False),
    sql.Column("hash", sql.String(64), nullable=False),
    # Of the uncompressed tar: what decides whether something changed, whatever the compressor.
    sql.Column("tar_hash", sql.String(64), nullable=False),
    sql.Column("path", sql.String(512), nullable=False),
    sql.Column("size", sql.Integer, nullable=False),
    sql.Column("created_at", sql.Float, nullable=False),
    sql.Column("is_active", sql.Boolean, nullable=False),
    sql.UniqueConstraint("event_id", "version"),
)

CREATED: Final = (
    "CREATE TABLE events (id VARCHAR(64) NOT NULL, name VARCHAR, payload_version INTEGER DEFAULT 1 NOT NULL, "
    "PRIMARY KEY (id))",
    "CREATE TABLE runner_cache (account VARCHAR NOT NULL, root VARCHAR NOT NULL, folder VARCHAR NOT NULL, "
    "version VARCHAR NOT NULL, sha256 VARCHAR(64), architecture VARCHAR NOT NULL, said_version VARCHAR, "
    "tree_sha256 VARCHAR(64), verified_at FLOAT, checked_at FLOAT, is_chosen BOOLEAN DEFAULT 0 NOT NULL, "
    "PRIMARY KEY (account, root, folder))",
    "CREATE TABLE runner_deployments (id INTEGER NOT NULL, host VARCHAR NOT NULL, account VARCHAR NOT NULL, "
    "version VARCHAR, sha256 VARCHAR(64), architecture VARCHAR, deployed_at FLOAT NOT NULL, duration_ms FLOAT "
    "NOT NULL, bytes INTEGER NOT NULL, method VARCHAR NOT NULL, attempts INTEGER NOT NULL, outcome VARCHAR NOT "
    "NULL, error VARCHAR, PRIMARY KEY (id))",
    "CREATE INDEX runner_deployments_by_account ON runner_deployments (account, id)",
    "CREATE TABLE runner_payloads (id INTEGER NOT NULL, event_id VARCHAR(64) NOT NULL, version INTEGER NOT "
    "NULL, hash VARCHAR(64) NOT NULL, tar_hash VARCHAR(64) NOT NULL, path VARCHAR(512) NOT NULL, size INTEGER "
    "NOT NULL, created_at FLOAT NOT NULL, is_active BOOLEAN NOT NULL, PRIMARY KEY (id), UNIQUE (event_id, "
    "version), FOREIGN KEY(event_id) REFERENCES events (id))",
)
"""The same as it is written into a database of schema 4. Schema 5 is this, whatever later ones change above."""
