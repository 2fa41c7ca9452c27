"""What one execution may read and write, inside a transaction that somebody else opened.

Names are looked up in three places: values handed over for this execution, then its user's variables, then the global
ones. A script's write goes to its user's variables.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sql

from cronium_runner.wire import exactjson
from cronium_runner.wire.changes import appended, incremented

from . import audit
from .audit import Entry
from .quotas import OUTPUT, Quota, charge, give_back
from .tables import applied_writes, grants, live_executions, upsert, variables

# Bytes. PostgreSQL's index takes keys of up to 2,704; no name that somebody types comes near.
LONGEST_NAME: Final = 1024

EXECUTION: Final = "execution"
USER: Final = "user"
GLOBAL: Final = "global"
_SCOPES: Final = (EXECUTION, USER, GLOBAL)
"""In the order in which a name is looked up."""


DELETE: Final = "variable.delete"
CHANGES: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "variable.increment": incremented,
    "variable.append": appended,
}
"""The actions by which a variable becomes something that depends on what it is."""


class GrantError(Exception):
    """The token's grant is not known, is another execution's, or has been revoked."""


class MissingVariableError(Exception):
    """There is no variable of that name that a script of this execution could delete."""


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
    """`action` is `output.set`, `condition.set` or, with a `name`, `variable.set`, `variable.delete`,
    `variable.increment` (`value`: by how much) or `variable.append` (`value`: a text). `sequence` is the key's, if any.
    """

    action: str
    value: Any
    name: str | None = None
    sequence: int | None = None

    def digest(self) -> bytes:
        """What tells two writes apart that have the same key."""
        return hashlib.sha256(exactjson.encode([self.action, self.name, self.value])).digest()


@dataclass(frozen=True, slots=True)
class Applied:
    """The outcome of a write. `is_new` is False for a repeated one, which changes nothing.

    `changed` is the JSON of the variable after an increment or append. It is None for a repeated write: another
    execution may have changed the variable in between.
    """

    is_new: bool
    changed: str | None = None


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
    found = _found(connection, execution, name)
    return next((found[scope] for scope in _SCOPES if scope in found), None)


def _found(connection: sql.Connection, execution: Any, name: str) -> dict[str, str]:
    """The JSON of every variable of that name that the execution could see, by scope."""
    where = {"name": name.encode(), "execution": execution.id, "user": execution.user_id}
    return {row.scope: row.value for row in connection.execute(_FIND_VARIABLE, where)}


def apply(connection: sql.Connection, caller: Caller, write: Write, now: float, quota: Quota | None = None) -> Applied:
    """Applies a write and its line in the audit log.

    Raises GrantError, SequenceError, QuotaError, MissingVariableError, and ChangeError for a variable that can't be
    changed so. Then nothing was applied, and the number can be used again.
    """
    execution = admit(connection, caller, _ADMIT_ALONE)
    if write.sequence is not None and not _claim(connection, execution.id, write):
        return Applied(is_new=False)
    value = write.value
    if write.action in CHANGES:
        value = _changed(connection, execution, write, now)
    detail = {} if write.action == DELETE else {"bytes": len(exactjson.encode(value))}
    if quota is not None and write.action not in (DELETE, "condition.set"):
        name = OUTPUT if write.name is None else write.name.encode()
        charge(connection, execution.id, name, detail["bytes"], quota)
    match write.action:
        case "output.set":
            connection.execute(_SET_OUTPUT, {"execution": execution.id, "new": exactjson.dumps(value)})
        case "condition.set":
            connection.execute(_SET_CONDITION, {"execution": execution.id, "new": value})
        case "variable.delete":
            _delete_for_script(connection, execution, write)
        case _:
            _set_for_script(connection, execution, write, value, now)
    audit.append(connection, entry(execution, caller, write.action, now, write.name, write.sequence, detail))
    return Applied(is_new=True, changed=exactjson.dumps(value) if write.action in CHANGES else None)


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


def delete_variable(connection: sql.Connection, scope: str, owner: str, name: str) -> bool:
    """Deletes a variable; whether it was there."""
    where = {"scope": scope, "owner": owner, "variable": name.encode()}
    return bool(connection.execute(_DELETE, where).rowcount)


def _set_for_script(connection: sql.Connection, execution: Any, write: Write, value: Any, now: float) -> None:
    assert write.name is not None, "a variable has a name"
    store_variable(connection, USER, execution.user_id, write.name, value, now)
    # What was handed over for this execution would hide it from the script that wrote it.
    delete_variable(connection, EXECUTION, execution.id, write.name)


def _delete_for_script(connection: sql.Connection, execution: Any, write: Write) -> None:
    assert write.name is not None, "a variable has a name"
    was_there = [
        delete_variable(connection, scope, owner, write.name)
        for scope, owner in ((EXECUTION, execution.id), (USER, execution.user_id))
    ]
    if not any(was_there):
        raise MissingVariableError
    give_back(connection, execution.id, write.name.encode())


def _changed(connection: sql.Connection, execution: Any, write: Write, now: float) -> Any:
    """What the variable becomes. Its row is this transaction's alone from then on, whoever else changes or sets it.

    A row that isn't there yet could not be locked, so it is made. Raises ChangeError.
    """
    assert write.name is not None, "a variable has a name"
    found = _found(connection, execution, write.name)
    before = found.get(EXECUTION)
    if before is None:
        row = {
            "scope": USER,
            "owner": execution.user_id,
            "name": write.name.encode(),
            "value": found.get(USER) or found.get(GLOBAL) or "null",
            "changed_at": now,
        }
        connection.execute(_make_variable(connection.dialect.name), row)
        where = {"scope": USER, "owner": execution.user_id, "variable": write.name.encode()}
        before = connection.execute(_LOCK_VARIABLE, where).scalar_one()
    return CHANGES[write.action](exactjson.loads(before), write.value)


@functools.cache
def _set_variable(dialect: str) -> Any:
    statement = upsert(dialect, variables)
    return statement.on_conflict_do_update(
        index_elements=[variables.c.scope, variables.c.owner, variables.c.name],
        set_={"value": statement.excluded["value"], "changed_at": statement.excluded["changed_at"]},
    )


@functools.cache
def _make_variable(dialect: str) -> Any:
    return upsert(dialect, variables).on_conflict_do_nothing()


_IS_EXECUTION: Final = live_executions.c.id == sql.bindparam("execution")
_SET_OUTPUT: Final = sql.update(live_executions).where(_IS_EXECUTION).values(output=sql.bindparam("new"))
_SET_CONDITION: Final = sql.update(live_executions).where(_IS_EXECUTION).values(condition=sql.bindparam("new"))
_MINE: Final = applied_writes.c.execution_id == sql.bindparam("execution")
_APPLIED: Final = sql.select(applied_writes.c.digest).where(_MINE, applied_writes.c.sequence == sql.bindparam("number"))
_HIGHEST: Final = sql.select(sql.func.max(applied_writes.c.sequence)).where(_MINE)
_NOTE: Final = sql.insert(applied_writes)
_IS_VARIABLE: Final = sql.and_(
    variables.c.scope == sql.bindparam("scope"),
    variables.c.owner == sql.bindparam("owner"),
    variables.c.name == sql.bindparam("variable"),
)
_DELETE: Final = sql.delete(variables).where(_IS_VARIABLE)
# SQLite has no such words, and needs none: a transaction that writes is alone.
_LOCK_VARIABLE: Final = sql.select(variables.c.value).where(_IS_VARIABLE).with_for_update()
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
