"""How the platform's tables came to be: numbered steps, applied once each, forward only, the same on both databases.

A step that was released is never edited, so it is SQL as text and not today's `tables`; a test compares the two.
See docs/decisions/0009-numbered-migrations.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sql

from ..errors import StoreError
from .database import Database

PART: Final = "platform"
"""Several parts of one database can each have a version of their own in `schema_versions`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One version's statements: `both`, then those of the one database. {words} stand for its types, see `_TYPES`."""

    both: Sequence[str]
    sqlite: Sequence[str] = field(default=())
    postgresql: Sequence[str] = field(default=())


_TYPES: Final = {
    True: {"serial": "INTEGER PRIMARY KEY AUTOINCREMENT", "bytes": "BLOB", "real": "REAL"},
    False: {
        "serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "bytes": "BYTEA",
        "real": "DOUBLE PRECISION",
    },
}

VERSIONS: Final = (
    "CREATE TABLE IF NOT EXISTS schema_versions (part VARCHAR(40) NOT NULL PRIMARY KEY, version INTEGER NOT NULL)"
)

# "cron" in ASCII. Whoever migrates holds this lock of PostgreSQL's; SQLite's writers exclude each other anyway.
_LOCK: Final = 0x63726F6E

STEPS: Final[tuple[Step, ...]] = (
    Step(
        both=(
            """CREATE TABLE live_executions (
                 id VARCHAR(64) NOT NULL PRIMARY KEY, job_id TEXT, user_id TEXT NOT NULL, host TEXT,
                 context TEXT NOT NULL, input TEXT NOT NULL, output TEXT, condition BOOLEAN,
                 registered_at {real} NOT NULL, revoked_at {real})""",
            """CREATE TABLE grants (
                 jti VARCHAR(64) NOT NULL PRIMARY KEY,
                 execution_id VARCHAR(64) NOT NULL REFERENCES live_executions (id),
                 issued_at {real} NOT NULL, expires_at {real} NOT NULL, revoked_at {real})""",
            "CREATE INDEX grants_by_execution ON grants (execution_id)",
            """CREATE TABLE variables (
                 scope VARCHAR(9) NOT NULL, owner TEXT NOT NULL, name {bytes} NOT NULL, value TEXT NOT NULL,
                 changed_at {real} NOT NULL, PRIMARY KEY (scope, owner, name))""",
            """CREATE TABLE applied_writes (
                 execution_id VARCHAR(64) NOT NULL REFERENCES live_executions (id), sequence BIGINT NOT NULL,
                 digest {bytes} NOT NULL, PRIMARY KEY (execution_id, sequence))""",
            """CREATE TABLE audit_log (
                 id {serial}, at {real} NOT NULL, actor TEXT NOT NULL, host TEXT, peer TEXT, action TEXT NOT NULL,
                 execution_id VARCHAR(64), subject TEXT, sequence BIGINT, detail TEXT NOT NULL)""",
            "CREATE INDEX audit_log_by_execution ON audit_log (execution_id, id)",
        ),
        sqlite=(
            """CREATE TRIGGER audit_log_no_update BEFORE UPDATE ON audit_log
                 BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
            """CREATE TRIGGER audit_log_no_delete BEFORE DELETE ON audit_log
                 BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
            # INSERT OR REPLACE deletes without the trigger above, unless recursive_triggers is on.
            """CREATE TRIGGER audit_log_no_replace BEFORE INSERT ON audit_log
                 WHEN EXISTS (SELECT 1 FROM audit_log WHERE id = NEW.id)
                 BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
        ),
        postgresql=(
            """CREATE FUNCTION audit_log_append_only() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$""",
            """CREATE TRIGGER audit_log_no_change BEFORE UPDATE OR DELETE ON audit_log
                 FOR EACH ROW EXECUTE FUNCTION audit_log_append_only()""",
            """CREATE TRIGGER audit_log_no_truncate BEFORE TRUNCATE ON audit_log
                 FOR EACH STATEMENT EXECUTE FUNCTION audit_log_append_only()""",
        ),
    ),
)

QUOTA_PART: Final = "quotas"
QUOTA_STEPS: Final[tuple[Step, ...]] = (
    Step(
        both=(
            """CREATE TABLE stored_values (
                 execution_id VARCHAR(64) NOT NULL, name {bytes} NOT NULL, bytes BIGINT NOT NULL,
                 PRIMARY KEY (execution_id, name))""",
            """CREATE TABLE stored_totals (
                 execution_id VARCHAR(64) NOT NULL PRIMARY KEY, keys BIGINT NOT NULL, bytes BIGINT NOT NULL)""",
        ),
    ),
)
"""Apart from STEPS: version 0.1.0 can go on with a database that has these too."""


def migrate(database: Database, part: str = PART, steps: Sequence[Step] = STEPS) -> None:
    """Brings `part` of the database to the newest version, all of it or nothing.

    Raises StoreError for a database that a newer version of ours has written.
    """
    with database.reading() as connection:  # the usual start writes nothing
        if _has_versions(connection) and _version(connection, part) == len(steps):
            return
    with database.writing() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        connection.exec_driver_sql(VERSIONS)
        found = _version(connection, part)
        if found > len(steps):
            raise StoreError(
                f"{database.name} was written by a newer cronium (version {found} of its {part} tables, "
                f"we know {len(steps)}); install that one, or set CRONIUM_DATABASE"
            )
        for step in steps[found:]:
            for statement in (*step.both, *(step.sqlite if database.is_sqlite else step.postgresql)):
                connection.exec_driver_sql(_in_dialect(statement, database.is_sqlite))
        connection.execute(sql.text("DELETE FROM schema_versions WHERE part = :part"), {"part": part})
        connection.execute(
            sql.text("INSERT INTO schema_versions (part, version) VALUES (:part, :version)"),
            {"part": part, "version": len(steps)},
        )


def _in_dialect(statement: str, is_sqlite: bool) -> str:
    for word, meaning in _TYPES[is_sqlite].items():
        statement = statement.replace(f"{{{word}}}", meaning)
    return statement


def _has_versions(connection: sql.Connection) -> bool:
    return sql.inspect(connection).has_table("schema_versions")


def _version(connection: sql.Connection, part: str) -> int:
    row = connection.execute(
        sql.text("SELECT version FROM schema_versions WHERE part = :part"), {"part": part}
    ).one_or_none()
    return 0 if row is None else row.version
