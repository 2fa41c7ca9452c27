"""Live data that version 0.1.0 kept in the controller's database moves into `live.db`, whatever interrupts it."""

import functools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cronium_controller.errors import StoreError
from cronium_controller.hosts import Host
from cronium_controller.platform_store import Caller, Database, LiveExecution, PlatformStore, Write, database_url
from cronium_controller.platform_store.migrations import migrate
from cronium_controller.store import Store
from cronium_runner.wire.results import Outcome, Result

WEB01 = Host("web01", "192.0.2.1", 22, "deploy", None)
TABLES = ("live_executions", "grants", "variables", "applied_writes", "audit_log")
CALLER = Caller("one", "grant1")


class OldStore(PlatformStore):
    """As version 0.1.0 opens the controller's database: the same tables and statements, and nothing moves."""

    def __init__(self, path: Path) -> None:
        self.database = Database(database_url(str(path)))
        try:
            migrate(self.database)
        except BaseException:
            self.close()
            raise


def write(store: PlatformStore, name: str, value: object, sequence: int | None = None) -> None:
    store.write(CALLER, Write("variable.set", value, name, sequence), 2.0)


def fill(path: Path) -> None:
    """An execution with a grant, variables, numbered writes and their entries in the log."""
    store = OldStore(path)
    store.register(LiveExecution("one", "u", input={"n": 1}, variables={"given": True}), 1.0, actor="a")
    store.grant(CALLER, 1.0, 1e12, actor="a")
    for number in range(1, 4):
        write(store, f"x{number}", "v" * 100 * number, number)
    store.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A controller's folder as version 0.1.0 leaves it, with an execution that is under way."""
    made = tmp_path / "state"
    store = Store(made / "controller.db")
    assert store.record("one", WEB01, "a" * 64, "x.sh", 1.0)
    store.close()
    fill(made / "controller.db")
    monkeypatch.delenv("CRONIUM_DATABASE", raising=False)
    monkeypatch.setenv("CRONIUM_CONTROLLER_STATE", str(made))
    return made


def rows(path: Path) -> dict[str, list[Any]]:
    """Everything that is in the tables."""
    connection = sqlite3.connect(path)
    try:
        return {table: sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in TABLES}
    finally:
        connection.close()


def open_default() -> None:
    PlatformStore().close()


def test_everything_moves_and_is_used_from_there(folder: Path) -> None:
    before = rows(folder / "controller.db")
    assert all(before.values()), "nothing would be moved"
    store = PlatformStore()
    assert store.database.name == str(folder / "live.db")
    assert rows(folder / "live.db") == before
    assert store.read_variable(CALLER, "x3") == f'"{"v" * 300}"'
    write(store, "x4", 4, 4)
    assert rows(folder / "controller.db") == before, "kept, and not written any more"
    store.close()
    open_default()
    assert len(rows(folder / "live.db")["variables"]) == len(before["variables"]) + 1
    submitted = Store(folder / "controller.db")
    assert submitted.find("one") is not None
    submitted.close()


def test_the_controllers_database_by_name_means_live_db(folder: Path) -> None:
    before = rows(folder / "controller.db")
    store = PlatformStore(str(folder / "controller.db"))
    assert store.database.name == str(folder / "live.db")
    store.close()
    assert rows(folder / "live.db") == before
    store = PlatformStore(str(folder / "other.db"))
    assert store.database.name == str(folder / "other.db")
    store.close()


