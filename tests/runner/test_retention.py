"""What is kept and for how long: the decision in plain values, and real executions that are collected."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronium_runner.kept_records import Kept, KeptPayload
from cronium_runner.retention import DAY, IN_USE_SECONDS, PAYLOAD_DAYS, choose
from cronium_runner.settings import Settings
from runner_process import Host, wait_until

NOW = 2e9


def record(name: str, days: float, size: int = 100, *, acknowledged: bool = True) -> Kept:
    return Kept(name, NOW - days * DAY, size, acknowledged)


# The decision


def test_what_is_too_old_goes_and_what_nobody_fetched_stays() -> None:
    kept = [record("new", 1), record("old", 8), record("unfetched", 400, acknowledged=False)]
    choice = choose(kept, [], 300, NOW, Settings())
    assert [one.id for one in choice.executions] == ["old"]
    choice = choose(kept, [], 300, NOW, Settings(unacknowledged_days=30))
    assert [one.id for one in choice.executions] == ["unfetched", "old"]


def test_over_the_budget_payloads_go_first_then_the_oldest_records() -> None:
    kept = [record("a", 3), record("b", 2), record("c", 1), record("unfetched", 5, acknowledged=False)]
    payloads = [KeptPayload("spare", NOW - 2 * IN_USE_SECONDS, 100), KeptPayload("in use", NOW - 60, 100)]
    assert choose(kept, payloads, 600, NOW, Settings(budget=600)) == ([], [])
    assert choose(kept, payloads, 600, NOW, Settings(budget=500)) == ([], [payloads[0]])
    choice = choose(kept, payloads, 600, NOW, Settings(budget=350))
    assert ([one.id for one in choice.executions], choice.payloads) == (["a", "b"], [payloads[0]])
    choice = choose(kept, payloads, 600, NOW, Settings(budget=0))
    assert [one.id for one in choice.executions] == ["a", "b", "c"]


@given(
    st.lists(st.tuples(st.floats(0, 400), st.integers(0, 1000), st.booleans()), max_size=30),
    st.lists(st.tuples(st.floats(0, 60), st.integers(0, 1000)), max_size=10),
    st.integers(0, 20_000),
    st.none() | st.floats(0, 400),
)
def test_nothing_goes_without_a_reason(
    records: list[tuple[float, int, bool]], files: list[tuple[float, int]], budget: int, unfetched_days: float | None
) -> None:
    kept = [record(f"{number:02d}", days, size, acknowledged=ok) for number, (days, size, ok) in enumerate(records)]
    payloads = [KeptPayload(f"{number:02d}", NOW - days * DAY, size) for number, (days, size) in enumerate(files)]
    used = sum(one.bytes for one in kept) + sum(one.bytes for one in payloads)
    chosen = Settings(budget=budget, unacknowledged_days=unfetched_days)
    choice = choose(kept, payloads, used, NOW, chosen)
    assert len({one.id for one in choice.executions}) == len(choice.executions)
    left = used - sum(one.bytes for one in choice.executions) - sum(one.bytes for one in choice.payloads)
    for one in choice.executions:
        days = chosen.days if one.is_acknowledged else unfetched_days
        assert days is not None, "what nobody fetched went unasked"
        assert (NOW - one.ended_at) / DAY >= days or one.is_acknowledged
    for payload in choice.payloads:
        assert NOW - payload.used_at >= IN_USE_SECONDS
    young = [one for one in choice.executions if one.is_acknowledged and (NOW - one.ended_at) / DAY < chosen.days]
    if young:
        assert left + young[-1].bytes > budget, "more went than the budget asked for"
        spared = [one for one in kept if one.is_acknowledged and one not in choice.executions]
        assert all(one.ended_at >= young[-1].ended_at for one in spared), "a younger one went before an older one"
    too_old = {one.id for one in kept if one.is_acknowledged and (NOW - one.ended_at) / DAY >= chosen.days}
    assert too_old <= {one.id for one in choice.executions}
    if left > budget:
        assert not [one for one in kept if one.is_acknowledged and one not in choice.executions]
        assert not [one for one in payloads if NOW - one.used_at >= IN_USE_SECONDS and one not in choice.payloads]
    assert PAYLOAD_DAYS > 7


# Real executions


def age(host: Host, execution_id: str, days: float) -> None:
    then = time.time() - days * DAY
    for name in ("state.jsonl", "result.json"):
        os.utime(host.execution(execution_id) / name, (then, then))


def ended(
    host: Host, execution_id: str, text: str = "echo out; cronium.output handed-back; exit 3\n"
) -> dict[str, Any]:
    return host.run_json("--execution-id", execution_id, host.script(text))


def collect(host: Host, *words: str) -> dict[str, Any]:
    done = host.run("gc", "--json", *words)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_an_old_record_is_collected_and_its_id_never_starts_again(host: Host) -> None:
    before = ended(host, "old")
    ended(host, "new", "echo new\n")
    age(host, "old", 8)
    foretold = collect(host, "--dry-run")
    assert foretold["collected"] == ["old"]
    assert (host.execution("old") / "stdout").exists()
    told = collect(host)
    assert told["collected"] == ["old"]
    assert told["freedBytes"] > 0
    assert told == {**foretold, "isDryRun": False}, "what a dry run says is what comes of it"
    assert (told["kept"], told["tombstones"], told["running"]) == (1, 1, 0)
    assert os.listdir(host.execution("old")) == ["state.jsonl"]
    again = ended(host, "old")
    assert again["error"]["code"] == "execution.collected"
    assert (again["state"], again["exitCode"], again["exit status"]) == ("failed", 3, 3)
    assert again["stdout"]["sha256"] == before["stdout"]["sha256"]
    assert again["output"] is None
    other = host.run("run", "--execution-id", "old", host.script("echo other\n", "other.sh"))
    assert b"[execution.id_conflict]" in other.stderr
    assert b"old" not in host.run("list").stdout
    assert b"old" in host.run("list", "--all").stdout
    assert host.run("wait", "old").returncode == 3
    attached = host.run("attach", "old")
    assert (attached.returncode, attached.stdout) == (3, b"")
    assert collect(host)["tombstones"] == 1


def test_what_nobody_acknowledged_stays_until_it_is_asked_for(host: Host) -> None:
    with host.agent() as agent:
        channel = agent.start(host.payload("echo kept\n"), "unfetched")
        agent.finished(channel)
    wait_until(lambda: not host.processes(), "the agent to leave")
    age(host, "unfetched", 400)
    told = collect(host, "--budget", "1")
    assert (told["collected"], told["unacknowledged"]) == ([], 1)
    assert told["overBytes"] > 0
    assert b"over the budget" in host.run("gc", "--budget", "1").stdout
    assert collect(host, "--unacknowledged-older-than", "30")["collected"] == ["unfetched"]


def test_a_running_execution_is_never_touched(host: Host) -> None:
    script = host.script("echo begun; exec sleep 60\n")
    with host.start(
        "run", "--execution-id", "busy", script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        host.wait_running("busy", b"begun\n")
        told = collect(host, "--older-than", "0", "--budget", "1", "--unacknowledged-older-than", "0")
        os.kill(run.pid, signal.SIGTERM)
    assert (told["collected"], told["running"]) == ([], 1)


def test_a_payload_in_use_stays_and_one_that_nobody_used_goes(host: Host) -> None:
    payload = host.payload("echo paid\n")
    with host.agent() as agent:
        agent.finished(agent.start(payload, "first"))
        cached = host.state / "payloads" / f"{payload.sha256}.tar.gz"
        assert collect(host, "--budget", "1")["payloads"] == []
        os.utime(cached, (0, 0))
        agent.finished(agent.start(payload, "second"))
        assert cached.stat().st_mtime > time.time() - 60, "using it counts"
        os.utime(cached, (0, 0))
        assert collect(host)["payloads"] == [payload.sha256]
        agent.finished(agent.start(payload, "third"))


def test_fifty_submissions_of_a_collected_id_start_nothing(host: Host) -> None:
    script = host.script(f"echo started >> {host.folder}/starts\n")
    host.run("run", "--execution-id", "gone", script)
    collect(host, "--older-than", "0")
    with ThreadPoolExecutor(10) as pool:
        done = list(pool.map(lambda _: host.run("run", "--execution-id", "gone", script), range(50)))
    assert {one.returncode for one in done} == {0}
    assert all(b"[execution.collected]" in one.stderr for one in done)
    assert (host.folder / "starts").read_text() == "started\n"


KILLED_AT = """
import os, signal, sys
from cronium_runner import retention, settings
from cronium_runner.jobdir import ExecutionDirectory, StateDirectory
step = int(sys.argv[1])
calls = 0
is_burying = False
def watched(name):
    real = getattr(os, name)
    def call(*arguments, **options):
        global calls
        calls += is_burying
        if is_burying and calls == step:
            if len(sys.argv) > 2:
                raise OSError(int(sys.argv[2]), "injected")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(os, name, call)
