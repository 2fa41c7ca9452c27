"""The ids that were started: each one kept under contention, and left out only where its record is complete."""

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cronium_runner import guardian, liveness, started_ids
from cronium_runner.errors import StateDamagedError
from cronium_runner.jobdir import AlreadyClaimedError, StateDirectory
from cronium_runner.lifecycle import State
from cronium_runner.started_ids import StartedIds
from runner_process import PATIENCE, Host, open_files, wait_until


def test_ids_are_remembered_by_all_who_look(tmp_path: Path) -> None:
    path = str(tmp_path / "started")
    assert not StartedIds(path).has("a")
    StartedIds(path).add("a")
    StartedIds(path).add("b")
    assert [StartedIds(path).has(each) for each in ("a", "b", "c")] == [True, True, False]
    assert os.stat(path).st_size == 32
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_no_id_is_lost_while_others_are_forgotten(tmp_path: Path) -> None:
    path = str(tmp_path / "started")
    for number in range(100):
        StartedIds(path).add(f"old-{number}")
    is_over = threading.Event()

    def forget() -> None:
        while not is_over.is_set():
            StartedIds(path).forget(f"old-{number}" for number in range(100))

    forgetting = threading.Thread(target=forget)
    forgetting.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: StartedIds(path).add(f"new-{number}"), range(200)))
    is_over.set()
    forgetting.join()
    assert all(StartedIds(path).has(f"new-{number}") for number in range(200))
    StartedIds(path).forget(f"old-{number}" for number in range(100))
    assert os.stat(path).st_size == 200 * 16
    assert os.listdir(tmp_path) == ["started"]


def test_id_that_is_taken_back_is_free_again(tmp_path: Path) -> None:
    started = StartedIds(str(tmp_path / "started"))
    for each in ("a", "b", "c", "b"):
        started.add(each)
    started.take_back("b")
    assert [started.has(each) for each in ("a", "b", "c")] == [True, False, True]
    started.forget([])
    assert os.stat(started.path).st_size == 32


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file of this process may become larger, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_id_that_found_no_space_displaces_no_other(tmp_path: Path) -> None:
    started = StartedIds(str(tmp_path / "started"))
    started.add("a")
    with full_at(24), pytest.raises(OSError, match="No space left"):
        started.add("b")
    started.add("c")
    with open(started.path, "ab") as file:
        file.write(b"half")  # of a process that was killed
    started.add("d")
    started.forget(["a"])
    assert [started.has(each) for each in ("a", "b", "c", "d")] == [False, False, True, True]
    assert os.stat(started.path).st_size == 32


def test_forgetting_without_space_leaves_all_as_it_was(tmp_path: Path) -> None:
    started = StartedIds(str(tmp_path / "started"))
    for each in ("a", "b", "c"):
        started.add(each)
    with full_at(16), pytest.raises(OSError):
        started.forget(["a"])
    assert [started.has(each) for each in ("a", "b", "c")] == [True, True, True]
    assert os.listdir(tmp_path) == ["started"]


def test_file_that_is_too_large_to_read_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = StartedIds(str(tmp_path / "started"))
    for number in range(10):
        started.add(f"job-{number}")
    monkeypatch.setattr(started_ids, "_LIMIT", 64)
    monkeypatch.setattr(started_ids, "_PIECE", 40)
    assert not started.has("job-9")
    started.forget(f"job-{number}" for number in range(8))
    assert [started.has(f"job-{number}") for number in (7, 8, 9)] == [False, True, True]


def test_id_started_while_another_claim_was_prepared_is_taken(tmp_path: Path) -> None:
    state = StateDirectory.open(str(tmp_path / "state"))
    late, early = state.stage(), state.stage()
    for stage in (late, early):
        os.mkdir(stage.work)
    started = early.claim("job", {})
    state.started.add("job")
    shutil.rmtree(started.path)  # as its script may do
    with pytest.raises(AlreadyClaimedError):
        late.claim("job", {})
    assert os.listdir(state.executions) == []
    started.let_go()


@pytest.mark.parametrize(("refusals", "is_free"), [(1, True), (2, False)])
def test_id_that_the_disk_keeps_stays_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int, is_free: bool
) -> None:
    """With its directory: an id that is remembered without one passes for a record that was removed."""
    state = StateDirectory.open(str(tmp_path / "state"))
    stage = state.stage()
    os.mkdir(stage.work)
    execution = stage.claim("job", {})
    state.started.add("job")
    real, left = StartedIds.take_back, [OSError(errno.EIO, "refused")] * refusals

    def take_back(started: StartedIds, execution_id: str) -> None:
        if left:
            raise left.pop()
        real(started, execution_id)

    monkeypatch.setattr(StartedIds, "take_back", take_back)
    prepared: Any = SimpleNamespace(execution=execution)
    assert guardian._give_back(prepared) is is_free
    assert (state.is_claimed("job"), os.path.isdir(execution.path)) == (not is_free, not is_free)
    execution.let_go()


def test_id_is_remembered_before_its_script_starts(host: Host) -> None:
    host.run("list")  # makes the state directory
    memory = host.state / "started"
    with memory.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        script = host.script("true\n")
        running = host.start("run", "--execution-id", "job", script, stdout=subprocess.DEVNULL)
        wait_until(lambda: (host.execution("job") / "state.jsonl").exists(), "the claim")
        supervisor = host.history("job")[0]["supervisor"]["pid"]
        wait_until(lambda: str(memory) in open_files(supervisor), "the supervisor to wait for the lock")
        assert not Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text()
    with running:
        assert running.wait(PATIENCE) == 0


def test_collection_forgets_only_ids_with_complete_records(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.run("run", "--execution-id", "ended", host.script("true\n"))
    state = StateDirectory(str(host.state))
    stage = state.stage()
    os.mkdir(stage.work)
    stage.claim("running", {}).let_go()
    for each in ("removed", "running"):
        state.started.add(each)
    state.forget_started()
    assert state.started.has("ended"), "a small file is left as it is"
    monkeypatch.setattr(started_ids, "SHRUNK_ABOVE", 0)
    state.forget_started()
    assert [state.started.has(each) for each in ("ended", "removed", "running")] == [False, True, True]
    assert [state.is_claimed(each) for each in ("ended", "removed", "running")] == [True, True, True]


def test_a_removed_record_is_made_again_and_held(tmp_path: Path) -> None:
    state = StateDirectory.open(str(tmp_path / "state"))
    execution = state.stage().claim("job", {"supervisor": {}})
    shutil.rmtree(execution.path)
    assert execution.is_removed()
    execution.restore(State.RUNNING)
    assert liveness.is_held(execution.state_path), "others see that its supervisor lives"
    assert not execution.is_removed()
    execution.let_go()


def test_a_record_is_made_again_of_started_ids_and_nowhere_else(tmp_path: Path) -> None:
    state = StateDirectory.open(str(tmp_path / "state"))
    assert not state.restore_for_dead("never", os.getpid(), None)
    assert state.ids() == []
    (tmp_path / "elsewhere").mkdir()
    Path(state.executions, "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateDamagedError, match="is not a directory"):
        state.restore("link", [b"{}\n"])
    assert os.listdir(tmp_path / "elsewhere") == []
