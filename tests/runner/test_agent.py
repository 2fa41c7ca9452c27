"""A real agent over pipes, spoken to in frames: what it accepts, streams, refuses, and what outlives it."""

import contextlib
import hashlib
import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cronium_runner.wire import frames
from cronium_runner.wire.frames import Kind
from cronium_runner.wire.names import STDERR, STDOUT
from runner_process import FAREWELL, PATIENCE, AgentProcess, Host, Payload, is_running, wait_until

WAITING = "echo ready\nuntil [ -e go ]; do sleep 0.01; done\necho done\necho err >&2\nexit 3\n"


@pytest.fixture(scope="module")
def shared_agent(shared_host: Host) -> Iterator[AgentProcess]:
    """One agent for all tests that neither end it nor break its channel."""
    with shared_host.agent() as agent:
        yield agent
        assert agent.close() == 0


@pytest.fixture
def agent(host: Host) -> Iterator[AgentProcess]:
    """An agent of this test's own, to be mistreated."""
    with host.agent() as made:
        yield made


def go(host: Host, execution_id: str) -> None:
    """Lets a WAITING script end."""
    (host.execution(execution_id) / "work/go").touch()


# Submitting


def test_the_greeting_says_what_the_agent_is(shared_agent: AgentProcess) -> None:
    assert shared_agent.hello["protocol"] == [1, 1]
    assert shared_agent.hello["maxFrame"] == 16 * 1024 * 1024
    assert shared_agent.hello["credit"] == frames.CREDIT
    assert set(shared_agent.hello) == {"protocol", "runner", "maxFrame", "credit", "hostname", "sockets", "knows"}


def test_a_payload_is_asked_for_once_and_then_found_by_its_digest(
    shared_agent: AgentProcess, shared_host: Host
) -> None:
    payload = shared_host.payload("echo out; echo err >&2; exit 7\n")
    first = shared_agent.submit(payload, "first")
    assert shared_agent.expect(first, Kind.WANT_PAYLOAD).json() == {"sha256": payload.sha256}
    shared_agent.send_payload(first, payload.content)
    assert shared_agent.expect(first, Kind.ACCEPTED).json() == {"executionId": "first", "started": True}
    result = shared_agent.finished(first)
    assert (result["state"], result["exitCode"]) == ("failed", 7)
    assert (shared_agent.stdout(first), shared_agent.stderr(first)) == (b"out\n", b"err\n")
    assert result == shared_host.recorded("first")

    warm = shared_agent.submit(payload, "warm")
    assert shared_agent.expect(warm, Kind.ACCEPTED).json() == {"executionId": "warm", "started": True}
    assert shared_agent.finished(warm)["exitCode"] == 7


def test_everything_that_was_submitted_reaches_the_script(shared_agent: AgentProcess, shared_host: Host) -> None:
    script = (
        "cronium.input a.0\ncronium.getVariable V\ncronium.getVariable S\ncronium.event name\necho $CRONIUM_JOB_ID\n"
    )
    script += 'echo "$@"\ncronium.output k v\ncronium.setVariable N 1\ncronium.setCondition yes\n'
    channel = shared_agent.start(
        shared_host.payload(script), "told", input={"a": [12345678901234567890]}, variables={"V": "v"},
        secrets={"S": "hush"}, event={"name": "Backup"}, args=["--x", "a b"], timeout=30, jobId="j1",
        onDisconnect="cancel", offsets=[0, 0], follow=True,
    )  # fmt: skip
    result = shared_agent.finished(channel)
    assert shared_agent.stdout(channel) == b"12345678901234567890\nv\nhush\nBackup\nj1\n--x a b\n"
    assert (result["output"], result["variables"], result["condition"]) == ({"k": "v"}, {"N": "1"}, True)
    assert result["jobId"] == "j1"


def test_secrets_are_in_no_file_and_no_argument_vector(shared_agent: AgentProcess, shared_host: Host) -> None:
    channel = shared_agent.start(
        shared_host.payload("v=$(cronium.getVariable S); cronium.setVariable S changed\n" + WAITING), "hushed",
        secrets={"S": "unrepeatable-secret"},
    )  # fmt: skip
    shared_host.wait_running("hushed", b"ready")
    assert files_with(shared_host.state, b"unrepeatable-secret") == []
    commands = shared_host.command_lines()
    assert b"unrepeatable-secret" not in commands
    go(shared_host, "hushed")
    assert shared_agent.finished(channel)["variables"] == {"S": "***"}
    assert files_with(shared_host.state, b"unrepeatable-secret") == []


