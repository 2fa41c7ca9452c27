"""Moves live data out of the controller's database, where version 0.1.0 kept it, into `live.db` beside it.

Two files can't be changed in one transaction. So there are two, in an order in which a crash at any point loses
nothing:

1. In `controller.db`, exclusively: triggers refuse every change of the old tables, and their version becomes MOVED. A
   version 0.1.0 that opens the file now refuses it as written by a newer one. One that has it open gets an error for
   each write. From here on the old tables don't change.
2. In `live.db`: all rows are copied, and MOVE is noted. Without that note the next start copies again.

The old tables stay for one version, to be read. A later version drops them.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import sqlalchemy as sql

from ..database import BUSY_SECONDS, create_privately, keep_log
from ..state_path import LIVE_NAME, default_path
from .database import Database, check_private
from .migrations import PART, VERSIONS

MOVED: Final = 1000
"""The version of the old tables in `controller.db` once their rows are in `live.db`. No set of tables gets that far."""
MOVE: Final = "moved"
"""The part of `live.db`'s versions that says that the old tables have been copied."""

_KEYED: Final = ("live_executions", "grants", "applied_writes")
_TABLES: Final = (*_KEYED, "variables", "audit_log")
_REFUSAL: Final = f"live data has moved to {LIVE_NAME}; end this cronium and use the newer one"

_log = logging.getLogger("cronium.live")


def live_url(url: sql.URL) -> sql.URL:
    """The database that holds the live data where `url` is named: `live.db` beside a controller's own database.

    There a script's writes could keep the controller from storing a result.
    """
    if url.get_backend_name() != "sqlite":
        return url
    path = Path(str(url.database))
    return url.set(database=str(path.with_name(LIVE_NAME))) if _is_controllers(path) else url


def move_live_data(database: Database) -> None:
    """Copies the live data of the `controller.db` beside a `live.db`, once, and closes the old tables.

    Processes that do this at the same time wait for each other. Raises StoreError.
    """
    path = Path(str(database.url.database))
    old = path.with_name("controller.db")
    if not database.is_sqlite or path.name != LIVE_NAME or not (old.exists() or old == default_path()):
        return
    try:
        was_noted = _is_noted(path)
        was_open = _close_old(old)
        if was_noted and was_open:
            _log.warning("older_version_wrote", extra={"database": str(old)})
        if was_open or not was_noted:
            _copy(old, path, again=was_open)
    except (OSError, sqlite3.Error) as error:
        raise database.unusable("written", error) from None


def _is_controllers(path: Path) -> bool:
    """Whether a file is a controller's database, or one whose live data has moved."""
    try:
        with _opened(path, must_exist=True) as connection:
            return _has(connection, "executions") or _version(connection) == MOVED
    except (OSError, sqlite3.Error):
        return False  # what is wrong with it is told where it is opened


def _is_noted(path: Path) -> bool:
    with _opened(path) as connection:
        return _version(connection, MOVE) > 0


def _close_old(old: Path) -> bool:
    """The first step; whether there was something to do. A file is made where there is none, so that an older version
    doesn't begin a second set of live data there."""
    old.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_privately(old)
    check_private(old)
    with _opened(old) as connection:
        if _version(connection) == MOVED:
            return False
        keep_log(connection)
        connection.execute("PRAGMA synchronous = FULL")  # it has to be on disk before the second step
        with _exclusively(connection):
            if _version(connection) == MOVED:  # another process was first
                return False
            connection.execute(VERSIONS)
            for table in _TABLES:
                if _has(connection, table):
                    _refuse_changes(connection, table)
            connection.execute("DELETE FROM schema_versions WHERE part = ?", (PART,))
            _note(connection, PART, MOVED)
    return True


def _refuse_changes(connection: sqlite3.Connection, table: str) -> None:
    for change in ("INSERT", "UPDATE", "DELETE"):
        connection.execute(
            f"CREATE TRIGGER {table}_moved_{change.lower()} BEFORE {change} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        )


def _copy(old: Path, live: Path, *, again: bool) -> None:
    """The second step. `controller.db` is only read, so that results are stored there meanwhile. `again`: also when it
    was done before."""
    with _opened(live) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("ATTACH ? AS old", (str(old),))
        connection.execute("BEGIN")
        is_first = _note(connection, MOVE, 1)  # a write, so that of two processes one goes on after the other
        for table in _TABLES if is_first or again else ():
            if _has(connection, table, "old"):
                _copy_table(connection, table)
        connection.execute("COMMIT")


def _copy_table(connection: sqlite3.Connection, table: str) -> None:
    """What `live.db` has already stays: after a crash, or when an older version has written once more."""
    names = [row[1] for row in connection.execute(f"PRAGMA old.table_info({table})")]
    columns = ", ".join(names)
    if table in _KEYED:
        connection.execute(f"INSERT OR IGNORE INTO main.{table} ({columns}) SELECT {columns} FROM old.{table}")
    elif table == "variables":
        connection.execute(
            f"INSERT INTO main.variables ({columns}) SELECT {columns} FROM old.variables WHERE true "
            "ON CONFLICT (scope, owner, name) DO UPDATE SET value = excluded.value, changed_at = excluded.changed_at "
            "WHERE excluded.changed_at > variables.changed_at"
        )
    elif connection.execute("SELECT 1 FROM main.audit_log LIMIT 1").fetchone() is None:
        connection.execute(f"INSERT INTO main.audit_log ({columns}) SELECT {columns} FROM old.audit_log ORDER BY id")
    else:
        names.remove("id")  # numbers of its own, behind those that are there
        columns = ", ".join(names)
        same = " AND ".join(f"new.{name} IS was.{name}" for name in names)
        connection.execute(
            f"INSERT INTO main.audit_log ({columns}) SELECT {columns} FROM old.audit_log AS was "
            f"WHERE NOT EXISTS (SELECT 1 FROM main.audit_log AS new WHERE {same}) ORDER BY was.id"
        )


@contextlib.contextmanager
def _opened(path: Path, *, must_exist: bool = False) -> Iterator[sqlite3.Connection]:
    if must_exist and not path.is_file():
        raise FileNotFoundError(path)
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()  # undoes a transaction that was not committed


@contextlib.contextmanager
def _exclusively(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN EXCLUSIVE")
    yield
    connection.execute("COMMIT")


def _has(connection: sqlite3.Connection, table: str, schema: str = "main") -> bool:
    found = connection.execute(f"SELECT 1 FROM {schema}.sqlite_master WHERE type = 'table' AND name = ?", (table,))
    return found.fetchone() is not None


def _version(connection: sqlite3.Connection, part: str = PART) -> int:
    if not _has(connection, "schema_versions"):
        return 0
    row = connection.execute("SELECT version FROM schema_versions WHERE part = ?", (part,)).fetchone()
    return 0 if row is None else int(row[0])


def _note(connection: sqlite3.Connection, part: str, version: int) -> bool:
    """Notes the version of a part that has none; whether it had none."""
    statement = "INSERT OR IGNORE INTO main.schema_versions (part, version) VALUES (?, ?)"
    return connection.execute(statement, (part, version)).rowcount > 0
