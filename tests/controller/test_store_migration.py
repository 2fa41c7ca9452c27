"""A controller's database of an older schema is carried over, with everything in it. `old/` has real files of each."""

import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from cronium_controller.errors import ControllerError
from cronium_controller.hosts import Host
from cronium_controller.schema import VERSION as SCHEMA_VERSION
from cronium_controller.store import Store
from cronium_runner.wire.results import Outcome, Result

OLD = Path(__file__).parent / "old"
WEB01 = Host("web01", "192.0.2.1", 2222, "deploy", "/keys/id")


@pytest.fixture(params=range(1, SCHEMA_VERSION))
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    copied = tmp_path / "controller.db"
    shutil.copy(OLD / f"controller-{request.param}.db", copied)
    copied.chmod(0o600)
    return copied


def test_there_is_an_old_file_of_every_schema_but_the_last() -> None:
    assert sorted(OLD.glob("*.db")) == [OLD / f"controller-{version}.db" for version in range(1, SCHEMA_VERSION)]


def test_what_was_recorded_is_kept(path: Path) -> None:
    store = Store(path)
    first, second = store.find("first"), store.find("second")
    store.close()
    assert first is not None
    assert second is not None
    assert (first.host, first.state, first.finished_at, first.is_acknowledged) == (WEB01, "succeeded", 1001.0, True)
    assert first.result == Result("first", Outcome.SUCCEEDED, exit_code=0, output={"k": "v"})
    assert (second.host.name, second.state, second.result, second.payload_sha256) == (
        "web02",
        "unknown",
        None,
        "b" * 64,
    )
    assert (first.run_as, second.run_as) == (None, None)
    assert (first.mode, first.fallback, first.may_write) == ("bundled", None, False)


def test_it_is_carried_over_once_and_then_like_a_new_one(path: Path, tmp_path: Path) -> None:
    Store(path).close()
    store = Store(path)
    assert store.record("third", WEB01, "c" * 64, "x.sh", 3000.0, run_as="app")
    assert [record.run_as for record in store.recent()] == ["app", None, None]
    store.close()
    Store(tmp_path / "new.db").close()

    def columns(database: Path) -> list[object]:
        with closing(sqlite3.connect(database)) as connection, connection:
            found = connection.execute("PRAGMA table_info(executions)").fetchall()
            return [connection.execute("PRAGMA user_version").fetchone(), *(row[1:4] for row in found)]

    assert columns(path) == columns(tmp_path / "new.db")


def test_processes_that_carry_it_over_at_once_agree(path: Path) -> None:
    program = "import sys; from pathlib import Path; from cronium_controller.store import Store; "
    program += "print(len(Store(Path(sys.argv[1])).recent()))"

    def open_it(_: int) -> "subprocess.CompletedProcess[str]":
        words = [sys.executable, "-c", program, str(path)]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(open_it, range(4)))
    assert [(one.returncode, one.stdout, one.stderr) for one in done] == [(0, "2\n", "")] * 4


def test_the_same_id_for_two_accounts_is_a_conflict(tmp_path: Path) -> None:
    store = Store(tmp_path / "controller.db")
    assert store.record("one", WEB01, "a" * 64, "x.sh", 1.0, run_as="app")
    assert not store.record("one", WEB01, "a" * 64, "x.sh", 2.0, run_as="app")
    for other in (None, "web"):
        with pytest.raises(ControllerError, match="as app") as conflict:
            store.record("one", WEB01, "a" * 64, "x.sh", 3.0, run_as=other)
        assert conflict.value.code == "execution.id_conflict"
    store.note_state("one", "refused")
    assert store.record("one", WEB01, "a" * 64, "x.sh", 4.0), "nothing was started: the id is free"
    found = store.find("one")
    assert found is not None
    assert found.run_as is None
    store.close()


def test_an_older_cronium_works_with_added_tables(tmp_path: Path) -> None:
    """An added table doesn't raise the version, so 0.1.0 opens the file; one that it made gets the table later."""
    database = tmp_path / "controller.db"
    Store(database).close()
    with closing(sqlite3.connect(database)) as connection, connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (5,)
        connection.execute("DROP TABLE run_hosts")
    store = Store(database)
    assert store.database.read("SELECT * FROM run_hosts") == []
    store.close()
