"""Bundled values: memory and files agree, secrets are in memory only, a failed write changes nothing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cronium_runner.helpers import HelperError
from cronium_runner.values import BundledValues
from cronium_runner.wire.exactjson import loads


def started(folder: Path, **given: object) -> BundledValues:
    values = BundledValues(str(folder), **given)  # type: ignore[arg-type]
    values.create_files()
    return values


def test_a_job_that_does_nothing_costs_three_files(tmp_path: Path) -> None:
    folder = tmp_path / ".cronium"
    started(folder)
    assert sorted(os.listdir(folder)) == ["context.json", "input.json", "variables.json"]
    assert (folder / "input.json").read_bytes() == b'{"data":null}'
    assert (folder / "variables.json").read_bytes() == b"{}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_files_say_what_was_handed_over(tmp_path: Path) -> None:
    event = {"id": 7, "name": "Nightly", "executionId": "e1", "jobId": "j1", "trigger": "schedule", "user": "u"}
    started(tmp_path, input=loads('{"n":1.10}'), variables={"A": "ü"}, event=event, environment={"K": "v"})
    assert (tmp_path / "input.json").read_bytes() == b'{"data":{"n":1.10}}'
    assert (tmp_path / "variables.json").read_bytes() == '{"A":"ü"}'.encode()
    assert loads((tmp_path / "context.json").read_bytes()) == {
        "eventId": 7, "eventName": "Nightly", "executionId": "e1", "jobId": "j1", "trigger": "schedule",
        "startTime": None, "environment": {"K": "v"}, "metadata": None,
    }  # fmt: skip


def test_changes_reach_the_files_at_once(tmp_path: Path) -> None:
    values = started(tmp_path, variables={"A": "1"})
    values.set_variable("B", [loads("1e5")])
    assert (tmp_path / "variables.json").read_bytes() == b'{"A":"1","B":[1e5]}'
    values.merge_output("k", "v")
    assert (tmp_path / "output.json").read_bytes() == b'{"data":{"k":"v"}}'
    values.replace_output("whole")
    assert (tmp_path / "output.json").read_bytes() == b'{"data":"whole"}'
    assert sorted(os.listdir(tmp_path)) == ["context.json", "input.json", "output.json", "variables.json"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    values = started(tmp_path)
    values.replace_output("old")
    with (tmp_path / "output.json").open("rb") as before:
        values.replace_output("new" * 1000)
        assert before.read() == b'{"data":"old"}'


def test_only_what_the_script_set_is_a_changed_variable(tmp_path: Path) -> None:
    values = started(tmp_path, variables={"A": "1", "B": "2"})
    assert (values.changed_variables, values.output, values.condition) == ({}, None, None)
    values.set_variable("B", "2")
    values.set_variable("C", None)
    assert values.changed_variables == {"B": "2", "C": None}


def test_secrets_are_in_memory_only(tmp_path: Path) -> None:
    values = started(tmp_path, variables={"PASS": "shadowed-value", "A": "1"}, secrets={"PASS": "first-word"})
    assert values.get_variable("PASS") == "first-word"
    values.set_variable("PASS", "second-word")
    values.set_variable("A", "2")
    assert values.get_variable("PASS") == "second-word"
    assert values.changed_variables == {"PASS": "***", "A": "2"}
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir()) + repr(values).encode()
    assert b"-word" not in everything
    assert b"shadowed" not in everything


def test_a_folder_that_is_there_already_is_used(tmp_path: Path) -> None:
    started(tmp_path, input=1)
    started(tmp_path, input=2)
    assert (tmp_path / "input.json").read_bytes() == b'{"data":2}'


@pytest.mark.parametrize(("change", "file"), [("set_variable", "variables.json"), ("merge_output", "output.json")])
def test_a_failed_write_changes_nothing(tmp_path: Path, change: str, file: str) -> None:
    """A real failure: the file size limit, in a process of its own, with room for small files only."""
    script = f"""
import resource, signal
from cronium_runner.values import BundledValues
from cronium_runner.helpers import HelperError
values = BundledValues({str(tmp_path)!r}); values.create_files()
values.{change}("A", "before")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    values.{change}("B", "x" * 5000)
except HelperError as error:
    print(error.code, error.message)
values.{change}("C", "after")
print(values.changed_variables, values.output)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    report, state = ran.stdout.splitlines()
    assert report == f"store.failed {file} could not be written: {os.strerror(errno.EFBIG)}"
    assert "'A': 'before', 'C': 'after'" in state
    assert "'B'" not in state
    assert loads((tmp_path / file).read_bytes().replace(b'{"data":', b"").replace(b"}}", b"}")) == {
        "A": "before",
        "C": "after",
    }
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_folder_that_went_away_is_made_again(tmp_path: Path) -> None:
    values = BundledValues(str(tmp_path / "gone"), input=[1], variables={"A": "0"})
    values.set_variable("A", "1")
    files = {name: loads((tmp_path / "gone" / name).read_bytes()) for name in os.listdir(tmp_path / "gone")}
    assert (files["input.json"], files["variables.json"]) == ({"data": [1]}, {"A": "1"})
    assert set(files) == {"input.json", "variables.json", "context.json"}


def test_without_a_place_for_them_values_are_in_memory_alone(tmp_path: Path) -> None:
    values = BundledValues(str(tmp_path / "gone" / ".cronium"))
    values.set_variable("A", "1")
    values.merge_output("k", 1)
    assert (values.changed_variables, values.output) == ({"A": "1"}, {"k": 1})
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_place_of_the_folder_is_a_failed_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    values = BundledValues(str(tmp_path / "file"))
    with pytest.raises(HelperError, match="Not a directory") as caught:
        values.set_variable("A", "1")
    assert caught.value.code == "store.failed"
    assert values.changed_variables == {}


def test_output_that_would_not_fit_into_a_result_is_refused(tmp_path: Path) -> None:
    values = BundledValues(str(tmp_path / ".cronium"))
    values.create_files()
    values.replace_output({"kept": 1})
    with pytest.raises(HelperError, match="larger than 6 MiB") as refused:
        values.merge_output("big", "x" * (6 << 20))
    assert refused.value.code == "value.too_large"
    assert values.output == {"kept": 1}
