"""What the controller remembers: each execution, before it is submitted and until it is forgotten; how hosts stood.

SQLAlchemy Core over SQLite. Nothing here talks to a host. Secrets are never stored.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import sqlalchemy as sql
from sqlalchemy.dialects import sqlite

from cronium_runner.wire import exactjson
from cronium_runner.wire.access import API, BUNDLED
from cronium_runner.wire.results import Result

from .errors import ControllerError, StoreError
from .health import Breaker, HostHealth, SSHHealth
from .hosts import Host
from .state_path import default_path as default_path
from .version_tables import CREATED as _VERSION_TABLES
from .version_tables import metadata as _versions

SCHEMA_VERSION: Final = 5

_metadata = sql.MetaData()
executions = sql.Table(
    "executions",
    _metadata,
    sql.Column("id", sql.String(64), primary_key=True),
    sql.Column("host", sql.String, nullable=False),
    sql.Column("address", sql.String, nullable=False),
    sql.Column("port", sql.Integer),
    sql.Column("user", sql.String),
    sql.Column("identity", sql.String),
    sql.Column("payload_sha256", sql.String(64), nullable=False),
    sql.Column("label", sql.String, nullable=False),
    sql.Column("state", sql.String, nullable=False),
    sql.Column("submitted_at", sql.Float, nullable=False),
    sql.Column("finished_at", sql.Float),
    sql.Column("result", sql.LargeBinary),
    sql.Column("is_acknowledged", sql.Boolean, nullable=False, default=False),
    sql.Column("run_as", sql.String),
    sql.Column("mode", sql.String, nullable=False, server_default=BUNDLED),
    sql.Column("fallback", sql.LargeBinary),
    sql.Column("ways", sql.String),
    sql.Index("executions_by_time", "submitted_at"),
)
host_health = sql.Table(
    "host_health",
    _metadata,
    sql.Column("account", sql.String, primary_key=True),
    sql.Column("last_success", sql.Float),
    sql.Column("last_failure", sql.Float),
    sql.Column("consecutive_failures", sql.Integer, nullable=False),
    sql.Column("consecutive_successes", sql.Integer, nullable=False),
    sql.Column("total_successes", sql.Integer, nullable=False),
    sql.Column("total_failures", sql.Integer, nullable=False),
    sql.Column("unreachable", sql.Integer, nullable=False),
    sql.Column("next_try", sql.Float, nullable=False),
    sql.Column("transport", sql.String),
    sql.Column("transport_at", sql.Float),
    sql.Column("last_error", sql.String),
)


_MIGRATIONS: Final = {
    1: ("ALTER TABLE executions ADD COLUMN run_as VARCHAR",),
    2: (
        f"ALTER TABLE executions ADD COLUMN mode VARCHAR DEFAULT '{BUNDLED}' NOT NULL",
        "ALTER TABLE executions ADD COLUMN fallback BLOB",
    ),
    3: (
        "ALTER TABLE executions ADD COLUMN ways VARCHAR",
        "CREATE TABLE host_health (account VARCHAR NOT NULL, last_success FLOAT, last_failure FLOAT, "
        "consecutive_failures INTEGER NOT NULL, consecutive_successes INTEGER NOT NULL, "
        "total_successes INTEGER NOT NULL, total_failures INTEGER NOT NULL, unreachable INTEGER NOT NULL, "
        "next_try FLOAT NOT NULL, transport VARCHAR, transport_at FLOAT, last_error VARCHAR, PRIMARY KEY (account))",
    ),
    4: _VERSION_TABLES,
}
"""What makes the next schema of an older one."""


class Reason(NamedTuple):
    """Why something is not as it was wanted: a code of `wire.codes.CODES`, and a sentence."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Record:
    """One execution as the controller knows it. Times are seconds since the epoch.

    `run_as` is the account of the host that it runs as; None for the one that logs in.
    """

    id: str
    host: Host
    payload_sha256: str
    label: str
    state: str
    submitted_at: float
    finished_at: float | None
    result: Result | None
    is_acknowledged: bool
    run_as: str | None = None
    mode: str = BUNDLED
    """The mode that it was submitted in."""
    fallback: Reason | None = None
    """Why that was not the mode that was preferred."""

    @property
    def may_write(self) -> bool:
        """Whether the platform may yet get something from it."""
        return self.mode == API and (self.result is None or self.result.undelivered > 0)


