"""Executions in API mode, on a platform that knows docs/api.md only: what scripts see, and what arrives there."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cronium_runner.wire.frames import Kind
from runner_process import AgentProcess, Host, is_running, wait_until
from stub_platform import FOREIGN, TOKEN, Seen, StubPlatform, Upset

PATIENCE = "10"
"""Seconds that a read waits for its platform here, and that undelivered writes are waited for."""


@pytest.fixture
def stub() -> Iterator[StubPlatform]:
    with StubPlatform() as made:
        yield made


@pytest.fixture
def agent(host: Host) -> Iterator[AgentProcess]:
    with host.agent() as made:
        yield made


def run(agent: AgentProcess, stub: StubPlatform, script: str, name: str = "e", **keys: Any) -> dict[str, Any]:
    """The result of a script in API mode."""
    manifest = keys.pop("manifest", "")
    channel = agent.start(agent.host.payload(script, manifest), name, api=stub.api(), **keys)
    result = agent.finished(channel)
    return {**result, "out": agent.stdout(channel).decode(), "err": agent.stderr(channel).decode()}


def ended(agent: AgentProcess, channel: int) -> dict[str, Any]:
    """The result of an ended script, without the time that is otherwise given to a platform that is away."""
    script = next(line["script"]["pid"] for line in agent.host.history("e") if "script" in line)
    wait_until(lambda: not is_running(script), "the script's end")
    agent.send(Kind.CANCEL, channel)
    return agent.finished(channel)


def attach(agent: AgentProcess, execution_id: str, **keys: Any) -> int:
    channel = agent.new_channel()
    agent.send(Kind.ATTACH, channel, {"executionId": execution_id, "offsets": [0, 0], **keys})
    agent.expect(channel, Kind.ACCEPTED)
    return channel


def is_write(seen: Seen) -> bool:
    return seen.method != "GET"


def upset_once(*upsets: Upset, what: str = "/variables/A") -> Any:
    left = list(upsets)
    return lambda seen: left.pop(0) if left and is_write(seen) and seen.path.endswith(what) else None


@pytest.mark.parametrize("where", ["port", "socket"])
def test_values_come_from_the_platform_and_go_there_in_order(host: Host, tmp_path: Path, where: str) -> None:
    path = None if where == "port" else str(tmp_path / "platform")
    with StubPlatform(path) as stub, host.agent() as agent:
        stub.variables = {"LIVE": {"n": 1}, "a/../b": "odd", "..": "dots"}
        stub.input = {"k": [7]}
        stub.context = {"eventId": "e7", "eventName": None, "userId": "u1", "executionId": "e"}
        result = run(
            agent,
            stub,
            """
