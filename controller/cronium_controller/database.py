"""The controller's database: one SQLite file of this user's alone, brought to the tables of today when it is opened.

Python's own sqlite3: it is loaded in milliseconds (docs/decisions/0020). What the tables mean is not known here.
"""

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from . import schema
from .errors import StoreError

BUSY_SECONDS: Final = 60.0
"""For another process's write to end; each takes a millisecond or two, or as long as a slow disk needs for a sync."""

_TURN_SECONDS: Final = 0.01
_KIND: Final = 0xFF
"""The bits of an SQLite error code that tell what is wrong; the others tell more of it."""
_SMALLEST_ROOM: Final = 64 * 1024
"""Bytes: SQLite's index of its log alone takes 32 KiB, and an execution's row some pages."""


def inserting(table: str, columns: Sequence[str]) -> str:
    """The statement that inserts a row, with values by the names of its columns. Both are constants of ours."""
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(f':{name}' for name in columns)})"


def assigned(columns: Sequence[str], source: str = ":") -> str:
    """`a = :a, b = :b` for an UPDATE; with the source `excluded.`, what an ON CONFLICT puts in place of a row."""
    return ", ".join(f"{name} = {source}{name}" for name in columns)


def create_privately(path: Path) -> None:
    """Makes the file of a database, so that it is never open to others, whatever the umask. One that is there is not
    touched: closing it would release the locks that SQLite has on it for another connection of this process, and then
    whoever leaves next takes itself for the last one, and removes the log that we go on writing to. Raises OSError.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def keep_log(connection: sqlite3.Connection) -> None:
    """Turns a database to WAL, where it isn't yet. For another process that writes SQLite waits, but not for one that
    is just turning it, too, or removes the log as the last one to leave: "locked" at once, so we ask again, for about
    as long as SQLite waits elsewhere (BUSY_SECONDS). Raises sqlite3.Error.
    """
    patience = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & _KIND != sqlite3.SQLITE_BUSY or time.monotonic() >= patience:
                raise
        time.sleep(_TURN_SECONDS)


class Database:
    """An open database. A statement outside of `writing` is a transaction of its own."""

    def __init__(self, path: Path) -> None:
        """Opens or creates it. Raises StoreError."""
        self.path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            create_privately(path)
            # Its -wal and -shm get the same mode from SQLite.
            found = path.stat()
            if found.st_uid not in (os.geteuid(), 0):
                raise StoreError(
                    f"{path} belongs to another user (uid {found.st_uid}), who could have written it; remove it, "
                    "or set CRONIUM_CONTROLLER_STATE to a folder of your own"
                )
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise StoreError(f"{path} is open to other users; make it yours alone with: chmod 600 {path}")
            self._connection = sqlite3.connect(
                path,
                timeout=BUSY_SECONDS,
                isolation_level=None,  # no transactions but those that we begin
                check_same_thread=False,  # `own_store` has it used by one thread after another
            )
            self._connection.row_factory = sqlite3.Row
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise self._unusable("used", error) from None

    def _unusable(self, verb: str, error: Exception) -> StoreError:
        why = reason(error, self.path)
        return StoreError(f"the database {self.path} cannot be {verb}: {why}, or set CRONIUM_CONTROLLER_STATE")

    def _prepare(self) -> None:
        execute = self._connection.execute
        keep_log(self._connection)
        # NORMAL survives a crash of ours at any point. A power loss of this machine can take back the last commits, and
        # then an id was forgotten that the host still knows; the host, not this table, makes a start happen once.
        execute("PRAGMA synchronous = NORMAL")
        found = self._version()
        if found > schema.VERSION:
            raise StoreError(
                f"{self.path} was written by a newer cronium (schema {found}, we know {schema.VERSION}); "
                "install that one, or set CRONIUM_CONTROLLER_STATE"
            )
        if found < schema.VERSION:
            execute("BEGIN IMMEDIATE")  # two first starts at once: the second finds the tables made
            self._migrate(self._version())
            execute("COMMIT")
        if self._absent_additions():
            execute("BEGIN IMMEDIATE")
            for name in self._absent_additions():
                for statement in schema.ADDITIONS[name]:
                    execute(statement)
            execute("COMMIT")

    def _version(self) -> int:
        found: int = self._connection.execute("PRAGMA user_version").fetchone()[0]
        return found

    def _absent_additions(self) -> list[str]:
        tables = {row[0] for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return [name for name in schema.ADDITIONS if name not in tables]

    def _migrate(self, found: int) -> None:
        if found >= schema.VERSION:
            return
        older = range(found, schema.VERSION)
        for statement in schema.CREATED if found == 0 else [one for step in older for one in schema.MIGRATIONS[step]]:
            self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {schema.VERSION}")

    def close(self) -> None:
        """Closes it."""
        self._connection.close()

    def read(self, statement: str, values: Mapping[str, Any] | None = None) -> list[sqlite3.Row]:
        """The rows that a statement finds. Raises StoreError."""
        try:
            return self._connection.execute(statement, values or {}).fetchall()
        except sqlite3.Error as error:
            raise self._unusable("read", error) from None

    def write(self, statement: str, values: Mapping[str, Any] | None = None) -> int:
        """Executes a statement, and commits it outside of `writing`; how many rows it changed. Raises StoreError."""
        try:
            return self._connection.execute(statement, values or {}).rowcount
        except sqlite3.Error as error:
            raise self._unusable("written", error) from None

    def write_each(self, statement: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Executes a statement for each of the rows, inside of `writing`. Raises StoreError."""
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            raise self._unusable("written", error) from None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that no other process's write can come between; all of it or nothing. Raises StoreError.

        Nothing may be awaited in it: the connection is this process's only one.
        """
        self.write("BEGIN IMMEDIATE")
        try:
            yield
            self.write("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # also of a disk that is full: then SQLite has done it
                self._connection.rollback()
            raise


def reason(error: Exception, path: Path) -> str:
    """What kept a database from being used, and what to do about it.

    On a full disk SQLite says so only sometimes; else it is an I/O error, or a file that can't be opened.
    """
    with contextlib.suppress(OSError):
        disk = os.statvfs(path.parent)
        if disk.f_bavail * disk.f_frsize < _SMALLEST_ROOM or (disk.f_files and not disk.f_favail):
            return f"the disk is full; make room on {path.parent}"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{said}; mend it"
