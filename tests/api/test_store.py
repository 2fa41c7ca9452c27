"""The platform's store, the same on SQLite and on PostgreSQL."""

import re
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sql

from cronium_controller.errors import StoreError
from cronium_controller.hosts import parse_host
from cronium_controller.platform_store import (
    Caller,
    Entry,
    GrantError,
    LiveExecution,
    MissingVariableError,
    PlatformStore,
    SequenceError,
    Write,
    database_url,
)
from cronium_controller.platform_store.live import Applied
from cronium_controller.platform_store.migrations import STEPS, Step, migrate
from cronium_controller.platform_store.platform import KEPT_SECONDS
from cronium_controller.platform_store.tables import metadata
from cronium_controller.store import Store
from cronium_runner.wire import exactjson
from cronium_runner.wire.changes import ChangeError

NAMES = [
    "x",
    "a/b",
    "../../etc/passwd",
    "\0",
    "a\0b",
    "ü",
    "😀",
    " ",
    "%2F",
    "\u00e9",
    "e\u0301",
    "'; DROP TABLE variables; --",
    "n" * 1024,
]


def enter(store: PlatformStore, execution: str = "one", user: str = "u", **more: object) -> Caller:
    store.register(LiveExecution(execution, user, **more), 1.0, actor="test")  # type: ignore[arg-type]
    caller = Caller(execution, f"{execution}grant")
    store.grant(caller, 1.0, 100.0, actor="test")
    return caller


def put(store: PlatformStore, caller: Caller, name: str, value: object, sequence: int | None = None) -> bool:
    return store.write(caller, Write("variable.set", value, name, sequence), 2.0).is_new


def test_input_context_output_and_condition(store: PlatformStore) -> None:
    given = exactjson.loads('{"big":12345678901234567890,"exact":1.10,"nul":"\\u0000"}')
    caller = enter(store, job_id="j", host="web01", input=given, context={"eventId": 7, "metadata": {"k": [None]}})
    assert store.read_input(caller) == '{"big":12345678901234567890,"exact":1.10,"nul":"\\u0000"}'
    assert store.read_context(caller) == {
        "eventId": 7, "metadata": {"k": [None]}, "executionId": "one", "jobId": "j", "userId": "u",
    }  # fmt: skip
    assert store.written("one") == (None, None)
    store.write(caller, Write("output.set", given), 2.0)
    store.write(caller, Write("condition.set", False), 2.0)
    assert store.written("one") == (given, False)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_any_name_is_a_name(store: PlatformStore, name: str) -> None:
    caller = enter(store)
    others = [other for other in NAMES if other != name]
    put(store, caller, name, "mine")
    assert store.read_variable(caller, name) == '"mine"'
    assert [store.read_variable(caller, other) for other in others] == [None] * len(others)
    assert [variable.name for variable in store.variables("u")] == [name]
    assert "\0" not in str(store.audit(1)[0].subject)


def test_a_name_is_looked_up_in_the_execution_then_its_user_then_globally(store: PlatformStore) -> None:
    caller = enter(store, variables={"x": "handed over"})
    other = enter(store, "two")
    stranger = enter(store, "three", user="somebody else")
    store.set_variable("x", "global", None, 1.0, actor="op", host="desk")
    assert [store.read_variable(who, "x") for who in (caller, other, stranger)] == [
        '"handed over"', '"global"', '"global"',
    ]  # fmt: skip
    store.set_variable("x", "the user's", "u", 1.0, actor="op", host="desk")
    assert [store.read_variable(who, "x") for who in (caller, other, stranger)] == [
        '"handed over"', '"the user\'s"', '"global"',
    ]  # fmt: skip
    put(store, caller, "x", "written")
    assert [store.read_variable(who, "x") for who in (caller, other, stranger)] == [
        '"written"',
        '"written"',
        '"global"',
    ]


