"""What one execution may read and write, inside a transaction that somebody else opened.

Names are looked up in three places: values handed over for this execution, then its user's variables, then the global
ones. A script's write goes to its user's variables.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sql

from cronium_runner.wire import exactjson

from . import audit
from .audit import Entry
from .quotas import OUTPUT, Quota, charge
from .tables import applied_writes, grants, live_executions, upsert, variables

# Bytes. PostgreSQL's index takes keys of up to 2,704; no name that somebody types comes near.
LONGEST_NAME: Final = 1024

EXECUTION: Final = "execution"
USER: Final = "user"
GLOBAL: Final = "global"
_SCOPES: Final = (EXECUTION, USER, GLOBAL)
"""In the order in which a name is looked up."""


class GrantError(Exception):
    """The token's grant is not known, is another execution's, or has been revoked."""


class SequenceError(Exception):
    """A write that came too late, or whose key was used for another one. It was not applied."""


@dataclass(frozen=True, slots=True)
class LiveExecution:
    """One execution as the platform knows it. `variables` are handed over for it alone; `context` is what
    `GET …/context` answers, beside the ids. Times are seconds since the epoch."""

    id: str
    user_id: str
    job_id: str | None = None
    host: str | None = None
    input: Any = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a token's execution and grant, and the address that the request came from."""

    execution_id: str
    jti: str
    peer: str | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """`action` is `output.set`, `variable.set` (with `name`) or `condition.set`; `sequence` is the key's, if any."""

    action: str
    value: Any
    name: str | None = None
    sequence: int | None = None

    def digest(self) -> bytes:
        """What tells two writes apart that have the same key."""
        return hashlib.sha256(exactjson.encode([self.action, self.name, self.value])).digest()


def admit(connection: sql.Connection, caller: Caller, query: sql.Select[Any] | None = None) -> Any:
    """The execution's row: what `query`, which is made by `admission`, selects. Raises GrantError."""
    who = {"execution": caller.execution_id, "grant": caller.jti}
    row = connection.execute(_ADMIT if query is None else query, who).one_or_none()
    if row is None:
        raise GrantError
    return row


def admission(*more: sql.Column[Any]) -> "sql.Select[Any]":
    """Selects the execution that a grant is for, `more` of its columns too: input and output may be megabytes.

    Statements are made once: SQLAlchemy takes longer to put one together than SQLite to execute it.
    """
    execution = live_executions.c
    return (
        sql.select(execution.id, execution.user_id, execution.job_id, execution.host, *more)
        .join(grants, grants.c.execution_id == execution.id)
        .where(execution.id == sql.bindparam("execution"), grants.c.jti == sql.bindparam("grant"))
        .where(grants.c.revoked_at.is_(None))
    )


def find_variable(connection: sql.Connection, execution: Any, name: str) -> str | None:
    """The value's JSON, None when there is none."""
    where = {"name": name.encode(), "execution": execution.id, "user": execution.user_id}
    found = connection.execute(_FIND_VARIABLE, where).all()
    return min(found, key=lambda row: _SCOPES.index(row.scope)).value if found else None


def apply(connection: sql.Connection, caller: Caller, write: Write, now: float, quota: Quota | None = None) -> bool:
    """Applies a write and its line in the audit log; whether that was news, and not a repetition.

    Raises GrantError, SequenceError and QuotaError.
    """
    execution = admit(connection, caller, _ADMIT_ALONE)
    if write.sequence is not None and not _claim(connection, execution.id, write):
        return False
    size = len(exactjson.encode(write.value))
    if quota is not None and write.action != "condition.set":
        charge(connection, execution.id, OUTPUT if write.name is None else write.name.encode(), size, quota)
    match write.action:
        case "output.set":
            connection.execute(_SET_OUTPUT, {"execution": execution.id, "new": exactjson.dumps(write.value)})
        case "condition.set":
            connection.execute(_SET_CONDITION, {"execution": execution.id, "new": write.value})
        case "variable.set":
            _set_for_script(connection, execution, write, now)
    audit.append(connection, entry(execution, caller, write.action, now, write.name, write.sequence, {"bytes": size}))
    return True


