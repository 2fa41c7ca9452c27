"""What the controller remembers: each execution, before it is submitted and until it is forgotten; how hosts stood.

Nothing here talks to a host. Secrets are never stored.
"""

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from cronium_runner.wire import exactjson
from cronium_runner.wire.access import API, BUNDLED
from cronium_runner.wire.results import Result
from cronium_runner.wire.text import clean

from .database import Database, assigned, inserting
from .errors import ControllerError
from .health import Breaker, HostHealth, SSHHealth
from .hosts import Host
from .state_path import default_path


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

    @property
    def may_have_started(self) -> bool:
        """Whether its script may have been started: it was sent, and the host has not refused it."""
        return self.state not in ("rejected", "refused")


class Store:
    """The tables of executions and of hosts. Its calls take well under a millisecond and are made inline."""

    def __init__(self, path: Path | None = None) -> None:
        """Opens or creates the database. Raises StoreError."""
        self.database = Database(path or default_path())

    @property
    def path(self) -> Path:
        """The database's file."""
        return self.database.path

    def close(self) -> None:
        """Closes the database."""
        self.database.close()

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
        if self.database.write(_RECORD, row) == 1:
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
        self.database.write(_NOTE_STATE, {"id": execution_id, "state": state})

    def finish(self, result: Result, now: float) -> bool:
        """Writes down the result; whether it was news. One that says how the script ended is never replaced by another.

        Told again, it may have delivered more since.
        """
        row = {
            "id": result.execution_id,
            "state": result.state.value,
            "result": exactjson.encode(result.hidden().to_json()),  # secrets are never stored
        }
        is_news = self.database.write(_FINISH, {**row, "finished_at": now}) == 1
        if not is_news and result.mode == API:
            known = self.find(result.execution_id)
            if known is not None and known.result is not None and known.result.undelivered > result.undelivered:
                self.database.write(_NOTE_DELIVERED, row)
        return is_news

    def note_acknowledged(self, execution_id: str) -> None:
        """The host knows that we have the result."""
        self.database.write(_NOTE_ACKNOWLEDGED, {"id": execution_id})

    def find(self, execution_id: str) -> Record | None:
        """What is known of an execution."""
        rows = self.database.read("SELECT * FROM executions WHERE id = :key", {"key": execution_id})
        return _record(rows[0]) if rows else None

    def may_have_started(self, execution_id: str) -> bool:
        """Whether the script of this id may have been started by a submission from here. Raises StoreError."""
        record = self.find(execution_id)
        return record is not None and record.may_have_started

    def record_of(self, row: sqlite3.Row) -> Record:
        """The execution that a row of `executions` is."""
        return _record(row)

    def fan_out(self, execution_id: str) -> list[Record]:
        """The executions of a run on many hosts that goes by this id, in the order in which they were submitted."""
        rows = self.database.read(
            "SELECT * FROM executions WHERE id > :first AND id < :last ORDER BY submitted_at",
            {"first": f"{execution_id}.", "last": f"{execution_id}/"},  # '/' follows '.'
        )
        suffix = re.compile(re.escape(execution_id) + r"\.[0-9a-f]{12}")
        return [_record(row) for row in rows if suffix.fullmatch(row["id"])]

    def health(self, account: str) -> HostHealth | None:
        """How a host stood when a process last told; `account` is `memory.account`'s. Raises StoreError."""
        rows = self.database.read("SELECT * FROM host_health WHERE account = :key", {"key": account})
        return _health(rows[0]) if rows else None

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
        self.database.write(_NOTE_HEALTH, row)

    def forget_health(self, accounts: Sequence[str] | None = None) -> int:
        """Forgets how these hosts stood, or all; of how many something was known. Raises StoreError."""
        if accounts is None:
            return self.database.write("DELETE FROM host_health")
        with self.database.writing():
            return sum(
                self.database.write("DELETE FROM host_health WHERE account = :key", {"key": key}) for key in accounts
            )

    def recent(self, limit: int = 50) -> list[Record]:
        """The last executions, newest first."""
        rows = self.database.read("SELECT * FROM executions ORDER BY submitted_at DESC LIMIT :limit", {"limit": limit})
        return [_record(row) for row in rows]

    def payloads_in_use(self) -> set[str]:
        """The SHA-256s of payloads of which an execution has no result yet. Raises StoreError."""
        rows = self.database.read(
            f"SELECT DISTINCT payload_sha256 FROM executions WHERE result IS NULL AND state NOT IN {NOTHING_STARTED}"
        )
        return {row["payload_sha256"] for row in rows}


