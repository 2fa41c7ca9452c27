"""The journal of API mode: what a supervisor wrote down can be read back, whatever happened to it in between."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronium_runner import journal as journals
from cronium_runner.helpers import HelperError
from cronium_runner.jobdir import ExecutionDirectory, StateDirectory
from cronium_runner.journal import Journal, Outcome
from cronium_runner.values import APPEND, CONDITION, DELETE, INCREMENT, MERGE, OUTPUT, VARIABLE


@pytest.fixture
def execution(tmp_path: Path) -> ExecutionDirectory:
    return ExecutionDirectory(StateDirectory(str(tmp_path)), "e", path=str(tmp_path))


def waiting(journal: Journal) -> list[tuple[Any, ...]]:
    found = []
    while (entry := journal.first()) is not None:
        found.append((entry.sequence, entry.write, entry.key, entry.value))
        journal.delivered()
    return found


def test_what_is_pending_is_read_back_in_order(execution: ExecutionDirectory) -> None:
    journal = Journal(execution)
    journal.append(VARIABLE, "A", {"k": [1]})
    journal.append(CONDITION, None, False)
    journal.append(VARIABLE, "A", "ü")
    journal.delivered()
    read = Journal.read(execution)
    assert (read.undelivered, journal.undelivered) == (2, 2)
    assert waiting(read) == [(2, "condition", None, False), (3, "variable", "A", "ü")]


def test_keys_of_the_output_become_the_whole_output(execution: ExecutionDirectory) -> None:
    journal = Journal(execution)
    journal.append(OUTPUT, None, {"a": 1})
    journal.append(MERGE, "b", 2)
    journal.delivered()
    journal.delivered()
    journal.append(MERGE, "c", 3)
    for one in (journal, Journal.read(execution)):
        first = one.first()
        assert first is not None
        assert one.output_with(first) == {"a": 1, "b": 2, "c": 3}


def test_a_refused_key_is_in_no_later_output(execution: ExecutionDirectory) -> None:
    journal = Journal(execution)
    journal.append(MERGE, "big", "x")
    journal.append(MERGE, "small", 1)
    journal.refused("output 'big': 413 too large")
    for one in (journal, Journal.read(execution)):
        first = one.first()
        assert first is not None
        assert one.output_with(first) == {"small": 1}
        assert (one.refusals, one.refusal) == (1, "output 'big': 413 too large")


def test_the_newest_write_of_a_variable_is_known_until_it_is_delivered(execution: ExecutionDirectory) -> None:
    journal = Journal(execution)
    journal.append(VARIABLE, "A", 1)
    journal.append(VARIABLE, "A", 2)
    journal.delivered()
    newest = journal.newest("A")
    assert newest is not None
    assert newest.value == 2
    journal.delivered()
    assert journal.newest("A") is None


def test_a_long_journal_is_one_line_once_everything_is_delivered(
    execution: ExecutionDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "COMPACTED_ABOVE", 1000)
    journal = Journal(execution)
    journal.append(MERGE, "k", "v")
    for _ in range(100):
        journal.append(VARIABLE, "A", "x" * 20)
    journal.refused("no")
    for _ in range(100):
        assert os.path.getsize(Path(execution.path, "api.jsonl")) > 1000
        journal.delivered()
    [line] = Path(execution.path, "api.jsonl").read_bytes().splitlines()
    assert json.loads(line) == {"base": 101, "output": None, "refused": 1, "refusal": "no"}
    assert os.stat(Path(execution.path, "api.jsonl")).st_mode & 0o777 == 0o600
    journal.append(VARIABLE, "B", 1)
    read = Journal.read(execution)
    assert (read.refusals, waiting(read)) == (1, [(102, "variable", "B", 1)])


@given(st.data())
def test_any_beginning_of_a_journal_is_a_journal(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cut")
    execution = ExecutionDirectory(StateDirectory(str(folder)), "e", path=str(folder))
    journal = Journal(execution)
    for number in range(5):
        journal.append(VARIABLE, "A", number)
    journal.delivered()
    path = folder / "api.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    read = Journal.read(execution)
    assert [one[3] for one in waiting(read)] == list(range(5))[read._sequence - read.undelivered : read._sequence] or (
        read.undelivered == 0
    )


def test_half_a_line_does_not_spoil_the_next(execution: ExecutionDirectory) -> None:
    Path(execution.path, "api.jsonl").write_bytes(
        b'{"sequence":1,"write":"variable","key":"A","value":1}\n{"sequence":2,"write":"var'
    )
    taken = Journal.take_over(execution)
    assert taken is not None
    taken.delivered()
    assert Journal.read(execution).undelivered == 0


def test_nobody_takes_over_a_journal_that_somebody_has(execution: ExecutionDirectory) -> None:
    assert Journal.take_over(execution) is None
    journal = Journal(execution)
    journal.append(VARIABLE, "A", 1)
    assert Journal.take_over(execution) is None
    assert journal._file is not None
    os.close(journal._file)
    taken = Journal.take_over(execution)
    assert taken is not None
    assert waiting(taken) == [(1, "variable", "A", 1)]


def test_a_write_that_cannot_be_written_down_is_not_there(
    execution: ExecutionDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(execution)
    monkeypatch.setattr(journals, "MAX_PENDING", 100)
    journal.append(VARIABLE, "A", 1)
    with pytest.raises(HelperError) as refused:
        journal.append(VARIABLE, "A", "x" * 100)
    assert refused.value.code == "api.unreachable"
    os.rename(execution.path, execution.path + "-gone")
    with pytest.raises(HelperError) as failed:
        Journal(execution).append(VARIABLE, "A", 1)
    os.rename(execution.path + "-gone", execution.path)
    assert failed.value.code == "store.failed"
    assert waiting(Journal.read(execution)) == [(1, "variable", "A", 1)]


def test_changes_are_read_back_in_order_and_told_to_who_waits(execution: ExecutionDirectory) -> None:
    journal = Journal(execution)
    journal.append(VARIABLE, "A", 1)
    changes = [journal.append(INCREMENT, "A", 2), journal.append(APPEND, "B", "x"), journal.append(DELETE, "C", None)]
    assert waiting(Journal.read(execution)) == [
        (1, "variable", "A", 1), (2, "increment", "A", 2), (3, "append", "B", "x"), (4, "delete", "C", None),
    ]  # fmt: skip
    assert journal.newest("A") == changes[0]
    assert journal.wait_outcome(changes[2], 0) is None
    journal.delivered()
    assert not journal.wait_settled(changes[0], 0)
    journal.delivered(Outcome(3))
    journal.refused("variable 'B': 400 no text")
    journal.delivered(Outcome(is_missing=True))
    assert journal.wait_settled(changes[0], 0)
    assert journal.wait_outcome(changes[0], 0) == Outcome(3)
    assert journal.wait_outcome(changes[1], 0) == Outcome(reason="variable 'B': 400 no text")
    assert (journal.newest("A"), journal.undelivered, journal.refusals) == (None, 0, 1)