def entry(
    execution: Any,
    caller: Caller,
    action: str,
    now: float,
    subject: str | None = None,
    sequence: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> Entry:
    """An entry of the audit log for something that a script did."""
    actor = f"script of {execution.user_id}"
    return Entry(now, actor, action, execution.id, subject, sequence, execution.host, caller.peer, detail or {})


def store_variable(connection: sql.Connection, scope: str, owner: str, name: str, value: Any, now: float) -> None:
    """Sets a variable, whether it was there or not."""
    row = {
        "scope": scope,
        "owner": owner,
        "name": name.encode(),
        "value": exactjson.dumps(value),
        "changed_at": now,
    }
    connection.execute(_set_variable(connection.dialect.name), row)


def _claim(connection: sql.Connection, execution_id: str, write: Write) -> bool:
    """Takes the write's number; False when this very write has been applied before."""
    assert write.sequence is not None, "asked for writes with a number only"
    where = {"execution": execution_id, "number": write.sequence}
    digest = write.digest()
    known = connection.execute(_APPLIED, where).scalar_one_or_none()
    if known is not None:
        if bytes(known) != digest:
            raise SequenceError(f"number {write.sequence} was used for another write")
        return False
    highest = connection.execute(_HIGHEST, {"execution": execution_id}).scalar_one()
    if highest is not None and write.sequence < highest:
        raise SequenceError(f"number {write.sequence} comes after number {highest}; writes are applied in order")
    connection.execute(_NOTE, {"execution_id": execution_id, "sequence": write.sequence, "digest": digest})
    return True


def _set_for_script(connection: sql.Connection, execution: Any, write: Write, now: float) -> None:
    assert write.name is not None, "a variable has a name"
    store_variable(connection, USER, execution.user_id, write.name, write.value, now)
    # What was handed over for this execution would hide it from the script that wrote it.
    connection.execute(_UNHIDE, {"execution": execution.id, "variable": write.name.encode()})


@functools.cache
def _set_variable(dialect: str) -> Any:
    statement = upsert(dialect, variables)
    return statement.on_conflict_do_update(
        index_elements=[variables.c.scope, variables.c.owner, variables.c.name],
        set_={"value": statement.excluded["value"], "changed_at": statement.excluded["changed_at"]},
    )


_IS_EXECUTION: Final = live_executions.c.id == sql.bindparam("execution")
_SET_OUTPUT: Final = sql.update(live_executions).where(_IS_EXECUTION).values(output=sql.bindparam("new"))
_SET_CONDITION: Final = sql.update(live_executions).where(_IS_EXECUTION).values(condition=sql.bindparam("new"))
_MINE: Final = applied_writes.c.execution_id == sql.bindparam("execution")
_APPLIED: Final = sql.select(applied_writes.c.digest).where(_MINE, applied_writes.c.sequence == sql.bindparam("number"))
_HIGHEST: Final = sql.select(sql.func.max(applied_writes.c.sequence)).where(_MINE)
_NOTE: Final = sql.insert(applied_writes)
_UNHIDE: Final = sql.delete(variables).where(
    variables.c.scope == EXECUTION,
    variables.c.owner == sql.bindparam("execution"),
    variables.c.name == sql.bindparam("variable"),
)
_ADMIT: Final = admission()
# An execution's writes come one after the other, until the transaction ends. SQLite has no such words, and needs none.
_ADMIT_ALONE: Final = admission().with_for_update(of=live_executions)


def _in_scope(scope: str, owner: Any) -> sql.ColumnElement[bool]:
    return sql.and_(variables.c.scope == sql.literal_column(f"'{scope}'"), variables.c.owner == owner)


_FIND_VARIABLE: Final = sql.select(variables.c.scope, variables.c.value).where(
    variables.c.name == sql.bindparam("name"),
    sql.or_(
        _in_scope(EXECUTION, sql.bindparam("execution")),
        _in_scope(USER, sql.bindparam("user")),
        _in_scope(GLOBAL, sql.literal_column("''")),
    ),
)
