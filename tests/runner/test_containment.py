"""Limits and control groups on real scripts: what ends a job, that the result says so, and what is refused."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cronium_runner import cgroup, containment, limits, process, sampling
from cronium_runner.cgroup import Group, Place
from cronium_runner.containment import Containment
from cronium_runner.errors import RunnerError
from cronium_runner.wire.frames import Kind
from cronium_runner.wire.limits import Limits
from payload_bytes import make_payload
from runner_process import Host, Payload, wait_until

MIB = 1 << 20
RESERVES = "import mmap\nreserved = mmap.mmap(-1, 2 << 30)\n"
GROWS = "import time\nkept = []\nwhile True:\n    kept.append(b'x' * (4 << 20))\n    time.sleep(0.005)\n"


@pytest.fixture(params=["subreaper", "cgroup"])
def held(request: pytest.FixtureRequest, host: Host) -> Host:
    """A host whose executions are held in each of the two ways."""
    if request.param == "cgroup" and cgroup.place() is None:
        pytest.skip("no control group with cgroup.kill can be made here")
    host.environment["CRONIUM_CONTAINMENT"] = request.param
    return host


def controllers() -> frozenset[str]:
    place = cgroup.place()
    return frozenset() if place is None else place.controllers


def running_record(host: Host, execution_id: str) -> dict[str, Any]:
    return next(record for record in host.history(execution_id) if record["state"] == "running")


# Limits that end a job


def test_memory_above_its_limit_is_told_as_that_and_not_only_as_signal_9(held: Host) -> None:
    result = held.run_json("--limit", "memory=64MiB", "--timeout", "30", held.script(RESERVES + GROWS, "grows.py"))
    assert (result["state"], result["signal"], result["exit status"]) == ("failed", signal.SIGKILL, 137)
    assert result["error"]["code"] == "limits.memory"
    assert "memory=64MiB" in result["error"]["message"]


def test_memory_of_all_descendants_counts(host: Host) -> None:
    grows = f"{sys.executable} -c \"import time; kept = b'x' * (40 << 20); time.sleep(60)\" &\n"
    result = host.run_json("--limit", "memory=100MiB", "--timeout", "30", host.script(grows * 4 + "wait\n"))
    assert result["error"]["code"] == "limits.memory"


def test_memory_that_is_only_reserved_or_shared_counts_once_or_not(host: Host) -> None:
    script = RESERVES + "import os, time\nkept = b'x' * (60 << 20)\n"
    script += "for number in range(5):\n    if os.fork() == 0:\n        time.sleep(0.8 + number)\n        os._exit(0)\n"
    script += "while True:\n    try:\n        os.wait()\n    except ChildProcessError:\n        break\n"
    result = host.run_json("--limit", "memory=150MiB", host.script(script, "shares.py"))
    assert (result["state"], result["error"]) == ("succeeded", None)


def test_too_many_processes(held: Host) -> None:
    script = held.script("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 60 & done\nwait\n")
    result = held.run_json("--limit", "processes=8", "--timeout", "30", script)
    assert (result["state"], result["error"]["code"]) == ("failed", "limits.processes")
    assert "processes=8" in result["error"]["message"]
    assert result["signal"] == signal.SIGKILL, "no grace for what is above its limit"


def test_threads_count_as_processes(host: Host) -> None:
    script = (
        "import threading, time\nfor _ in range(12):\n    threading.Thread(target=time.sleep, args=(20,)).start()\n"
    )
    result = host.run_json("--limit", "processes=8", host.script(script, "threads.py"))
    assert result["error"]["code"] == "limits.processes"


@pytest.mark.parametrize(
    "script", ["exec head -c 3000000 /dev/zero >big\n", "head -c 3000000 /dev/zero >big; exit $?\n"]
)
def test_a_file_above_its_limit(held: Host, script: str) -> None:
    result = held.run_json("--limit", "file_size=1MiB", held.script("ulimit -c 0\n" + script))
    assert (result["state"], result["exit status"]) == ("failed", 128 + signal.SIGXFSZ)
    assert result["error"]["code"] == "limits.file_size"
    assert "file_size=1MiB" in result["error"]["message"]


def test_output_is_not_a_file_of_the_script(host: Host) -> None:
    done = host.run("run", "--limit", "file_size=1KiB", host.script("head -c 3000000 /dev/zero\n"))
    assert (done.returncode, len(done.stdout)) == (0, 3_000_000)


def test_without_that_limit_the_same_signal_is_the_scripts_own(host: Host) -> None:
    result = host.run_json("--limit", "open_files=100", host.script("ulimit -c 0; kill -XFSZ $$\n"))
    assert (result["signal"], result["error"]) == (signal.SIGXFSZ, None)


def test_a_job_that_stays_below_its_limits_ends_as_it_likes(held: Host) -> None:
    words = ["memory=200MiB", "processes=50", "file_size=1MiB", "cpu=1", "nice=1", "open_files=64"]
    options = [word for each in words for word in ("--limit", each)]
    assert held.run("run", *options, held.script("sleep 0.3; exit 7\n")).returncode == 7


# Limits that the script sees


def test_what_the_script_gets(held: Host) -> None:
    script = "ulimit -Sn; ulimit -Hn; ulimit -Sf; ulimit -Hf; nice; grep ^Cpus_allowed_list /proc/self/status\n"
    words = ["--limit", "open_files=99", "--limit", "file_size=1MiB", "--limit", "nice=3", "--limit", "cpu=0.5"]
    done = held.run("run", "--execution-id", "job", *words, held.script(script))
    *seen, cpus = done.stdout.decode().split("\n")[:-1]
    assert seen == ["99", "99", "1024", "1024", str(min(19, 3 + os.getpriority(os.PRIO_PROCESS, 0)))]
    told = running_record(held, "job")["limits"]
    assert told["open_files"] == {"value": 99, "by": "RLIMIT_NOFILE"}
    if "cpu" not in controllers():
        assert cpus.split()[1].isdigit(), cpus
        assert told["cpu"]["by"].startswith("sched_setaffinity, 1 of ")


def test_the_submission_beats_the_manifest_key_by_key(host: Host) -> None:
    payload = host.payload("ulimit -n; ulimit -f\n", manifest="limits: {open_files: 77, file_size: 2MiB}\n")
    with host.agent() as agent:
        plain = agent.start(payload, "plain")
        agent.finished(plain)
        chosen = agent.start(payload, "chosen", limits={"open_files": 88})
        agent.finished(chosen)
        assert (agent.stdout(plain), agent.stdout(chosen)) == (b"77\n2048\n", b"88\n2048\n")


@pytest.mark.parametrize("asked", [{"disk": 1}, {"memory": "much"}, {"nice": 21}, [], {"cpu": True}])
def test_a_submission_with_a_limit_that_makes_no_sense_is_refused(host: Host, asked: object) -> None:
    with host.agent() as agent:
        channel = agent.submit(host.payload("true\n"), "job", limits=asked)
        assert agent.expect(channel, Kind.REFUSED).json()["code"] == "usage.invalid"
    assert host.executions() == []


def test_a_limited_script_starts_like_any_other(held: Host) -> None:
    script = """
