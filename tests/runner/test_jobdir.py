"""The state directory's checks, the claim under contention, and results that are complete or absent."""

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cronium_runner import helper_socket
from cronium_runner.errors import ExecutionError, StateDamagedError, StateDirectoryError
from cronium_runner.jobdir import (
    SOCKET_PATH_LIMIT,
    AlreadyClaimedError,
    ExecutionDirectory,
    StateDirectory,
    write_durably,
)
from cronium_runner.lifecycle import State
from runner_process import ROOT, Host


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory.open(str(tmp_path / "state"))


def claimed(state: StateDirectory, execution_id: str = "job", record: dict[str, Any] | None = None) -> Any:
    stage = state.stage()
    os.mkdir(stage.work)
    return stage.claim(execution_id, record or {})


def test_a_state_line_that_does_not_fit_is_not_half_written(state: StateDirectory) -> None:
    execution = claimed(state)
    before = execution.history()
    program = (
        "import resource, sys; from cronium_runner.jobdir import *; from cronium_runner.lifecycle import State\n"
        "e = StateDirectory(sys.argv[1]).execution('job'); size = os.stat(e.path + '/state.jsonl').st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, size + 20))\n"
        "try: e.append_state(State.RUNNING, {'filler': 'x' * 100})\n"
        "except OSError: sys.exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, state.path],
        check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/runner:{ROOT}/helpers"},
    )
    assert done.returncode == 7
    assert execution.history() == before
    execution.append_state(State.RUNNING, {})
    assert [line["state"] for line in execution.history()] == ["claimed", "running"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to make an fsync fail")
def test_a_claim_that_is_not_durable_is_given_back(host: Host) -> None:
    words = ["strace", "-f", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1"]
    run = [*words, *map(str, host.executable), "run", "--execution-id", "job", str(host.script("touch ran\n"))]
    done = subprocess.run(run, env=host.environment, stderr=subprocess.PIPE, timeout=60, check=False)
    if b"ptrace" in done.stderr:
        pytest.skip("tracing is forbidden here")
    assert (done.returncode, b"[state.unusable]" in done.stderr) == (125, True)
    assert host.executions() == []
    assert host.run("run", "--execution-id", "job", host.script("echo ran\n")).stdout == b"ran\n"


def test_what_dead_processes_left_half_prepared_is_swept_and_nothing_else(state: StateDirectory) -> None:
    claimed(state, "kept")
    state.ensure_payloads()
    old, young = state.stage(), state.stage()
    os.mkdir(old.work)
    part = Path(state.new_temporary(state.payloads))
    part.write_bytes(b"half")
    for path in (old.path, part, state.execution("kept").path):
        os.utime(path, (0, 0))
    state.sweep()
    assert sorted(os.listdir(state.executions)) == sorted([os.path.basename(young.path), "kept"])
    assert os.listdir(state.payloads) == []


def test_a_sweep_removes_old_sockets_that_nobody_answers_on(state: StateDirectory) -> None:
    """A supervisor that is killed while it prepares leaves one that no claim names; one of a long job is in use."""
    paths = {name: Path(state.socket_path()) for name in ("dead", "young", "in use")}
    listening = {name: helper_socket.listen(str(path)) for name, path in paths.items()}
    for name in ("dead", "young"):
        listening[name].close()
    for name in ("dead", "in use"):
        os.utime(paths[name], (0, 0))
    state.sweep()
    assert {name for name, path in paths.items() if path.exists()} == {"young", "in use"}
    listening["in use"].close()
    for path in paths.values():
        path.unlink(missing_ok=True)


def test_a_sweep_removes_forwarded_sockets_that_nobody_answers_on(state: StateDirectory) -> None:
    """sshd leaves the sockets of API mode behind when a connection is cut."""
    folder = Path(state.forwarded_folder())
    assert folder.stat().st_mode & 0o777 == 0o700
    names = {name: folder / f"{os.urandom(4).hex()}.api" for name in ("left", "just bound", "in use")}
    assert all(len(os.fsencode(path)) <= 107 for path in names.values())
    listening = {name: helper_socket.listen(str(path)) for name, path in names.items()}
    for name in ("left", "just bound"):
        listening[name].close()
    for name in ("left", "in use"):
        os.utime(names[name], (time.time() - 60, time.time() - 60))
    state.sweep()
    assert {name for name, path in names.items() if path.exists()} == {"just bound", "in use"}
    listening["in use"].close()
    for path in names.values():
        path.unlink(missing_ok=True)


# Which directories are trusted


def test_a_new_state_directory_is_ours_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = StateDirectory.open(str(tmp_path / "state"))
        state.ensure_payloads()
        state.stage()
    finally:
        os.umask(before)
    for path in map(Path, (state.path, state.executions, state.payloads, *os.scandir(state.executions))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777, 0o701, 0o710])
def test_a_state_directory_that_others_can_enter_is_refused(host: Host, mode: int) -> None:
    host.state.mkdir()
    host.state.chmod(mode)
    result = host.run_json(host.script("touch ran\n"))
    assert (result["exit status"], result["error"]["code"]) == (125, "state.unusable")
    assert f"chmod 700 {host.state}" in result["error"]["message"]
    assert host.executions() == []


def test_executions_open_to_others_are_refused_too(host: Host) -> None:
    (host.state / "executions").mkdir(parents=True)
    host.state.chmod(0o700)
    (host.state / "executions").chmod(0o755)
    assert host.run_json(host.script("true\n"))["error"]["code"] == "state.unusable"


def test_a_link_as_the_state_directory_is_refused(host: Host) -> None:
    (host.folder / "real").mkdir(mode=0o700)
    host.state.symlink_to(host.folder / "real")
    result = host.run_json(host.script("true\n"))
    assert (result["exit status"], result["error"]["code"]) == (125, "state.unusable")
    assert f"{host.state} is not a directory" in result["error"]["message"]
    assert list((host.folder / "real").iterdir()) == []


def test_a_file_as_the_state_directory_is_refused(host: Host) -> None:
    host.state.touch(0o600)
    result = host.run_json(host.script("true\n"))
    assert (result["exit status"], result["error"]["code"]) == (125, "state.unusable")
    assert f"{host.state} is not a directory" in result["error"]["message"]


def test_somebody_elses_state_directory_is_refused(host: Host, as_root: None) -> None:
    host.state.mkdir(mode=0o700)
    os.chown(host.state, 65534, 65534)
    result = host.run_json(host.script("true\n"))
    assert (result["exit status"], result["error"]["code"]) == (125, "state.unusable")
    assert "belongs to user 65534" in result["error"]["message"]


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o777])
def test_state_directory_is_closed_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    path = tmp_path / ".local" / "state" / "here"
    before = os.umask(umask)
    try:
        StateDirectory.open(str(path))
    finally:
        os.umask(before)
    for made in (path, path / "executions", path.parent, path.parent.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700, made


def test_state_directory_in_an_open_folder_is_refused(host: Host) -> None:
    """One sentence with the command that corrects it, and nothing made there."""
    opened = host.folder / "open"
    opened.mkdir()
    opened.chmod(0o777)
    done = host.run("run", host.script("true\n"), env={"CRONIUM_STATE_DIR": str(opened / "state")})
    [line] = done.stderr.decode().splitlines()
    assert done.returncode == 125
    assert f"chmod g-w,o-w {opened}" in line
    assert "[state.unusable]" in line
    assert os.listdir(opened) == []


def test_a_state_directory_that_is_there_is_looked_at_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = tmp_path / "opened"
    opened.mkdir()
    state = StateDirectory.open(str(opened / "state"))
    opened.chmod(0o777)
    with pytest.raises(StateDirectoryError, match=f"chmod g-w,o-w {opened}"):
        StateDirectory.open(state.path)
    opened.chmod(0o700)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StateDirectoryError, match="executions is not writable"):
        StateDirectory.open(state.path)


