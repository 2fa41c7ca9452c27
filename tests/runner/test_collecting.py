"""The agent's side of retention: GC frames, all executions page by page, and payloads that go while they are wanted."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cronium_runner.jobdir import StateDirectory
from cronium_runner.listing import PAGE
from cronium_runner.wire import frames
from cronium_runner.wire.collection import REPORT, is_report
from cronium_runner.wire.frames import BEHIND_ALL, Kind
from runner_process import PATIENCE, AgentProcess, Host, is_running, processes_with, wait_until

DAY = 86_400.0


def acknowledge(agent: AgentProcess, execution_id: str) -> None:
    channel = agent.new_channel()
    agent.send(Kind.ACKNOWLEDGE, channel, {"executionId": execution_id})
    agent.expect(channel, Kind.STATUS)


def ask_to_collect(agent: AgentProcess, **asked: Any) -> dict[str, Any]:
    channel = agent.new_channel()
    agent.send(Kind.GC, channel, asked)
    told = agent.expect(channel, Kind.STATUS).json()
    assert told["executions"] == []
    report: dict[str, Any] = told["collection"]
    return report


def age(host: Host, execution_id: str, days: float) -> None:
    then = time.time() - days * DAY
    for name in ("state.jsonl", "result.json"):
        os.utime(host.execution(execution_id) / name, (then, then))


def all_statuses(agent: AgentProcess, **asked: Any) -> tuple[list[str], int]:
    """The ids of all pages, and how many pages there were."""
    ids: list[str] = []
    for pages in range(1, 100):
        channel = agent.new_channel()
        agent.send(Kind.STATUS, channel, asked)
        told = agent.expect(channel, Kind.STATUS).json()
        ids += [one["executionId"] for one in told["executions"]]
        if not told.get("more"):
            return ids, pages
        asked["after"] = told["after"]
    raise AssertionError("the pages have no end")


def many_tombstones(host: Host, count: int) -> None:
    """Tombstones as `bury` leaves them, copies of one."""
    host.run("run", "--execution-id", "t0000", host.script("true\n"))
    host.run("gc", "--older-than", "0")
    line = (host.execution("t0000") / "state.jsonl").read_bytes()
    for number in range(1, count):
        name = f"t{number:04d}"
        host.execution(name).mkdir(mode=0o700)
        (host.execution(name) / "state.jsonl").write_bytes(line.replace(b"t0000", name.encode()))


def test_an_agent_that_collects_says_so_and_answers_while_it_does_other_things(host: Host) -> None:
    with host.agent() as agent:
        assert "gc" in agent.hello["knows"]
        for name in ("fetched", "unfetched"):
            agent.finished(agent.start(host.payload("echo out\n"), name))
        supervisors = [host.history(name)[0]["supervisor"]["pid"] for name in ("fetched", "unfetched")]
        wait_until(lambda: not any(map(is_running, supervisors)), "the supervisors to end")
        acknowledge(agent, "fetched")
        waiting = agent.start(host.payload("echo up; until [ -e go ]; do sleep 0.02; done\n"), "busy")
        host.wait_running("busy", b"up")
        seen = ask_to_collect(agent, olderThanDays=0, dryRun=True)
        assert (seen["collected"], seen["isDryRun"]) == (["fetched"], True)
        assert (host.execution("fetched") / "stdout").exists()
        assert set(seen) == set(REPORT)
        assert is_report(seen)
        done = ask_to_collect(agent, olderThanDays=0)
        assert (done["collected"], done["running"], done["unacknowledged"]) == (["fetched"], 1, 1)
        assert os.listdir(host.execution("fetched")) == ["state.jsonl"]
        done = ask_to_collect(agent, unacknowledgedOlderThanDays=0, budget="1GiB")
        assert (done["collected"], done["budgetBytes"]) == (["unfetched"], 1 << 30)
        (host.execution("busy") / "work/go").touch()
        assert agent.finished(waiting)["state"] == "succeeded"
        assert agent.close() == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"olderThanDays": "soon"}, "soon"),
        ({"olderThanDays": -1}, "-1"),
        ({"olderThanDays": True}, "olderThanDays"),
        ({"budget": "5 GB"}, "5 GB"),
        ({"budget": {}}, "budget"),
        ({"dryRun": 1}, "dryRun"),
        ({"days": 1}, "'days'"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_refused_by_name(host: Host, asked: dict[str, Any], said: str) -> None:
    with host.agent() as agent:
        agent.send(Kind.GC, 5, asked)
        refusal = agent.expect(5, Kind.REFUSED).json()
        assert refusal["code"] == "usage.invalid"
        assert said in refusal["message"]
        assert agent.close() == 0


def test_the_number_of_a_collection_is_in_use_until_it_is_answered(host: Host) -> None:
    with host.agent() as agent, host.state.joinpath("collected").open("ab") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)  # as another collection holds it
        agent.send(Kind.GC, 5, {})
        agent.send(Kind.ATTACH, 5, {"executionId": "any"})
        assert agent.expect(5, Kind.REFUSED).json()["code"] == "channel.protocol"
        fcntl.flock(marker, fcntl.LOCK_UN)
        assert agent.expect(5, Kind.STATUS).json()["collection"]["collected"] == []
        assert agent.close() == 0


def test_a_collection_keeps_no_agent_alive(host: Host) -> None:
    """It waits here for another one that never ends."""
    with host.agent() as agent, host.state.joinpath("collected").open("ab") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        agent.send(Kind.GC, 5, {})
        children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
        wait_until(lambda: children.read_text().split(), "the collector")
        assert agent.close() == 0
    assert host.processes() == []


def test_a_collector_that_is_killed_is_told_of(host: Host) -> None:
    with host.agent() as agent, host.state.joinpath("collected").open("ab") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        agent.send(Kind.GC, 5, {})
        children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
        [collector] = wait_until(lambda: children.read_text().split(), "the collector")
        os.kill(int(collector), signal.SIGKILL)
        assert agent.expect(5, Kind.REFUSED).json()["code"] == "runner.refused"
        assert agent.close() == 0


def test_an_agent_collects_by_itself_when_an_hour_has_gone_by(host: Host) -> None:
    host.run("run", "--execution-id", "old", host.script("echo x\n"))
    age(host, "old", 8)
    os.utime(host.state / "collected", (0, 0))
    with host.agent() as agent:
        wait_until(lambda: os.listdir(host.execution("old")) == ["state.jsonl"], "the collection")
        assert (host.state / "collected").stat().st_mtime > time.time() - 60
        assert agent.close() == 0


def test_bad_settings_are_not_tried_again_with_each_job(host: Host) -> None:
    """A collection that can't begin counts as one: the next is an hour away."""
    host.run("run", host.script("true\n"))
    (host.state / "settings.yaml").write_text("retention_days: soon\n")
    os.utime(host.state / "collected", (0, 0))
    host.run("run", host.script("true\n"))
    assert not StateDirectory(str(host.state)).is_collection_due()


