"""The platform's store: each call is one transaction. For the runtime API, the controller and the operator."""

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sql

from cronium_runner.wire import exactjson

from . import audit, live
from .audit import Entry
from .database import Database, database_url
from .live import EXECUTION, GLOBAL, USER, Caller, LiveExecution, Write
from .migrations import QUOTA_PART, QUOTA_STEPS, migrate
from .moving import live_url, move_live_data
from .quotas import Quota
from .tables import applied_writes, grants, live_executions, stored_totals, stored_values, upsert, variables

KEPT_SECONDS: Final = 7 * 86400.0
"""As long as hosts keep an execution that has ended: nothing of it can be sent again after that."""
_AT_ONCE: Final = 500
"""Ids in one statement: SQLite takes at least 999 parameters."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable as an operator sees it. `user_id` is None for a global one."""

    name: str
    value: Any
    user_id: str | None
    changed_at: float


class PlatformStore:
    """The live data. May be used by several threads; every method raises StoreError when the database can't be used."""

    def __init__(self, url: str | None = None) -> None:
        """Opens or creates it, and brings it to the newest version. `url` as for `database_url`.

        The database of a controller means `live.db` beside it, and what version 0.1.0 kept there moves.
        """
        self.database = Database(live_url(database_url(url)))
        try:
            migrate(self.database)
            migrate(self.database, QUOTA_PART, QUOTA_STEPS)
            move_live_data(self.database)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the database."""
        self.database.close()

    @property
    def reads_at_once(self) -> bool:
        """Whether reading takes some tenths of a millisecond and waits for nobody: SQLite's readers don't wait for
        writers. A server's answer has to be waited for."""
        return self.database.is_sqlite

    def check(self) -> None:
        """Raises StoreError when the database doesn't answer."""
        with self.database.reading() as connection:
            connection.execute(sql.select(live_executions.c.id).limit(1))

    # Executions and their grants: the controller.

    def register(self, execution: LiveExecution, now: float, *, actor: str) -> bool:
        """Makes an execution known; whether that was news. One that is known stays as it is."""
        row = {
            "id": execution.id,
            "job_id": execution.job_id,
            "user_id": execution.user_id,
            "host": execution.host,
            "context": exactjson.dumps(dict(execution.context)),
            "input": exactjson.dumps(execution.input),
            "registered_at": now,
        }
        with self.database.writing() as connection:
            insert = upsert(connection.dialect.name, live_executions).on_conflict_do_nothing()
            if connection.execute(insert.returning(live_executions.c.id), row).one_or_none() is None:
                return False
            for name, value in execution.variables.items():
                live.store_variable(connection, EXECUTION, execution.id, name, value, now)
            audit.append(connection, Entry(now, actor, "execution.registered", execution.id, host=execution.host))
        return True

    def find(self, execution_id: str) -> LiveExecution | None:
        """A known execution; without the variables that were handed over for it."""
        with self.database.reading() as connection:
            row = connection.execute(
                sql.select(live_executions).where(live_executions.c.id == execution_id)
            ).one_or_none()
        if row is None:
            return None
        given, context = exactjson.loads(row.input), exactjson.loads(row.context)
        return LiveExecution(row.id, row.user_id, row.job_id, row.host, given, {}, context)

    def grant(self, caller: Caller, now: float, expires_at: float, *, actor: str) -> None:
        """Lets a token in: one that isn't in here opens nothing, whatever its signature."""
        with self.database.writing() as connection:
            connection.execute(
                sql.insert(grants).values(
                    jti=caller.jti, execution_id=caller.execution_id, issued_at=now, expires_at=expires_at
                )
            )
            audit.append(connection, Entry(now, actor, "token.issued", caller.execution_id, subject=caller.jti))

    def revoke(self, execution_id: str, now: float, *, actor: str) -> int:
        """Shuts out all tokens of an execution that has ended and delivered everything; how many those were.

        Values that were handed over for it alone are deleted.
        """
        with self.database.writing() as connection:
            unrevoked = sql.and_(grants.c.execution_id == execution_id, grants.c.revoked_at.is_(None))
            count: int = connection.execute(sql.update(grants).where(unrevoked).values(revoked_at=now)).rowcount
            connection.execute(
                sql.update(live_executions)
                .where(live_executions.c.id == execution_id, live_executions.c.revoked_at.is_(None))
                .values(revoked_at=now)
            )
            connection.execute(
                sql.delete(variables).where(variables.c.scope == EXECUTION, variables.c.owner == execution_id)
            )
            if count:
                audit.append(connection, Entry(now, actor, "token.revoked", execution_id, detail={"count": count}))
        return count

    def forget(self, execution_id: str, now: float, *, actor: str) -> None:
        """An execution that was not started, and whose id somebody may use again, is not known any more."""
        with self.database.writing() as connection:
            connection.execute(
                sql.delete(variables).where(variables.c.scope == EXECUTION, variables.c.owner == execution_id)
            )
            for table in (grants, applied_writes, stored_values, stored_totals):
                connection.execute(sql.delete(table).where(table.c.execution_id == execution_id))
            if connection.execute(sql.delete(live_executions).where(live_executions.c.id == execution_id)).rowcount:
                audit.append(connection, Entry(now, actor, "execution.forgotten", execution_id))

    def prune(self, now: float) -> None:
        """Drops what can't matter any more: executions that ended long ago, and grants that expired long ago.

        An execution that has not ended stays, however old: its host may still have writes of it.
        """
        long_ago = now - KEPT_SECONDS
        is_granted = sql.exists().where(grants.c.execution_id == live_executions.c.id, grants.c.revoked_at.is_(None))
        ended = sql.select(live_executions.c.id).where(live_executions.c.revoked_at < long_ago, ~is_granted)
        with self.database.writing() as connection:
            connection.execute(sql.delete(grants).where(grants.c.expires_at < long_ago))
            ids = connection.execute(ended).scalars().all()
            for start in range(0, len(ids), _AT_ONCE):
                some = ids[start : start + _AT_ONCE]
                for table in (applied_writes, grants, stored_values, stored_totals):
                    connection.execute(sql.delete(table).where(table.c.execution_id.in_(some)))
                connection.execute(sql.delete(live_executions).where(live_executions.c.id.in_(some)))

    def written(self, execution_id: str) -> tuple[Any, bool | None]:
        """Output and condition as the script left them; None for what it didn't write."""
        with self.database.reading() as connection:
            columns = sql.select(live_executions.c.output, live_executions.c.condition)
            row = connection.execute(columns.where(live_executions.c.id == execution_id)).one_or_none()
        if row is None:
            return None, None
        return None if row.output is None else exactjson.loads(row.output), row.condition

    # What a script may do. All raise GrantError.

    def read_input(self, caller: Caller) -> str:
        """The input's JSON."""
        with self.database.reading() as connection:
            return str(live.admit(connection, caller, _ADMIT_TO_INPUT).input)

    def read_context(self, caller: Caller) -> dict[str, Any]:
        """The context, with the ids that it always has."""
        with self.database.reading() as connection:
            row = live.admit(connection, caller, _ADMIT_TO_CONTEXT)
        given: dict[str, Any] = exactjson.loads(row.context)
        return {**given, "executionId": row.id, "jobId": row.job_id, "userId": row.user_id}

    def read_variable(self, caller: Caller, name: str) -> str | None:
        """The variable's JSON, None when there is none."""
        with self.database.reading() as connection:
            return live.find_variable(connection, live.admit(connection, caller), name)

    def write(self, caller: Caller, write: Write, now: float, quota: Quota | None = None) -> live.Applied:
        """Applies a write once. Raises also what `live.apply` does."""
        with self.database.writing() as connection:
            return live.apply(connection, caller, write, now, quota)

    def note(
        self, caller: Caller, action: str, now: float, *, subject: str | None = None, detail: dict[str, Any]
    ) -> None:
        """Writes something that a script did, and that is no write, into the audit log."""
        with self.database.writing() as connection:
            execution = live.admit(connection, caller)
            audit.append(connection, live.entry(execution, caller, action, now, subject, None, detail))

    # The operator.

    def variable(self, name: str, user_id: str | None = None) -> Variable | None:
        """One variable of a user, or a global one."""
        found = self._variables(user_id, variables.c.name == name.encode())
        return found[0] if found else None

    def variables(self, user_id: str | None = None) -> list[Variable]:
        """All variables of a user, or all global ones, by name."""
        return self._variables(user_id)

    def set_variable(self, name: str, value: Any, user_id: str | None, now: float, *, actor: str, host: str) -> None:
        """Sets a user's variable, or a global one. The next read of a running script sees it."""
        scope, owner = _place(user_id)
        with self.database.writing() as connection:
            live.store_variable(connection, scope, owner, name, value, now)
            detail = {"scope": scope, "owner": owner, "bytes": len(exactjson.encode(value))}
            audit.append(connection, Entry(now, actor, "variable.set", subject=name, host=host, detail=detail))

    def delete_variable(self, name: str, user_id: str | None, now: float, *, actor: str, host: str) -> bool:
        """Deletes a user's variable, or a global one; whether there was one."""
        scope, owner = _place(user_id)
        with self.database.writing() as connection:
            was_there = live.delete_variable(connection, scope, owner, name)
            if was_there:
                detail = {"scope": scope, "owner": owner}
                audit.append(connection, Entry(now, actor, live.DELETE, subject=name, host=host, detail=detail))
        return was_there

    def audit(self, limit: int, execution_id: str | None = None) -> list[Entry]:
        """The audit log's last entries, oldest of them first."""
        with self.database.reading() as connection:
            return audit.newest(connection, limit, execution_id)

    def _variables(self, user_id: str | None, *where: sql.ColumnElement[bool]) -> list[Variable]:
        scope, owner = _place(user_id)
        query = sql.select(variables).where(variables.c.scope == scope, variables.c.owner == owner, *where)
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(variables.c.name)).all()
        return [Variable(bytes(row.name).decode(), exactjson.loads(row.value), user_id, row.changed_at) for row in rows]


_ADMIT_TO_INPUT: Final = live.admission(live_executions.c.input)
_ADMIT_TO_CONTEXT: Final = live.admission(live_executions.c.context)


def _place(user_id: str | None) -> tuple[str, str]:
    return (GLOBAL, "") if user_id is None else (USER, user_id)
