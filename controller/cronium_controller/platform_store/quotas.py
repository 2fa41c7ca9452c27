"""What one execution has stored, and whether it may store more.

Counted in tables of their own, so that an older version, which doesn't know them, can use the database as well.
Replacing a value gives its bytes back; what another execution does with a variable changes nothing here.
"""

from typing import Any, Final, NamedTuple

import sqlalchemy as sql

from .tables import stored_totals, stored_values, upsert

KEYS: Final = "keys"
STORED_BYTES: Final = "stored_bytes"

OUTPUT: Final = b""
"""The name under which the output is counted: no variable has an empty one."""


class Quota(NamedTuple):
    """How many variables, and how many bytes of names and values, the tokens of one execution may store."""

    keys: int
    stored_bytes: int


class QuotaError(Exception):
    """A write that would exceed a quota. It was not applied. `quota` is KEYS or STORED_BYTES."""

    def __init__(self, quota: str, message: str) -> None:
        super().__init__(message)
        self.quota = quota


def charge(connection: sql.Connection, execution_id: str, name: bytes, size: int, quota: Quota) -> None:
    """Counts a value of `size` bytes. Raises QuotaError.

    The caller's transaction has the execution's writes to itself.
    """
    size += len(name)
    mine = {"execution": execution_id, "name": name}
    before = connection.execute(_FIND_VALUE, mine).scalar_one_or_none()
    totals = connection.execute(_FIND_TOTALS, {"execution": execution_id}).one_or_none()
    keys, stored = (0, 0) if totals is None else (totals.keys, totals.bytes)
    keys += before is None and name != OUTPUT
    grown = size - (before or 0)
    if keys > quota.keys:
        raise QuotaError(KEYS, f"this execution has set {quota.keys} variables and may set no more")
    if grown > 0 and stored + grown > quota.stored_bytes:
        said = f"this execution's output and variables would have more than {quota.stored_bytes} bytes"
        raise QuotaError(STORED_BYTES, f"{said}; set shorter values")
    dialect = connection.dialect.name
    _put(connection, dialect, stored_values, {"execution_id": execution_id, "name": name, "bytes": size})
    _put(connection, dialect, stored_totals, {"execution_id": execution_id, "keys": keys, "bytes": stored + grown})


def give_back(connection: sql.Connection, execution_id: str, name: bytes) -> None:
    """Counts a variable no more. What another execution has stored under that name stays counted there."""
    mine = {"execution": execution_id, "name": name}
    before = connection.execute(_FIND_VALUE, mine).scalar_one_or_none()
    if before is None:
        return
    totals = connection.execute(_FIND_TOTALS, {"execution": execution_id}).one()
    connection.execute(_FORGET_VALUE, mine)
    row = {"execution_id": execution_id, "keys": totals.keys - 1, "bytes": totals.bytes - before}
    _put(connection, connection.dialect.name, stored_totals, row)


def _put(connection: sql.Connection, dialect: str, table: sql.Table, row: dict[str, Any]) -> None:
    connection.execute(_putting(dialect, table), row)


_statements: dict[tuple[str, str], Any] = {}


def _putting(dialect: str, table: sql.Table) -> Any:
    """Made once: SQLAlchemy takes longer to put a statement together than SQLite to execute it."""
    known = _statements.get((dialect, table.name))
    if known is None:
        statement = upsert(dialect, table)
        changed = {column.name: statement.excluded[column.name] for column in table.c if not column.primary_key}
        keys = [column for column in table.c if column.primary_key]
        known = _statements[dialect, table.name] = statement.on_conflict_do_update(index_elements=keys, set_=changed)
    return known


_FIND_VALUE: Final = sql.select(stored_values.c.bytes).where(
    stored_values.c.execution_id == sql.bindparam("execution"), stored_values.c.name == sql.bindparam("name")
)
_FORGET_VALUE: Final = sql.delete(stored_values).where(
    stored_values.c.execution_id == sql.bindparam("execution"), stored_values.c.name == sql.bindparam("name")
)
_FIND_TOTALS: Final = sql.select(stored_totals.c["keys"], stored_totals.c.bytes).where(
    stored_totals.c.execution_id == sql.bindparam("execution")
)