def files_with(folder: Path, word: bytes) -> list[str]:
    """The files below a folder that hold a word."""
    paths = (os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # a work directory on its way out
            if os.path.isfile(path) and word in Path(path).read_bytes():
                found.append(path)
    return found


def test_wrong_payload_bytes_are_refused_and_not_kept(shared_agent: AgentProcess, shared_host: Host) -> None:
    payload = shared_host.payload("echo never\n")
    channel = shared_agent.submit(payload, "wrong")
    shared_agent.expect(channel, Kind.WANT_PAYLOAD)
    shared_agent.send_payload(channel, payload.content + b"x")
    refused = shared_agent.expect(channel, Kind.REFUSED).json()
    assert refused["code"] == "payload.digest_mismatch"
    assert not shared_host.execution("wrong").exists()
    assert [name for name in os.listdir(shared_host.state / "payloads") if name.startswith(payload.sha256)] == []
    assert [name for name in os.listdir(shared_host.state / "payloads") if name.startswith(".")] == []
    assert shared_agent.finished(shared_agent.start(payload, "wrong"))["exitCode"] == 0


def test_a_cached_payload_that_rotted_is_fetched_again(shared_agent: AgentProcess, shared_host: Host) -> None:
    payload = shared_host.payload("echo rotten\n")
    shared_agent.finished(shared_agent.start(payload, "fresh"))
    cached = shared_host.state / "payloads" / f"{payload.sha256}.tar.gz"
    cached.write_bytes(payload.content[:-1] + b"\xff")
    result = shared_agent.finished(shared_agent.submit(payload, "rotten"))
    assert (result["state"], result["error"]["code"]) == ("rejected", "payload.digest_mismatch")
    assert shared_agent.finished(shared_agent.start(payload, "rotten"))["exitCode"] == 0


def test_a_payload_that_cannot_start_is_rejected_and_its_id_stays_free(
    shared_agent: AgentProcess, shared_host: Host
) -> None:
    channel = shared_agent.submit(shared_host.payload("x", interpreter='["/no/such/program"]'), "nothing")
    shared_agent.expect(channel, Kind.WANT_PAYLOAD)
    shared_agent.send_payload(channel, shared_host.payload("x", interpreter='["/no/such/program"]').content)
    result = shared_agent.finished(channel)
    assert (result["state"], result["error"]["code"]) == ("rejected", "interpreter.not_found")
    assert not shared_host.execution("nothing").exists()
    assert shared_agent.finished(shared_agent.start(shared_host.payload("true\n"), "nothing"))["state"] == "succeeded"


def test_garbage_as_a_payload_is_rejected(shared_agent: AgentProcess, shared_host: Host) -> None:
    garbage = Payload(b"\x1f\x8b" + bytes(100))
    channel = shared_agent.submit(garbage, "garbage")
    shared_agent.expect(channel, Kind.WANT_PAYLOAD)
    shared_agent.send_payload(channel, garbage.content)
    result = shared_agent.finished(channel)
    assert result["state"] == "rejected"
    assert result["error"]["code"].startswith("payload.")
    assert not shared_host.execution("garbage").exists()


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"memory": 5}, "usage.invalid"),
        ({"executionId": "../x"}, "execution.id_invalid"),
        ({"executionId": ""}, "execution.id_invalid"),
        ({"executionId": "a" * 65}, "execution.id_invalid"),
        ({"sha256": "0"}, "payload.digest_malformed"),
        ({"sha256": "../../../etc/passwd"}, "payload.digest_malformed"),
        ({"sha256": None}, "usage.invalid"),
        ({"variables": []}, "usage.invalid"),
        ({"args": ["a\0b"]}, "usage.invalid"),
        ({"args": [1]}, "usage.invalid"),
        ({"timeout": 0}, "usage.invalid"),
        ({"timeout": -1}, "usage.invalid"),
        ({"timeout": 86401}, "usage.invalid"),
        ({"timeout": "5"}, "usage.invalid"),
        ({"onDisconnect": "explode"}, "usage.invalid"),
        ({"offsets": [1]}, "usage.invalid"),
        ({"offsets": [-1, 0]}, "usage.invalid"),
        ({"follow": "yes"}, "usage.invalid"),
        # Found by fuzzing: each was a defect of ours (runner.internal), or a message of more than one line.
        ({"offsets": [2**63, 0]}, "usage.invalid"),
        ({"timeout": 10**400}, "usage.invalid"),
        ({"timeout": True}, "usage.invalid"),
        ({"un\nknown": 1}, "usage.invalid"),
    ],
    ids=lambda part: str(part)[:40],
)
def test_a_submission_that_is_not_understood_is_refused_and_the_agent_goes_on(
    shared_agent: AgentProcess, shared_host: Host, keys: dict[str, Any], code: str
) -> None:
    channel = shared_agent.new_channel()
    shared_agent.send(Kind.SUBMIT, channel, {"executionId": "odd", "sha256": "0" * 64, **keys})
    refused = shared_agent.expect(channel, Kind.REFUSED).json()
    assert refused["code"] == code
    assert refused["message"].isprintable()
    assert not shared_host.execution("odd").exists()
    shared_agent.send(Kind.PING, 0, b"still here")
    assert shared_agent.expect(0, Kind.PONG).body == b"still here"


def test_a_refusal_of_what_is_as_large_as_a_frame_fits_into_one(agent: AgentProcess) -> None:
    """Found by fuzzing: the sentence quoted what was refused, was too long to be sent, and the agent died of it."""
    body = json.dumps({"executionId": "odd", "sha256": "\ue000" * 5_000_000}, ensure_ascii=False).encode()
    agent.send(Kind.SUBMIT, 5, body)
    assert agent.expect(5, Kind.REFUSED).json()["code"] == "payload.digest_malformed"
    agent.send(Kind.STATUS, 6, b'{"executionId": "%s"}' % (b"x" * (frames.MAX_BODY - 100)))
    assert agent.expect(6, Kind.REFUSED).json()["code"] == "execution.id_invalid"
    assert agent.close() == 0