NOTHING_STARTED: Final = "('rejected', 'refused')"
"""The states that say so, for SQL; `Record.may_have_started` is the same in Python."""
_REPLACEABLE: Final = "('rejected', 'lost', 'unknown')"
_SUBMITTED: Final = (
    "id", "host", "address", "port", "user", "identity", "payload_sha256", "label", "state", "submitted_at",
    "is_acknowledged", "run_as", "mode", "fallback", "ways",
)  # fmt: skip
_RECORD: Final = (
    f"{inserting('executions', _SUBMITTED)} ON CONFLICT (id) DO UPDATE SET "
    # What is not given is as in a new row.
    f"{assigned((*_SUBMITTED[1:], 'finished_at', 'result'), 'excluded.')} WHERE executions.state IN {NOTHING_STARTED}"
)
_NOTE_STATE: Final = "UPDATE executions SET state = :state WHERE id = :id AND result IS NULL"
_FINISH: Final = (
    "UPDATE executions SET state = :state, finished_at = :finished_at, result = :result "
    f"WHERE id = :id AND (result IS NULL OR state IN {_REPLACEABLE})"
)
_NOTE_DELIVERED: Final = "UPDATE executions SET result = :result WHERE id = :id AND state = :state"
_NOTE_ACKNOWLEDGED: Final = "UPDATE executions SET is_acknowledged = 1 WHERE id = :id"
_CALLS: Final = ("total_successes", "total_failures")
_STANDING: Final = (
    "last_success", "last_failure", "consecutive_failures", "consecutive_successes", "unreachable", "next_try",
    "transport", "transport_at", "last_error",
)  # fmt: skip
_NOTE_HEALTH: Final = (
    f"{inserting('host_health', ('account', *_STANDING, *_CALLS))} ON CONFLICT (account) DO UPDATE SET "
    f"{assigned(_STANDING, 'excluded.')}, {', '.join(f'{name} = {name} + excluded.{name}' for name in _CALLS)}"
)


_STORED_WAYS: Final = (
    "tailscale_ip", "cloudflare_tunnel", "connect_timeout", "keepalive_seconds", "keepalive_count", "is_local",
    "secrets_in", "connection", "persist", "update", "signers",
)  # fmt: skip
"""What a later process needs beside the address. No secrets: `secrets_in` says where they were."""
_DEFAULTS: Final = {field.name: field.default for field in fields(Host)}


def _ways(host: Host) -> str | None:
    found = {name: getattr(host, name) for name in _STORED_WAYS if getattr(host, name) not in ("", _DEFAULTS[name])}
    return exactjson.encode(found).decode() if found else None


def _stored_ways(stored: str | None) -> dict[str, Any]:
    """Only what we know of: a newer version may have written more."""
    found = {} if stored is None else exactjson.loads(stored)
    return {name: found[name] for name in _STORED_WAYS if name in found}


def _account(host: Host) -> tuple[str | int | None, ...]:
    """What makes two hosts the same to an execution id: the machine and the account on it."""
    return ("local:",) if host.is_local else (host.address, host.port, host.user)


def _health(row: sqlite3.Row) -> HostHealth:
    return HostHealth(
        SSHHealth(*(row[name] for name in SSHHealth.__dataclass_fields__)),
        Breaker(unreachable=row["unreachable"], next_try=row["next_try"]),
        transport=row["transport"],
        transport_at=row["transport_at"],
        last_error=row["last_error"],
    )


def _host(row: sqlite3.Row) -> Host:
    try:
        return Host(row["host"], row["address"], row["port"], row["user"], row["identity"], **_stored_ways(row["ways"]))
    except ControllerError:  # version 0.1.0 took names that are refused now: it is shown, and not reached
        return Host(clean(row["host"]), "")


def _record(row: sqlite3.Row) -> Record:
    return Record(
        id=row["id"],
        host=_host(row),
        payload_sha256=row["payload_sha256"],
        label=row["label"],
        state=row["state"],
        submitted_at=row["submitted_at"],
        finished_at=row["finished_at"],
        result=None if row["result"] is None else Result.from_json(exactjson.loads(row["result"])),
        is_acknowledged=bool(row["is_acknowledged"]),
        run_as=row["run_as"],
        mode=row["mode"],
        fallback=None if row["fallback"] is None else Reason(*exactjson.loads(row["fallback"])),
    )