def test_a_write_is_applied_once(store: PlatformStore) -> None:
    caller = enter(store)
    assert put(store, caller, "x", 1, sequence=1)
    store.set_variable("x", "the operator's", "u", 2.0, actor="op", host="desk")
    assert not put(store, caller, "x", 1, sequence=1)
    assert store.read_variable(caller, "x") == '"the operator\'s"'
    assert [entry.sequence for entry in store.audit(10, "one") if entry.action == "variable.set"] == [1]


def test_numbers_may_have_gaps_and_what_comes_too_late_is_refused_not_dropped(store: PlatformStore) -> None:
    caller = enter(store)
    assert put(store, caller, "x", "fifth", sequence=5)
    with pytest.raises(SequenceError, match="number 4 comes after number 5"):
        put(store, caller, "x", "fourth", sequence=4)
    with pytest.raises(SequenceError, match="number 5 was used for another write"):
        put(store, caller, "x", "another", sequence=5)
    with pytest.raises(SequenceError, match="number 5 was used for another write"):
        put(store, caller, "y", "fifth", sequence=5)
    assert not put(store, caller, "x", "fifth", sequence=5)
    assert put(store, caller, "x", "biggest", sequence=2**63 - 1)
    assert store.read_variable(caller, "x") == '"biggest"'


def test_the_same_write_from_many_sides_at_once_is_applied_once(store: PlatformStore) -> None:
    caller = enter(store)
    with ThreadPoolExecutor(16) as pool:
        applied = list(pool.map(lambda _: put(store, caller, "x", 1, sequence=1), range(48)))
    assert applied.count(True) == 1


def test_hundred_writers_of_hundred_names_lose_nothing(store: PlatformStore) -> None:
    callers = [enter(store, f"e{number}") for number in range(4)]
    with ThreadPoolExecutor(100) as pool:
        list(pool.map(lambda number: put(store, callers[number % 4], f"k{number}", number), range(100)))
    assert {variable.name: variable.value for variable in store.variables("u")} == {f"k{n}": n for n in range(100)}
    assert sum(entry.action == "variable.set" for entry in store.audit(1000)) == 100


def change(store: PlatformStore, caller: Caller, what: str, value: object, sequence: int | None = None) -> Applied:
    """A change of the variable `x`."""
    return store.write(caller, Write(f"variable.{what}", value, "x", sequence), 2.0)


@pytest.mark.parametrize(
    ("before", "what", "value", "after"),
    [
        ('"nothing"', "increment", "2", "2"),
        ("1", "increment", "41", "42"),
        ("9007199254740993", "increment", "1", "9007199254740994"),
        ("0.1", "increment", "0.20", "0.30"),
        ('"5"', "increment", "-7", "-2"),
        ("null", "increment", "1", "1"),
        ("12345678901234567890123.50", "increment", "0.50", "12345678901234567890124.00"),
        ('"nothing"', "append", '"a"', '"a"'),
        ('"a"', "append", '"\\u0000ü"', '"a\\u0000ü"'),
        ('"a"', "append", '""', '"a"'),
    ],
)
def test_a_variable_is_changed_exactly(store: PlatformStore, before: str, what: str, value: str, after: str) -> None:
    caller = enter(store)
    if before != '"nothing"':
        put(store, caller, "x", exactjson.loads(before))
    assert change(store, caller, what, exactjson.loads(value)) == Applied(is_new=True, changed=after)
    assert store.read_variable(caller, "x") == after


@pytest.mark.parametrize(
    ("before", "what", "value", "said"),
    [
        ("text", "increment", 1, "is no number"),
        ([1], "increment", 1, "is no number"),
        (True, "increment", 1, "is no number"),
        (1, "append", "x", "is no text"),
        ("9" * 400, "increment", 1, "more than 400 digits"),
    ],
)
def test_a_change_that_cannot_be_leaves_all_as_it_was(
    store: PlatformStore, before: object, what: str, value: object, said: str
) -> None:
    caller = enter(store)
    put(store, caller, "x", before)
    told = store.audit(100)
    with pytest.raises(ChangeError, match=said):
        change(store, caller, what, value, 1)
    assert store.read_variable(caller, "x") == exactjson.dumps(before)
    assert store.audit(100) == told
    assert put(store, caller, "y", 1, 1), "its number can be used"