@pytest.mark.parametrize("change", ["INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "UPDATE {} SET {} = {}"])
def test_the_old_tables_can_only_be_read(folder: Path, change: str) -> None:
    open_default()
    before = rows(folder / "controller.db")
    connection = sqlite3.connect(folder / "controller.db", isolation_level=None)
    for table in TABLES:
        column = connection.execute(f"PRAGMA table_info({table})").fetchone()[1]
        with pytest.raises(sqlite3.IntegrityError, match=r"live\.db|append-only"):
            connection.execute(change.format(table, column, column))
    connection.close()
    assert rows(folder / "controller.db") == before


def test_an_older_version_that_still_writes_is_refused(folder: Path) -> None:
    older = OldStore(folder / "controller.db")
    open_default()
    for attempt in (lambda: write(older, "late", 1), lambda: older.revoke("one", 3.0, actor="a")):
        with pytest.raises(StoreError, match=r"live data has moved to live\.db; end this cronium and use the newer"):
            attempt()
    assert older.read_variable(CALLER, "x1") is not None
    older.close()
    with pytest.raises(StoreError, match="written by a newer cronium"):
        OldStore(folder / "controller.db")


def test_an_older_version_begins_no_second_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRONIUM_DATABASE", raising=False)
    monkeypatch.setenv("CRONIUM_CONTROLLER_STATE", str(tmp_path / "new"))
    open_default()
    with pytest.raises(StoreError, match="written by a newer cronium"):
        OldStore(tmp_path / "new" / "controller.db")
    Store(tmp_path / "new" / "controller.db").close()


def test_what_an_older_version_wrote_later_is_noticed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It wrote into a copy of the database that was put back."""
    backup = folder / "backup"
    shutil.copy(folder / "controller.db", backup)
    store = PlatformStore()
    write(store, "x1", "here", 4)
    store.close()
    for left in folder.glob("controller.db*"):
        left.unlink()
    shutil.copy(backup, folder / "controller.db")
    older = OldStore(folder / "controller.db")
    older.register(LiveExecution("two", "u"), 5.0, actor="a")
    older.close()
    store = PlatformStore()
    assert [record.message.split()[0] for record in caplog.records if record.name == "cronium.live"] == [
        "older_version_wrote"
    ]
    assert (store.find("one") is not None, store.find("two") is not None) == (True, True)
    assert store.read_variable(CALLER, "x1") == '"here"', "the newer value"
    assert [entry.action for entry in store.audit(100, "two")] == ["execution.registered"]
    assert len(store.audit(100, "one")) == 6, "no line twice"
    store.close()
    with pytest.raises(StoreError, match="written by a newer cronium"):
        OldStore(folder / "controller.db")


def test_processes_that_move_it_at_once_agree(folder: Path) -> None:
    before = rows(folder / "controller.db")
    program = "from cronium_controller.platform_store import PlatformStore; print(len(PlatformStore().audit(100)))"

    def open_it(_: int) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(open_it, range(4)))
    assert [(one.returncode, one.stdout, one.stderr) for one in done] == [(0, "5\n", "")] * 4
    assert rows(folder / "live.db") == before


def in_child(call: Callable[[], object]) -> int:
    """Calls it in a forked process; its wait status."""
    pid = os.fork()
    if not pid:
        try:
            call()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]


def open_and_die(at: int) -> None:
    """Opens the default database and kills this process before its `at`-th statement."""
    left = at

    class Dying(sqlite3.Connection):
        def execute(self, *words: Any) -> sqlite3.Cursor:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().execute(*words)

    with patch.object(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Dying)):
        open_default()


def test_a_kill_before_any_statement_loses_nothing(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    before = rows(folder / "controller.db")
    number = 0
    while True:
        number += 1
        copied = tmp_path / str(number)
        shutil.copytree(folder, copied)
        monkeypatch.setenv("CRONIUM_CONTROLLER_STATE", str(copied))
        was_killed = os.WIFSIGNALED(in_child(functools.partial(open_and_die, number)))
        submitted = Store(copied / "controller.db")
        submitted.finish(Result("one", Outcome.SUCCEEDED, exit_code=0), 2.0)
        submitted.close()
        open_default()
        assert rows(copied / "live.db") == before, f"killed before statement {number}"
        with pytest.raises(StoreError, match="written by a newer cronium"):
            OldStore(copied / "controller.db")
        shutil.rmtree(copied)
        if not was_killed:
            break
    assert number > 20


@pytest.fixture
def small_disk(folder: Path, as_root: None) -> Iterator[Path]:
    """The same folder on a disk of half a megabyte."""
    mounted = folder.parent / "small"
    mounted.mkdir(mode=0o700)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "none", mounted], check=False).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        shutil.copytree(folder, mounted, dirs_exist_ok=True)
        yield mounted
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


def test_on_a_full_disk_it_waits_until_there_is_room(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONIUM_CONTROLLER_STATE", str(small_disk))
    before = rows(small_disk / "controller.db")
    for room in range(0, 100 * 1024, 16 * 1024):  # it fails at one place after the other
        filling = small_disk / "filling"
        filling.write_bytes(b"")
        disk = os.statvfs(small_disk)
        with open(filling, "wb") as file:
            file.write(b"\0" * max(0, disk.f_bavail * disk.f_frsize - room))
        with pytest.raises(StoreError, match="make room") if room < 64 * 1024 else suppressed():
            open_default()
        filling.unlink()
    open_default()
    assert rows(small_disk / "live.db") == before


class suppressed:  # noqa: N801 - stands where pytest.raises does
    """With some room it may fail or not."""

    def __enter__(self) -> None:
        """Nothing is prepared."""

    def __exit__(self, kind: object, *_: object) -> bool:
        return kind is StoreError


def test_live_data_keeps_no_result_from_being_stored(folder: Path) -> None:
    """Its lock is held, as by a script that writes as fast as it can."""
    live = PlatformStore()
    submitted = Store(folder / "controller.db")
    with live.database.writing():
        submitted.finish(Result("one", Outcome.SUCCEEDED, exit_code=0), 2.0)
    record = submitted.find("one")
    assert record is not None
    assert record.state == "succeeded"
    submitted.close()
    live.close()
