"""One execution seen through to its end, with real scripts: exit statuses, deadlines, cancels, strays, streams, deaths.

What takes seconds by design (the grace period, the drain) is started together by one fixture, and each test waits
for its own.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cronium_runner.process import identity
from cronium_runner.supervisor import MAX_CONNECTIONS
from cronium_runner.wire.frames import Kind
from runner_process import FAREWELL, IGNORING_TERM, PATIENCE, ROOT, Host, is_running, processes_with, wait_until

STALLED: Final = 30_000
"""Milliseconds that a disk may hold up what is timed: the states are written down meanwhile."""
DAEMONS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
ready, tell = os.pipe()
for number in range(24):
    if os.fork() == 0:
        if number % 2:
            os.setsid()
        if os.fork() == 0:  # its parent ends: an orphan, in a session that is not the script's
            if number % 3 == 0:
                os.setsid()
            if number % 4 == 0 and os.fork() != 0:
                os._exit(0)
            open(f"pid-{number}", "w").close()
            os.rename(f"pid-{number}", f"pid-{number}-{os.getpid()}")
            os.write(tell, b".")
            if number % 5 == 0:
                null = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(null, stream)
            while True:
                time.sleep(1)
        os._exit(0)
count = 0
while count < 24:
    count += len(os.read(ready, 24))
print("ready", flush=True)
"""
"""24 descendants that have left the session, the process group and their parents, and don't hear SIGTERM."""


NOBODY = 65534
"""An account without rights that every system has."""


# What takes seconds: started together, waited for one by one