def test_a_place_that_cannot_be_written_is_one_sentence_with_path_and_reason(host: Host) -> None:
    done = host.run("run", host.script("true\n"), env={"CRONIUM_STATE_DIR": "/proc/nowhere/state"})
    assert done.returncode == 125
    assert done.stdout == b""
    [line] = done.stderr.decode().splitlines()
    assert "/proc/nowhere" in line
    assert "[state.unusable]" in line


def test_a_read_only_state_directory_is_refused(host: Host) -> None:
    host.run("run", host.script("true\n"))
    if os.geteuid() != 0:
        (host.state / "executions").chmod(0o500)
        result = host.run_json(host.script("true\n"))
        (host.state / "executions").chmod(0o700)
    else:
        words = [*host.executable, "run", "--json", str(host.folder / "script.sh")]
        mount = f"mount -t tmpfs -o size=1m,mode=0700 none {host.state} && mkdir -m 700 {host.state}/executions "
        mount += f'&& mount -o remount,ro {host.state} && exec "$@"'
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", mount, "sh", *words], env=host.environment, capture_output=True, check=False
        )
        if b"unshare" in done.stderr or b"mount:" in done.stderr:
            pytest.skip("no mount namespaces here")
        result = {"exit status": done.returncode, **json.loads(done.stdout)}
    assert (result["exit status"], result["error"]["code"]) == (125, "state.unusable")


