"""The index of ended executions: it changes how long a listing takes, and never what it says."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cronium_runner import follow, housekeeping, indexing, listing, record_index, retention
from cronium_runner.errors import StateDamagedError
from cronium_runner.jobdir import ExecutionDirectory, StateDirectory
from cronium_runner.record_index import HEADER, WORTHWHILE, Index
from cronium_runner.settings import Settings
from cronium_runner.wire.frames import Kind
from cronium_runner.wire.results import Outcome, Result, StreamSummary
from old_runner import as_old_runner
from runner_process import Host, wait_until

DEAD = {"pid": 1, "start": 0, "boot": "another"}
HANDED_BACK = "what-the-script-handed-back"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDirectory:
    """A state directory with records of each kind; what has changed just now may be indexed too."""
    monkeypatch.setattr(record_index, "QUIET_NS", -(10**18))
    state = StateDirectory.open(str(tmp_path / "state"))
    for number in range(6):
        add_record(state, f"job-{number}", is_fetched=number % 2 == 0)
    for number in (1, 4):
        ExecutionDirectory(state, f"job-{number}").bury()
    return state


def add_record(state: StateDirectory, name: str, *, is_fetched: bool = True, outcome: Outcome | None = None) -> Path:
    """A record as a supervisor leaves it that is gone."""
    path = Path(state.executions) / name
    path.mkdir(mode=0o700)
    lines: list[dict[str, Any]] = [
        {"state": "claimed", "at": "2026-01-02T03:04:05.678Z", "fingerprint": "f", "jobId": name, "supervisor": DEAD},
        {"state": "running", "at": "2026-01-02T03:04:06.000Z", "script": {"pid": 7}, "heldBy": "subreaper"},
    ]
    if is_fetched:
        lines.append({"state": "finished", "at": "2026-01-02T03:04:07.000Z", "acknowledged": True})
    (path / "state.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "stdout").write_text("known bytes\n")
    result = Result(
        name,
        outcome or Outcome.SUCCEEDED,
        exit_code=0,
        output=HANDED_BACK,
        variables={"KEY": HANDED_BACK},
        stdout=StreamSummary(12),
        duration_ms=1.25,
    )
    (path / "result.json").write_text(json.dumps(result.to_json()) + "\n")
    return path


def refresh(state: StateDirectory) -> None:
    with housekeeping.only_one(state, waits=True):
        indexing.refresh(state)


def indexed(state: StateDirectory) -> list[str]:
    """The ids whose entries hold."""
    with Index(state) as index:
        return [name for name in state.ids_after("") if index.find(name) is not None]


def pages(state: StateDirectory, *, is_brief: bool) -> list[Any]:
    found = listing.Pages(state, "", is_brief=is_brief, wants_all=True)
    told: list[bytes] = []
    while found.has_more:
        told += found.next_page()
    found.close()
    return [json.loads(one) for one in told]


def oldest_first(
    state: StateDirectory, *, wants_all: bool = False, wants_running: bool = False, is_whole: bool = False
) -> list[Any]:
    texts = listing.oldest_first(state, wants_all=wants_all, wants_running=wants_running, is_whole=is_whole)
    return [json.loads(text) for text in texts]


def all_answers(state: StateDirectory) -> dict[str, Any]:
    """Everything that can be asked about all records."""
    report = retention.collect(state, Settings(days=10**4), is_dry_run=True).to_json()
    return {
        "rows": pages(state, is_brief=True),
        "statuses": pages(state, is_brief=False),
        "table": oldest_first(state, wants_all=True),
        "kept": oldest_first(state, is_whole=True),
        "all": oldest_first(state, is_whole=True, wants_all=True),
        "running": oldest_first(state, wants_running=True),
        "collection": report,
    }


def answers_without_index(state: StateDirectory) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError):
        os.rename(state.index, f"{state.index}.away")
    try:
        return all_answers(state)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{state.index}.away", state.index)


def test_the_index_changes_no_answer(state: StateDirectory) -> None:
    plain = all_answers(state)
    assert indexed(state) == []
    refresh(state)
    assert indexed(state) == [f"job-{number}" for number in range(6)]
    assert all_answers(state) == plain
    assert (plain["collection"]["kept"], plain["collection"]["tombstones"]) == (4, 2)
    statuses = [follow.status(ExecutionDirectory(state, f"job-{number}")) for number in range(6)]
    assert plain["rows"] == [listing.row_of(one) for one in statuses]
    assert plain["statuses"] == [listing.without_values(one) for one in statuses]
    assert sorted(plain["all"], key=lambda one: one["executionId"]) == statuses
    assert [one["result"]["output"] for one in plain["kept"]] == [HANDED_BACK] * 4
    refresh(state)
    assert all_answers(state) == plain, "entries that are carried over are as they were"


def test_what_a_script_handed_back_is_not_in_the_index(state: StateDirectory) -> None:
    refresh(state)
    assert b"job-0" in Path(state.index).read_bytes()
    assert HANDED_BACK.encode() not in Path(state.index).read_bytes()
    assert os.stat(state.index).st_mode & 0o077 == 0


def acknowledge(path: Path) -> None:
    with (path / "state.jsonl").open("a") as file:
        file.write('{"state":"finished","at":"x","acknowledged":true}\n')


def replace_result(path: Path) -> None:
    result = json.loads((path / "result.json").read_text())
    (path / "new").write_text(json.dumps({**result, "undelivered": 3}) + "\n")
    os.rename(path / "new", path / "result.json")


def edit_result(path: Path) -> None:
    text = (path / "result.json").read_text()
    (path / "result.json").write_text(text.replace('"exitCode": 0', '"exitCode": 7'))


def exchange(path: Path) -> None:
    """Another record takes the id."""
    shutil.rmtree(path)
    os.rename(path.parent / "job-0", path)


def bury(path: Path) -> None:
    ExecutionDirectory(StateDirectory(str(path.parents[1])), path.name).bury()


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_link(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.symlink_to("other")


CHANGES: dict[str, Callable[[Path], object]] = {
    "acknowledged": acknowledge,
    "collected": bury,
    "result replaced": replace_result,
    "result edited in place": edit_result,
    "result damaged": lambda path: (path / "result.json").write_text("{"),
    "output cut": lambda path: os.truncate(path / "stdout", 3),
    "output gone": lambda path: (path / "stdout").unlink(),
    "file added": lambda path: (path / "stderr").write_text("more"),
    "folder added": lambda path: (path / "work").mkdir(),
    "aged": lambda path: os.utime(path / "result.json", (0, 0)),
    "directory gone": shutil.rmtree,
    "another's record": exchange,
    "record is a FIFO": lambda path: make_fifo(path / "state.jsonl"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_record_is_read(state: StateDirectory, change: str) -> None:
    refresh(state)
    CHANGES[change](Path(state.executions) / "job-3")
    assert "job-3" not in indexed(state)
    assert "job-2" in indexed(state)
    assert all_answers(state) == answers_without_index(state)


def test_a_result_that_has_gone_is_noticed(state: StateDirectory) -> None:
    refresh(state)
    (Path(state.executions) / "job-3" / "result.json").unlink()
    assert "job-3" not in indexed(state)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(HEADER),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes(path.read_bytes().replace(HEADER, b"cronium-runner index 2\n")),
        lambda path: path.write_bytes(HEADER + b"x" * (1 << 20)),
        lambda path: path.write_bytes(HEADER + b"\n" * 1000),
        lambda path: path.write_bytes(HEADER + b"".join(reversed(path.read_bytes().splitlines(True)[1:]))),
        lambda path: path.write_bytes(path.read_bytes().replace(b"job-2\t", b"job-3\t")),
        make_fifo,
        make_directory,
        make_link,
        lambda path: os.truncate(path, record_index.MAX_BYTES + 1),
    ],
    ids=["none", "empty", "header alone", "zeros", "newer format", "long line", "empty lines", "not sorted", "renamed",
         "FIFO", "directory", "link", "huge"],
)  # fmt: skip
def test_a_damaged_index_is_not_believed(state: StateDirectory, damage: Callable[[Path], object]) -> None:
    plain = all_answers(state)
    refresh(state)
    damage(Path(state.index))
    assert all_answers(state) == plain


def test_a_flipped_or_missing_byte_costs_entries_only(state: StateDirectory) -> None:
    plain = pages(state, is_brief=True)
    refresh(state)
    whole = Path(state.index).read_bytes()
    for offset in range(0, len(whole), 23):
        Path(state.index).write_bytes(whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :])
        assert pages(state, is_brief=True) == plain, offset
        Path(state.index).write_bytes(whole[:offset])
        assert pages(state, is_brief=True) == plain, offset


def test_the_index_of_a_copied_state_directory_holds_nothing(state: StateDirectory, tmp_path: Path) -> None:
    refresh(state)
    shutil.copytree(state.path, tmp_path / "copy", symlinks=True)
    copy = StateDirectory(str(tmp_path / "copy"))
    assert indexed(copy) == []
    assert pages(copy, is_brief=False) == pages(state, is_brief=False)


def test_an_index_of_another_user_is_not_read(state: StateDirectory, as_root: None) -> None:
    refresh(state)
    os.chown(state.index, 12345, 12345)
    assert indexed(state) == []


def test_only_final_records_are_indexed(state: StateDirectory) -> None:
    damaged = add_record(state, "damaged")
    (damaged / "result.json").write_text("{")
    (add_record(state, "kept-work") / "work").mkdir()
    (add_record(state, "running") / "result.json").unlink()
    alive = add_record(state, "alive")
    line = json.dumps({"state": "claimed", "supervisor": record_of_this_process()}) + "\n"
    (alive / "state.jsonl").write_text(line)
    (Path(state.executions) / "job-1" / "stdout").touch()  # a collection died before it had removed everything
    refresh(state)
    assert indexed(state) == ["job-0", "job-2", "job-3", "job-4", "job-5"]
    rows = {row["executionId"]: row for row in pages(state, is_brief=True)}
    assert rows["damaged"]["error"]["code"] == "state.damaged"
    assert len(rows) == 10


def record_of_this_process() -> dict[str, Any]:
    from cronium_runner import process

    return process.identity(os.getpid())


def test_what_changed_just_now_is_not_indexed(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another change within the same tick of the file system's clock would leave no trace."""
    monkeypatch.setattr(record_index, "QUIET_NS", 3600 * 10**9)
    refresh(state)
    assert Path(state.index).read_bytes() == HEADER