def test_what_a_change_starts_from_and_where_it_goes(store: PlatformStore) -> None:
    caller, other = enter(store, variables={"x": 10}), enter(store, "two")
    store.set_variable("x", 100, None, 1.0, actor="op", host="desk")
    change(store, caller, "increment", 1)
    assert [store.read_variable(who, "x") for who in (caller, other)] == ["11", "11"], "from what was handed over"
    assert store.delete_variable("x", "u", 1.0, actor="op", host="desk")
    change(store, other, "increment", 1)
    assert [store.read_variable(who, "x") for who in (caller, other)] == ["101", "101"], "from the global one"
    found = store.variable("x")
    assert found is not None
    assert found.value == 100, "which stays"


def test_a_change_is_applied_once(store: PlatformStore) -> None:
    caller = enter(store)
    assert change(store, caller, "increment", 5, 1) == Applied(is_new=True, changed="5")
    assert change(store, caller, "increment", 5, 1) == Applied(is_new=False), "another execution may have changed it"
    with pytest.raises(SequenceError, match="used for another write"):
        change(store, caller, "increment", 6, 1)
    assert change(store, caller, "increment", 6, 2) == Applied(is_new=True, changed="11")
    assert store.read_variable(caller, "x") == "11"
    assert change(store, caller, "delete", None, 3) == Applied(is_new=True)
    assert change(store, caller, "delete", None, 3) == Applied(is_new=False), (
        "nor is the deletion of what isn't there any more an error"
    )
    with pytest.raises(MissingVariableError):
        change(store, caller, "delete", None, 4)
    assert [(entry.action, entry.detail) for entry in store.audit(3, "one")] == [
        ("variable.increment", {"bytes": 1}), ("variable.increment", {"bytes": 2}), ("variable.delete", {}),
    ]  # fmt: skip


def test_parallel_changes_of_a_variable_lose_nothing(store: PlatformStore) -> None:
    """Also those of several executions, and of a variable that isn't there at first."""
    callers = [enter(store, f"e{number}") for number in range(4)]
    with ThreadPoolExecutor(40) as pool:
        list(pool.map(lambda number: change(store, callers[number % 4], "increment", number), range(1, 101)))
        list(
            pool.map(
                lambda number: store.write(callers[number % 4], Write("variable.append", "ab", "t"), 2.0), range(40)
            )
        )
    assert store.read_variable(callers[0], "x") == "5050"
    assert store.read_variable(callers[0], "t") == exactjson.dumps("ab" * 40)


def test_what_a_script_may_delete(store: PlatformStore) -> None:
    caller, stranger = enter(store, variables={"x": "handed over"}), enter(store, "two", user="somebody else")
    store.set_variable("x", "global", None, 1.0, actor="op", host="desk")
    put(store, caller, "y", 1)
    for who in (caller, stranger):
        with pytest.raises(MissingVariableError):
            store.write(who, Write("variable.delete", None, "z"), 2.0)
    assert change(store, caller, "delete", None).is_new
    assert store.read_variable(caller, "x") == '"global"'
    for who in (caller, stranger):
        with pytest.raises(MissingVariableError):
            change(store, who, "delete", None)
    assert store.read_variable(stranger, "x") == '"global"', "an operator's stays"
    assert [variable.name for variable in store.variables("u")] == ["y"]