def test_nothing_is_sent_behind_the_error_that_ends_the_channel(agent: AgentProcess) -> None:
    """Found by fuzzing: what conversations had to say was still sent after it."""
    join = {"executionId": "no-such", "offsets": [0, 0]}
    agent.send_raw(
        frames.encode_json(Kind.ATTACH, 7, join) + frames.encode_json(Kind.SUBMIT, 7, {}) + frames.encode(99, 0)
    )
    kinds = []
    while (frame := agent.receive()) is not None:
        kinds.append(frame.kind)
    assert kinds == [Kind.ERROR]
    assert agent.close() == 0


def test_the_same_submission_again_returns_the_recorded_result(shared_agent: AgentProcess, shared_host: Host) -> None:
    payload = shared_host.payload(f"echo x >>{shared_host.folder}/count; echo hello\n")
    first = shared_agent.finished(shared_agent.start(payload, "once", input=1))
    again = shared_agent.submit(payload, "once", input=1)
    told = shared_agent.expect(again, Kind.ACCEPTED).json()
    assert 0 < told.pop("remaining") <= 3600, "the time that a script has without a timeout of its own"
    assert told == {"executionId": "once", "started": False}
    assert shared_agent.finished(again) == first
    assert shared_agent.stdout(again) == b"hello\n"
    assert (shared_host.folder / "count").read_text() == "x\n"


def test_the_same_id_with_other_input_or_payload_is_a_conflict(shared_agent: AgentProcess, shared_host: Host) -> None:
    payload = shared_host.payload("true\n")
    shared_agent.finished(shared_agent.start(payload, "mine", input=1))
    for other, keys in ((payload, {"input": 2}), (payload, {}), (shared_host.payload("false\n"), {"input": 1})):
        channel = shared_agent.submit(other, "mine", **keys)
        assert shared_agent.expect(channel, Kind.REFUSED).json()["code"] == "execution.id_conflict"


def test_fifty_submissions_at_once_all_finish(shared_agent: AgentProcess, shared_host: Host) -> None:
    payload = shared_host.payload("echo $1; exit $1\n")
    shared_agent.finished(shared_agent.start(payload, "many", args=["0"]))
    channels = [shared_agent.submit(payload, f"many-{number}", args=[str(number)]) for number in range(50)]
    for number, channel in enumerate(channels):
        shared_agent.expect(channel, Kind.ACCEPTED)
        result = shared_agent.finished(channel)
        assert (result["executionId"], result["exitCode"]) == (f"many-{number}", number)
        assert shared_agent.stdout(channel) == b"%d\n" % number


def test_of_two_agents_with_the_same_id_one_starts_it_and_both_get_its_end(host: Host) -> None:
    payload = host.payload(f"echo x >>{host.folder}/count; {WAITING}")

    def submit(agent: AgentProcess) -> tuple[bool, int]:
        channel = agent.submit(payload, "job")
        frame = agent.expect(channel, Kind.ACCEPTED, Kind.WANT_PAYLOAD)
        if frame.kind == Kind.WANT_PAYLOAD:
            agent.send_payload(channel, payload.content)
            frame = agent.expect(channel, Kind.ACCEPTED)
        return bool(frame.json()["started"]), channel

    with host.agent() as one, host.agent() as two, ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(submit, (one, two)))
        assert sorted(started for started, _ in answers) == [False, True]
        host.wait_running("job", b"ready")
        go(host, "job")
        for agent, (_, channel) in zip((one, two), answers, strict=True):
            assert agent.finished(channel)["exitCode"] == 3
            assert agent.stdout(channel) == b"ready\ndone\n"
    assert (host.folder / "count").read_text() == "x\n"


def test_fifty_concurrent_submissions_of_one_id_start_it_once(shared_agent: AgentProcess, shared_host: Host) -> None:
    payload = shared_host.payload(f"echo x >>{shared_host.folder}/count50; echo out\n")
    shared_agent.finished(shared_agent.start(payload, "warm50"))
    channels = [shared_agent.submit(payload, "fifty") for _ in range(50)]
    started = [shared_agent.expect(channel, Kind.ACCEPTED).json()["started"] for channel in channels]
    results = [shared_agent.finished(channel) for channel in channels]
    assert sorted(started) == [False] * 49 + [True]
    assert all(result == results[0] for result in results)
    assert all(shared_agent.stdout(channel) == b"out\n" for channel in channels)
    assert (shared_host.folder / "count50").read_text() == "x\nx\n"


# Streams


def test_no_more_than_the_granted_bytes_are_ever_sent(agent: AgentProcess, host: Host) -> None:
    size = 3 * frames.CREDIT
    agent.grants = False
    channel = agent.start(host.payload(f"head -c {size} /dev/zero; head -c {size} /dev/zero >&2\n"), "job")
    host.wait_result("job")
    sent = {STDOUT: frames.CREDIT, STDERR: frames.CREDIT}
    while len(agent.stdout(channel)) + len(agent.stderr(channel)) < sum(sent.values()):
        agent.expect(channel, Kind.DATA)
    assert agent.has_no_frame(0.3)
    agent.send_raw(frames.encode_credit(channel, STDOUT, 1000))
    agent.expect(channel, Kind.DATA)
    assert agent.has_no_frame(0.1)
    assert len(agent.stdout(channel)) == frames.CREDIT + 1000
    assert len(agent.stderr(channel)) == frames.CREDIT
    for stream in (STDOUT, STDERR):
        agent.send_raw(frames.encode_credit(channel, stream, size))
    agent.finished(channel)
    assert len(agent.stdout(channel)) == len(agent.stderr(channel)) == size


