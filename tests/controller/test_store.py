"""What the controller remembers, between processes that die and processes that run at once."""

import os
import sqlite3
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from cronium_controller.errors import ControllerError, StoreError
from cronium_controller.hosts import Host, parse_host
from cronium_controller.schema import VERSION as SCHEMA_VERSION
from cronium_controller.state_path import default_path
from cronium_controller.store import Store
from cronium_runner.wire.results import Outcome, Result, StreamSummary

HOST = parse_host("deploy@web01:2222", identity="/keys/id")
DIGEST = "ab" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "er" / "controller.db"


def result(execution_id: str = "one") -> Result:
    return Result(
        execution_id=execution_id,
        state=Outcome.FAILED,
        exit_code=7,
        output={"ü": [1, 2**60, None]},
        variables={"X": "1"},
        stdout=StreamSummary(3, True, DIGEST),
        host="web01",
    )


def test_a_record_is_there_for_the_next_process(path: Path) -> None:
    store = Store(path)
    store.record("one", HOST, DIGEST, "job.sh", 5.5)
    # Not closed: as if we had been killed here.
    read = (
        "import sys; from pathlib import Path; from cronium_controller.store import Store\n"
        "found = Store(Path(sys.argv[1])).find('one'); print(found.host.address, found.host.port, found.host.user,"
        " found.host.identity, found.state, found.submitted_at, found.result, found.is_acknowledged)"
    )
    done = subprocess.run([sys.executable, "-c", read, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "web01 2222 deploy /keys/id submitted 5.5 None False"
    store.close()


def test_the_life_of_a_record(path: Path) -> None:
    store = Store(path)
    assert store.find("one") is None
    store.record("one", HOST, DIGEST, "job.sh", 5.0)
    store.note_state("one", "accepted")
    store.finish(result(), 9.0)
    store.note_acknowledged("one")
    found = store.find("one")
    assert found is not None
    assert (found.host, found.payload_sha256, found.label) == (HOST, DIGEST, "job.sh")
    assert (found.state, found.submitted_at, found.finished_at, found.is_acknowledged) == ("failed", 5.0, 9.0, True)
    assert found.result == result()
    store.close()


def test_a_result_is_never_overwritten_by_less_knowledge(path: Path) -> None:
    store = Store(path)
    store.record("one", HOST, DIGEST, "job.sh", 5.0)
    store.finish(result(), 9.0)
    store.note_state("one", "unknown")
    store.record("one", HOST, DIGEST, "again.sh", 6.0)
    found = store.find("one")
    assert found is not None
    assert (found.state, found.label, found.submitted_at) == ("failed", "job.sh", 5.0)
    store.close()


def test_an_id_belongs_to_one_host(path: Path) -> None:
    store = Store(path)
    store.record("one", HOST, DIGEST, "job.sh", 5.0)
    with pytest.raises(ControllerError) as refused:
        store.record("one", parse_host("web02"), DIGEST, "job.sh", 6.0)
    assert refused.value.code == "execution.id_conflict"
    assert "web01" in refused.value.message
    store.close()


def test_the_newest_come_first(path: Path) -> None:
    store = Store(path)
    for number in range(5):
        store.record(f"e{number}", HOST, DIGEST, "job.sh", float(number))
    assert [record.id for record in store.recent(3)] == ["e4", "e3", "e2"]
    store.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_nobody_else_may_read_it(path: Path, umask: int) -> None:
    path.parent.parent.mkdir(parents=True)
    write = (
        "import os, sys; os.umask(int(sys.argv[2])); from pathlib import Path\n"
        "from cronium_controller.store import Store; from cronium_controller.hosts import parse_host\n"
        "Store(Path(sys.argv[1])).record('one', parse_host('h'), 'ab' * 32, 'x', 1.0)\n"
        "print([(name, oct(os.stat(os.path.join(os.path.dirname(sys.argv[1]), name)).st_mode & 0o777))"
        " for name in sorted(os.listdir(os.path.dirname(sys.argv[1])))])"
    )
    done = subprocess.run([sys.executable, "-c", write, path, str(umask)], capture_output=True, text=True, check=False)
    if umask == 0o777 and os.geteuid() != 0:
        assert "StoreError" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert "controller.db" in done.stdout
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes <= {0o600, 0o000}, done.stdout
    assert stat.S_IMODE(path.parent.stat().st_mode) in (0o700, 0o000)


def test_a_file_that_is_open_to_others_is_refused(path: Path) -> None:
    Store(path).close()
    path.chmod(0o640)
    with pytest.raises(StoreError, match="chmod 600"):
        Store(path)


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"schema {SCHEMA_VERSION + 1}"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["nonsense", "directory", "parent is a file"])
def test_what_is_no_database_is_one_sentence_with_its_path(path: Path, kind: str) -> None:
    match kind:
        case "nonsense":
            path.parent.mkdir(parents=True)
            path.write_bytes(b"not a database, surely" * 100)
            path.chmod(0o600)
        case "directory":
            path.mkdir(parents=True, mode=0o700)
        case _:
            path.parent.parent.mkdir()
            path.parent.touch()
    with pytest.raises(StoreError) as refused:
        Store(path)
    assert refused.value.code == "store.unusable"
    assert refused.value.exit_status == 125
    assert str(path) in refused.value.message
    assert "\n" not in refused.value.message
    assert "sqlalche.me" not in refused.value.message


def test_a_full_disk_is_one_sentence(path: Path) -> None:
    """A database that may not grow, as on a full disk."""
    store = Store(path)
    store.database.read("PRAGMA max_page_count = 1")

    def fill() -> None:
        for number in range(1000):
            store.record(f"e{number}", HOST, DIGEST, "x" * 1000, 1.0)

    with pytest.raises(StoreError) as refused:
        fill()
    assert "\n" not in refused.value.message
    assert "sqlalche.me" not in refused.value.message
    assert "INSERT" not in refused.value.message
    store.close()


def test_many_processes_at_once_lose_nothing(path: Path) -> None:
    write = (
        "import sys; from pathlib import Path\n"
        "from cronium_controller.store import Store; from cronium_controller.hosts import parse_host\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for n in range(50): store.record(f'{sys.argv[2]}-{n}', parse_host('h'), 'ab' * 32, 'x', 1.0)\n"
        "for n in range(50): store.note_state(f'{sys.argv[2]}-{n}', 'accepted')\n"
    )

    def process(number: int) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", write, path, str(number)], capture_output=True, text=True, check=False
        )

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(process, range(6)))
    assert [each.stderr for each in done if each.returncode] == []
    store = Store(path)
    assert [record.state for record in store.recent(1000)] == ["accepted"] * 300
    store.close()