import json, os, signal
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps([os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), os.readlink("/proc/self/fd/0"),
    sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + n)),
    int(status["SigIgn"], 16), int(status["SigBlk"], 16)]))
"""
    done = held.run("run", "--limit", "open_files=64", held.script(script, "seen.py"))
    python_ignores = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert json.loads(done.stdout) == [True, True, "/dev/null", [0, 1, 2], python_ignores, 0]


def test_a_limited_script_that_cannot_be_executed_is_rejected_and_its_id_stays_free(held: Host) -> None:
    files = {"manifest.yaml": b"version: v1\nentrypoint: s\nlimits: {open_files: 64}\n", "s": b"\x7fELF garbage"}
    path = Payload(make_payload(files, executable=("s",))).write(held.folder / "payload.tar.gz")
    for _ in range(2):
        result = held.run_json("--execution-id", "job", path)
        assert (result["state"], result["exit status"]) == ("rejected", 126)
        assert result["error"]["code"] == "interpreter.not_executable"
    assert held.executions() == []


# What is refused


def test_a_step_that_the_kernel_refuses_is_told_and_nothing_runs(tmp_path: Path) -> None:
    def refuse() -> None:
        raise OSError(errno.EPERM, "no")

    before = process.descendants(os.getpid())
    with pytest.raises(process.StepRefusedError) as caught:
        process.start_script(["/bin/true"], environment={}, stdout=1, stderr=2, steps=[("nice", refuse)])
    assert (caught.value.name, caught.value.number) == ("nice", errno.EPERM)
    assert process.descendants(os.getpid()) == before


def test_a_limit_that_the_kernel_refuses_late_is_impossible_too() -> None:
    asked = Limits(nice=-5)
    plan = limits.Plan(asked, {"nice": "setpriority to -5"}, nice=-5)
    error = Containment(plan, None).refusal("nice", errno.EACCES)
    assert error.code == "limits.impossible"
    assert "nice=-5" in error.message
    assert Containment(plan, None).refusal("group", errno.EBUSY).code == "containment.unavailable"
    assert Containment(plan, None).refusal("exec", errno.EIO).code == "interpreter.not_executable"


def test_an_ordinary_account_is_refused_what_it_may_not_set() -> None:
    """In a process of its own that has given its rights up."""
    code = """
