"""Who lives, told from another pid namespace, another boot and another version: nothing that runs is touched."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cronium_runner import helper_socket, liveness, process
from cronium_runner.jobdir import StateDirectory
from cronium_runner.liveness import Liveness
from cronium_runner.wire.frames import Kind
from old_runner import as_old_runner
from preloaded import Started
from runner_process import PATIENCE, Host, is_running, open_files, wait_until

WAITING = "echo on\nuntil [ -e {gate} ]; do sleep 0.02; done\necho end\n"
NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
FAKE = """
set -e
mount --make-rprivate /
mount --bind "$1/boot" /proc/sys/kernel/random/boot_id
if [ -e "$1/machine" ] && [ -e /etc/machine-id ]; then mount --bind "$1/machine" /etc/machine-id; fi
shift
exec "$@"
"""


def needs(command: list[str]) -> None:
    done = subprocess.run([*command, "true"], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"not permitted here: {done.stderr.decode()}")


@pytest.fixture
def from_namespace(host: Host) -> Host:
    """The same account, looking from a pid namespace of its own, as a container that shares the directory."""
    needs(NAMESPACE)
    return seen_by(host, NAMESPACE)


@pytest.fixture
def from_boot(host: Host, tmp_path: Path) -> Host:
    """The same account after a reboot of the same machine; another machine where `machine` is in its folder."""
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    (fakes / "boot").write_text("00000000-1111-2222-3333-444444444444\n")
    command = ["unshare", "--mount", "sh", "-c", FAKE, "sh", str(fakes)]
    needs(command)
    return seen_by(host, command)


def seen_by(host: Host, command: list[str]) -> Host:
    other = Host(host.folder, Path(host.environment["CRONIUM_INSTALL_DIR"]))
    other.environment = host.environment
    other.executable = [*command, sys.executable, "-m", "cronium_runner"]
    return other


def begun(host: Host, words: tuple[str, ...] = ()) -> tuple[Started, Path]:
    """A job that runs until a file is made, and that file."""
    gate = host.folder / "gate"
    script = host.script(WAITING.format(gate=gate))
    running = host.start("run", *words, "--execution-id", "job", script, stdout=subprocess.PIPE)
    host.wait_running("job", b"on")
    return running, gate


def check_untouched(host: Host, look: Callable[[], object]) -> None:
    """Whether a look changes neither the record nor the processes."""
    folder = host.execution("job")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    pids = [line[key]["pid"] for line in host.history("job") for key in ("supervisor", "script") if key in line]
    alive = [is_running(pid) for pid in pids]
    look()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert [is_running(pid) for pid in pids] == alive


def check_ends_well(running: Started, gate: Path) -> None:
    gate.touch()
    with running:
        assert running.communicate(timeout=PATIENCE)[0] == b"on\nend\n"
    assert running.returncode == 0


def told(looking: Host) -> dict[str, Any]:
    """What list says of the job, after a collection that may take all it wants."""
    done = looking.run("gc", "--older-than", "0", "--unacknowledged-older-than", "0", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["collected"] == []
    done = looking.run("list", "--json")
    assert done.returncode == 0, done.stderr
    [found] = map(json.loads, done.stdout.splitlines())
    assert isinstance(found, dict)
    return found


def kill_both(host: Host, running: Started) -> None:
    """Supervisor and guardian, killed together; the script is left."""
    supervisor = host.history("job")[0]["supervisor"]["pid"]
    os.kill(supervisor, signal.SIGSTOP)
    running.kill()
    running.communicate()
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not is_running(supervisor), "the supervisor's end")


# The lock


def test_lock_is_seen_by_others_until_its_file_is_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "state.jsonl")
    assert liveness.is_held(path) is None
    Path(path).touch()
    assert liveness.is_held(path) is False
    held = [liveness.hold_file(path) for _ in range(2)]
    for each in held:
        assert each is not None
        assert not os.get_inheritable(each)
        assert liveness.is_held(path) is True
        os.close(each)
    assert liveness.is_held(path) is False


def test_lock_reaches_neither_the_script_nor_other_supervisors(host: Host) -> None:
    script = f"ls -l /proc/self/fd/ >&2\n{WAITING.format(gate=host.folder / 'gate')}"
    with host.agent() as agent:
        channels = [agent.start(host.payload(script), name) for name in ("a", "b", "c")]
        claims = {name: host.wait_running(name, b"on") for name in ("a", "b", "c")}
        holders = {name: claim["supervisor"]["pid"] for name, claim in claims.items()}
        for name, pid in holders.items():
            locked = [path for path in open_files(pid) if path.endswith("/state.jsonl")]
            assert locked == [str(host.execution(name) / "state.jsonl")]
        guarded = {path for path in open_files(agent.process.pid) if path.endswith("/state.jsonl")}
        assert guarded == {str(host.execution(name) / "state.jsonl") for name in holders}
        (host.folder / "gate").touch()
        for channel in channels:
            assert agent.finished(channel)["state"] == "succeeded"
            assert b"state.jsonl" not in agent.stderr(channel)
        wait_until(lambda: not any("state.jsonl" in path for path in open_files(agent.process.pid)), "the locks' end")
        assert agent.close() == 0


def test_guardian_holds_the_lock_after_its_supervisor(host: Host) -> None:
    running, _ = begun(host)
    path = str(host.execution("job") / "state.jsonl")
    supervisor = host.history("job")[0]["supervisor"]["pid"]
    wait_until(lambda: any(found == path for found in open_files(running.pid)), "the guardian's lock")
    os.kill(running.pid, signal.SIGSTOP)
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not is_running(supervisor), "the supervisor's end")
    assert liveness.is_held(path) is True
    os.kill(running.pid, signal.SIGCONT)
    running.communicate(timeout=PATIENCE)
    assert (host.recorded("job") or {})["state"] == "lost"
    assert liveness.is_held(path) is False


# What follows from it


HERE = {"pid": 1, "start": 0, "boot": "this", "namespace": "pid:[1]", "machine": "m"}
FIRST = liveness._FIRST_NAMESPACE


@pytest.mark.parametrize(
    ("who", "seen_from", "held", "expected"),
    [
        (HERE, "pid:[1]", True, Liveness.DEAD),  # its pid is seen to be another's
        ({**HERE, "namespace": "pid:[2]"}, "pid:[1]", True, Liveness.ALIVE),
        ({**HERE, "namespace": "pid:[2]"}, "pid:[1]", False, Liveness.UNKNOWN),
        ({**HERE, "namespace": "pid:[2]"}, FIRST, False, Liveness.DEAD),
        ({**HERE, "namespace": "pid:[2]"}, FIRST, None, Liveness.UNKNOWN),
        ({**HERE, "boot": "other"}, "pid:[1]", True, Liveness.ALIVE),
        ({**HERE, "boot": "other"}, "pid:[1]", False, Liveness.DEAD),
        ({**HERE, "boot": "other", "machine": "n"}, FIRST, False, Liveness.UNKNOWN),
        ({**HERE, "boot": "other", "machine": ""}, FIRST, False, Liveness.UNKNOWN),
        ({"pid": 1, "start": 0, "boot": "other"}, FIRST, None, Liveness.UNKNOWN),
        (None, FIRST, True, Liveness.UNKNOWN),
    ],
)
def test_what_a_lock_and_an_identity_say(
    monkeypatch: pytest.MonkeyPatch, who: Any, seen_from: str, held: bool | None, expected: Liveness
) -> None:
    monkeypatch.setattr(process, "_boot", "this")
    monkeypatch.setattr(process, "_namespace", seen_from)
    monkeypatch.setattr(process, "_machine", "m")
    monkeypatch.setattr(liveness, "is_held", lambda _path: held)
    claim = {"supervisor": who, "lock": "state.jsonl"}
    assert liveness.of_supervisor(claim, "/nowhere") is expected
    if held is not None and who is not None and who.get("namespace", seen_from) != seen_from:
        assert liveness.of_supervisor({"supervisor": who}, "/nowhere") is Liveness.UNKNOWN


@pytest.mark.parametrize(
    ("before", "now", "is_shared", "expected"),
    [
        ("", "", False, Liveness.DEAD),
        ("", "", True, Liveness.UNKNOWN),
        ("m", "", False, Liveness.UNKNOWN),
        ("", "m", False, Liveness.UNKNOWN),
    ],
)
def test_another_boot_of_a_machine_without_an_id(
    monkeypatch: pytest.MonkeyPatch, before: str, now: str, is_shared: bool, expected: Liveness
) -> None:
    monkeypatch.setattr(process, "_boot", "this")
    monkeypatch.setattr(process, "_machine", now)
    monkeypatch.setattr(liveness, "is_held", lambda _path: False)
    monkeypatch.setattr(liveness, "is_shared", lambda _path: is_shared)
    who = {**HERE, "boot": "other", "machine": before}
    assert liveness.of_supervisor({"supervisor": who, "lock": "state.jsonl"}, "/nowhere") is expected
    assert liveness.of_supervisor({"supervisor": who}, "/nowhere") is Liveness.UNKNOWN


# Looks from elsewhere


def test_look_from_another_namespace_ends_nothing(host: Host, from_namespace: Host) -> None:
    running, gate = begun(host)
    found: list[dict[str, Any]] = []
    check_untouched(host, lambda: found.append(told(from_namespace)))
    assert (found[0]["state"], found[0]["error"]) == ("running", None)
    with from_namespace.agent() as agent:
        assert agent.status("job")["state"] == "running"
        assert agent.close() == 0
    check_ends_well(running, gate)


def test_dead_supervisor_of_another_namespace_is_unknown(host: Host, from_namespace: Host) -> None:
    running, _ = begun(host)
    kill_both(host, running)
    found: list[dict[str, Any]] = []
    check_untouched(host, lambda: found.append(told(from_namespace)))
    assert (found[0]["state"], found[0]["error"]["code"]) == ("unknown", "execution.elsewhere")
    waited = from_namespace.run("wait", "job")
    assert (waited.returncode, waited.stderr.count(b"\n")) == (255, 1)
    assert host.run("wait", "job").returncode == 125
    assert (host.recorded("job") or {})["state"] == "lost"


def test_look_from_another_boot_ends_nothing(host: Host, from_boot: Host) -> None:
    running, gate = begun(host)
    found: list[dict[str, Any]] = []
    check_untouched(host, lambda: found.append(told(from_boot)))
    assert found[0]["state"] == "running"
    check_ends_well(running, gate)


def test_job_of_another_machine_is_followed_by_its_files(host: Host, from_boot: Host) -> None:
    """Its socket is not there: what is new is in the spools, and a cancel that can't arrive says so."""
    running, gate = begun(host)
    socket = Path(host.history("job")[0]["socket"])
    socket.rename(host.folder / "aside")
    cancelled = from_boot.run("cancel", "job")
    assert (cancelled.returncode, cancelled.stderr.count(b"\n")) == (125, 1)
    assert b"[execution.elsewhere]" in cancelled.stderr
    with from_boot.agent() as agent:
        channel = agent.new_channel()
        agent.send(Kind.ATTACH, channel, {"executionId": "job", "offsets": [0, 0]})
        agent.expect(channel, Kind.ACCEPTED)
        agent.send(Kind.CANCEL, channel, {})
        assert agent.expect(channel, Kind.REFUSED).json()["code"] == "execution.elsewhere"
        assert agent.close() == 0
    seen = host.folder / "seen"
    with seen.open("wb") as output:
        attached = from_boot.start("attach", "job", stdout=output)
        wait_until(lambda: seen.read_bytes() == b"on\n", "what it has written")
        check_ends_well(running, gate)
        assert attached.wait(PATIENCE) == 0
    assert seen.read_bytes() == b"on\nend\n"
    (host.folder / "aside").unlink()