def test_all_executions_come_page_by_page_and_tombstones_only_when_asked_for(host: Host) -> None:
    many_tombstones(host, PAGE + 10)
    for name in ("a-first", "z-last"):
        host.run("run", "--execution-id", name, host.script("true\n"))
    with host.agent() as agent:
        ids, pages = all_statuses(agent)
        assert (ids, pages > 1) == (["a-first", "z-last"], True)
        for is_brief in (False, True):
            ids, pages = all_statuses(agent, all=True, brief=is_brief)
            assert (len(ids), len(set(ids)), pages > 1) == (PAGE + 12, PAGE + 12, True)
        channel = agent.new_channel()
        agent.send(Kind.STATUS, channel, {"after": 7})
        assert agent.expect(channel, Kind.REFUSED).json()["code"] == "usage.invalid"
        assert agent.close() == 0


def test_very_large_results_do_not_make_a_page_too_large(host: Host) -> None:
    script = host.script("head -c 700000 /dev/zero | tr '\\0' x | cronium.output\n")
    for number in range(30):
        assert host.run("run", "--execution-id", f"job{number}", script).returncode == 0
    with host.agent() as agent:
        assert all_statuses(agent) == (sorted(f"job{number}" for number in range(30)), 1)
        assert len(agent.status("job7")["result"]["output"]) == 700_000
        assert agent.close() == 0