import json, os, resource, sys
from cronium_runner.containment import contain
from cronium_runner.errors import RunnerError
from cronium_runner.wire import text
from cronium_runner.wire.limits import from_mapping
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 60))
resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for asked in json.loads(sys.argv[1]):
    try:
        print(contain(from_mapping(asked)).record())
    except RunnerError as error:
        print(error.code, error.message)
"""
    asked = [{"open_files": 61}, {"nice": -1}, {"open_files": 60}]
    words = [sys.executable, "-c", code, json.dumps(asked)]
    files, nice, fine = subprocess.run(words, capture_output=True, check=True, text=True).stdout.splitlines()
    assert files.startswith("limits.impossible")
    assert "open_files=61" in files
    assert "60" in files
    assert nice.startswith("limits.impossible")
    assert "'RLIMIT_NOFILE'" in fine


def test_an_unknown_containment_and_one_that_cannot_be_are_refused(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("CRONIUM_CONTAINMENT", "jail")
    with pytest.raises(RunnerError, match="auto, cgroup, subreaper") as caught:
        containment.contain(Limits())
    assert caught.value.code == "usage.invalid"
    monkeypatch.setenv("CRONIUM_CONTAINMENT", "cgroup")
    monkeypatch.setattr(cgroup, "place", lambda: None)
    with pytest.raises(RunnerError) as caught:
        containment.contain(Limits())
    assert caught.value.code == "containment.unavailable"


# Groups


@pytest.fixture
def place() -> Place:
    found = cgroup.place()
    if found is None:
        pytest.skip("no control group with cgroup.kill can be made here")
    return found


def test_a_job_in_a_group_is_in_it_alone_and_the_group_goes_with_it(host: Host, place: Place) -> None:
    host.environment["CRONIUM_CONTAINMENT"] = "cgroup"
    script = "grep ^0:: /proc/self/cgroup\nuntil [ -e go ]; do sleep 0.02; done\n"
    with host.agent() as agent:
        channel = agent.start(host.payload(script), "job")
        claim = host.wait_running("job", b"0::")
        group = Group(claim["group"])
        script_pid = running_record(host, "job")["script"]["pid"]
        assert script_pid in group.processes()
        assert claim["supervisor"]["pid"] not in group.processes()
        (host.execution("job") / "work/go").touch()
        agent.finished(channel)
        assert agent.stdout(channel).decode().strip().endswith(os.path.basename(group.path))
        wait_until(lambda: not os.path.exists(group.path), "the group to be removed")
    assert cgroup.reopened(claim["group"]) is None
    assert running_record(host, "job")["heldBy"] == "cgroup and subreaper"


def test_a_rejection_leaves_no_group(host: Host, place: Place) -> None:
    host.environment["CRONIUM_CONTAINMENT"] = "cgroup"
    before = set(os.listdir(place.path))
    files = {"manifest.yaml": b"version: v1\nentrypoint: s\n", "s": b"\x7fELF garbage"}
    path = Payload(make_payload(files, executable=("s",))).write(host.folder / "payload.tar.gz")
    assert host.run("run", path).returncode == 126
    ours = {name for name in set(os.listdir(place.path)) - before if not Group(f"{place.path}/{name}").processes()}
    assert ours == set()


def test_a_group_is_ended_at_once_also_what_is_forked_meanwhile(place: Place) -> None:
    group = Group.make(place, {})
    entrance = group.open_entrance()
    loop = "import os\nwhile True:\n if os.fork(): os._exit(0)\n os.setsid()\n"
    enter = lambda: os.write(entrance, b"0")  # noqa: E731
    with subprocess.Popen([sys.executable, "-c", loop], preexec_fn=enter, pass_fds=[entrance]) as first:
        first.wait()
    os.close(entrance)
    wait_until(group.processes, "the loop to be there")
    group.kill()
    wait_until(lambda: not group.processes(), "its end")
    group.remove()
    assert not os.path.exists(group.path)


def test_left_over_groups_are_swept_when_nobody_is_in_them_and_only_ours(place: Place) -> None:
    left, used = Group.make(place, {}), Group.make(place, {})
    entrance = used.open_entrance()
    enter = lambda: os.write(entrance, b"0")  # noqa: E731
    with subprocess.Popen(["sleep", "60"], preexec_fn=enter, pass_fds=[entrance]) as sleeper:
        os.close(entrance)
        cgroup.sweep()
        assert os.path.exists(left.path), "made a moment ago, it may be somebody's who is about to enter"
        cgroup.sweep(older_than=-1)
        assert (os.path.exists(left.path), os.path.exists(used.path)) == (False, True)
        used.kill()
        sleeper.wait()
    used.remove()


def test_a_recorded_path_that_is_no_group_of_ours_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "cgroup.kill").touch()
    for path in (None, 7, "", str(tmp_path), "/", str(tmp_path / "cronium-0123")):
        assert cgroup.reopened(path) is None


def test_where_groups_are_is_read_from_the_mounts(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,name=systemd\n"
        "41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime - cgroup2 cgroup2 rw\n"
    )
    assert cgroup.mount_point(str(mounts)) == "/sys/fs/cgroup/uni fied"
    assert cgroup.mount_point(str(mounts), systemd=True) == "/sys/fs/cgroup/systemd"
    assert cgroup.mount_point(str(tmp_path / "none")) is None


# Controllers: the kernel's own enforcement where it is delegated, and what is made of its files everywhere


@pytest.mark.parametrize("name", ["memory", "pids", "cpu"])
def test_controllers(host: Host, name: str) -> None:
    if name not in controllers():
        pytest.skip(f"untested: the controller {name} is not delegated here")
    word = {"memory": "memory=64MiB", "pids": "processes=8", "cpu": "cpu=0.5"}[name]
    scripts = {
        "memory": GROWS,
        "pids": "import os\nfor _ in range(20):\n    os.fork() or os.pause()\n",
        "cpu": "pass\n",
    }
    result = host.run_json("--execution-id", "job", "--limit", word, host.script(scripts[name], "script.py"))
    told = running_record(host, "job")["limits"]
    assert all(limit["by"].startswith("cgroup ") for limit in told.values())
    if name != "cpu":
        assert result["error"]["code"] == {"memory": "limits.memory", "pids": "limits.processes"}[name]


def test_the_kernels_files_say_which_limit_it_was(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\n")
    (tmp_path / "memory.peak").write_text(f"{64 * MIB}\n")
    (tmp_path / "pids.events").write_text("max 3\n")
    asked = Limits(memory=64 * MIB, processes=5)
    for limits_asked, code in ((asked, "limits.memory"), (asked._replace(memory=None), "limits.processes")):
        verdict = Containment(limits.Plan(limits_asked), Group(str(tmp_path))).verdict(None, signal.SIGKILL)
        assert verdict is not None
        assert verdict.code == code
    assert Containment(limits.Plan(Limits(cpu=1)), Group(str(tmp_path))).verdict(1, None) is None


def test_controllers_are_handed_on_in_a_folder_of_ours(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    (tmp_path / "cgroup.procs").write_text("")
    cgroup._enable(str(tmp_path))
    assert (tmp_path / "cgroup.subtree_control").read_text().startswith("+cpu")


# Sampling


def test_a_tree_is_found_from_its_root() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo; wait"], stdout=subprocess.PIPE) as tree:
        assert tree.stdout is not None
        tree.stdout.readline()
        assert len(sampling.tree(tree.pid)) == 1
        assert set(sampling.tree(os.getpid())) >= {tree.pid, *sampling.tree(tree.pid)}
        assert sampling.threads([tree.pid, *sampling.tree(tree.pid)]) == 2
        process.send_signal([tree.pid, *sampling.tree(tree.pid)], signal.SIGKILL)


def test_memory_is_what_was_touched() -> None:
    code = "import mmap\nr = mmap.mmap(-1, 1 << 30)\nkept = b'x' * (50 << 20)\nprint(flush=True)\ninput()\n"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        one.stdout.readline()
        for above in (1, 1 << 40):  # divided among those who share it, and not
            assert 50 * MIB < sampling.memory([one.pid], above=above) < 100 * MIB
        one.communicate(b"\n")
    assert sampling.memory([one.pid], above=1) == 0


def test_an_accounts_threads_are_counted() -> None:
    assert sampling.threads_of(os.geteuid()) >= 1
    assert sampling.threads_of(4_000_000_000) == 0


# What is told


def test_status_shows_how_it_is_held_and_by_what_it_is_limited(host: Host) -> None:
    with host.agent() as agent:
        channel = agent.start(
            host.payload("echo ready; sleep 60\n"), "job", limits={"open_files": 64, "memory": "1GiB"}
        )
        host.wait_running("job", b"ready")
        told = agent.status("job")
        assert told["heldBy"] in ("subreaper", "cgroup and subreaper")
        assert told["limits"]["open_files"] == {"value": 64, "by": "RLIMIT_NOFILE"}
        shown = host.run("status", "job").stdout.decode()
        assert "held by " in shown
        assert "limit memory=1GiB, enforced by " in shown
        agent.send(Kind.CANCEL, channel)
        agent.finished(channel)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] != 64