def create_privately(path: Path) -> None:
    """Makes the file of a database, so that it is never open to others, whatever the umask. One that is there is not
    touched: closing it would release the locks that SQLite has on it for another connection of this process, and then
    whoever leaves next takes itself for the last one, and removes the log that we go on writing to. Raises OSError.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


class Store:
    """The database. One per process; its calls take well under a millisecond and are made inline."""

    def __init__(self, path: Path | None = None) -> None:
        """Opens or creates it. Raises StoreError."""
        self.path = path or default_path()
        self._is_writing = False
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            create_privately(self.path)
            # Its -wal and -shm get the same mode from SQLite.
            if stat.S_IMODE(self.path.stat().st_mode) & 0o077:
                raise StoreError(f"{self.path} is open to other users; make it yours alone with: chmod 600 {self.path}")
            self._engine = sql.create_engine(f"sqlite:///{self.path}", poolclass=sql.pool.StaticPool)
            self._connection = self._engine.connect()
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise
        except (OSError, sql.exc.SQLAlchemyError) as error:
            raise StoreError(
                f"the database {self.path} cannot be used: {_reason(error)}; mend it or set CRONIUM_CONTROLLER_STATE"
            ) from None

    def _prepare(self) -> None:
        execute = self._connection.exec_driver_sql
        execute("PRAGMA busy_timeout = 5000")
        execute("PRAGMA journal_mode = WAL")
        # NORMAL survives a crash of ours at any point. A power loss of this machine can take back the last commits, and
        # then an id was forgotten that the host still knows; the host, not this table, makes a start happen once.
        execute("PRAGMA synchronous = NORMAL")
        found = execute("PRAGMA user_version").scalar_one()
        if found > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} was written by a newer cronium (schema {found}, we know {SCHEMA_VERSION}); "
                "install that one, or set CRONIUM_CONTROLLER_STATE"
            )
        if found < SCHEMA_VERSION:
            execute("BEGIN IMMEDIATE")  # two first starts at once: the second finds the tables made
            found = execute("PRAGMA user_version").scalar_one()
            if found == 0:
                _metadata.create_all(self._connection)
                _versions.create_all(self._connection)
            for older in range(max(found, 1), SCHEMA_VERSION if found else 0):
                for statement in _MIGRATIONS[older]:
                    execute(statement)
            execute(f"PRAGMA user_version = {max(found, SCHEMA_VERSION)}")
        self._connection.commit()

    def close(self) -> None:
        """Closes the database."""
        self._connection.close()
        self._engine.dispose()

    def record(
        self,
        execution_id: str,
        host: Host,
        payload_sha256: str,
        label: str,
        now: float,
        *,
        run_as: str | None = None,
        mode: str = BUNDLED,
        fallback: Reason | None = None,
    ) -> bool:
        """Writes down an execution that is about to be submitted; whether that was news.

        The same id again on the same host stays as it is, unless all that is known of it is that nothing was started:
        then this submission takes its place.

        Raises ControllerError (`execution.id_conflict`) for an id that was submitted to another host, or to run as
        another account: it could be found again in one of the places only.
        """
        row = {
            "id": execution_id,
            "host": host.name,
            "address": host.address,
            "port": host.port,
            "user": host.user,
            "identity": host.identity,
            "payload_sha256": payload_sha256,
            "label": label,
            "state": "submitted",
            "submitted_at": now,
            "is_acknowledged": False,
            "run_as": run_as,
            "mode": mode,
            "fallback": None if fallback is None else exactjson.encode(list(fallback)),
            "ways": _ways(host),
        }
        if self._write(_RECORD, row) == 1:
            return True
        known = self.find(execution_id)
        if known is not None and (_account(known.host), known.run_as) != (_account(host), run_as):
            raise ControllerError(
                "execution.id_conflict",
                f"execution id '{execution_id}' was already submitted to {known.host}"
                f"{f' as {known.run_as}' if known.run_as else ''}; choose a new id",
                host=host.name,
            )
        return False

    def note_state(self, execution_id: str, state: str) -> None:
        """Writes down how an execution stands while there is no result."""
        self._write(_NOTE_STATE, {"key": execution_id, "new_state": state})

    def finish(self, result: Result, now: float) -> bool:
        """Writes down the result; whether it was news. One that says how the script ended is never replaced by another.

        Told again, it may have delivered more since.
        """
        row = {
            "key": result.execution_id,
            "new_state": result.state.value,
            "json": exactjson.encode(result.to_json()),
        }
        is_news = self._write(_FINISH, {**row, "now": now}) == 1
        if not is_news and result.mode == API:
            known = self.find(result.execution_id)
            if known is not None and known.result is not None and known.result.undelivered > result.undelivered:
                self._write(_NOTE_DELIVERED, row)
        return is_news

    def note_acknowledged(self, execution_id: str) -> None:
        """The host knows that we have the result."""
        self._write(_NOTE_ACKNOWLEDGED, {"key": execution_id})

    def find(self, execution_id: str) -> Record | None:
        """What is known of an execution."""
        row = self._connection.execute(_FIND, {"key": execution_id}).one_or_none()
        self._connection.rollback()
        return None if row is None else _record(row)

    def fan_out(self, execution_id: str) -> list[Record]:
        """The executions of a run on many hosts that goes by this id, in the order in which they were submitted."""
        key = executions.c.id
        named = sql.select(executions).where(key > f"{execution_id}.", key < f"{execution_id}/")  # '/' follows '.'
        rows = self._connection.execute(named.order_by(executions.c.submitted_at)).all()
        self._connection.rollback()
        suffix = re.compile(re.escape(execution_id) + r"\.[0-9a-f]{12}")
        return [_record(row) for row in rows if suffix.fullmatch(row.id)]

    def health(self, account: str) -> HostHealth | None:
        """How a host stood when a process last told; `account` is `memory.account`'s. Raises StoreError."""
        row = self._connection.execute(_HEALTH, {"key": account}).one_or_none()
        self._connection.rollback()
        return None if row is None else _health(row)

    def note_health(self, account: str, known: HostHealth, successes: int, failures: int) -> None:
        """Writes down how a host stands; the calls since the last time are added to what other processes counted.

        Raises StoreError.
        """
        calls, breaker = known.calls, known.breaker
        row = {
            "account": account,
            "last_success": calls.last_success,
            "last_failure": calls.last_failure,
            "consecutive_failures": calls.consecutive_failures,
            "consecutive_successes": calls.consecutive_successes,
            "total_successes": successes,
            "total_failures": failures,
            "unreachable": breaker.unreachable,
            "next_try": breaker.next_try,
            "transport": known.transport,
            "transport_at": known.transport_at,
            "last_error": known.last_error,
        }
        self._write(_NOTE_HEALTH, row)

    def forget_health(self, accounts: Sequence[str] | None = None) -> int:
        """Forgets how these hosts stood, or all; of how many something was known. Raises StoreError."""
        where = sql.true() if accounts is None else host_health.c.account.in_(accounts)
        return self._write(sql.delete(host_health).where(where), {})

    def recent(self, limit: int = 50) -> list[Record]:
        """The last executions, newest first."""
        newest = sql.select(executions).order_by(executions.c.submitted_at.desc()).limit(limit)
        rows = self._connection.execute(newest).all()
        self._connection.rollback()
        return [_record(row) for row in rows]

    def payloads_in_use(self) -> set[str]:
        """The SHA-256s of payloads of which an execution has no result yet. Raises StoreError."""
        unfinished = sql.select(executions.c.payload_sha256).where(
            executions.c.result.is_(None), executions.c.state.not_in(_NOTHING_STARTED)
        )
        return {row.payload_sha256 for row in self._connection.execute(unfinished)}

    def read(self, statement: "sql.Select[Any]", values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """The rows that a statement finds, with its `bindparam`s' values. Raises StoreError."""
        try:
            rows = self._connection.execute(statement, values).all()
            if not self._is_writing:
                self._connection.rollback()
            return rows
        except sql.exc.SQLAlchemyError as error:
            self._connection.rollback()
            raise StoreError(f"the database {self.path} cannot be read: {_reason(error)}") from None

    @contextlib.contextmanager
    def writing(self) -> Iterator[sql.Connection]:
        """A transaction that no other process's write can come between; all of it or nothing. Raises StoreError.

        Nothing may be awaited in it: the connection is this process's only one.
        """
        try:
            self._connection.exec_driver_sql("BEGIN IMMEDIATE")
            self._is_writing = True
            yield self._connection
            self._connection.commit()
        except sql.exc.SQLAlchemyError as error:
            self._connection.rollback()
            raise StoreError(f"the database {self.path} cannot be written: {_reason(error)}") from None
        except BaseException:
            self._connection.rollback()
            raise
        finally:
            self._is_writing = False

    def _write(self, statement: Any, values: dict[str, Any]) -> int:
        """Executes and commits; how many rows that changed."""
        try:
            changed: int = self._connection.execute(statement, values).rowcount
            self._connection.commit()
            return changed
        except sql.exc.SQLAlchemyError as error:
            self._connection.rollback()
            raise StoreError(f"the database {self.path} cannot be written: {_reason(error)}") from None


_NOTHING_STARTED: Final = ("rejected", "refused")
_REPLACEABLE: Final = ("rejected", "lost", "unknown")
_insert = sqlite.insert(executions)
_RECORD = _insert.on_conflict_do_update(
    index_elements=[executions.c.id],
    # Everything that is not given is as in a new row: no result, no time of the end.
    set_={column.name: _insert.excluded[column.name] for column in executions.c if column.name != "id"},
    where=executions.c.state.in_(_NOTHING_STARTED),
)
_BY_KEY = executions.c.id == sql.bindparam("key")
# Built once: putting a statement together costs more than SQLite takes to answer it.
_FIND = sql.select(executions).where(_BY_KEY)
_HEALTH = sql.select(host_health).where(host_health.c.account == sql.bindparam("key"))
_NOTE_STATE = (
    sql.update(executions).where(_BY_KEY, executions.c.result.is_(None)).values(state=sql.bindparam("new_state"))
)
_FINISH = (
    sql.update(executions)
    .where(_BY_KEY, sql.or_(executions.c.result.is_(None), executions.c.state.in_(_REPLACEABLE)))
    .values(state=sql.bindparam("new_state"), finished_at=sql.bindparam("now"), result=sql.bindparam("json"))
)
_NOTE_DELIVERED = (
    sql.update(executions)
    .where(_BY_KEY, executions.c.state == sql.bindparam("new_state"))
    .values(result=sql.bindparam("json"))
)
_insert_health = sqlite.insert(host_health)
_ADDED: Final = ("total_successes", "total_failures")
_NOTE_HEALTH = _insert_health.on_conflict_do_update(
    index_elements=[host_health.c.account],
    set_={
        column.name: column + _insert_health.excluded[column.name]
        if column.name in _ADDED
        else _insert_health.excluded[column.name]
        for column in host_health.c
        if column.name != "account"
    },
)
_NOTE_ACKNOWLEDGED = sql.update(executions).where(_BY_KEY).values(is_acknowledged=True)


def _reason(error: Exception) -> str:
    """What the database or the system said, without the statement, which carries a whole result."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(getattr(error, "orig", None) or error)


_STORED_WAYS: Final = (
    "tailscale_ip", "cloudflare_tunnel", "connect_timeout", "keepalive_seconds", "keepalive_count", "is_local",
    "secrets_in",
)  # fmt: skip
"""What a later process needs beside the address. No secrets: `secrets_in` says where they were."""


def _ways(host: Host) -> str | None:
    found = {name: getattr(host, name) for name in _STORED_WAYS if getattr(host, name)}
    return exactjson.encode(found).decode() if found else None


def _stored_ways(stored: str | None) -> dict[str, Any]:
    """Only what we know of: a newer version may have written more."""
    found = {} if stored is None else exactjson.loads(stored)
    return {name: found[name] for name in _STORED_WAYS if name in found}


def _account(host: Host) -> tuple[str | int | None, ...]:
    """What makes two hosts the same to an execution id: the machine and the account on it."""
    return ("local:",) if host.is_local else (host.address, host.port, host.user)


def _health(row: Any) -> HostHealth:
    return HostHealth(
        SSHHealth(*(getattr(row, name) for name in SSHHealth.__dataclass_fields__)),
        Breaker(unreachable=row.unreachable, next_try=row.next_try),
        transport=row.transport,
        transport_at=row.transport_at,
        last_error=row.last_error,
    )


def _record(row: Any) -> Record:
    return Record(
        id=row.id,
        host=Host(row.host, row.address, row.port, row.user, row.identity, **_stored_ways(row.ways)),
        payload_sha256=row.payload_sha256,
        label=row.label,
        state=row.state,
        submitted_at=row.submitted_at,
        finished_at=row.finished_at,
        result=None if row.result is None else Result.from_json(exactjson.loads(row.result)),
        is_acknowledged=row.is_acknowledged,
        run_as=row.run_as,
        mode=row.mode,
        fallback=None if row.fallback is None else Reason(*exactjson.loads(row.fallback)),
    )