@pytest.mark.parametrize(
    "opening",
    [
        "from cronium_controller.store import Store as opened",
        "from cronium_controller.platform_store import PlatformStore; opened = lambda path: PlatformStore(str(path))",
    ],
    ids=["store", "platform_store"],
)
def test_processes_that_open_a_new_one_at_the_same_instant_wait_for_each_other(path: Path, opening: str) -> None:
    """SQLite itself tells one of them "locked" at once, in one round of four."""
    program = (
        f"import sys, time; from pathlib import Path; {opening}\n"
        "print('ready', flush=True); began = float(input())\n"
        "for n in range(25):\n"
        "    time.sleep(max(0, began + 0.05 * n - time.monotonic()))\n"
        "    opened(Path(f'{sys.argv[1]}{n}')).close()\n"
    )
    started = partial(subprocess.Popen[str], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with ExitStack() as running:
        processes = [running.enter_context(started([sys.executable, "-c", program, path], text=True)) for _ in range(6)]
        for process in processes:
            running.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        began = f"{time.monotonic() + 0.1}\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(began)
            process.stdin.flush()
        assert [process.communicate(timeout=60)[1] for process in processes] == [""] * len(processes)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONIUM_CONTROLLER_STATE", "/chosen")
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert default_path() == Path("/chosen/controller.db")
    monkeypatch.delenv("CRONIUM_CONTROLLER_STATE")
    assert default_path() == Path("/xdg/cronium/controller.db")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_path() == Path("/home/me/.local/state/cronium/controller.db")


def test_hosts_come_back_as_they_were(path: Path) -> None:
    store = Store(path)
    for number, host in enumerate([Host("a", "a"), parse_host("[::1]:22"), parse_host("x@y@z")]):
        store.record(f"e{number}", host, DIGEST, "job.sh", 1.0)
        found = store.find(f"e{number}")
        assert found is not None
        assert found.host == host
    store.close()


@pytest.mark.parametrize("state", ["rejected", "refused"])
def test_an_id_that_started_nothing_is_free_again(path: Path, state: str) -> None:
    store = Store(path)
    assert store.record("one", HOST, DIGEST, "job.sh", 5.0)
    if state == "rejected":
        store.finish(Result("one", Outcome.REJECTED), 6.0)
        store.note_acknowledged("one")
    else:
        store.note_state("one", state)
    other = parse_host("web02")
    assert store.record("one", other, "cd" * 32, "fixed.sh", 7.0)
    found = store.find("one")
    assert found is not None
    assert (found.host, found.payload_sha256, found.label, found.submitted_at) == (other, "cd" * 32, "fixed.sh", 7.0)
    assert (found.state, found.result, found.finished_at, found.is_acknowledged) == ("submitted", None, None, False)
    assert not store.record("one", other, DIGEST, "again.sh", 8.0)
    store.close()


@pytest.mark.parametrize("state", Outcome)
def test_a_result_that_says_how_the_script_ended_stays(path: Path, state: Outcome) -> None:
    store = Store(path)
    store.record("one", HOST, DIGEST, "job.sh", 5.0)
    store.finish(Result("one", state), 6.0)
    store.finish(Result("one", Outcome.FAILED, exit_code=3), 7.0)
    found = store.find("one")
    assert found is not None
    assert found.result is not None
    is_replaced = state in (Outcome.REJECTED, Outcome.LOST, Outcome.UNKNOWN)
    assert (found.result.state, found.finished_at) == ((Outcome.FAILED, 7.0) if is_replaced else (state, 6.0))
    store.close()
