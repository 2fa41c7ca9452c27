"""What the controller remembers: each execution, before it is submitted and until it is forgotten.

SQLAlchemy Core over SQLite. Nothing here talks to a host. Secrets are never stored.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sql
from sqlalchemy.dialects import sqlite

from cronium_runner.wire import exactjson
from cronium_runner.wire.results import Result

from .errors import ControllerError, StoreError
from .hosts import Host

SCHEMA_VERSION: Final = 2

_metadata = sql.MetaData()
_executions = sql.Table(
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
    sql.Index("executions_by_time", "submitted_at"),
)


_MIGRATIONS: Final = {1: ("ALTER TABLE executions ADD COLUMN run_as VARCHAR",)}
"""What makes the next schema of an older one."""


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


def default_path() -> Path:
    """CRONIUM_CONTROLLER_STATE, else the user's state folder."""
    chosen = os.environ.get("CRONIUM_CONTROLLER_STATE")
    if chosen:
        return Path(chosen) / "controller.db"
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "cronium" / "controller.db"


class Store:
    """The database. One per process; its calls take well under a millisecond and are made inline."""

    def __init__(self, path: Path | None = None) -> None:
        """Opens or creates it. Raises StoreError."""
        self.path = path or default_path()
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Created by us first, so that it is never open to others, whatever the umask.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
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

    def finish(self, result: Result, now: float) -> None:
        """Writes down the result. One that says how the script ended is never replaced by another."""
        self._write(
            _FINISH,
            {
                "key": result.execution_id,
                "new_state": result.state.value,
                "now": now,
                "json": exactjson.encode(result.to_json()),
            },
        )

    def note_acknowledged(self, execution_id: str) -> None:
        """The host knows that we have the result."""
        self._write(_NOTE_ACKNOWLEDGED, {"key": execution_id})

    def find(self, execution_id: str) -> Record | None:
        """What is known of an execution."""
        row = self._connection.execute(sql.select(_executions).where(_executions.c.id == execution_id)).one_or_none()
        self._connection.rollback()
        return None if row is None else _record(row)

    def recent(self, limit: int = 50) -> list[Record]:
        """The last executions, newest first."""
        newest = sql.select(_executions).order_by(_executions.c.submitted_at.desc()).limit(limit)
        rows = self._connection.execute(newest).all()
        self._connection.rollback()
        return [_record(row) for row in rows]

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
_insert = sqlite.insert(_executions)
_RECORD = _insert.on_conflict_do_update(
    index_elements=[_executions.c.id],
    # Everything that is not given is as in a new row: no result, no time of the end.
    set_={column.name: _insert.excluded[column.name] for column in _executions.c if column.name != "id"},
    where=_executions.c.state.in_(_NOTHING_STARTED),
)
_BY_KEY = _executions.c.id == sql.bindparam("key")
_NOTE_STATE = (
    sql.update(_executions).where(_BY_KEY, _executions.c.result.is_(None)).values(state=sql.bindparam("new_state"))
)
_FINISH = (
    sql.update(_executions)
    .where(_BY_KEY, sql.or_(_executions.c.result.is_(None), _executions.c.state.in_(_REPLACEABLE)))
    .values(state=sql.bindparam("new_state"), finished_at=sql.bindparam("now"), result=sql.bindparam("json"))
)
_NOTE_ACKNOWLEDGED = sql.update(_executions).where(_BY_KEY).values(is_acknowledged=True)


def _reason(error: Exception) -> str:
    """What the database or the system said, without the statement, which carries a whole result."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(getattr(error, "orig", None) or error)


def _account(host: Host) -> tuple[str | int | None, ...]:
    """What makes two hosts the same to an execution id: the machine and the account on it."""
    return host.address, host.port, host.user


def _record(row: Any) -> Record:
    return Record(
        id=row.id,
        host=Host(row.host, row.address, row.port, row.user, row.identity),
        payload_sha256=row.payload_sha256,
        label=row.label,
        state=row.state,
        submitted_at=row.submitted_at,
        finished_at=row.finished_at,
        result=None if row.result is None else Result.from_json(exactjson.loads(row.result)),
        is_acknowledged=row.is_acknowledged,
        run_as=row.run_as,
    )