def test_a_failed_write_leaves_neither_value_nor_entry_nor_number(
    store: PlatformStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = enter(store)
    before = store.audit(100)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cronium_controller.platform_store.audit.append", fail)
        with pytest.raises(StoreError, match="No space left on device"):
            put(store, caller, "x", 1, sequence=1)
    assert store.read_variable(caller, "x") is None
    assert store.audit(100) == before
    assert put(store, caller, "x", 1, sequence=1)


def test_revoked_or_unknown_grants_open_nothing(store: PlatformStore) -> None:
    caller, other = enter(store, variables={"SECRET": "s3cret"}), enter(store, "two")
    strangers = [Caller("one", "never issued"), Caller("two", caller.jti), Caller("three", caller.jti)]
    assert store.revoke("one", 5.0, actor="test") == 1
    assert store.revoke("one", 5.0, actor="test") == 0
    for who in (caller, *strangers):
        for ask in (
            lambda who=who: store.read_input(who),
            lambda who=who: store.read_context(who),
            lambda who=who: store.read_variable(who, "x"),
            lambda who=who: put(store, who, "x", 1),
            lambda who=who: store.note(who, "tool.started", 1.0, detail={}),
        ):
            with pytest.raises(GrantError):
                ask()
    assert store.read_input(other) == "null"
    again = Caller("one", "again")
    store.grant(again, 6.0, 100.0, actor="test")
    assert store.read_variable(again, "SECRET") is None, "what was handed over goes with the tokens"


def test_what_was_not_started_is_forgotten_and_its_id_can_be_used_again(store: PlatformStore) -> None:
    store.register(LiveExecution("one", "u", input=1, variables={"x": 1}), 1.0, actor="a")
    store.grant(Caller("one", "j"), 1.0, 2.0, actor="a")
    store.forget("one", 2.0, actor="a")
    store.forget("one", 2.0, actor="a")
    with pytest.raises(GrantError):
        store.read_input(Caller("one", "j"))
    assert store.register(LiveExecution("one", "u", input=2), 3.0, actor="a")
    store.grant(Caller("one", "k"), 3.0, 4.0, actor="a")
    assert (store.read_input(Caller("one", "k")), store.read_variable(Caller("one", "k"), "x")) == ("2", None)
    told = [entry.action for entry in store.audit(10, "one")]
    assert told == [*["execution.registered", "token.issued", "execution.forgotten"], *told[:2]]


def test_only_what_is_long_over_is_pruned(store: PlatformStore) -> None:
    for name, ends in (("over", True), ("open", False)):
        store.register(LiveExecution(name, "u"), 1.0, actor="a")
        store.grant(Caller(name, f"j{name}"), 1.0, 100.0 + KEPT_SECONDS, actor="a")
        put(store, Caller(name, f"j{name}"), "x", 1, sequence=1)
        if ends:
            store.revoke(name, 50.0, actor="a")
    store.prune(99.0 + KEPT_SECONDS)
    with pytest.raises(GrantError):
        store.read_input(Caller("over", "jover"))
    repeated = store.write(Caller("open", "jopen"), Write("variable.set", 1, "x", 1), 3.0)
    assert not repeated.is_new, "it is known, so not applied again"
    assert (store.find("over"), store.find("open") is None) == (None, False)
    store.prune(101.0 + 2 * KEPT_SECONDS)
    with pytest.raises(GrantError):
        store.read_input(Caller("open", "jopen"))
    assert store.find("open") is not None, "its host may come back with writes"
    assert "execution.registered" in [entry.action for entry in store.audit(10, "over")], "the log keeps everything"


def test_an_execution_that_was_let_in_again_is_not_pruned_and_neither_are_thousands_forgotten(
    store: PlatformStore,
) -> None:
    long_after = 10.0 + 2 * KEPT_SECONDS
    for number in range(1200):
        store.register(LiveExecution(f"e{number}", "u"), 1.0, actor="a")
        store.revoke(f"e{number}", 2.0, actor="a")
    store.grant(Caller("e7", "again"), long_after, long_after + 60, actor="a")
    store.prune(long_after)
    assert [name for name in (f"e{number}" for number in range(1200)) if store.find(name)] == ["e7"]
    assert store.read_input(Caller("e7", "again")) == "null"


def test_registering_again_changes_nothing(store: PlatformStore) -> None:
    caller = enter(store, input=1)
    assert not store.register(LiveExecution("one", "somebody else", input=2), 2.0, actor="test")
    assert store.read_input(caller) == "1"
    found = store.find("one")
    assert found is not None
    assert (found.user_id, found.input) == ("u", 1)
    assert store.find("two") is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "DELETE FROM audit_log WHERE id = 1",
        "INSERT OR REPLACE INTO audit_log (id, at, actor, action, detail) VALUES (1, 0, 'nobody', 'nothing', '{}')",
        "TRUNCATE audit_log",
        "TRUNCATE live_executions CASCADE; TRUNCATE audit_log CASCADE",
    ],
)
def test_the_audit_log_can_only_grow(store: PlatformStore, statement: str) -> None:
    enter(store)
    before = store.audit(100)
    assert before
    with pytest.raises(StoreError), store.database.writing() as connection:  # or it has no such statement
        connection.exec_driver_sql(statement)
    assert store.audit(100) == before