GOING = """
import os, sys
from cronium_runner.payload_cache import PayloadCache
is_there = PayloadCache.has
def has(cache, sha256):
    found = is_there(cache, sha256)
    if found:
        os.unlink(cache.path(sha256))
    return found
PayloadCache.has = has
from cronium_runner.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def forgetful(host: Host) -> Iterator[AgentProcess]:
    """An agent whose cached payload goes between the look into the cache and the start, as a collection can have it."""
    with host.agent() as agent:
        agent.finished(agent.start(host.payload("echo paid\n"), "first"))
        assert agent.close() == 0
    host.executable = (sys.executable, "-c", GOING)
    with host.agent() as agent:
        yield agent
        assert agent.close() == 0


def test_a_payload_that_goes_while_it_is_wanted_is_asked_for_again(host: Host, forgetful: AgentProcess) -> None:
    payload = host.payload("echo paid\n")
    channel = forgetful.submit(payload, "second")
    assert forgetful.expect(channel, Kind.WANT_PAYLOAD).json() == {"sha256": payload.sha256}
    forgetful.send_payload(channel, payload.content)
    assert forgetful.expect(channel, Kind.ACCEPTED).json() == {"executionId": "second", "started": True}
    assert forgetful.finished(channel)["state"] == "succeeded"
    assert forgetful.stdout(channel) == b"paid\n"


def test_a_cancel_that_met_a_payload_that_went_starts_nothing(host: Host, forgetful: AgentProcess) -> None:
    channel = forgetful.new_channel()
    submission = {"executionId": "second", "sha256": host.payload("echo paid\n").sha256}
    submit = frames.encode_json(Kind.SUBMIT, channel, submission)
    forgetful.send_raw(submit + frames.encode(Kind.CANCEL, channel, b"{}"))
    forgetful.expect(channel, Kind.WANT_PAYLOAD)
    assert forgetful.finished(channel)["error"]["code"] == "execution.cancelled"
    assert host.executions() == ["first"]


def test_whoever_attaches_behind_all_output_hears_of_the_end_only(host: Host) -> None:
    with host.agent() as agent:
        first = agent.start(host.payload("echo up; until [ -e go ]; do sleep 0.02; done; echo on; exit 7\n"), "job")
        host.wait_running("job", b"up")
        channel = agent.new_channel()
        agent.send(Kind.ATTACH, channel, {"executionId": "job", "offsets": list(BEHIND_ALL)})
        agent.expect(channel, Kind.ACCEPTED)
        (host.execution("job") / "work/go").touch()
        assert agent.finished(channel)["exitCode"] == agent.finished(first)["exitCode"] == 7
        assert (agent.stdout(first), agent.stdout(channel)) == (b"up\non\n", b"")
        assert agent.close() == 0


# The runner's own commands


def test_wait_ends_as_the_rule_for_several_says(host: Host) -> None:
    for name, status in (("good", 0), ("well", 0), ("bad", 3), ("worse", 9)):
        host.run("run", "--execution-id", name, host.script(f"exit {status}\n"))
    for ids, status in ((["bad"], 3), (["good", "well"], 0), (["good", "bad", "worse"], 102), (["bad", "worse"], 9)):
        done = host.run("wait", *ids)
        assert done.returncode == status, ids
        assert [line.split()[0].decode() for line in done.stdout.splitlines()] == ids
    done = host.run("wait", "good", "nobody")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"[execution.not_found]" in done.stderr


def test_wait_blocks_until_all_have_ended_and_an_interrupt_leaves_them(host: Host) -> None:
    text = "echo up; until [ -e go ]; do sleep 0.02; done\n"
    running = [host.start("run", "--execution-id", name, host.script(text), stdout=subprocess.DEVNULL) for name in "ab"]
    for name in "ab":
        host.wait_running(name, b"up")
    waiting = host.start("wait", "a", "b", stdout=subprocess.PIPE)
    (host.execution("b") / "work/go").touch()
    host.wait_result("b")
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.3)
    left = host.start("wait", "a", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: left.pid in processes_with(str(host.state)), "the other one")
    script = next(line["script"]["pid"] for line in host.history("a") if "script" in line)
    left.send_signal(signal.SIGINT)
    left.wait(PATIENCE)
    assert is_running(script)
    (host.execution("a") / "work/go").touch()
    stdout, _ = waiting.communicate(timeout=PATIENCE)
    assert (waiting.returncode, [line.split()[0] for line in stdout.splitlines()]) == (0, [b"a", b"b"])
    assert [process.wait(PATIENCE) for process in running] == [0, 0]


def test_status_of_a_tombstone_says_what_it_is(host: Host) -> None:
    host.run("run", "--execution-id", "gone", host.script("exit 4\n"))
    host.run("gc", "--older-than", "0")
    done = host.run("status", "gone")
    assert done.returncode == 0
    assert b"exit 4" in done.stdout
    assert b"[execution.collected]" in done.stderr
    assert b"choose a new id" in done.stderr
    told = json.loads(host.run("status", "gone", "--json").stdout)
    assert (told["state"], told["collected"], told["acknowledged"]) == ("finished", True, True)
    with host.agent() as agent:  # an acknowledgement that comes late changes nothing
        acknowledge(agent, "gone")
        assert agent.close() == 0
    assert len(host.history("gone")) == 1


def test_list_shows_what_runs(host: Host) -> None:
    host.run("run", "--execution-id", "ended", host.script("true\n"))
    running = host.start("run", "--execution-id", "runs", host.script("echo up; exec sleep 600\n"), stdout=-3)
    host.wait_running("runs", b"up")
    done = host.run("list", "--running")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [b"runs"]
    host.run("cancel", "runs")
    assert running.wait(PATIENCE) == 130