for name in ("open", "write", "fsync", "rename", "unlink", "rmdir", "scandir"):
    watched(name)
bury = ExecutionDirectory.bury
def burying(execution):
    global is_burying
    is_burying = True
    try:
        bury(execution)
    finally:
        is_burying = False
ExecutionDirectory.bury = burying
state = StateDirectory.open()
report = retention.collect(state, settings.read(state, days=0))
import json
print(json.dumps(report.to_json()))
if calls >= step:
    print("injected", file=sys.stderr)
"""


def test_a_collection_killed_at_any_step_leaves_the_id_claimed_and_the_next_one_completes_it(host: Host) -> None:
    """Every call that changes something is a place to be killed at; the last step is the one that gets through."""
    script = host.script("echo out; echo err >&2\n")
    for step in range(1, 60):
        name = f"job{step}"
        host.run("run", "--execution-id", name, "--keep", script)
        done = subprocess.run([sys.executable, "-c", KILLED_AT, str(step)], env=host.environment, check=False)
        assert host.execution(name).is_dir()
        again = host.run("run", "--execution-id", name, script)
        assert again.returncode == 0, (step, again.stderr)
        assert b"[execution.collected]" in again.stderr or again.stdout == b"out\n", step
        collect(host, "--older-than", "0")
        assert os.listdir(host.execution(name)) == ["state.jsonl"], step
        if done.returncode == 0:
            break
    assert 10 < step < 59


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_a_collection_that_fails_at_any_step_says_so_and_the_next_one_completes_it(host: Host, error: int) -> None:
    script = host.script("echo out; echo err >&2\n")
    for step in range(1, 60):
        name = f"job{step}"
        host.run("run", "--execution-id", name, "--keep", script)
        done = subprocess.run(
            [sys.executable, "-c", KILLED_AT, str(step), str(error)],
            env=host.environment,
            capture_output=True,
            check=True,
        )
        report = json.loads(done.stdout)
        is_through = report["collected"] == [name]
        assert is_through != (name in report["failed"]), (step, report)
        again = host.run("run", "--execution-id", name, script)
        assert again.returncode == 0, (step, again.stderr)
        assert b"[execution.collected]" in again.stderr or again.stdout == b"out\n", step
        collect(host, "--older-than", "0")
        assert os.listdir(host.execution(name)) == ["state.jsonl"], step
        if b"injected" not in done.stderr:
            break
    assert 10 < step < 59


def test_one_record_that_cannot_go_keeps_no_other_from_going(host: Host) -> None:
    for name in ("damaged", "sound"):
        ended(host, name)
        age(host, name, 8)
    (host.execution("damaged") / "result.json").write_bytes(b"{")
    os.utime(host.execution("damaged") / "result.json", (0, 0))
    told = collect(host)
    assert told["collected"] == ["sound"]
    assert "damaged" in told["failed"]["damaged"]
    assert b"could not collect damaged" in host.run("gc").stdout
    assert (host.execution("damaged") / "stdout").exists()


FULL_DISK = """
set -e
mount -t tmpfs -o size=8m,mode=0700 none "$CRONIUM_STATE_DIR"
export CRONIUM_CONTAINMENT=subreaper
"$@" run --execution-id old "$SCRIPT" >/dev/null
"$@" gc >/dev/null
cat /dev/zero > "$CRONIUM_STATE_DIR/filler" 2>/dev/null || true
if echo x > "$CRONIUM_STATE_DIR/more" 2>/dev/null; then echo not full; exit 9; fi
"$@" gc --older-than 0 --json
ls "$CRONIUM_STATE_DIR/executions/old"
"""


def test_a_full_disk_is_no_obstacle_to_making_room(host: Host) -> None:
    """A tombstone needs a block before its execution gives back any."""
    host.state.mkdir(mode=0o700)
    script = host.script("head -c 200000 /dev/zero\n")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", FULL_DISK, "sh", *map(str, host.executable)],
        env={**host.environment, "SCRIPT": str(script)},
        capture_output=True,
        check=False,
    )
    if b"unshare" in done.stderr or b"mount:" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 0, (done.stdout, done.stderr)
    report, *left = done.stdout.splitlines()
    told = json.loads(report)
    assert (told["collected"], told["failed"], left) == (["old"], {}, [b"state.jsonl"])
    assert told["freedBytes"] > 150_000


def test_two_collections_at_once_do_it_once(host: Host) -> None:
    for number in range(6):
        host.run("run", "--execution-id", f"job{number}", host.script("echo x\n"))
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: collect(host, "--older-than", "0"), range(4)))
    assert sorted(name for one in told for name in one["collected"]) == [f"job{number}" for number in range(6)]


def test_it_happens_by_itself_after_a_job_when_an_hour_has_gone_by(host: Host) -> None:
    ended(host, "old")
    age(host, "old", 8)
    os.utime(host.state / "collected", (0, 0))
    ended(host, "next", "true\n")
    wait_until(lambda: os.listdir(host.execution("old")) == ["state.jsonl"], "the collection")
    wait_until(lambda: not host.processes(), "its end")
    assert (host.state / "collected").stat().st_mtime > time.time() - 60


def test_settings_come_from_options_environment_and_file_in_this_order(host: Host) -> None:
    ended(host, "job")
    age(host, "job", 3)
    settings = host.state / "settings.yaml"
    settings.write_text("retention_days: 2\nbudget: 5GiB\n")
    told = collect(host, "--dry-run")
    assert (told["collected"], told["budgetBytes"]) == (["job"], 5 << 30)
    done = host.run("gc", "--json", "--dry-run", env={"CRONIUM_RETENTION_DAYS": "4", "CRONIUM_STATE_BUDGET": "1MiB"})
    told = json.loads(done.stdout)
    assert (told["collected"], told["budgetBytes"]) == ([], 1 << 20)
    assert collect(host, "--dry-run", "--older-than", "4", "--budget", "2GiB")["budgetBytes"] == 2 << 30


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("retention_days: soon\n", "settings.yaml:1: retention_days"),
        ("budget: 5 GB\n", "settings.yaml:1: budget"),
        ("retention_days: 2\nbudjet: 1GiB\n", "settings.yaml:2: budjet is not known"),
        ("- 7\n", "settings.yaml:1: a mapping"),
    ],
)
def test_bad_settings_name_file_line_and_key(host: Host, text: str, said: str) -> None:
    ended(host, "job")
    (host.state / "settings.yaml").write_text(text)
    done = host.run("gc")
    assert done.returncode == 125
    assert said in done.stderr.decode()
    assert host.recorded("job") is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_read_only_state_directory_is_told(host: Host) -> None:
    ended(host, "job")
    host.state.chmod(0o500)
    (host.state / "collected").chmod(0o400)
    try:
        done = host.run("gc")
    finally:
        host.state.chmod(0o700)
    assert done.returncode == 125
    assert b"[state.unusable]" in done.stderr


def test_followers_read_on_while_the_record_is_collected(host: Host, tmp_path: Path) -> None:
    """A reader has the spool open; what it was promised it gets."""
    with host.agent() as agent:
        channel = agent.start(host.payload("head -c 9000000 /dev/zero\n"), "large")
        agent.grants = False
        wait_until(lambda: host.recorded("large"), "the result")
        follower = agent.new_channel()
        agent.send(6, follower, {"executionId": "large", "offsets": [0, 0]})
        agent.expect(follower, *_kinds("ACCEPTED"))
        collect(host, "--unacknowledged-older-than", "0")
        agent.send_raw(_credit(channel, 9_000_000) + _credit(follower, 9_000_000))
        agent.finished(channel)
        agent.finished(follower)
        assert len(agent.stdout(channel)) == len(agent.stdout(follower)) == 9_000_000


def _kinds(*names: str) -> list[Any]:
    from cronium_runner.wire.frames import Kind

    return [Kind[name] for name in names]


def _credit(channel: int, count: int) -> bytes:
    from cronium_runner.wire import frames
    from cronium_runner.wire.names import STDOUT

    return frames.encode_credit(channel, STDOUT, count)