cronium.getVariable LIVE; cronium.getVariable 'a/../b'; cronium.getVariable ..; cronium.getVariable GIVEN
cronium.input k.0; cronium.event id; cronium.event name; cronium.event user
cronium.setVariable A 1; cronium.setVariable A 2; cronium.output x 1; cronium.output --json y '[2]'
cronium.setCondition yes; cronium.setVariable 'p/q' z; cronium.getVariable A; echo $CRONIUM_HELPER_MODE
""",
            variables={"GIVEN": "handed over", "LIVE": "old"},
            event={"name": "told by us"},
        )
        assert result["err"] == ""
        assert result["out"].split("\n") == [
            '{"n":1}', "odd", "dots", "handed over", "7", "e7", "told by us", "u1", "2", "api", "",
        ]  # fmt: skip
        assert [(one.method, one.path, one.body) for one in stub.writes()] == [
            ("PUT", "/executions/e/variables/A", {"value": "1"}),
            ("PUT", "/executions/e/variables/A", {"value": "2"}),
            ("POST", "/executions/e/output", {"data": {"x": "1"}}),
            ("POST", "/executions/e/output", {"data": {"x": "1", "y": [2]}}),
            ("POST", "/executions/e/condition", {"condition": True}),
            ("PUT", "/executions/e/variables/p%2Fq", {"value": "z"}),
        ]
        assert [one.headers["idempotency-key"] for one in stub.writes()] == [f"e/{number}" for number in range(1, 7)]
        assert (result["mode"], result["undelivered"], result["refused"]) == ("api", 0, 0)
        assert result["output"] == {"x": "1", "y": [2]}
        assert result["variables"] == {"A": "2", "p/q": "z"}
        assert result["condition"] is True


def test_a_change_on_the_platform_is_seen_by_the_next_read(agent: AgentProcess, stub: StubPlatform) -> None:
    stub.variables["V"] = "before"
    script = "cronium.getVariable V; until [ -e go ]; do sleep 0.01; done; cronium.getVariable V\n"
    channel = agent.start(agent.host.payload(script), "e", api=stub.api())
    agent.host.wait_running("e", b"before")
    stub.variables["V"] = "after"
    (agent.host.execution("e") / "work/go").touch()
    assert agent.finished(channel)["state"] == "succeeded"
    assert agent.stdout(channel) == b"before\nafter\n"


def test_the_script_sees_the_token_only_when_its_manifest_asks_and_nobody_sees_it_printed(
    agent: AgentProcess, stub: StubPlatform
) -> None:
    script = 'echo "[$CRONIUM_API_ENDPOINT] [$CRONIUM_API_TOKEN]"; cronium.setVariable A 1\n'
    hidden = run(agent, stub, script, "hidden")
    assert hidden["out"] == "[] []\n"
    shown = run(agent, stub, script, "shown", manifest="expose_api: true\n", maskedNames=[])
    assert shown["out"] == f"[{stub.endpoint}] [***]\n"
    length = run(agent, stub, "echo ${#CRONIUM_API_TOKEN}", "length", manifest="expose_api: true\n")
    assert length["out"] == f"{len(TOKEN)}\n"
    for folder, _, names in os.walk(agent.host.folder):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):  # the last supervisor tidies up after its result
                assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN.encode() not in agent.host.command_lines()


def test_a_script_may_see_another_endpoint_than_its_runner_uses(agent: AgentProcess, stub: StubPlatform) -> None:
    script = 'echo "$CRONIUM_API_ENDPOINT"; cronium.getVariable V\n'
    stub.variables["V"] = "read"
    port = "http://127.0.0.1:9"
    shown = run(agent, stub, script, "shown", manifest="expose_api: true\n", scriptEndpoint=port)
    assert shown["out"] == f"{port}\nread\n"
    assert run(agent, stub, script, "hidden", scriptEndpoint=port)["out"] == "\nread\n"
    wrong = agent.submit(agent.host.payload("true\n"), "e", api=stub.api(), scriptEndpoint="http://203.0.113.1")
    assert agent.expect(wrong, Kind.REFUSED).json()["code"] == "api.config"


def test_a_read_sees_what_was_written_before_the_platform_does(agent: AgentProcess, stub: StubPlatform) -> None:
    stub.variables["A"] = "theirs"
    stub.upset = lambda seen: Upset(503) if is_write(seen) else None
    script = "cronium.setVariable A ours && cronium.getVariable A; until [ -e go ]; do sleep 0.01; done; echo over\n"
    channel = agent.start(agent.host.payload(script), "e", api=stub.api())
    agent.host.wait_running("e", b"ours\n")
    assert stub.variables["A"] == "theirs"
    assert agent.status("e")["undelivered"] == 1
    assert agent.status("e")["mode"] == "api"
    stub.upset = lambda _: None
    (agent.host.execution("e") / "work/go").touch()
    assert agent.finished(channel)["undelivered"] == 0
    assert stub.variables["A"] == "ours"


def test_a_write_whose_answer_was_lost_comes_again_with_the_same_number(
    agent: AgentProcess, stub: StubPlatform
) -> None:
    stub.upset = upset_once(Upset(cut=True), Upset(500))
    result = run(agent, stub, "cronium.setVariable A 1; cronium.setVariable B 2\n")
    assert [(one.path[-1], one.headers["idempotency-key"]) for one in stub.writes()] == [
        ("A", "e/1"), ("A", "e/1"), ("B", "e/2"),
    ]  # fmt: skip
    assert result["undelivered"] == 0


def test_a_write_that_is_refused_is_counted_and_told_and_holds_up_nothing(
    agent: AgentProcess, stub: StubPlatform
) -> None:
    stub.upset = upset_once(Upset(413))
    result = run(agent, stub, "cronium.setVariable A 1; cronium.setVariable B 2; echo $?\n")
    assert (result["state"], result["out"]) == ("succeeded", "0\n")
    assert (result["undelivered"], result["refused"]) == (0, 1)
    assert result["refusal"] == "variable 'A': 413 not now"
    assert stub.variables == {"B": "2"}


def test_a_name_that_no_request_can_carry_is_refused(agent: AgentProcess, stub: StubPlatform) -> None:
    script = """