@pytest.mark.parametrize(("kind", "expected"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False)])
def test_file_systems_of_several_machines_are_known(tmp_path: Path, kind: str, expected: bool) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"20 1 0:99999 / /other rw - nfs server:/ rw\n"
        f"21 1 {os.major(device)}:{os.minor(device)} / {tmp_path} rw,relatime shared:1 - {kind} server:/ rw\n"
    )
    assert liveness.is_shared(str(tmp_path), str(mounts)) is expected
    assert liveness.is_shared(str(tmp_path), str(tmp_path / "none")) is False


def test_sockets_that_may_be_another_machines_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDirectory.open(str(tmp_path / "state"))
    path = Path(state.socket_path())
    helper_socket.listen(str(path)).close()
    os.utime(path, (0, 0))
    monkeypatch.setattr(liveness, "is_shared", lambda _path: True)
    state.sweep()
    assert path.exists()
    monkeypatch.undo()
    state.sweep()
    assert not path.exists()


def test_dead_supervisor_of_another_machine_is_unknown(host: Host, from_boot: Host, tmp_path: Path) -> None:
    if not process.machine():
        pytest.skip("this machine has no id that another one could differ from")
    running, _ = begun(host)
    kill_both(host, running)
    (tmp_path / "fakes/machine").write_text("0" * 32 + "\n")
    found: list[dict[str, Any]] = []
    check_untouched(host, lambda: found.append(told(from_boot)))
    assert (found[0]["state"], found[0]["error"]["code"]) == ("unknown", "execution.elsewhere")
    (tmp_path / "fakes/machine").unlink()
    # After a reboot of the same machine nothing of it can be left.
    assert from_boot.run("wait", "job").returncode == 125
    assert (host.recorded("job") or {})["state"] == "lost"
    assert host.run("wait", "job").returncode == 125