def test_an_exhausted_credit_on_one_channel_does_not_hold_up_another(agent: AgentProcess, host: Host) -> None:
    agent.grants = False
    full = agent.start(host.payload(f"head -c {2 * frames.CREDIT} /dev/zero\n"), "full")
    host.wait_result("full")
    other = agent.start(host.payload("echo quick\n"), "quick")
    agent.finished(other)
    assert agent.stdout(other) == b"quick\n"
    agent.send_raw(frames.encode_credit(full, STDOUT, 2**32 - 1))
    agent.finished(full)
    assert len(agent.stdout(full)) == 2 * frames.CREDIT


def test_a_controller_that_stops_reading_holds_up_no_script(agent: AgentProcess, host: Host) -> None:
    size = 20_000_000
    channel = agent.start(host.payload(f"head -c {size} /dev/zero\n"), "job")
    assert host.wait_result("job")["stdout"]["bytes"] == size
    agent.finished(channel)
    assert agent.stdout(channel) == bytes(size)
    assert peak_mib(agent.process.pid) < 64


def peak_mib(pid: int) -> float:
    """A process's peak resident size."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def test_binary_streams_arrive_byte_for_byte(shared_agent: AgentProcess, shared_host: Host) -> None:
    script = "import os\nfor n in range(40):\n os.write(1, os.urandom(50_000))\n os.write(2, bytes([n]) * 30_000)\n"
    channel = shared_agent.start(shared_host.payload(script, interpreter="python"), "binary")
    result = shared_agent.finished(channel)
    assert hashlib.sha256(shared_agent.stdout(channel)).hexdigest() == result["stdout"]["sha256"]
    assert shared_agent.stderr(channel) == b"".join(bytes([n]) * 30_000 for n in range(40))


@pytest.mark.parametrize("offsets", [[0, 0], [1, 0], [255, 256], [256, 999], [10_000, 10_000]])
def test_attaching_from_offsets_gives_exactly_the_rest(
    shared_agent: AgentProcess, shared_host: Host, offsets: list[int]
) -> None:
    script = "import os\nos.write(1, bytes(range(256)))\nos.write(2, bytes(range(256)) * 4)\n"
    name = f"rest-{offsets[0]}"
    shared_agent.finished(shared_agent.start(shared_host.payload(script, interpreter="python"), name))
    channel = shared_agent.new_channel()
    shared_agent.send(Kind.ATTACH, channel, {"executionId": name, "offsets": offsets, "follow": True})
    told = shared_agent.expect(channel, Kind.ACCEPTED).json()
    assert (told["executionId"], told["started"]) == (name, False)
    shared_agent.finished(channel)
    assert shared_agent.stdout(channel) == bytes(range(256))[offsets[0] :]
    assert shared_agent.stderr(channel) == (bytes(range(256)) * 4)[offsets[1] :]


def test_output_comes_while_the_script_runs(shared_agent: AgentProcess, shared_host: Host) -> None:
    channel = shared_agent.start(shared_host.payload(WAITING), "live")
    shared_agent.expect(channel, Kind.DATA)
    assert shared_agent.stdout(channel) == b"ready\n"
    assert shared_host.recorded("live") is None
    go(shared_host, "live")
    assert shared_agent.finished(channel)["exitCode"] == 3


def test_a_submission_that_does_not_follow_gets_the_end_without_data(
    shared_agent: AgentProcess, shared_host: Host
) -> None:
    channel = shared_agent.start(shared_host.payload("echo out\n"), "unfollowed", follow=False)
    assert shared_agent.finished(channel)["stdout"]["bytes"] == 4
    assert shared_agent.stdout(channel) == b""


def test_a_look_at_a_running_execution_ends_with_its_state(shared_agent: AgentProcess, shared_host: Host) -> None:
    channel = shared_agent.start(shared_host.payload(WAITING), "looked")
    shared_host.wait_running("looked", b"ready")
    look = shared_agent.new_channel()
    shared_agent.send(Kind.ATTACH, look, {"executionId": "looked", "offsets": [2, 0], "follow": False})
    shared_agent.expect(look, Kind.ACCEPTED)
    [state] = shared_agent.expect(look, Kind.STATUS).json()["executions"]
    assert state["state"] == "running"
    assert shared_agent.stdout(look) == b"ady\n"
    go(shared_host, "looked")
    shared_agent.finished(channel)


def test_an_output_that_no_frame_could_carry_is_refused_to_the_script(
    shared_agent: AgentProcess, shared_host: Host
) -> None:
    script = "head -c 7000000 /dev/zero | tr '\\0' a | cronium.output - || echo $?\n"
    channel = shared_agent.start(shared_host.payload(script), "huge")
    result = shared_agent.finished(channel)
    assert (result["state"], result["output"]) == ("succeeded", None)
    assert shared_agent.stdout(channel) == b"1\n"
    assert b"larger than 6 MiB" in shared_agent.stderr(channel)


# Cancel, detach, status


def test_cancel_ends_the_execution(shared_agent: AgentProcess, shared_host: Host) -> None:
    channel = shared_agent.start(shared_host.payload("echo ready; sleep 60\n"), "cancelled")
    shared_agent.expect(channel, Kind.DATA)
    shared_agent.send(Kind.CANCEL, channel, {})
    result = shared_agent.finished(channel)
    assert (result["state"], result["signal"]) == ("cancelled", signal.SIGTERM)


def test_cancel_works_from_an_attached_channel_too(shared_agent: AgentProcess, shared_host: Host) -> None:
    channel = shared_agent.start(shared_host.payload("echo ready; sleep 60\n"), "cancelled-2")
    attached = shared_agent.new_channel()
    shared_agent.send(Kind.ATTACH, attached, {"executionId": "cancelled-2"})
    shared_agent.expect(attached, Kind.ACCEPTED)
    shared_agent.send(Kind.CANCEL, attached, {})
    assert shared_agent.finished(attached)["state"] == "cancelled"
    assert shared_agent.finished(channel)["state"] == "cancelled"


def test_a_cancel_right_behind_the_submission_is_not_lost(shared_agent: AgentProcess, shared_host: Host) -> None:
    payload = shared_host.payload("sleep 60\n")
    shared_agent.send(Kind.CANCEL, shared_agent.start(payload, "warm-cancel"), {})
    channel = shared_agent.submit(payload, "hasty")
    shared_agent.send(Kind.CANCEL, channel, {})
    shared_agent.expect(channel, Kind.ACCEPTED)
    assert shared_agent.finished(channel)["state"] == "cancelled"


def test_a_cancel_before_the_payload_is_here_starts_nothing(agent: AgentProcess, host: Host) -> None:
    payload = host.payload("true\n")
    channel = agent.submit(payload, "unborn", jobId="j")
    agent.expect(channel, Kind.WANT_PAYLOAD)
    agent.send(Kind.PAYLOAD, channel, payload.content[:10])
    agent.send(Kind.CANCEL, channel, {})
    agent.send_payload(channel, payload.content[10:])
    result = agent.finished(channel)
    assert (result["state"], result["error"]["code"], result["jobId"]) == ("cancelled", "execution.cancelled", "j")
    agent.send(Kind.PING, 0, b"")
    agent.expect(0, Kind.PONG)
    assert os.listdir(host.state / "payloads") == []
    assert host.executions() == []


def test_a_cancel_is_not_lost_when_the_id_exists_and_whoever_asked_leaves_at_once(
    shared_agent: AgentProcess, shared_host: Host
) -> None:
    payload = shared_host.payload("echo ready; sleep 60\n")
    first = shared_agent.start(payload, "submitted-twice")
    again = shared_agent.new_channel()
    submit = frames.encode_json(Kind.SUBMIT, again, {"executionId": "submitted-twice", "sha256": payload.sha256})
    asked = [submit, frames.encode(Kind.CANCEL, again, b"{}"), frames.encode(Kind.DETACH, again, b"{}")]
    shared_agent.send_raw(b"".join(asked))
    assert shared_agent.finished(first)["state"] == "cancelled"
    shared_agent.send(Kind.PING, 0, b"")
    shared_agent.expect(0, Kind.PONG)
    shared_agent.submit(payload, "submitted-twice", again)  # the number is free, and nothing was said on it
    assert shared_agent.expect(again, Kind.ACCEPTED).json()["started"] is False
    assert shared_agent.finished(again)["state"] == "cancelled"


def test_a_cancel_right_behind_an_attach_is_not_lost(shared_agent: AgentProcess, shared_host: Host) -> None:
    channel = shared_agent.start(shared_host.payload("echo ready; sleep 60\n"), "caught")
    attached = shared_agent.new_channel()
    attach = frames.encode_json(Kind.ATTACH, attached, {"executionId": "caught"})
    shared_agent.send_raw(attach + frames.encode(Kind.CANCEL, attached, b"{}"))
    shared_agent.expect(attached, Kind.ACCEPTED)
    assert shared_agent.finished(attached)["state"] == "cancelled"
    assert shared_agent.finished(channel)["state"] == "cancelled"


def test_detaching_stops_the_stream_and_not_the_execution(shared_agent: AgentProcess, shared_host: Host) -> None:
    channel = shared_agent.start(shared_host.payload(WAITING), "detached")
    shared_agent.expect(channel, Kind.DATA)
    shared_agent.send(Kind.DETACH, channel, {})
    shared_agent.send(Kind.PING, 0, b"")
    shared_agent.expect(0, Kind.PONG)
    go(shared_host, "detached")
    assert shared_host.wait_result("detached")["exitCode"] == 3
    assert shared_agent.stdout(channel) == b"ready\n"
    assert shared_agent.status("detached")["state"] == "finished"
    reused = shared_agent.submit(shared_host.payload(WAITING), "detached", channel=channel)
    assert shared_agent.expect(reused, Kind.ACCEPTED).json()["started"] is False
    shared_agent.streams.pop((channel, STDOUT))
    shared_agent.starts.pop((channel, STDOUT))
    assert shared_agent.finished(reused)["exitCode"] == 3


def test_a_detached_execution_that_prints_much_ends_completely(agent: AgentProcess, host: Host) -> None:
    script = "import os, time\nfor _ in range(3000):\n os.write(1, b'x' * 100)\n time.sleep(0)\n"
    channel = agent.start(host.payload(script, interpreter="python"), "job")
    agent.send(Kind.DETACH, channel, {})
    host.wait_result("job")
    supervisor = host.history("job")[0]["supervisor"]["pid"]
    wait_until(lambda: not is_running(supervisor), "the supervisor to end")
    assert agent.close() == 0


def test_status_of_one_and_of_all(agent: AgentProcess, host: Host) -> None:
    payload = host.payload("exit 4\n")
    for name in ("one", "two"):
        agent.finished(agent.start(payload, name))
    assert agent.status("one")["result"]["exitCode"] == 4
    agent.send(Kind.STATUS, 900, {})
    assert [one["executionId"] for one in agent.expect(900, Kind.STATUS).json()["executions"]] == ["one", "two"]
    agent.send(Kind.STATUS, 901, {"executionId": "three"})
    assert agent.expect(901, Kind.REFUSED).json()["code"] == "execution.not_found"
    agent.send(Kind.ATTACH, 902, {"executionId": "three"})
    assert agent.expect(902, Kind.REFUSED).json()["code"] == "execution.not_found"
    agent.send(Kind.ATTACH, 903, {})
    assert agent.expect(903, Kind.REFUSED).json()["code"] == "execution.id_invalid"


def test_an_acknowledgement_is_written_down_once(agent: AgentProcess, host: Host) -> None:
    agent.finished(agent.start(host.payload("true\n"), "job"))
    assert agent.status("job")["acknowledged"] is False
    for channel in (800, 801):
        agent.send(Kind.ACKNOWLEDGE, channel, {"executionId": "job"})
        agent.expect(channel, Kind.STATUS)
    assert agent.status("job")["acknowledged"] is True
    assert sum("acknowledged" in line for line in host.history("job")) == 1


def test_what_has_not_finished_cannot_be_acknowledged(shared_agent: AgentProcess, shared_host: Host) -> None:
    channel = shared_agent.start(shared_host.payload(WAITING), "early")
    shared_host.wait_running("early", b"ready")
    other = shared_agent.new_channel()
    shared_agent.send(Kind.ACKNOWLEDGE, other, {"executionId": "early"})
    shared_agent.expect(other, Kind.REFUSED)
    go(shared_host, "early")
    shared_agent.finished(channel)


def test_a_ping_comes_back_as_it_was(shared_agent: AgentProcess) -> None:
    for body in (b"", b"0123456789abcdef", bytes(16)):
        shared_agent.send(Kind.PING, 0, body)
        assert shared_agent.expect(0, Kind.PONG).body == body


# What is not in the protocol


@pytest.mark.parametrize(
    "content",
    [
        (frames.MAX_BODY + 1).to_bytes(4) + b"\x02\0\0\0\x01",
        b"\xff" * 9,
        frames.encode(Kind.SUBMIT, 1, b"{not json"),
        frames.encode(Kind.SUBMIT, 1, b"[]"),
        frames.encode(Kind.SUBMIT, 1, b""),
        frames.encode(Kind.ATTACH, 1, b"\xff\xfe"),
        frames.encode(99, 0, b"{}"),
        frames.encode(Kind.SUBMIT, 0, b"{}"),
    ],
    ids=["over the limit", "all ones", "not JSON", "a list", "empty", "not UTF-8", "unknown on 0", "submit on 0"],
)
def test_what_is_not_in_the_protocol_ends_the_channel_and_no_execution(
    agent: AgentProcess, host: Host, content: bytes
) -> None:
    channel = agent.start(host.payload(WAITING), "job")
    agent.expect(channel, Kind.DATA)
    agent.send_raw(content)
    assert agent.expect(0, Kind.ERROR).json()["code"] == "channel.protocol"
    assert agent.receive() is None
    assert agent.process.poll() is None
    go(host, "job")
    assert agent.process.wait(PATIENCE) == 0
    recorded = host.recorded("job")
    assert recorded is not None
    assert recorded["exitCode"] == 3


def test_bottomless_json_is_refused(agent: AgentProcess) -> None:
    deep = b'{"executionId":"deep","sha256":"' + b"0" * 64 + b'","input":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    agent.send_raw(frames.encode(Kind.SUBMIT, 1, deep))
    frame = agent.receive()
    assert frame is not None
    assert frame.kind in (Kind.REFUSED, Kind.ERROR)


def test_a_channel_number_in_use_is_not_taken_twice(agent: AgentProcess, host: Host) -> None:
    payload = host.payload(WAITING)
    channel = agent.start(payload, "job")
    agent.expect(channel, Kind.DATA)  # granted again while the agent still listens
    agent.submit(payload, "other", channel=channel)
    assert agent.expect(0, Kind.ERROR).json()["code"] == "channel.protocol"
    go(host, "job")
    assert agent.process.wait(PATIENCE) == 0
    assert not host.execution("other").exists()


@pytest.mark.parametrize("kind", [Kind.ATTACH, Kind.ACKNOWLEDGE, Kind.STATUS], ids=lambda kind: kind.name)
def test_a_request_on_a_channel_number_in_use_leaves_its_execution_alone(
    shared_agent: AgentProcess, shared_host: Host, kind: Kind
) -> None:
    name = f"in-use-{kind.name}"
    channel = shared_agent.start(shared_host.payload(WAITING), name, onDisconnect="cancel")
    shared_agent.expect(channel, Kind.DATA)
    for wanted in (name, "nobody"):
        shared_agent.send(kind, channel, {"executionId": wanted})
        assert shared_agent.expect(channel, Kind.REFUSED).json()["code"] == "channel.protocol"
    go(shared_host, name)
    assert shared_agent.finished(channel)["exitCode"] == 3
    assert shared_agent.stdout(channel) == b"ready\ndone\n"


def test_what_goes_wrong_in_one_conversation_is_refused_there_and_costs_no_other(
    shared_agent: AgentProcess, shared_host: Host
) -> None:
    waiting = shared_agent.start(shared_host.payload(WAITING), "sound")
    broken = shared_agent.start(shared_host.payload("sleep 60\n"), "broken")
    (shared_host.execution("broken") / "stdout").mkdir()  # a spool that opens and cannot be read
    shared_agent.send_raw(frames.encode_credit(broken, STDOUT, 1))
    assert shared_agent.expect(broken, Kind.REFUSED).json()["code"] == "state.damaged"
    shared_host.run("cancel", "broken")  # a further conversation might be refused before it has taken a CANCEL
    shared_host.wait_result("broken")
    go(shared_host, "sound")
    assert shared_agent.finished(waiting)["exitCode"] == 3


def test_nothing_starts_behind_the_end_of_the_connection(agent: AgentProcess, host: Host) -> None:
    payload = host.payload("true\n")
    agent.finished(agent.start(payload, "warm"))
    late = frames.encode_json(Kind.SUBMIT, 9, {"executionId": "late", "sha256": payload.sha256})
    agent.send_raw(frames.encode_json(Kind.ERROR, 0, {"code": "channel.version", "message": "bye"}) + late)
    assert agent.process.wait(PATIENCE) == 0
    assert host.executions() == ["warm"]


def test_frames_for_a_channel_that_has_ended_are_ignored(shared_agent: AgentProcess, shared_host: Host) -> None:
    channel = shared_agent.start(shared_host.payload("true\n"), "ended")
    shared_agent.finished(channel)
    shared_agent.send(Kind.CANCEL, channel, {})
    shared_agent.send(Kind.DETACH, channel, {})
    shared_agent.send_raw(frames.encode_credit(channel, STDOUT, 5))
    shared_agent.send(Kind.PING, 0, b"ok")
    assert shared_agent.expect(0, Kind.PONG).body == b"ok"


def test_nothing_that_is_printed_gets_between_the_frames(host: Host) -> None:
    """Standard output holds the magic line and frames from its first byte to its last."""
    process = host.start("agent", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stdout, _ = process.communicate(frames.encode(Kind.PING, 0, b"x"), timeout=30)
    assert stdout.startswith(frames.MAGIC)
    reader = frames.FrameReader()
    assert [frame.kind for frame in reader.feed(stdout[len(frames.MAGIC) :])] == [Kind.HELLO, Kind.PONG]
    assert process.returncode == 0


# Losing the channel, and losing the agent


def test_an_agent_whose_channel_is_gone_stays_until_its_executions_have_ended(agent: AgentProcess, host: Host) -> None:
    payload = host.payload(WAITING)
    agent.expect(agent.start(payload, "job"), Kind.DATA)
    agent.close_input()
    assert agent.receive() is None
    assert agent.process.poll() is None
    go(host, "job")
    assert agent.process.wait(PATIENCE) == 0
    recorded = host.recorded("job")
    assert recorded is not None
    assert (recorded["state"], recorded["exitCode"]) == ("failed", 3)


@pytest.mark.parametrize("is_detached", [False, True], ids=["followed", "detached"])
def test_a_lost_channel_cancels_what_was_submitted_so(agent: AgentProcess, host: Host, is_detached: bool) -> None:
    channel = agent.start(host.payload("echo ready; sleep 60\n"), "job", onDisconnect="cancel")
    agent.expect(channel, Kind.DATA)
    kept = agent.start(host.payload(WAITING), "kept")
    agent.expect(kept, Kind.DATA)
    if is_detached:
        agent.send(Kind.DETACH, channel, {})
    agent.close_input()
    assert host.wait_result("job")["state"] == "cancelled"
    assert host.recorded("kept") is None
    go(host, "kept")
    assert agent.process.wait(PATIENCE) == 0


def test_a_submission_that_waits_for_its_payload_leaves_nothing_when_the_channel_goes(
    agent: AgentProcess, host: Host
) -> None:
    payload = host.payload("true\n")
    channel = agent.submit(payload, "job")
    agent.expect(channel, Kind.WANT_PAYLOAD)
    agent.send(Kind.PAYLOAD, channel, payload.content[:10])
    assert agent.close() == 0
    assert os.listdir(host.state / "payloads") == []
    assert host.executions() == []


def test_a_killed_agent_loses_nothing_and_the_next_one_attaches(host: Host) -> None:
    with host.agent() as first:
        first.expect(first.start(host.payload(WAITING), "job"), Kind.DATA)
        first.process.kill()
        first.process.wait()
    with host.agent() as second:
        assert second.status("job")["state"] == "running"
        second.send(Kind.ATTACH, 5, {"executionId": "job", "offsets": [2, 0]})
        second.expect(5, Kind.ACCEPTED)
        second.expect(5, Kind.DATA)
        go(host, "job")
        result = second.finished(5)
        assert result["exitCode"] == 3
        assert second.stdout(5) == b"ady\ndone\n"
        assert second.stderr(5) == b"err\n"


def test_a_killed_supervisor_is_reported_as_lost(shared_agent: AgentProcess, shared_host: Host) -> None:
    channel = shared_agent.start(shared_host.payload("echo $$; sleep 60\n"), "murdered")
    shared_agent.expect(channel, Kind.DATA)
    os.kill(shared_host.history("murdered")[0]["supervisor"]["pid"], signal.SIGKILL)
    result = shared_agent.finished(channel)
    assert (result["state"], result["error"]["code"]) == ("lost", "execution.lost")
    script = int(shared_agent.stdout(channel))
    wait_until(lambda: not is_running(script), "the script's end", FAREWELL)


def test_a_killed_supervisor_whose_execution_nobody_follows_is_lost_all_the_same(
    shared_agent: AgentProcess, shared_host: Host
) -> None:
    channel = shared_agent.start(shared_host.payload("echo $$; sleep 60\n"), "murdered-2")
    shared_agent.expect(channel, Kind.DATA)
    shared_agent.send(Kind.DETACH, channel, {})
    os.kill(shared_host.history("murdered-2")[0]["supervisor"]["pid"], signal.SIGKILL)
    assert shared_host.wait_result("murdered-2")["state"] == "lost"


def test_an_agent_that_cannot_use_its_state_directory_says_so(host: Host) -> None:
    host.state.write_text("")
    done = host.run("agent", input=b"")
    assert done.returncode == 125
    assert done.stdout == b""
    assert b"[state.unusable]" in done.stderr
    host.state.unlink()


def test_an_agent_that_cannot_use_its_install_directory_says_so(host: Host) -> None:
    done = host.run("agent", input=b"", env={"CRONIUM_INSTALL_DIR": f"{host.script('')}/below"})
    assert done.returncode == 125
    assert done.stdout == b""
    assert b"[install.unusable]" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_descriptor_of_the_agent_reaches_a_script(shared_agent: AgentProcess, shared_host: Host) -> None:
    channels = [shared_agent.start(shared_host.payload(WAITING), f"open-{number}") for number in range(3)]
    script = "import os, json\nprint(json.dumps(sorted(os.listdir('/proc/self/fd'))))\n"
    channel = shared_agent.start(shared_host.payload(script, interpreter="python"), "descriptors")
    shared_agent.finished(channel)
    assert json.loads(shared_agent.stdout(channel)) == ["0", "1", "2", "3"]  # 3 lists the folder
    for number, waiting in enumerate(channels):
        go(shared_host, f"open-{number}")
        shared_agent.finished(waiting)


def test_the_agent_keeps_no_descriptor_of_what_has_ended(shared_agent: AgentProcess, shared_host: Host) -> None:
    payload = shared_host.payload("echo x; echo y >&2\n")
    shared_agent.finished(shared_agent.start(payload, "leak"))

    def open_now() -> int:
        return len(os.listdir(f"/proc/{shared_agent.process.pid}/fd"))

    before = wait_until(open_now, "a number")
    for number in range(30):
        channel = shared_agent.start(payload, f"leak-{number}")
        if number % 3 == 0:
            shared_agent.send(Kind.DETACH, channel, {})
            shared_host.wait_result(f"leak-{number}")
        else:
            shared_agent.finished(channel)
    wait_until(lambda: open_now() <= before, f"the agent to have {before} descriptors again")


def test_detaching_from_an_execution_that_another_submission_started_keeps_no_descriptor(
    agent: AgentProcess, host: Host
) -> None:
    payload = host.payload(WAITING)
    warm = agent.start(payload, "warm")
    go(host, "warm")
    agent.finished(warm)
    folder = f"/proc/{agent.process.pid}/fd"
    before = len(os.listdir(folder))
    submission = {"executionId": "job", "sha256": payload.sha256}
    agent.send_raw(b"".join(frames.encode_json(Kind.SUBMIT, channel, submission) for channel in (50, 51)))
    started = {bool(agent.expect(channel, Kind.ACCEPTED).json()["started"]): channel for channel in (50, 51)}
    agent.send(Kind.DETACH, started[False], {})
    go(host, "job")
    assert agent.finished(started[True])["exitCode"] == 3
    wait_until(lambda: len(os.listdir(folder)) <= before, f"the agent to have {before} descriptors again")


def test_attach_without_a_free_descriptor_is_accepted_later(agent: AgentProcess, host: Host) -> None:
    agent.finished(agent.start(host.payload("echo on\n"), "job"))
    pid = agent.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = next(number for number in range(len(taken) + 1) if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, limits[1]))
    channel = agent.new_channel()
    agent.send(Kind.ATTACH, channel, {"executionId": "job", "offsets": [0, 0]})
    for _ in range(2):  # the agent has tried once when it has answered
        agent.send(Kind.PING, 0, b"still here")
        agent.expect(0, Kind.PONG)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert agent.expect(channel).kind == Kind.ACCEPTED
    assert agent.finished(channel)["state"] == "succeeded"
    assert agent.stdout(channel) == b"on\n"


def test_attach_needs_only_the_result_when_the_history_is_damaged(agent: AgentProcess, host: Host) -> None:
    agent.finished(agent.start(host.payload("echo on\n"), "job"))
    history = host.execution("job") / "state.jsonl"
    whole = history.read_bytes()
    history.unlink()
    history.mkdir()
    channel = agent.new_channel()
    agent.send(Kind.ATTACH, channel, {"executionId": "job", "offsets": [0, 0]})
    assert agent.expect(channel).kind == Kind.ACCEPTED
    assert agent.finished(channel)["state"] == "succeeded"
    assert agent.stdout(channel) == b"on\n"
    history.rmdir()
    history.write_bytes(whole)