def test_a_record_that_reading_breaks_hides_no_other(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    real = follow.status

    def status(execution: ExecutionDirectory) -> dict[str, Any]:
        if execution.id == "job-2":
            raise KeyError("a defect")
        return real(execution)

    monkeypatch.setattr(follow, "status", status)
    rows = pages(state, is_brief=True)
    assert [row["executionId"] for row in rows] == [f"job-{number}" for number in range(6)]
    assert rows[2]["error"]["code"] == "runner.internal"


def test_a_disk_that_refuses_the_index_leaves_the_old_one(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(state)
    before = Path(state.index).read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        refresh(state)
    assert Path(state.index).read_bytes() == before
    assert not os.path.exists(f"{state.index}.new")
    Path(f"{state.index}.new").write_bytes(b"left by a process that was killed")
    refresh(state)
    assert Path(state.index).read_bytes() == before
    assert not os.path.exists(f"{state.index}.new")


# Real processes

COUNTED = """
import os, sys
state = sys.argv.pop(1)
counts = {"open": 0, "stat": 0}
def note(event, arguments):
    if event in ("open", "os.scandir", "os.listdir") and str(arguments[0]).startswith(state):
        counts["open"] += 1
sys.addaudithook(note)
for name in ("stat", "lstat"):
    def call(*arguments, real=getattr(os, name), **options):
        counts["stat"] += 1
        return real(*arguments, **options)
    setattr(os, name, call)
from cronium_runner import record_index
record_index.QUIET_NS = -(10**18)
from cronium_runner.__main__ import main
status = main()
sys.stdout.flush()
print(counts["open"], counts["stat"], file=sys.stderr)
sys.exit(status)
"""


def costs(host: Host, *words: str) -> tuple[int, int]:
    """How many files below the state directory a command opens, and how many it looks at."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(host.state), *words], env=host.environment, capture_output=True, check=True
    )
    opened, seen = done.stderr.split()[-2:]
    return int(opened), int(seen)


@pytest.mark.parametrize("words", [("list",), ("list", "--running"), ("list", "--all"), ("gc",)], ids=" ".join)
def test_a_listing_opens_no_file_of_an_unchanged_record(
    host: Host, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cost for each is a look at the directory and its files: here state.jsonl, result.json and stdout."""
    monkeypatch.setattr(record_index, "QUIET_NS", -(10**18))
    state = StateDirectory.open(str(host.state))
    counts = []
    for number in range(90):
        add_record(state, f"job-{number}")
        if number in (29, 89):
            refresh(state)
            counts.append(costs(host, *words))
    (few_opened, few_seen), (many_opened, many_seen) = counts
    assert many_opened == few_opened < 20
    assert 60 * 4 <= many_seen - few_seen < 61 * 4


def test_a_listing_that_read_many_has_the_index_written(host: Host) -> None:
    state = StateDirectory.open(str(host.state))
    for number in range(WORTHWHILE):
        add_record(state, f"job-{number:03d}")

    def is_indexed() -> bool:
        assert host.run("list").stdout.count(b"\n") == WORTHWHILE
        return len(indexed(state)) == WORTHWHILE

    wait_until(is_indexed, "the index")
    wait_until(lambda: not host.processes(), "its writer to end")


def test_an_agent_that_read_many_has_the_index_written(host: Host) -> None:
    state = StateDirectory.open(str(host.state))
    for number in range(WORTHWHILE):
        add_record(state, f"job-{number:03d}")
    with host.agent() as agent:

        def is_indexed() -> bool:
            channel = agent.new_channel()
            agent.send(Kind.STATUS, channel, {"brief": True})
            told = agent.expect(channel, Kind.STATUS).json()["executions"]
            assert [one["result"] for one in told] == [
                {"state": "succeeded", "exitCode": 0, "signal": None}
            ] * WORTHWHILE
            return len(indexed(state)) == WORTHWHILE

        wait_until(is_indexed, "the index")
        assert agent.close() == 0


def test_a_collection_writes_the_index(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_index, "QUIET_NS", -(10**18))
    state = StateDirectory.open(str(host.state))
    for number in range(WORTHWHILE):
        add_record(state, f"job-{number:03d}", is_fetched=number > 0)
    assert retention.collect(state, Settings(days=10**4)).collected == []
    assert len(indexed(state)) == WORTHWHILE
    then = time.time() - 3 * retention.DAY
    for number in range(1, WORTHWHILE):
        os.utime(host.execution(f"job-{number:03d}") / "state.jsonl", (then, then))
    assert len(retention.collect(state, Settings(days=2)).collected) == WORTHWHILE - 1
    assert len(indexed(state)) == WORTHWHILE
    assert retention.collect(state, Settings(days=2)).tombstones == WORTHWHILE - 1


@pytest.fixture
def collected(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A script whose execution `gone` this version has collected, and entered into its index."""
    monkeypatch.setattr(record_index, "QUIET_NS", -(10**18))
    script = host.script(f"echo started >>{host.folder}/starts\necho out\n")
    host.run("run", "--execution-id", "gone", script)
    host.run("gc", "--older-than", "0")
    state = StateDirectory.open(str(host.state))
    refresh(state)
    assert indexed(state) == ["gone"]
    yield script
    assert (host.folder / "starts").read_text() == "started\n"


def test_the_old_runner_refuses_an_id_that_was_collected(host: Host, collected: Path, tmp_path: Path) -> None:
    """The name stays occupied by a directory, by which 0.1.0 decides, side by side and after a roll-back."""
    old = as_old_runner(host, tmp_path / "old")
    again = old.run_json("--execution-id", "gone", collected)
    assert (again["error"]["code"], again["exitCode"], again["output"]) == ("execution.collected", 0, None)
    other = old.run("run", "--execution-id", "gone", host.script("echo other\n", "other.sh"))
    assert (other.returncode, other.stdout) == (125, b"")
    assert b"[execution.id_conflict]" in other.stderr
    assert b"gone" in old.run("list", "--all").stdout
    with old.agent() as agent:
        payload = host.payload("echo other\n")
        channel = agent.submit(payload, "gone")
        assert agent.expect(channel, Kind.REFUSED).json()["code"] == "execution.id_conflict"
        assert agent.close() == 0


def test_what_the_old_runner_changes_is_seen(host: Host, collected: Path, tmp_path: Path) -> None:
    old = as_old_runner(host, tmp_path / "old")
    old.run("run", "--execution-id", "new", collected)
    (host.folder / "starts").write_text("started\n")
    state = StateDirectory.open(str(host.state))
    refresh(state)
    assert indexed(state) == ["gone", "new"]
    old.run("gc", "--older-than", "0")
    assert indexed(state) == ["gone"]
    assert host.run("list").stdout == b""
    assert host.run("list", "--all").stdout.count(b"succeeded") == 2


def test_page_that_fails_in_the_middle_skips_nothing(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    found = listing.Pages(state, "", is_brief=True, wants_all=True)
    names = iter(("job-0", "job-1"))
    monkeypatch.setattr(Index, "find", lambda _self, _id: next(names) and None)
    with pytest.raises(StopIteration):
        found.next_page()
    monkeypatch.undo()
    assert found.asked == ("job-1", True, True), "the page of before is not taken for this one"
    assert [json.loads(row)["executionId"] for row in found.next_page()] == [f"job-{number}" for number in range(2, 6)]
    found.close()


def test_index_that_is_no_file_ends_no_listing(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise StateDamagedError(state.index, "is not a regular file")

    monkeypatch.setattr(record_index, "write", refuse)
    refresh(state)
