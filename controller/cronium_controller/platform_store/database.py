"""One database, SQLite or PostgreSQL, with the same transactions on both.

Which settings each needs, and nothing about what is kept in it.
"""

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sql

from ..database import BUSY_SECONDS, create_privately, keep_log, reason
from ..errors import StoreError
from ..state_path import default_live_path

# As many transactions at once as PostgreSQL gets connections. More would only queue inside it; its own default is
# 100 for everybody.
CONNECTIONS: Final = 8


def database_url(given: str | None = None) -> sql.URL:
    """`given`, else CRONIUM_DATABASE, else `live.db` beside the controller's database. A path is an SQLite file.

    Raises StoreError for a URL that can't be used.
    """
    text = given or os.environ.get("CRONIUM_DATABASE")
    if not text:
        return sql.URL.create("sqlite", database=str(default_live_path()))
    if "://" not in text:
        return sql.URL.create("sqlite", database=text)
    try:
        url = sql.make_url(text)
    except sql.exc.ArgumentError:
        raise StoreError("the database's URL cannot be read; write postgresql://user@host/name or a path") from None
    backend = url.get_backend_name()
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise StoreError("a database in memory forgets everything; name a file: sqlite:////var/lib/cronium/live.db")
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise StoreError(f"no database of the kind '{backend}' can be used; SQLite and PostgreSQL can")
    return url


class Database:
    """Opens transactions. May be used by several threads at once."""

    def __init__(self, url: sql.URL) -> None:
        """Raises StoreError when it cannot be opened; a new SQLite file is created for the owner alone."""
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        # Threads of one process take turns here, in order. SQLite's own waiting is polling, and may starve one.
        self._turn: contextlib.AbstractContextManager[Any] = threading.Lock() if self.is_sqlite else _NO_TURN
        with self._translated("opened"):
            if self.is_sqlite:
                _create_privately(Path(str(url.database)))
            self._engine = _engine(url, self.is_sqlite)
            self._writing = self._engine.execution_options(cronium_writes=True)

    def __repr__(self) -> str:
        return f"<Database {self.name}>"

    @property
    def name(self) -> str:
        """For messages: the URL without its password."""
        return str(self.url.database) if self.is_sqlite else self.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sql.Connection]:
        """A transaction that reads."""
        with self._translated("read"), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sql.Connection]:
        """A transaction that may write. Durable when it is left without an exception, undone otherwise."""
        with self._translated("written"), self._turn, self._writing.begin() as connection:
            yield connection

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (OSError, sql.exc.SQLAlchemyError, ImportError) as error:
            raise self.unusable(verb, error) from None

    def unusable(self, verb: str, error: Exception) -> StoreError:
        """The error for a database that cannot be `verb`."""
        return StoreError(f"the database {self.name} cannot be {verb}: {self._reason(error)}")

    def _reason(self, error: Exception) -> str:
        """What the database or the system said, without the statement, and what to do about it."""
        if isinstance(error, ImportError):
            return "PostgreSQL's driver is not installed; install it with: pip install 'cronium-runner[postgresql]'"
        said = getattr(error, "orig", None) or error
        if self.is_sqlite:
            return f"{reason(said, Path(str(self.url.database)))}, or set CRONIUM_DATABASE"
        first = str(said).strip().splitlines()[0].rstrip(".;")
        return f"{first}; see to the server and to who may log in there, or set CRONIUM_DATABASE"


_NO_TURN: Final = contextlib.nullcontext()


def _engine(url: sql.URL, is_sqlite: bool) -> sql.Engine:
    # hide_parameters: values and keys must not get into exceptions and from there into logs.
    shared: dict[str, Any] = {"hide_parameters": True, "pool_size": CONNECTIONS, "max_overflow": 0}
    if not is_sqlite:
        return sql.create_engine(url, pool_pre_ping=True, **shared)  # the server may have been restarted
    arguments = {"check_same_thread": False, "timeout": BUSY_SECONDS}
    engine = sql.create_engine(url, poolclass=sql.pool.QueuePool, connect_args=arguments, **shared)
    sql.event.listen(engine, "connect", _prepare_sqlite)
    sql.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say, also around DDL
    keep_log(connection)
    # FULL: once we have answered, the runner forgets its copy of a write. NORMAL would lose it in a power cut.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: sql.Connection) -> None:
    # IMMEDIATE: a reader that turns writer is refused at once when somebody else writes, without any waiting.
    is_writing = connection.get_execution_options().get("cronium_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


def _create_privately(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_privately(path)  # -wal and -shm get the same mode
    check_private(path)


def check_private(path: Path) -> None:
    """Raises StoreError for a file that others can read or write."""
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise StoreError(f"{path} is open to other users; make it yours alone with: chmod 600 {path}")