class Slow:
    """Executions under way at the same time."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, script: str, *options: str, suffix: str = "sh", **more: Any) -> None:
        path = self.host.script(script, f"{name}.{suffix}")
        words = ["run", "--execution-id", name, "--keep", *options, path]
        self._running[name] = self.host.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)

    def signal(self, name: str, number: int) -> None:
        self._running[name].send_signal(number)

    def end(self, name: str) -> tuple[int, bytes, bytes, dict[str, Any]]:
        """Exit status, streams and recorded result."""
        stdout, stderr = self._running[name].communicate(timeout=PATIENCE)
        result = self.host.recorded(name)
        assert result is not None
        return self._running[name].returncode, stdout, stderr, result

    def stop(self) -> None:
        for process in self._running.values():
            if process.poll() is None:
                process.kill()
            process.communicate()


def is_executable_by_others(python: str) -> bool:
    try:
        command = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        return subprocess.run(command, user=NOBODY, cwd="/", check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def ordinary(install_directory: Path) -> Iterator[Slow | None]:
    """DAEMONS started by root for an account that is not: no capability helps its supervisor to find or end them."""
    pythons = [python for python in (sys.executable, "/usr/bin/python3") if os.geteuid() == 0]
    executable = next(filter(is_executable_by_others, pythons), None)
    if executable is None:
        yield None
        return
    import click
    import yaml

    modules = [Path(str(module.__file__)).parents[1] for module in (click, yaml)]
    with tempfile.TemporaryDirectory(prefix="ordinary-") as folder:
        os.chown(folder, NOBODY, NOBODY)
        host = Host(Path(folder), Path(folder) / "install")
        host.executable = [executable, "-m", "cronium_runner"]
        host.environment["PYTHONPATH"] = ":".join(map(str, [ROOT / "runner", ROOT / "helpers", *modules]))
        host.user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        running = Slow(host)
        try:
            running.start("job", DAEMONS, suffix="py")
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="module")
def slow(shared_host: Host, ordinary: Slow | None) -> Iterator[Slow]:
    running = Slow(shared_host)
    try:
        running.start("timeout", IGNORING_TERM, "--timeout", "5")
        running.start("interrupted", IGNORING_TERM)
        running.start("holding", "sleep 60 &\necho $! >held\nexit 3\n")
        running.start("daemons", DAEMONS, suffix="py")
        running.start("daemons-cancelled", DAEMONS + "\ntime.sleep(60)\n", suffix="py")
        stray = "(trap '' TERM; touch deaf; while :; do sleep 0.1; done) >/dev/null 2>&1 &\n"
        running.start("stray", stray + "until [ -e deaf ]; do sleep 0.01; done\nexit 0\n")
        for name in ("interrupted", "daemons-cancelled"):
            shared_host.wait_running(name, b"ready")
            running.signal(name, signal.SIGINT)
        yield running
    finally:
        running.stop()


# How a script ends


@pytest.mark.parametrize("status", [0, 1, 7, 124, 125, 126, 127, 130, 137, 255])
def test_the_scripts_exit_status_becomes_ours(host: Host, status: int) -> None:
    done = host.run("run", "--execution-id", "job", host.script(f"exit {status}\n"))
    assert done.returncode == status
    result = host.recorded("job")
    assert result is not None
    assert (result["exitCode"], result["signal"]) == (status, None)
    assert result["state"] == ("failed" if status else "succeeded")
    assert result["error"] is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGHUP, signal.SIGPIPE])
def test_death_by_a_signal_is_128_and_the_signal_told_apart_from_an_exit(host: Host, number: int) -> None:
    result = host.run_json(host.script(f"ulimit -c 0; kill -{int(number)} $$\n"))
    assert result["exit status"] == 128 + number
    assert (result["state"], result["exitCode"], result["signal"]) == ("failed", None, number)


def test_a_timeout_is_124_after_term_and_then_kill(slow: Slow) -> None:
    status, _, stderr, result = slow.end("timeout")
    assert status == 124
    assert (result["state"], result["signal"], result["exitCode"]) == ("timed_out", signal.SIGKILL, None)
    assert result["error"]["code"] == "execution.timeout"
    assert b"timeout of 5 s" in stderr
    assert 9900 < result["durationMs"] < 10_000 + STALLED
    assert [line["state"] for line in slow.host.history("timeout")] == ["claimed", "running", "terminating", "finished"]


def test_a_script_that_ends_on_term_keeps_its_own_exit_status_in_a_timeout(host: Host) -> None:
    script = host.script("trap 'echo saved; exit 9' TERM\nwhile :; do sleep 0.02; done\n")
    done = host.run("run", "--execution-id", "job", "--timeout", "2", script)
    result = host.recorded("job")
    assert result is not None
    assert (done.returncode, done.stdout) == (124, b"saved\n")
    assert (result["state"], result["exitCode"], result["signal"]) == ("timed_out", 9, None)


def test_a_stopped_script_still_ends_by_its_timeout(host: Host) -> None:
    result = host.run_json("--timeout", "0.2", host.script("kill -STOP $$\n"))
    assert (result["exit status"], result["state"], result["signal"]) == (124, "timed_out", signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_int_and_term_cancel(host: Host, number: int) -> None:
    process = host.start("run", "--execution-id", "job", host.script("echo ready; sleep 60\n"), stdout=subprocess.PIPE)
    host.wait_running("job", b"ready")
    process.send_signal(number)
    assert process.communicate(timeout=PATIENCE)[0] == b"ready\n"
    assert process.returncode == 130
    result = host.recorded("job")
    assert result is not None
    assert (result["state"], result["signal"]) == ("cancelled", signal.SIGTERM)
    assert result["error"]["code"] == "execution.cancelled"


def test_an_interrupted_script_that_ignores_term_is_killed(slow: Slow) -> None:
    status, _, _, result = slow.end("interrupted")
    assert (status, result["state"], result["signal"]) == (130, "cancelled", signal.SIGKILL)
    assert 4900 < result["durationMs"] < 5000 + STALLED


def test_a_script_that_ends_with_zero_after_a_cancel_was_cancelled_all_the_same(host: Host) -> None:
    script = host.script("trap 'exit 0' TERM\necho ready\nwhile :; do sleep 0.02; done\n")
    process = host.start("run", "--execution-id", "job", script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    host.wait_running("job", b"ready")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 130
    result = host.recorded("job")
    assert result is not None
    assert (result["state"], result["exitCode"]) == ("cancelled", 0)


@pytest.mark.parametrize("reason", ["cancel", "timeout"])
def test_a_script_that_has_ended_before_it_was_to_end_keeps_its_result(host: Host, reason: str) -> None:
    script = "echo up; while [ ! -e ../../../go ]; do sleep 0.02; done\n"
    with host.agent() as agent:
        channel = agent.start(host.payload(script), "e", **({"timeout": 10} if reason == "timeout" else {}))
        supervisor = host.wait_running("e", b"up")["supervisor"]["pid"]
        os.kill(supervisor, signal.SIGSTOP)
        try:
            (host.state / "go").touch()
            pid = next(line["script"]["pid"] for line in host.history("e") if "script" in line)
            wait_until(lambda: not is_running(pid), "the script's end")
            ended = time.monotonic()
            if reason == "cancel":
                agent.send(Kind.CANCEL, channel)
                agent.send(Kind.PING, 0)
                agent.expect(0, Kind.PONG)  # so the cancel has been passed on
            else:
                wait_until(lambda: time.monotonic() > ended + 10, "the deadline")
        finally:
            os.kill(supervisor, signal.SIGCONT)
        assert agent.finished(channel)["state"] == "succeeded"


def test_a_hang_up_lets_the_script_run_on_by_default(host: Host) -> None:
    script = host.script("echo ready\nuntil [ -e go ]; do sleep 0.01; done\necho done\n")
    process = host.start("run", "--execution-id", "job", script, stdout=subprocess.PIPE)
    host.wait_running("job", b"ready")
    process.send_signal(signal.SIGHUP)
    (host.execution("job") / "work/go").touch()
    assert process.communicate(timeout=PATIENCE)[0] == b"ready\ndone\n"
    assert process.returncode == 0


def test_a_hang_up_cancels_when_that_was_asked_for(host: Host) -> None:
    script = host.script("echo ready; sleep 60\n")
    words = ["run", "--execution-id", "job", "--on-disconnect", "cancel", script]
    process = host.start(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    host.wait_running("job", b"ready")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130


# Who is left behind


def test_a_grandchild_that_holds_the_output_costs_two_seconds_and_the_exit_status_stays(slow: Slow) -> None:
    status, _, _, result = slow.end("holding")
    assert status == 3
    assert (result["state"], result["exitCode"], result["strays"]) == ("failed", 3, 1)
    assert 1900 < result["durationMs"] < 2000 + STALLED
    assert not is_running(int((slow.host.execution("holding") / "work/held").read_text()))


def test_a_stray_that_ignores_term_is_killed_and_counted(slow: Slow) -> None:
    status, _, _, result = slow.end("stray")
    assert status == 0
    assert result["state"] == "succeeded"
    assert result["strays"] >= 1
    assert result["durationMs"] > 4900
    assert not processes_with(str(slow.host.execution("stray")))


@pytest.mark.parametrize("name", ["daemons", "daemons-cancelled"])
def test_descendants_that_left_the_session_and_ignore_term_are_gone_when_the_result_is_there(
    slow: Slow, name: str
) -> None:
    wait_until(lambda: slow.host.recorded(name), "the result")
    pids = [int(path.name.split("-")[2]) for path in (slow.host.execution(name) / "work").glob("pid-*-*")]
    assert len(pids) == 24
    assert [pid for pid in pids if is_running(pid)] == []
    assert processes_with(f"CRONIUM_EXECUTION_ID={name}\0") == []
    status, _, _, result = slow.end(name)
    assert status == (130 if "cancelled" in name else 0)
    if name == "daemons":
        assert result["strays"] == 24


def test_descendants_of_an_ordinary_user_are_gone_too(ordinary: Slow | None) -> None:
    if ordinary is None:
        pytest.skip("only root can start it as another account, with a Python that everybody may execute")
    status, _, stderr, result = ordinary.end("job")
    assert status == 0, stderr
    assert result["strays"] == 24
    assert ordinary.host.processes() == []
    ordinary.host.check_nothing_left()


# What a script sees


SEEN = """
import json, os, signal
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
mask = os.umask(0)
print(json.dumps({
    "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(),
    "stdin": os.readlink("/proc/self/fd/0"),
    "descriptors": sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + n)),
    "ignored": int(status["SigIgn"], 16), "blocked": int(status["SigBlk"], 16),
    "cwd": os.getcwd(), "umask": mask, "environment": dict(os.environ),
    "terminal": os.path.exists("/dev/tty") and bool(int(open("/proc/self/stat").read().rpartition(") ")[2].split()[4])),
}))
"""
GLIBC_IGNORES = 1 << (32 - 1) | 1 << (33 - 1)
"""Its two internal signals, which posix_spawn of glibc leaves ignored in whatever it starts."""
PYTHON_IGNORES = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
"""What the observer ignores itself: CPython does so at its start."""


@pytest.fixture(scope="module")
def seen(shared_host: Host) -> dict[str, Any]:
    """What a Python script sees that was started by somebody with odd habits."""

    def odd() -> None:
        os.umask(0o027)
        for number in (signal.SIGUSR1, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGALRM})

    leaked = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    traces = {"_PYI_ARCHIVE_FILE": "/x", "_PYI_PARENT_PROCESS_LEVEL": "1", "_MEIPASS2": "/tmp/_MEI1"}
    traces |= {"CRONIUM_ODD": "x", "BASH_ENV": ""}
    script = shared_host.script(SEEN, "seen.py")
    try:
        done = shared_host.run(
            "run", "--execution-id", "seen", script, env=traces, preexec_fn=odd, pass_fds=[leaked], umask=0o027
        )
    finally:
        os.close(leaked)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_script_has_a_session_of_its_own_and_no_terminal(seen: dict[str, Any]) -> None:
    assert seen["session"]
    assert seen["group"]
    assert not seen["terminal"]


def test_a_scripts_standard_input_is_empty(seen: dict[str, Any]) -> None:
    assert seen["stdin"] == "/dev/null"


def test_a_script_inherits_no_descriptor_of_ours_nor_of_our_parents(seen: dict[str, Any]) -> None:
    assert seen["descriptors"] == [0, 1, 2]


def test_a_script_starts_with_default_signals(seen: dict[str, Any]) -> None:
    assert seen["ignored"] & ~PYTHON_IGNORES & ~GLIBC_IGNORES == 0
    assert seen["blocked"] == 0


def test_sigpipe_is_not_ignored(host: Host) -> None:
    done = host.run("run", host.script("yes | head -n 1\necho ${PIPESTATUS[0]}\n"))
    assert done.stdout == b"y\n141\n"


def test_a_script_starts_in_its_work_directory_with_the_callers_umask(seen: dict[str, Any], shared_host: Host) -> None:
    assert seen["cwd"] == seen["environment"]["CRONIUM_WORK_DIR"] == str(shared_host.execution("seen") / "work")
    assert seen["umask"] == 0o027


def test_a_script_sees_only_the_documented_names_of_ours(seen: dict[str, Any]) -> None:
    names = [name for name in seen["environment"] if name.startswith(("CRONIUM_", "_PYI", "_MEI", "LD_"))]
    assert sorted(names) == [
        "CRONIUM_EVENT_ID", "CRONIUM_EXECUTION_ID", "CRONIUM_HELPER_MODE", "CRONIUM_JOB_ID", "CRONIUM_SOCKET",
        "CRONIUM_WORK_DIR",
    ]  # fmt: skip
    assert seen["environment"]["CRONIUM_HELPER_MODE"] == "bundled"
    assert seen["environment"]["CRONIUM_EXECUTION_ID"] == "seen"


def test_the_usage_of_a_script_is_its_own(host: Host) -> None:
    script = host.script("import time\nx = bytearray(80 << 20)\nwhile time.process_time() < 0.3: pass\n", "job.py")
    result = host.run_json(script)
    assert 290 < result["usage"]["cpuMs"] < 3000
    assert 80 * 1024 < result["usage"]["maxRssKiB"] < 200 * 1024


# Streams


FLOOD = """
import os, hashlib, threading, json, sys
size, line = int(sys.argv[1]), sys.argv[2] == "line"
def write(fd, seed):
    block = (b"x" * 65536) if line else hashlib.shake_256(seed).digest(1 << 20)
    digest, left = hashlib.sha256(), size
    while left:
        piece = block[:left]
        digest.update(piece)
        left -= len(piece)
        while piece:
            piece = piece[os.write(fd, piece):]
    open("digest-%d" % fd, "w").write(digest.hexdigest())