import cronium
name = "x" * 100_000
cronium.setVariable(name, 1)
cronium.setVariable("B", 2)
try: cronium.getVariable("y" * 100_000)
except cronium.CroniumError as error: print(error.code, str(error)[-40:])
"""
    payload = agent.host.payload(script, interpreter="python")
    channel = agent.start(payload, "e", api=stub.api())
    result = agent.finished(channel)
    assert agent.stdout(channel).startswith(b"api.refused ")
    assert (result["undelivered"], result["refused"]) == (0, 1)
    assert "it cannot be sent" in result["refusal"]
    assert stub.variables == {"B": 2}


def test_a_platform_that_asks_for_time_is_given_it(agent: AgentProcess, stub: StubPlatform) -> None:
    asked: list[float] = []

    def limited(seen: Seen) -> Upset | None:
        if is_write(seen):
            asked.append(time.monotonic())
        return Upset(429, (("Retry-After", "1"),)) if len(asked) == 1 else None

    stub.upset = limited
    assert run(agent, stub, "cronium.setVariable A 1\n")["undelivered"] == 0
    assert asked[1] - asked[0] >= 0.95


def test_while_the_platform_is_away_reads_wait_and_nothing_else_does(host: Host, stub: StubPlatform) -> None:
    host.environment["CRONIUM_API_PATIENCE"] = PATIENCE
    with host.agent() as agent:
        _reads_wait(agent, stub)


def _reads_wait(agent: AgentProcess, stub: StubPlatform) -> None:
    stub.down()
    script = """