def test_the_audit_log_says_who_what_when_from_where_and_no_value(store: PlatformStore) -> None:
    caller = enter(store, host="web01")
    put(store, Caller("one", caller.jti, "192.0.2.7"), "API_TOKEN", "hunter2hunter2", sequence=3)
    store.set_variable("PASSWORD", "correct horse", "u", 4.0, actor="operator kim", host="desk")
    store.note(caller, "tool.started", 5.0, subject="alerts", detail={"action": "eyJhbGciOiJIUzI1NiJ9.eyJqIjoxfQ.c2ln"})
    registered, granted, written, operated, tool = store.audit(100)
    assert (registered.action, granted.action) == ("execution.registered", "token.issued")
    assert written == Entry(
        2.0, "script of u", "variable.set", "one", "API_TOKEN", 3, "web01", "192.0.2.7", {"bytes": 16}, written.number
    )
    assert (operated.actor, operated.host, operated.subject) == ("operator kim", "desk", "PASSWORD")
    assert tool.detail == {"action": "***"}
    assert "hunter2" not in str(store.audit(100))
    assert "horse" not in str(store.audit(100))


def test_a_database_of_an_older_version_is_brought_forward_with_its_data(store: PlatformStore) -> None:
    caller = enter(store)
    put(store, caller, "x", 1)
    later = Step(
        both=("ALTER TABLE variables ADD COLUMN note TEXT", "UPDATE variables SET note = 'kept'"),
        sqlite=("CREATE TABLE only_here (x INTEGER)",),
        postgresql=("CREATE TABLE only_here (x INTEGER, y {bytes})",),
    )
    migrate(store.database, steps=(*STEPS, later))
    migrate(store.database, steps=(*STEPS, later))
    with store.database.reading() as connection:
        assert connection.exec_driver_sql("SELECT note FROM variables").scalars().all() == ["kept"]
    assert store.read_variable(caller, "x") == "1"
    with pytest.raises(StoreError, match="written by a newer cronium"):
        migrate(store.database)


def test_a_migration_is_made_whole_or_not_at_all(store: PlatformStore) -> None:
    broken = Step(both=("CREATE TABLE half (x INTEGER)", "CREATE TABLE nonsense ("))
    with pytest.raises(StoreError):
        migrate(store.database, steps=(*STEPS, broken))
    with store.database.reading() as connection:
        assert not sql.inspect(connection).has_table("half")
    migrate(store.database)


def test_the_migrations_make_the_tables_that_statements_are_built_for(store: PlatformStore) -> None:
    with store.database.reading() as connection:
        inspector = sql.inspect(connection)
        for table in metadata.sorted_tables:
            made = {column["name"]: column["nullable"] for column in inspector.get_columns(table.name)}
            assert made == {column.name: bool(column.nullable) for column in table.columns} | (
                {"id": made["id"]} if table.name == "audit_log" else {}
            )
            keys = inspector.get_pk_constraint(table.name)["constrained_columns"]
            assert keys == [column.name for column in table.primary_key]


def test_many_first_starts_at_once(database: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(lambda _: PlatformStore(database), range(6)))
    for number, store in enumerate(stores):
        enter(store, f"e{number}")
        store.close()