threads = [threading.Thread(target=write, args=(fd, b"%d" % fd)) for fd in (1, 2)]
[t.start() for t in threads]; [t.join() for t in threads]
"""


@pytest.mark.parametrize("kind", ["binary", "line"])
def test_100_mb_on_both_streams_arrive_byte_for_byte_in_little_memory(host: Host, kind: str) -> None:
    size = 100_000_000
    script = host.script(FLOOD, "flood.py")
    out, err = host.folder / "out", host.folder / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        words = ["run", "--keep", "--execution-id", "job", script, "--", str(size), kind]
        process = host.start(*words, stdout=stdout, stderr=stderr)
        claim = host.wait_running("job")
        peaks = {process.pid: 0, claim["supervisor"]["pid"]: 0}
        while process.poll() is None:
            for pid in peaks:
                peaks[pid] = max(peaks[pid], peak_kib(pid))
            time.sleep(0.005)
    assert process.returncode == 0
    result = host.recorded("job")
    assert result is not None
    for path, name, descriptor in ((out, "stdout", 1), (err, "stderr", 2)):
        made = (host.execution("job") / f"work/digest-{descriptor}").read_text()
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == made
        assert result[name] == {"bytes": size, "truncated": False, "sha256": made}
        path.unlink()
        (host.execution("job") / name).unlink()
    assert all(0 < peak < 64 * 1024 for peak in peaks.values()), peaks


def peak_kib(pid: int) -> int:
    """The process's peak resident size; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