# The way out of `unknown`


def test_what_is_declared_gone_is_lost(host: Host) -> None:
    """A container that was replaced, or a machine that no longer exists: only an operator can know that."""
    state = StateDirectory.open(str(host.state))
    stage = state.stage()
    os.mkdir(stage.work)
    who = {**process.identity(os.getpid()), "boot": "another", "machine": "another"}
    execution = stage.claim("job", {"supervisor": who})
    refused = host.run("cancel", "--gone", "job")
    assert (refused.returncode, refused.stderr.count(b"\n")) == (125, 1)
    assert b"'job' is running" in refused.stderr
    execution.let_go()
    waited = host.run("wait", "job")
    assert waited.returncode == 255
    assert b"cronium-runner cancel --gone job [execution.elsewhere]\n" in waited.stderr
    assert host.recorded("job") is None
    assert host.run("cancel", "--gone", "job").returncode == 0
    result = host.recorded("job") or {}
    assert (result["state"], result["error"]["code"]) == ("lost", "execution.lost")
    assert "declared gone" in result["error"]["message"]
    assert host.run("wait", "job").returncode == 125
    again = host.run("cancel", "--gone", "job")
    assert (again.returncode, again.stderr) == (0, b"cronium-runner: 'job' has ended already\n")
    assert host.run_json("--execution-id", "job", host.script("exit 0\n"))["state"] == "lost", "the id stays taken"
    assert host.run("cancel", "--gone", "--run-as", "root", "job").returncode == 125


