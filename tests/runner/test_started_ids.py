"""The ids that were started: each one kept under contention, and left out only where its record is complete."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cronium_runner import started_ids
from cronium_runner.jobdir import StateDirectory
from cronium_runner.started_ids import StartedIds
from runner_process import Host


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


def test_collection_forgets_only_ids_with_complete_records(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.run("run", "--execution-id", "ended", host.script("true\n"))
    state = StateDirectory(str(host.state))
    for each in ("removed", "running"):
        state.started.add(each)
    stage = state.stage()
    os.mkdir(stage.work)
    stage.claim("running", {}).let_go()
    state.forget_started()
    assert state.started.has("ended"), "a small file is left as it is"
    monkeypatch.setattr(started_ids, "SHRUNK_ABOVE", 0)
    state.forget_started()
    assert [state.started.has(each) for each in ("ended", "removed", "running")] == [False, True, True]
    assert [state.is_claimed(each) for each in ("ended", "removed", "running")] == [True, True, True]