def test_a_relative_state_directory_is_meant_from_where_the_runner_starts(host: Host) -> None:
    script = host.script("echo here\n")
    done = host.run("run", "--execution-id", "job", script, env={"CRONIUM_STATE_DIR": "state"})
    assert (done.returncode, done.stdout) == (0, b"here\n")
    assert host.recorded("job") is not None
    (host.folder / "other").mkdir()
    elsewhere = host.run("status", "job", env={"CRONIUM_STATE_DIR": "../state"}, cwd=host.state.parent / "other")
    assert elsewhere.returncode == 0


def test_the_home_directory_of_the_account_decides_not_the_variable_home() -> None:
    program = "from cronium_runner.jobdir import default_state_directory as d; print(d())"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CRONIUM_")}
    environment |= {"HOME": "/somewhere/else", "XDG_STATE_HOME": "/x", "PYTHONPATH": f"{ROOT}/runner:{ROOT}/helpers"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    home = pwd.getpwuid(os.geteuid()).pw_dir
    assert done.stdout.strip() == f"{home}/.local/state/cronium-runner"


@pytest.mark.parametrize(
    ("home", "said"),
    [
        ("", "app has no home directory in the password database"),
        ("relative", "app has no home directory in the password database"),
        ("/nonexistent", "the home directory /nonexistent of app does not exist"),
        ("{folder}/file", "the home directory {folder}/file of app does not exist"),
        ("{folder}", "the home directory {folder} cannot be written by app"),
    ],
)
def test_an_account_without_a_home_is_told_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str, said: str
) -> None:
    (tmp_path / "file").touch()
    entry = pwd.struct_passwd(("app", "x", os.geteuid(), os.getegid(), "", home.format(folder=tmp_path), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: entry)
    monkeypatch.setattr(os, "access", lambda path, _mode: path != str(tmp_path))  # root may always write
    monkeypatch.delenv("CRONIUM_STATE_DIR", raising=False)
    with pytest.raises(StateDirectoryError) as refused:
        StateDirectory.open()
    assert said.format(folder=tmp_path) in refused.value.message
    assert "set CRONIUM_STATE_DIR to a directory of the account's own" in refused.value.message
    assert os.listdir(tmp_path) == ["file"]
    assert not os.path.lexists("/nonexistent")
    monkeypatch.setenv("CRONIUM_STATE_DIR", str(tmp_path / "chosen"))
    assert StateDirectory.open().path == str(tmp_path / "chosen")


# Sockets


def test_a_socket_path_fits_and_its_folder_is_private(state: StateDirectory) -> None:
    path = state.socket_path()
    assert os.path.dirname(path) == os.path.join(state.path, "s")
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700


@pytest.mark.parametrize("length", range(90, 112))
def test_a_socket_path_is_never_over_the_limit(tmp_path: Path, length: int) -> None:
    path = str(tmp_path / "d")
    state = StateDirectory(path + "x" * max(0, length - len(path)))
    os.makedirs(state.path, mode=0o700)
    assert len(os.fsencode(state.socket_path())) <= SOCKET_PATH_LIMIT


def test_helpers_work_below_a_very_deep_state_directory(host: Host) -> None:
    deep = host.folder.joinpath(*["a-folder-with-a-long-name"] * 30) / "state"
    script = host.script('echo "${#CRONIUM_SOCKET}"; ls -l "$CRONIUM_SOCKET" | cut -c1-10; cronium.setVariable A b\n')
    done = host.run("run", "--execution-id", "job", script, env={"CRONIUM_STATE_DIR": str(deep)})
    length, mode = done.stdout.decode().split()
    assert done.returncode == 0, done.stderr
    assert int(length) <= SOCKET_PATH_LIMIT
    assert mode == "srw-------"
    record = json.loads((deep / "executions/job/state.jsonl").read_text().splitlines()[0])
    assert not os.path.lexists(record["socket"])
    assert stat.S_IMODE(os.stat(os.path.dirname(record["socket"])).st_mode) == 0o700


# The claim


def test_a_claimed_id_cannot_be_claimed_again(state: StateDirectory) -> None:
    claimed(state, record={"n": 1})
    with pytest.raises(AlreadyClaimedError):
        claimed(state, record={"n": 2})
    assert state.execution("job").history()[0]["n"] == 1


def test_a_tombstone_keeps_the_id_claimed(state: StateDirectory) -> None:
    Path(state.executions, "job").write_text("")
    assert state.is_claimed("job")
    with pytest.raises(AlreadyClaimedError):
        claimed(state)


def test_of_many_simultaneous_claims_exactly_one_succeeds(state: StateDirectory) -> None:
    stages = []
    for _ in range(50):
        stages.append(state.stage())
        os.mkdir(stages[-1].work)

    def try_to_claim(number: int) -> int | None:
        try:
            stages[number].claim("job", {"n": number})
        except AlreadyClaimedError:
            stages[number].discard()
            return None
        return number

    with ThreadPoolExecutor(16) as threads:
        winners = [number for number in threads.map(try_to_claim, range(50)) if number is not None]
    assert len(winners) == 1
    assert state.execution("job").history()[0]["n"] == winners[0]
    assert os.listdir(state.executions) == ["job"]


def test_a_released_id_is_free_and_leaves_nothing(state: StateDirectory) -> None:
    execution = claimed(state)
    Path(execution.work, "left").write_text("x")
    execution.release()
    assert os.listdir(state.executions) == []
    claimed(state)


@pytest.mark.parametrize(
    "wrong", ["", ".", "..", "-a", ".a", "a/b", "a b", "a\n", "é", "a" * 65, "a\0b", "../executions/job"]
)
def test_what_is_no_id_is_never_looked_up(state: StateDirectory, wrong: str) -> None:
    with pytest.raises(ExecutionError) as caught:
        state.execution(wrong)
    assert caught.value.code == "execution.id_invalid"


def test_an_unknown_id_is_said_to_be_unknown(state: StateDirectory) -> None:
    with pytest.raises(ExecutionError) as caught:
        state.execution("nobody")
    assert caught.value.code == "execution.not_found"


def test_half_prepared_executions_and_tombstones_are_not_listed(state: StateDirectory) -> None:
    state.stage()
    claimed(state, "one")
    claimed(state, "two")
    Path(state.executions, "stone").write_text("")
    assert sorted(state.ids()) == ["one", "two"]


# What is written


def test_a_line_cut_short_by_a_crash_is_left_out(state: StateDirectory) -> None:
    execution = claimed(state, record={"n": 1})
    execution.append_state(State.RUNNING, {"n": 2})
    with open(os.path.join(execution.path, "state.jsonl"), "ab") as file:
        file.write(b'{"state":"fini')
    assert [record["n"] for record in execution.history()] == [1, 2]


@pytest.mark.parametrize("content", ["[]", "5", "null", "{", ""])
def test_a_result_that_is_no_object_is_damaged(state: StateDirectory, content: str) -> None:
    execution = state.stage().claim("job", {})
    Path(execution.path, "result.json").write_text(content)
    with pytest.raises(StateDamagedError, match=r"result\.json is damaged"):
        execution.read_result()
    execution.let_go()


def test_a_damaged_line_does_not_hide_the_others(state: StateDirectory) -> None:
    execution = claimed(state, record={"n": 1})
    with open(os.path.join(execution.path, "state.jsonl"), "ab") as file:
        file.write(b"\0\0\0\0\n[]\n")
    execution.append_state(State.RUNNING, {"n": 2})
    assert [record["n"] for record in execution.history()] == [1, 2]


def test_a_result_that_cannot_be_written_leaves_the_earlier_one(state: StateDirectory) -> None:
    execution = claimed(state)
    execution.write_result({"n": 1})
    program = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    program += "from cronium_runner.jobdir import *\n"
    program += f"e = ExecutionDirectory(StateDirectory({state.path!r}), 'job')\n"
    program += "try: e.write_result({'n': 'x' * 100_000})\nexcept OSError: sys.exit(3)\n"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/runner:{ROOT}/helpers"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert done.returncode == 3
    assert execution.read_result() == {"n": 1}
    assert sorted(os.listdir(execution.path)) == ["result.json", "state.jsonl", "work"]


def test_results_written_at_the_same_time_are_each_complete(state: StateDirectory) -> None:
    """Two followers may both find an execution lost, and both write that down."""
    execution = claimed(state)
    seen = []

    def write(number: int) -> None:
        ExecutionDirectory(state, "job").write_result({"n": number, "filler": "x" * 200_000})
        seen.append(ExecutionDirectory(state, "job").read_result())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(64)))
    assert all(result is not None and len(result["filler"]) == 200_000 for result in seen)
    assert sorted(os.listdir(execution.path)) == ["result.json", "state.jsonl", "work"]


def test_a_link_in_place_of_the_file_is_not_written_through(state: StateDirectory, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    execution = claimed(state)
    os.symlink(victim, os.path.join(execution.path, "result.json"))
    write_durably(os.path.join(execution.path, "result.json"), b"{}")
    assert victim.read_text() == "precious"
    assert not os.path.islink(os.path.join(execution.path, "result.json"))