# Versions


def test_job_of_0_1_0_outlives_an_upgrade(host: Host, tmp_path: Path) -> None:
    old = as_old_runner(host, tmp_path / "old")
    running, gate = begun(old)
    found: list[dict[str, Any]] = []
    check_untouched(host, lambda: found.append(told(host)))
    assert (found[0]["state"], found[0]["error"]) == ("running", None)
    with host.agent() as agent:
        assert agent.status("job")["state"] == "running"
        assert agent.close() == 0
    check_ends_well(running, gate)
    assert json.loads(host.run("status", "--json", "job").stdout)["result"]["state"] == "succeeded"


def test_job_of_0_1_0_is_not_judged_from_another_boot(host: Host, from_boot: Host, tmp_path: Path) -> None:
    old = as_old_runner(host, tmp_path / "old")
    running, gate = begun(old)
    found: list[dict[str, Any]] = []
    check_untouched(host, lambda: found.append(told(from_boot)))
    assert found[0]["error"]["code"] == "execution.elsewhere"
    check_ends_well(running, gate)


def test_job_of_0_1_0_is_not_judged_from_a_namespace(host: Host, from_namespace: Host, tmp_path: Path) -> None:
    old = as_old_runner(host, tmp_path / "old")
    running, gate = begun(old)
    found: list[dict[str, Any]] = []
    check_untouched(host, lambda: found.append(told(from_namespace)))
    assert found[0]["state"] in ("running", "unknown")
    check_ends_well(running, gate)