def test_every_byte_value_and_no_final_newline_pass_through(host: Host) -> None:
    script = host.script(
        "import os\nos.write(1, bytes(range(256)))\nos.write(2, bytes(range(255, -1, -1)))\n", "job.py"
    )
    done = host.run("run", script)
    assert done.stdout == bytes(range(256))
    assert done.stderr == bytes(range(255, -1, -1))


def test_output_is_shown_while_the_script_runs(host: Host) -> None:
    script = host.script("echo first; echo oops >&2\nuntil [ -e go ]; do sleep 0.01; done\necho second\n")
    process = host.start("run", "--execution-id", "job", script, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"first\n"
    assert process.stderr.readline() == b"oops\n"
    (host.execution("job") / "work/go").touch()
    assert process.communicate(timeout=PATIENCE) == (b"second\n", b"")


def test_a_script_that_closes_its_streams_early_is_waited_for(host: Host) -> None:
    done = host.run("run", "--execution-id", "job", host.script("echo out; exec >&- 2>&-; sleep 0.3; exit 5\n"))
    assert (done.returncode, done.stdout) == (5, b"out\n")
    result = host.recorded("job")
    assert result is not None
    assert result["durationMs"] >= 300


def test_a_reader_that_goes_away_changes_nothing_about_the_result(host: Host) -> None:
    script = host.script("head -c 3000000 /dev/zero; echo end >&2; exit 4\n")
    process = host.start("run", "--execution-id", "job", script, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1) == b"\0"
    process.stdout.close()
    assert process.stderr.read() == b"end\n"
    assert process.wait(PATIENCE) == 4
    process.stderr.close()
    result = host.recorded("job")
    assert result is not None
    assert result["stdout"]["bytes"] == 3_000_000


def test_a_reader_that_never_reads_does_not_hold_up_the_script(host: Host) -> None:
    script = host.script("head -c 5000000 /dev/zero; exit 6\n")
    process = host.start("run", "--execution-id", "job", script, stdout=subprocess.PIPE)
    assert host.wait_result("job")["exitCode"] == 6
    assert process.poll() is None
    stdout, _ = process.communicate(timeout=PATIENCE)
    assert (stdout, process.returncode) == (bytes(5_000_000), 6)


def test_a_child_forked_while_the_group_is_told_to_end_hears_it_too(host: Host) -> None:
    """Signalling one by one missed it, and it then lived through the whole grace period."""
    script = host.script("echo ready\nwhile :; do sleep 0.001; done\n")
    waited = 0
    for number in range(10):
        result = host.run_json("--execution-id", f"job-{number}", "--timeout", "0.05", script)
        assert result["state"] == "timed_out"
        waited += result["durationMs"] >= 4900
    assert waited <= 1  # one, where the disk has stalled


def test_many_small_writes_to_a_reader_that_never_reads_do_not_hold_up_the_end(host: Host) -> None:
    """Each wakes the reader; those that it doesn't take must not pile up until the supervisor waits for it."""
    script = host.script("import os, time\nfor _ in range(3000):\n os.write(1, b'x' * 100)\n time.sleep(0)\n", "job.py")
    process = host.start("run", "--execution-id", "job", script, stdout=subprocess.PIPE)
    host.wait_result("job")
    supervisor = host.history("job")[0]["supervisor"]["pid"]
    wait_until(lambda: not (host.execution("job") / "work").exists(), "the work directory to be removed")
    wait_until(lambda: not is_running(supervisor), "the supervisor to end")
    assert process.communicate(timeout=PATIENCE)[0] == b"x" * 300_000


@pytest.mark.parametrize("filling", ["", "head -c 30000000 /dev/zero >filling 2>/dev/null\n"], ids=["spool", "work"])
def test_a_full_disk_keeps_the_exit_status_and_flags_the_loss(host: Host, as_root: None, filling: str) -> None:
    script = host.script(f"{filling}head -c 30000000 /dev/zero; echo complaint >&2; exit 9\n")
    words = [*host.executable, "run", "--execution-id", "job", str(script)]
    inside = 'mount -t tmpfs -o size=4m,mode=0700 none "$0" || exit 99\n"$@" >/dev/null\n'
    inside += 's=$?\ncat "$0/executions/job/result.json"\nexit $s\n'
    host.state.mkdir(mode=0o700)
    command = ["unshare", "-m", "sh", "-c", inside, str(host.state), *words]
    done = subprocess.run(command, env=host.environment, capture_output=True, check=False)
    if done.returncode == 99 or b"unshare:" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 9, done.stderr
    result = json.loads(done.stdout)
    assert (result["state"], result["exitCode"]) == ("failed", 9)
    assert result["stdout"]["truncated"]
    assert bool(result["stdout"]["bytes"]) != bool(filling)
    assert result["stdout"]["bytes"] < 4 << 20
    assert result["error"]["code"] == "execution.spool"


# Deaths


def test_a_killed_supervisor_leaves_lost_with_earlier_output_and_no_script(host: Host) -> None:
    process = host.start(
        "run", "--execution-id", "job", host.script("echo before; sleep 60 & echo $$; wait\n"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    claim = host.wait_running("job", b"\n")
    wait_until(lambda: (host.execution("job") / "stdout").read_bytes().count(b"\n") == 2, "the output")
    os.kill(claim["supervisor"]["pid"], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 125
    assert stdout.startswith(b"before\n")
    assert b"[execution.lost]" in stderr
    result = host.recorded("job")
    assert result is not None
    assert (result["state"], result["exitCode"], result["error"]["code"]) == ("lost", None, "execution.lost")
    assert result["stdout"] == {"bytes": len(stdout), "truncated": True, "sha256": hashlib.sha256(stdout).hexdigest()}
    wait_until(lambda: not is_running(int(stdout.split()[1])), "the script's process group to end", FAREWELL)
    again = host.run("run", "--execution-id", "job", host.folder / "script.sh")
    assert (again.returncode, again.stdout) == (125, stdout)


def test_a_script_cannot_keep_its_end_away_by_taking_all_descriptors(host: Host) -> None:
    script = host.script(
        "import os, signal, socket, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "held = []\n"
        "for _ in range(1100):\n"
        "    one = socket.socket(socket.AF_UNIX); one.setblocking(False); held.append(one)\n"
        "    try: one.connect(os.environ['CRONIUM_SOCKET'])\n"
        "    except BlockingIOError: break\n"
        "print(len(held), flush=True); time.sleep(60)\n",
        "greedy.py",
    )  # fmt: skip
    result = host.run_json(script, "--timeout", "5")
    assert (result["state"], result["signal"], result["exit status"]) == ("timed_out", signal.SIGKILL, 124)
    assert int(result["stdout"]["text"]) > 256


def test_the_last_helper_that_there_is_room_for_may_be_gone_before_it_is_met(host: Host) -> None:
    script = host.script(
        "import os, signal, socket, subprocess\n"
        "def connected():\n"
        "    one = socket.socket(socket.AF_UNIX); one.connect(os.environ['CRONIUM_SOCKET']); return one\n"
        f"held = [connected() for _ in range({MAX_CONNECTIONS - 1})]\n"
        "subprocess.check_output(['cronium.event'])  # answered, so all before it were met\n"
        "os.kill(os.getppid(), signal.SIGSTOP); connected().close(); os.kill(os.getppid(), signal.SIGCONT)\n"
        "del held\n"
        "subprocess.check_call(['cronium.output', 'still', 'there'])\n",
        "full.py",
    )
    result = host.run_json(script, "--timeout", "30")
    assert (result["state"], result["output"]) == ("succeeded", {"still": "there"})


def test_a_script_whose_first_thread_has_ended_still_ends_by_its_timeout(host: Host) -> None:
    script = host.script(
        "import ctypes, signal, threading, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print('on', flush=True); ctypes.CDLL(None).pthread_exit(None)\n",
        "threads.py",
    )
    result = host.run_json(script, "--timeout", "5")
    assert (result["state"], result["exit status"], result["stdout"]["text"]) == ("timed_out", 124, "on\n")
    assert result["durationMs"] < 10_000 + STALLED


LEAVERS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for index in range(21):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        if index % 3 == 0:  # one that hides: nothing of ours in its environment
            os.execve("/bin/sh", ["sh", "-c", "trap '' TERM; while :; do sleep 60; done"], {"HIDDEN": sys.argv[1]})
        if index % 3 == 1:  # the same, in the program that the runner itself may be
            program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
            os.execve(sys.executable, [sys.executable, "-c", program], {"HIDDEN": sys.argv[1]})
        break
print("ready", flush=True)
time.sleep(60)
"""


def check_the_whole_tree_goes(host: Host, mark: str) -> None:
    """Kills the supervisor of `job`, whose script is LEAVERS, and sees everything end that belonged to it."""
    claim = host.wait_running("job")
    wait_until(lambda: len(processes_with(f"HIDDEN={mark}")) >= 14, "the ones that hide")
    left = processes_with(f"HIDDEN={mark}")
    os.kill(claim["supervisor"]["pid"], signal.SIGKILL)
    result = host.wait_result("job")
    assert result["state"] == "lost"
    assert not any(is_running(pid) for pid in left)
    assert processes_with(f"HIDDEN={mark}") == []


def test_the_foreground_ends_the_tree_of_a_killed_supervisor(host: Host) -> None:
    mark = f"hidden-{os.urandom(6).hex()}"
    script = host.script(LEAVERS, "leavers.py")
    with host.start("run", "--execution-id", "job", script, "--", mark, stdout=subprocess.DEVNULL) as process:
        check_the_whole_tree_goes(host, mark)
        assert process.wait(PATIENCE) == 125


def test_the_agent_ends_the_tree_of_a_killed_supervisor_also_when_its_channel_is_gone(host: Host) -> None:
    mark = f"hidden-{os.urandom(6).hex()}"
    with host.agent() as agent:
        agent.start(host.payload(LEAVERS, interpreter="python"), "job", args=[mark])
        agent.close_input()
        check_the_whole_tree_goes(host, mark)


def test_the_next_contact_finds_an_execution_lost_when_both_were_killed(host: Host) -> None:
    process = host.start(
        "run", "--execution-id", "job", host.script("echo before; sleep 60\n"), stdout=subprocess.DEVNULL
    )
    claim = host.wait_running("job", b"before")
    process.send_signal(signal.SIGKILL)
    os.kill(claim["supervisor"]["pid"], signal.SIGKILL)
    process.wait()
    wait_until(lambda: not is_running(claim["supervisor"]["pid"]), "the supervisor's end")
    contacts = [host.start("status", "--json", "job", stdout=subprocess.PIPE) for _ in range(6)]
    for contact in contacts:
        found = json.loads(contact.communicate(timeout=PATIENCE)[0])
        assert contact.returncode == 0
        assert (found["state"], found["result"]["state"]) == ("finished", "lost")
    assert host.run("attach", "job").stdout == b"before\n"
    assert host.run("attach", "job").returncode == 125


def test_a_supervisor_that_dies_before_the_script_runs_leaves_lost(host: Host) -> None:
    """A claim without a living supervisor and without anything else: killed right after the rename."""
    from cronium_runner.jobdir import StateDirectory

    stage = StateDirectory.open(str(host.state)).stage()
    os.mkdir(stage.work)
    dead = {**identity(os.getpid()), "start": 1}
    stage.claim("job", {"supervisor": dead, "socket": "/nowhere"}).let_go()
    done = host.run("status", "job")
    assert b"lost" in done.stdout


def test_a_killed_foreground_lets_the_execution_go_on_and_later_processes_follow_it(host: Host) -> None:
    script = host.script("echo one\nuntil [ -e go ]; do sleep 0.01; done\necho two\necho err >&2\nexit 8\n")
    process = host.start("run", "--execution-id", "job", script, stdout=subprocess.DEVNULL)
    host.wait_running("job", b"one")
    process.kill()
    process.wait()
    assert json.loads(host.run("status", "--json", "job").stdout)["state"] == "running"
    attached = host.start("attach", "job", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert attached.stdout is not None
    assert attached.stdout.readline() == b"one\n"
    (host.execution("job") / "work/go").touch()
    assert attached.communicate(timeout=PATIENCE) == (b"two\n", b"err\n")
    assert attached.returncode == 8
    assert host.run("attach", "--offset", "2", "1", "job").stdout == b"e\ntwo\n"


def test_a_killed_foreground_cancels_when_that_was_asked_for(host: Host) -> None:
    words = ["run", "--execution-id", "job", "--on-disconnect", "cancel", host.script("echo ready; sleep 60\n")]
    process = host.start(*words, stdout=subprocess.DEVNULL)
    host.wait_running("job", b"ready")
    process.kill()
    process.wait()
    assert host.wait_result("job")["state"] == "cancelled"


def test_an_interrupted_attach_leaves_the_execution_running(host: Host) -> None:
    script = host.script("echo ready\nuntil [ -e go ]; do sleep 0.01; done\n")
    process = host.start("run", "--execution-id", "job", script, stdout=subprocess.DEVNULL)
    host.wait_running("job", b"ready")
    attached = host.start("attach", "job", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert attached.stdout is not None
    assert attached.stdout.readline() == b"ready\n"
    attached.send_signal(signal.SIGINT)
    attached.communicate(timeout=PATIENCE)
    assert host.recorded("job") is None
    (host.execution("job") / "work/go").touch()
    assert process.wait(PATIENCE) == 0