for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do cronium.getVariable "V$n" & done 2>all.txt
cronium.setVariable A 1 && cronium.output k v && echo written; cronium.getVariable A
wc -c <all.txt; wait
sort all.txt | uniq -c | wc -l; head -1 all.txt | cut -d'(' -f1 | sed 's/V[0-9]*/V/'; echo $SECONDS
"""
    channel = agent.start(agent.host.payload(script), "e", api=stub.api())
    agent.host.wait_running("e", b"written\n1\n")
    told = ended(agent, channel)
    lines = agent.stdout(channel).decode().split("\n")
    assert lines[:3] == ["written", "1", "0"], "neither the writes nor the read of what was written waited"
    assert lines[3:5] == ["20", f"Error: the platform did not tell variable 'V' within {PATIENCE} s "]
    assert int(lines[5]) < 2 * int(PATIENCE) + 30, "all of them together, not one after the other"
    assert (told["state"], told["undelivered"]) == ("succeeded", 2)
    assert told["output"] == {"k": "v"}


def test_a_deadline_is_met_while_reads_wait(host: Host, stub: StubPlatform) -> None:
    stub.down()
    host.environment["CRONIUM_API_PATIENCE"] = "60"
    with host.agent() as agent:
        told = run(agent, stub, "cronium.input\n", timeout=0.5)
    assert told["state"] == "timed_out"
    assert told["durationMs"] < 50_000


def test_a_read_that_waits_is_answered_when_the_platform_comes_back(agent: AgentProcess, stub: StubPlatform) -> None:
    stub.down()
    channel = agent.start(agent.host.payload("echo asking; cronium.getVariable V\n"), "e", api=stub.api())
    agent.host.wait_running("e", b"asking\n")
    stub.variables["V"] = "there"
    stub.up()
    assert agent.finished(channel)["exitCode"] == 0
    assert agent.stdout(channel) == b"asking\nthere\n"


def test_what_was_not_delivered_is_counted_and_delivered_by_the_next_contact(
    agent: AgentProcess, stub: StubPlatform
) -> None:
    page = FOREIGN["a page"][0]
    stub.upset = lambda seen: (page if len(stub.asked) % 2 else Upset(503)) if is_write(seen) else None
    script = "for n in 1 2 3; do cronium.setVariable A $n; done; cronium.output --json k '[1]'; cronium.output l 2\n"
    channel = agent.start(agent.host.payload(script), "e", api=stub.api())
    wait_until(lambda: len(journal(agent.host)) == 5, "the writes")
    result = ended(agent, channel)
    assert (result["state"], result["undelivered"]) == ("succeeded", 5)
    assert (result["variables"], result["output"]) == ({"A": "3"}, {"k": [1], "l": "2"})

    assert agent.finished(attach(agent, "e"))["undelivered"] == 5
    with StubPlatform() as other:
        assert agent.finished(attach(agent, "e", api=other.api()))["undelivered"] == 0
        assert [one.body for one in other.writes()] == [
            {"value": "1"}, {"value": "2"}, {"value": "3"}, {"data": {"k": [1]}}, {"data": {"k": [1], "l": "2"}},
        ]  # fmt: skip
        assert agent.finished(attach(agent, "e", api=other.api()))["undelivered"] == 0
        assert len(other.writes()) == 5
    recorded = agent.host.recorded("e")
    assert recorded is not None
    assert recorded["undelivered"] == agent.status("e")["undelivered"] == 0
    assert {**recorded, "undelivered": 5} == result


def journal(host: Host, execution_id: str = "e") -> list[Any]:
    """The writes in an execution's journal."""
    try:
        lines = (host.execution(execution_id) / "api.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [line for line in map(json.loads, lines) if "write" in line]


def test_writes_of_a_killed_supervisor_are_delivered_by_the_next_contact(host: Host, stub: StubPlatform) -> None:
    stub.upset = lambda seen: Upset(503) if is_write(seen) and seen.path.endswith("B") else None
    script = "cronium.setVariable A 1; cronium.setVariable B 2; cronium.setVariable C 3; echo ready; sleep 60\n"
    with host.agent() as agent:
        channel = agent.start(host.payload(script), "e", api=stub.api())
        claim = host.wait_running("e", b"ready\n")
        wait_until(lambda: agent.status("e")["undelivered"] == 2, "the first write to be settled")
        os.kill(claim["supervisor"]["pid"], signal.SIGKILL)
        result = agent.finished(channel)
        assert (result["state"], result["mode"], result["undelivered"]) == ("lost", "api", 2)
    stub.upset = lambda _: None
    with host.agent() as agent:
        assert agent.finished(attach(agent, "e", api=stub.api()))["undelivered"] == 0
    assert [one.headers["idempotency-key"] for one in stub.writes()] == ["e/1", "e/2", "e/3"]


@pytest.mark.parametrize("how", ["attach", "submit"])
def test_a_running_execution_goes_on_with_another_endpoint(agent: AgentProcess, stub: StubPlatform, how: str) -> None:
    stub.down()
    script = "cronium.setVariable A 1; echo waiting; cronium.getVariable V\n"
    payload = agent.host.payload(script)
    first = agent.start(payload, "e", api=stub.api())
    agent.host.wait_running("e", b"waiting\n")
    with StubPlatform() as other:
        other.variables["V"] = "new"
        if how == "attach":
            second = attach(agent, "e", api=other.api())
        else:
            second = agent.submit(payload, "e", api=other.api())
            assert agent.expect(second, Kind.ACCEPTED).json()["started"] is False
        assert agent.finished(second)["undelivered"] == 0
        assert agent.finished(first)["state"] == "succeeded"
        assert agent.stdout(first) == b"waiting\nnew\n"
        assert other.variables == {"V": "new", "A": "1"}


def test_when_the_last_to_attach_leaves_the_one_before_is_still_a_way(agent: AgentProcess, stub: StubPlatform) -> None:
    stub.variables["V"] = "first"
    script = "echo up; until [ $(cronium.getVariable V) = second ]; do :; done; echo there\n"
    script += "until [ -e go ]; do sleep 0.01; done; cronium.getVariable V; cronium.setVariable A 1\n"
    channel = agent.start(agent.host.payload(script), "e", api=stub.api())
    agent.host.wait_running("e", b"up\n")
    with StubPlatform() as other:
        other.variables["V"] = "second"
        attach(agent, "e", api=other.api())
        agent.host.wait_running("e", b"there\n")
    (agent.host.execution("e") / "work" / "go").touch()
    assert agent.finished(channel)["undelivered"] == 0
    assert agent.stdout(channel) == b"up\nthere\nfirst\n"
    assert stub.variables == {"V": "first", "A": "1"}


def test_an_access_for_a_bundled_execution_is_ignored(agent: AgentProcess, stub: StubPlatform) -> None:
    payload = agent.host.payload("echo on; until [ -e go ]; do sleep 0.01; done; cronium.setVariable A 1\n")
    first = agent.start(payload, "e")
    agent.host.wait_running("e", b"on\n")
    second = attach(agent, "e", api=stub.api())
    (agent.host.execution("e") / "work/go").touch()
    assert agent.finished(second)["state"] == "succeeded"
    assert agent.finished(first)["mode"] == "bundled"
    assert stub.seen == []


def test_a_tool_acts_once_whatever_becomes_of_its_answer(agent: AgentProcess, stub: StubPlatform) -> None:
    stub.upset = upset_once(Upset(cut=True), what="/execute")
    script = """
cronium.executeToolAction mail send '{"to": "x"}' 2>&1; echo $?
cronium_execute_tool_action mail 'say hi'; echo '{"n": 1.50}' | cronium.executeToolAction mail count -
cronium.executeToolAction mail send '[1]' 2>&1
"""
    result = run(agent, stub, script)
    lines = result["out"].split("\n")
    assert lines[0].startswith("Error: the platform gave no answer, so whether 'mail' has acted is not known: ")
    assert lines[1:] == [
        "1", '{"did":"say hi"}', '{"did":"count"}', "Error: the parameters of a tool's action are a JSON object", "",
    ]  # fmt: skip
    assert stub.tools == [
        {"tool": "mail", "action": "send", "params": {"to": "x"}},
        {"tool": "mail", "action": "say hi", "params": {}},
        {"tool": "mail", "action": "count", "params": {"n": 1.5}},
    ]
    assert not any("idempotency-key" in one.headers for one in stub.seen)
    assert journal(agent.host) == []


def test_ten_thousand_writes_at_once_wait_in_order_and_in_little_memory(host: Host, stub: StubPlatform) -> None:
    stub.down()
    script = """
import cronium, time, os
for n in range(10_000): cronium.setVariable("V%d" % (n % 7), [n, "x" * 1000])
print("written", flush=True)
while not os.path.exists("go"): time.sleep(0.02)
"""
    with host.agent() as agent:
        channel = agent.start(host.payload(script, interpreter="python"), "e", api=stub.api())
        supervisor = host.wait_running("e", b"written\n")["supervisor"]["pid"]
        status = Path(f"/proc/{supervisor}/status").read_text()
        [peak] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
        assert peak < 96 << 10, f"{peak} KiB, of which 10 MiB are what was written"
        assert agent.status("e")["undelivered"] == 10_000
        stub.up()
        wait_until(lambda: len(stub.writes()) >= 300, "the first to arrive")
        (host.execution("e") / "work/go").touch()
        result = ended(agent, channel)
    arrived = [one.body["value"][0] for one in stub.writes()]
    assert arrived == list(range(len(arrived)))
    assert result["undelivered"] in (10_000 - len(arrived), 10_001 - len(arrived))  # an answer may have been lost
    assert result["variables"]["V6"][0] == 9_995


def test_a_patience_that_is_none_is_refused(host: Host, stub: StubPlatform) -> None:
    environment: dict[str, str | None] = {**stub.environment("e"), "CRONIUM_API_PATIENCE": "soon"}
    refused = host.run_json(host.script("true\n"), env=environment)
    assert (refused["state"], refused["mode"], refused["error"]["code"]) == ("rejected", "api", "api.config")
    assert "CRONIUM_API_PATIENCE: 'soon'" in refused["error"]["message"]


def test_a_tool_needs_api_mode(agent: AgentProcess) -> None:
    channel = agent.start(agent.host.payload("cronium.executeToolAction mail send\n"), "e")
    assert agent.finished(channel)["exitCode"] == 1
    assert agent.stderr(channel) == (
        b"Error: tool actions need the platform: run the job in API mode (`cronium run --mode api`)\n"
    )


def test_a_slow_tool_delays_nobody(agent: AgentProcess, stub: StubPlatform) -> None:
    stub.tools_answer.clear()
    stub.variables["V"] = "read"
    script = """
for n in 1 2 3 4 5; do cronium.executeToolAction mail send >/dev/null && echo sent & done
cronium.getVariable V; cronium.setVariable A 1 && echo written; wait
"""
    channel = agent.start(agent.host.payload(script), "e", api=stub.api())
    agent.host.wait_running("e", b"read\nwritten\n")
    stub.tools_answer.set()
    assert agent.finished(channel)["exitCode"] == 0
    assert agent.stdout(channel) == b"read\nwritten\n" + b"sent\n" * 5


def test_a_read_that_the_platform_refuses_fails_at_once(agent: AgentProcess, stub: StubPlatform) -> None:
    stub.upset = lambda _: Upset(401)
    result = run(agent, stub, "cronium.input\n")
    assert result["exitCode"] == 1
    assert result["err"] == "Error: the platform refused the input: 401 not now; the token is not valid (any more)\n"


def test_secrets_stay_with_the_runner(agent: AgentProcess, stub: StubPlatform) -> None:
    script = "cronium.setVariable S another-secret; [ $(cronium.getVariable S) = another-secret ] && echo same\n"
    result = run(agent, stub, script, secrets={"S": "first-secret"})
    assert (result["out"], result["variables"]) == ("same\n", {"S": "***"})
    assert stub.seen == []
    assert journal(agent.host) == []


def test_a_value_with_a_masked_name_is_masked_when_it_comes_from_the_platform(
    agent: AgentProcess, stub: StubPlatform
) -> None:
    stub.variables["DB_PASSWORD"] = "correct horse"
    assert run(agent, stub, "cronium.getVariable DB_PASSWORD\n")["out"] == "***\n"


@pytest.mark.parametrize(
    "api",
    [
        {}, "unix:///x", {"endpoint": "unix:///x"}, {"endpoint": "unix://x", "token": TOKEN},
        {"endpoint": "http://203.0.113.1", "token": TOKEN}, {"endpoint": "ftp://h", "token": TOKEN},
        {"endpoint": "unix:///" + "x" * 107, "token": TOKEN}, {"endpoint": "https://h", "token": f"{TOKEN}\r\nX: y"},
        {"endpoint": "https://u:p@h", "token": TOKEN}, {"endpoint": "https://h", "token": TOKEN, "more": 1},
        {"endpoint": "https://h", "token": "x" * 20000},
    ],
)  # fmt: skip
def test_an_access_that_cannot_be_used_is_refused(agent: AgentProcess, api: Any) -> None:
    channel = agent.submit(agent.host.payload("true\n"), "e", api=api)
    told = agent.expect(channel, Kind.REFUSED).json()
    assert told["code"] in ("api.config", "usage.invalid")
    assert TOKEN not in told["message"]
    assert agent.host.executions() == []


def test_the_access_is_no_part_of_what_identifies_a_submission(agent: AgentProcess, stub: StubPlatform) -> None:
    payload = agent.host.payload("true\n")
    agent.finished(agent.start(payload, "e", api=stub.api()))
    again: list[dict[str, Any]] = [{}, {"api": {**stub.api(), "token": "another"}}]
    for keys in again:
        channel = agent.submit(payload, "e", **keys)
        assert agent.expect(channel, Kind.ACCEPTED).json()["started"] is False
        assert agent.finished(channel)["mode"] == "api"


def test_a_run_in_the_foreground(host: Host, stub: StubPlatform) -> None:
    stub.variables["V"] = "live"
    script = host.script("cronium.getVariable V; cronium.setVariable W 1; env | grep -c CRONIUM_API\n")
    environment: dict[str, str | None] = {**stub.environment("e")}
    result = host.run_json(script, env=environment)
    assert (result["stdout"]["text"], result["mode"], result["undelivered"]) == ("live\n0\n", "api", 0)
    assert stub.variables["W"] == "1"
    for missing in ("CRONIUM_API_TOKEN", "CRONIUM_API_ENDPOINT", "CRONIUM_EXECUTION_ID"):
        refused = host.run_json(script, env={**environment, missing: None})
        assert (refused["error"]["code"], refused["exit status"]) == ("api.config", 125)
        assert TOKEN not in json.dumps(refused)
    inside = host.run_json(script, env={**environment, "CRONIUM_WORK_DIR": "/somewhere"})
    assert inside["mode"] == "bundled"


def test_only_api_mode_loads_what_it_needs(agent: AgentProcess, stub: StubPlatform) -> None:
    payload = agent.host.payload("cronium.input; echo on; until [ -e go ]; do sleep 0.01; done\n")
    for name, keys in {"bundled": {}, "api": {"api": stub.api()}, "bundled-again": {}}.items():
        channel = agent.start(payload, name, **keys)
        supervisor = agent.host.wait_running(name, b"on\n")["supervisor"]["pid"]
        threads = len(os.listdir(f"/proc/{supervisor}/task"))
        has_tls = "_ssl." in Path(f"/proc/{supervisor}/maps").read_text()
        (agent.host.execution(name) / "work/go").touch()
        assert agent.finished(channel)["exitCode"] == 0
        # What the agent has loaded by then is shared by fork; nobody loads it twice.
        assert (has_tls, threads > 1) == (name != "bundled", name == "api")


def test_nothing_is_made_for_a_script_that_writes_nothing(agent: AgentProcess, stub: StubPlatform) -> None:
    assert run(agent, stub, "cronium.input\n")["err"] == ""
    wait_until(lambda: not (agent.host.execution("e") / "work").exists(), "its work directory to be removed")
    assert sorted(os.listdir(agent.host.execution("e"))) == ["result.json", "state.jsonl", "stdout"]