def test_job_of_0_1_0_whose_supervisor_was_killed_is_lost(host: Host, tmp_path: Path) -> None:
    old = as_old_runner(host, tmp_path / "old")
    running, _ = begun(old)
    kill_both(host, running)
    assert host.run("wait", "job").returncode == 125
    assert (host.recorded("job") or {})["state"] == "lost"


def test_0_1_0_looks_at_a_job_of_this_version(host: Host, tmp_path: Path) -> None:
    old = as_old_runner(host, tmp_path / "old")
    running, gate = begun(host)
    found: list[dict[str, Any]] = []
    check_untouched(host, lambda: found.append(told(old)))
    assert found[0]["state"] == "running"
    check_ends_well(running, gate)


def test_thousands_of_old_records_cost_one_look_at_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    real = process.living

    def living() -> Iterator[tuple[int, int, int]]:
        looks.append(1)
        return real()

    monkeypatch.setattr(process, "living", living)
    monkeypatch.setattr(liveness, "_taken", 0)
    own = int((process.stat_fields(os.getpid()) or [])[19])
    starts = {int(fields[19]) for pid, _, _ in real() if (fields := process.stat_fields(pid)) is not None}
    ended = [start for start in range(min(starts), own) if start not in starts][:1000]
    assert not any(liveness._is_any_of_start(start) for start in ended)
    assert looks == [1]
    with subprocess.Popen(["sleep", "60"]) as new:  # started after the look, and perhaps within its second
        new_start = int((process.stat_fields(new.pid) or [])[19])
        assert liveness._is_any_of_start(new_start)
        assert liveness._is_any_of_start(own)
        new.kill()


def test_what_is_known_of_a_supervisor_of_0_1_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its boot, by its start time, by who answers on its socket, and by where we are."""
    alive: list[bool] = []
    place = [liveness._FIRST_NAMESPACE]
    monkeypatch.setattr(process, "boot_id", lambda: "boot")
    monkeypatch.setattr(process, "is_alive", lambda _who: bool(alive))
    monkeypatch.setattr(process, "namespace", lambda: place[0])
    monkeypatch.setattr(liveness, "_is_any_of_start", lambda _start: False)

    def known(path: object, boot: str = "boot") -> Liveness:
        return liveness._of_older({"pid": 1, "start": 5, "boot": boot}, path)

    with socket.socket(socket.AF_UNIX) as answering, socket.socket(socket.AF_UNIX) as first:
        answering.bind(str(tmp_path / "s"))
        answering.listen(0)
        assert known(str(tmp_path / "s"), boot="another") is Liveness.UNKNOWN
        assert known(None) is Liveness.UNKNOWN
        first.connect(str(tmp_path / "s"))
        assert known(str(tmp_path / "s")) is Liveness.ALIVE, "whether it accepts, or has no time to"
    assert known(str(tmp_path / "s")) is Liveness.DEAD, "nobody listens any more"
    assert known(str(tmp_path / "gone")) is Liveness.DEAD
    place[0] = "pid:[1]"
    assert known(str(tmp_path / "s")) is Liveness.DEAD
    assert known(str(tmp_path / "gone")) is Liveness.UNKNOWN, "it may be where we cannot see it"
    alive.append(True)
    assert known(None) is Liveness.ALIVE