def test_a_writer_waits_for_another_process(store: PlatformStore, database: str) -> None:
    """As another process would be: a second store has connections and a turn of its own."""
    caller = enter(store)
    other = PlatformStore(database)
    written = threading.Event()

    def write() -> None:
        put(store, caller, "x", 1)
        written.set()

    with other.database.writing() as connection:
        connection.execute(sql.text("UPDATE live_executions SET condition = NULL"))
        thread = threading.Thread(target=write)
        thread.start()
        assert not written.wait(0.3)
    thread.join(30)
    assert written.is_set()
    other.close()


def test_one_file_holds_both_stores(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    host = parse_host("web01")
    live = PlatformStore(str(path))
    submitted = Store(path)
    caller = enter(live)
    assert submitted.record("one", host, "ab" * 32, "job.sh", 5.0)
    put(live, caller, "x", 1)
    submitted.note_state("one", "accepted")
    for each in (live, submitted):
        each.close()
    submitted, live = Store(path), PlatformStore(str(path))
    found = submitted.find("one")
    assert found is not None
    assert found.state == "accepted"
    assert live.read_variable(caller, "x") == "1"
    live.close()
    submitted.close()


def test_who_opens_the_file_twice_keeps_it_when_others_leave(tmp_path: Path) -> None:
    """SQLite's locks are POSIX's: a descriptor of the same file that is closed beside them would release them."""
    path = tmp_path / "controller.db"
    program = (
        "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('select count(*) from grants').fetchone())"
    )

    def another_process() -> str:
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    live = PlatformStore(str(path))
    submitted = [Store(path), Store(path)]
    live.register(LiveExecution("one", "u"), 1.0, actor="a")
    assert another_process() == "(0,)"  # the last one to leave would empty and remove the log
    for number in range(3):
        live.grant(Caller("one", f"j{number}"), 1.0, 2.0, actor="a")
        assert another_process() == f"({number + 1},)"
    for store in submitted:
        store.close()
    live.close()


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "live.db"
    store = PlatformStore(str(path))
    enter(store)
    for file in (path, *path.parent.glob("live.db-*")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    store.close()
    path.chmod(0o640)
    with pytest.raises(StoreError, match="chmod 600"):
        PlatformStore(str(path))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://localhost/x", "SQLite and PostgreSQL can"),
        ("postgresql://u:hunter2@127.0.0.1:1/x", "see to the server .* or set CRONIUM_DATABASE$"),
        ("/proc/nowhere/live.db", "mend it, or set CRONIUM_DATABASE$"),
        ("sqlite://", "in memory"),
        ("nonsense://", "cannot be used|no database of the kind"),
        ("postgresql://u:hunter2@127.0.0.1:1/x", "cannot be read|cannot be opened"),
        ("/proc/nowhere/live.db", "cannot be opened"),
    ],
)
def test_unusable_databases_are_one_sentence_without_the_password(url: str, said: str) -> None:
    with pytest.raises(StoreError) as caught:
        PlatformStore(url)
    assert re.search(said, caught.value.message)
    assert "hunter2" not in caught.value.message
    assert "\n" not in caught.value.message


def test_where_the_database_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CRONIUM_CONTROLLER_STATE", str(tmp_path))
    monkeypatch.delenv("CRONIUM_DATABASE", raising=False)
    assert database_url().database == str(tmp_path / "live.db")
    monkeypatch.setenv("CRONIUM_DATABASE", "postgresql://h/x")
    assert database_url().drivername == "postgresql+psycopg"
    assert database_url("here.db").database == "here.db"


def test_a_durable_write_is_seen_by_a_reader_that_comes_later(store: PlatformStore, database: str) -> None:
    caller = enter(store)
    began = time.time()
    store.set_variable("x", [1], "u", began, actor="op", host="desk")
    other = PlatformStore(database)
    assert other.read_variable(caller, "x") == "[1]"
    found = other.variable("x", "u")
    assert found is not None
    assert found.changed_at == began
    assert other.variable("x") is None
    other.close()
