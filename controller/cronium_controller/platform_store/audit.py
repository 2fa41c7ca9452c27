"""The audit log: who did what to which execution, when, from which host. Triggers in the database keep it append-only.

An entry names what was written, its size and its sequence, never the value: values can be secrets. Reads are not in it;
they are counted in the metrics.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sql

from cronium_runner.wire import exactjson

from .tables import audit_log

# A signed token: two or three parts of base64url, the first of which is a JSON object. Somebody may put one into a key.
_TOKEN: Final = re.compile(r"eyJ[\w-]{5,}\.[\w-]+(\.[\w-]*)?")

# Characters. Longer subjects and details are cut; a name may be as long as a path can be.
_LONGEST: Final = 300


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log. `at` is seconds since the epoch; `number` is the database's, 0 before it is written."""

    at: float
    actor: str
    action: str
    execution_id: str | None = None
    subject: str | None = None
    sequence: int | None = None
    host: str | None = None
    peer: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0

    def to_json(self) -> dict[str, Any]:
        """As `cronium api audit --json` shows it."""
        return {
            "number": self.number,
            "at": self.at,
            "actor": self.actor,
            "action": self.action,
            "executionId": self.execution_id,
            "subject": self.subject,
            "sequence": self.sequence,
            "host": self.host,
            "peer": self.peer,
            "detail": dict(self.detail),
        }


def append(connection: sql.Connection, entry: Entry) -> None:
    """Writes an entry in the transaction of what it tells of, so that there is never one without the other."""
    connection.execute(
        _INSERT,
        {
            "at": entry.at,
            "actor": printable(entry.actor),
            "host": entry.host,
            "peer": entry.peer,
            "action": entry.action,
            "execution_id": entry.execution_id,
            "subject": None if entry.subject is None else printable(entry.subject),
            "sequence": entry.sequence,
            "detail": _TOKEN.sub("***", exactjson.dumps(dict(entry.detail))),
        },
    )


def newest(connection: sql.Connection, limit: int, execution_id: str | None = None) -> list[Entry]:
    """The last entries, oldest of them first."""
    query = sql.select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)
    if execution_id is not None:
        query = query.where(audit_log.c.execution_id == execution_id)
    return [_entry(row) for row in reversed(connection.execute(query).all())]


def printable(text: str) -> str:
    """A text as one short line: control characters escaped, tokens masked."""
    return _TOKEN.sub("***", exactjson.dumps(text[: _LONGEST * 4])[1:-1])[:_LONGEST]


_INSERT: Final = sql.insert(audit_log)


def _entry(row: Any) -> Entry:
    return Entry(
        number=row.id,
        at=row.at,
        actor=row.actor,
        host=row.host,
        peer=row.peer,
        action=row.action,
        execution_id=row.execution_id,
        subject=row.subject,
        sequence=row.sequence,
        detail=exactjson.loads(row.detail),
    )
