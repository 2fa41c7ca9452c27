"""An undertaker that cannot write down what it has to: said, and not started again and again."""

import fcntl
import os
from pathlib import Path

import pytest

from cronium_runner import process, undertaker
from cronium_runner.errors import StateDirectoryError
from cronium_runner.jobdir import ExecutionDirectory, StateDirectory


@pytest.fixture
def dead(tmp_path: Path) -> ExecutionDirectory:
    """An execution whose supervisor has died and whose result cannot be written."""
    state = StateDirectory.open(str(tmp_path / "state"))
    stage = state.stage()
    os.mkdir(stage.work)
    who = {**process.identity(os.getpid()), "start": 1}
    execution = stage.claim("job", {"supervisor": who, "socket": "/nowhere"})
    execution.let_go()
    # Another kind of file in the result's place: renaming over it fails, whoever we are.
    os.mkdir(os.path.join(execution.path, "result.json"))
    return execution


def test_undertaker_collected_by_somebody_else_has_failed(dead: ExecutionDirectory) -> None:
    """An agent's loop collects all its children, and tells what it has learned of each."""
    undertaker.start(dead, guardian=None)
    child = undertaker._started[dead.path][0]
    undertaker.note_end(*os.waitpid(child, 0))
    with pytest.raises(StateDirectoryError, match="'job' is lost cannot be written down"):
        undertaker.start(dead, guardian=None)


def test_undertaker_collected_by_its_starter_has_failed(dead: ExecutionDirectory) -> None:
    undertaker.start(dead, guardian=None)
    child = undertaker._started[dead.path][0]
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with pytest.raises(StateDirectoryError):
        undertaker.start(dead, guardian=None)


def test_ends_of_other_children_are_not_kept() -> None:
    undertaker.note_end(1, 256)
    assert 1 not in undertaker._ended


def test_undertaker_leaves_a_result_as_it_is(dead: ExecutionDirectory) -> None:
    """The supervisor may have written it as its last act, and died behind it."""
    os.rmdir(os.path.join(dead.path, "result.json"))
    dead.write_result({"executionId": "job", "state": "succeeded"})
    undertaker.start(dead, guardian=None)
    assert os.waitpid(undertaker._started[dead.path][0], 0)[1] == 0
    assert dead.read_result() == {"executionId": "job", "state": "succeeded"}


def test_one_undertaker_works_at_a_time(dead: ExecutionDirectory) -> None:
    lock = os.open(dead.path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    undertaker.start(dead, guardian=None)
    assert dead.path not in undertaker._started
    os.close(lock)
