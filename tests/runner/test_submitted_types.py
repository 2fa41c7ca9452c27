"""What a submission holds where text has to be: ids and names from manifests, events, command lines and frames.

Each of these ran once, and its result could not be read afterwards.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from cronium_runner.wire.exactjson import MAX_VALUE_DEPTH
from cronium_runner.wire.frames import Kind
from runner_process import AgentProcess, Host

SHOW = "cronium.event; echo $CRONIUM_JOB_ID $CRONIUM_EVENT_ID; cronium.input | cronium.output\n"


@pytest.fixture(scope="module")
def shared_agent(shared_host: Host) -> Iterator[AgentProcess]:
    with shared_host.agent() as agent:
        yield agent
        assert agent.close() == 0


def folder_of(host: Host, manifest: str, script: str = SHOW) -> Any:
    folder = host.folder / "typed"
    folder.mkdir()
    (folder / "manifest.yaml").write_text(manifest)
    (folder / "script.sh").write_text(script)
    return folder


def test_scalars_where_text_has_to_be_are_what_was_written(host: Host) -> None:
    folder = folder_of(
        host,
        "version: v1\nentrypoint: script.sh\nmetadata: {jobId: 77, eventId: 0123, eventName: 3.10, trigger: true,\n"
        "  executionId: 1e5, createdAt: ~, eventVersion: 2,\n"
        "  inputData: {a: 3.10, b: 1234e56, c: 12345678901234567890, d: -0, e: 1e999, f: +.50, g: 0123, h: 5.}}\n",
    )
    result = host.run_json(folder)
    event, ids = result["stdout"]["text"].splitlines()
    told = json.loads(event)
    assert (result["state"], result["jobId"]) == ("succeeded", "77")
    assert ids == "77 0123"
    assert [told[key] for key in ("jobId", "id", "name", "trigger", "version")] == ["77", "0123", "3.10", "true", 2]
    printed = host.run("run", folder, "--json").stdout.decode()
    written = '{"a":3.10,"b":1234e56,"c":12345678901234567890,"d":-0,"e":1e999,"f":0.50,"g":123,"h":5.0}'
    assert f'"output":{written},' in printed


def test_the_older_form_takes_text_as_well(host: Host) -> None:
    folder = folder_of(
        host, "event_id: 0123\nevent_name: no\nexecution_id: 7\ninput: {a: 3.10}\nvariables: {A: 1.50}\n"
    )
    script = "cronium.event id; cronium.event name; cronium.input; cronium.getVariable A; cronium.setVariable B 1\n"
    (folder / "script.sh").write_text(script)
    assert host.run_json(folder)["stdout"]["text"] == '0123\nno\n{"a":3.10}\n1.50\n'


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("jobId: [1]", "'metadata.jobId' must be a text, not a list"),
        ("eventName: {a: b}", "'metadata.eventName' must be a text, not a mapping"),
        ('trigger: "a\\0b"', "'metadata.trigger' must be a text without NUL"),
        (f"jobId: {'1' * 257}", "'metadata.jobId' must be a text of at most 256 characters, not 257"),
    ],
)
def test_what_is_no_text_is_refused_by_line_and_key(host: Host, line: str, told: str) -> None:
    folder = folder_of(host, f"version: v1\nentrypoint: script.sh\nmetadata:\n  {line}\n", "touch ran\n")
    for word in ("validate", "run"):
        done = host.run(word, folder)
        assert done.returncode == 125
        assert done.stderr.decode() == f"cronium-runner: manifest.yaml:4: {told} [manifest.invalid]\n"
    assert not (folder / "ran").exists()
    assert host.executions() == []


@pytest.mark.parametrize("written", ["77", "1.50", "true", '"j"', "12345678901234567890123"])
def test_an_event_on_the_command_line_is_taken_as_text(shared_host: Host, written: str) -> None:
    event = f'{{"jobId": {written}, "id": {written}, "name": {written}, "version": 2}}'
    result = shared_host.run_json(shared_host.script(SHOW), "--event", event)
    text = written.strip('"')
    assert (result["state"], result["jobId"]) == ("succeeded", text)
    assert result["stdout"]["text"].splitlines()[1] == f"{text} {text}"


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({"jobId": {}}, "the event's 'jobId' must be a text, not a mapping"),
        ({"name": ["x"]}, "the event's 'name' must be a text, not a list"),
        ({"id": "a\0"}, "the event's 'id' must be a text without NUL"),
    ],
)
def test_an_event_that_is_no_text_is_refused(shared_host: Host, event: dict[str, Any], told: str) -> None:
    result = shared_host.run_json(shared_host.script("true\n"), "--event", json.dumps(event))
    assert (result["state"], result["error"]) == ("rejected", {"code": "input.invalid", "message": told})


def test_numbers_in_a_frame_are_taken_as_text(shared_agent: AgentProcess, shared_host: Host) -> None:
    payload = shared_host.payload(SHOW)
    numbers: dict[str, Any] = {"jobId": 77, "event": {"id": 1.5, "name": True, "trigger": 7}}
    channel = shared_agent.start(payload, "numbers", **numbers)
    result = shared_agent.finished(channel)
    assert (result["state"], result["jobId"]) == ("succeeded", "77")
    told = json.loads(shared_agent.stdout(channel).splitlines()[0])
    assert (told["id"], told["name"], told["trigger"]) == ("1.5", "true", "7")
    for refused in ({"jobId": [1]}, {"event": {"name": {}}}, {"event": {"jobId": "\0"}}, {"jobId": "j" * 257}):
        channel = shared_agent.submit(payload, "never", **refused)
        told = shared_agent.expect(channel, Kind.REFUSED).json()
        assert told["code"] in ("usage.invalid", "input.invalid")
    assert not shared_host.execution("never").exists()


def test_no_depth_of_a_value_makes_a_result_unreadable(shared_host: Host) -> None:
    """A value of 499 levels was taken, and its result, in which it is two levels deeper, could not be read."""
    script = shared_host.script(
        "cronium.input | cronium.output --json k - && cronium.input | cronium.setVariable --json V\n", "deep.sh"
    )
    deepest = "[" * MAX_VALUE_DEPTH + "]" * MAX_VALUE_DEPTH
    result = shared_host.run_json(script, "--input", deepest)
    assert result["state"] == "succeeded"
    assert result["output"]["k"] == result["variables"]["V"] == json.loads(deepest)
    refused = shared_host.run_json(script, "--input", f"[{deepest}]")
    assert refused["error"]["code"] == "input.invalid"
    assert f"nested more than {MAX_VALUE_DEPTH} levels deep" in refused["error"]["message"]
    helper = shared_host.script(f"printf '%s' '[{deepest}]' | cronium.output\n", "helper.sh")
    done = shared_host.run("run", helper)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"nested more than" in done.stderr


def test_bytes_that_are_no_utf_8_are_refused_by_name(shared_host: Host) -> None:
    script = shared_host.script("true\n")
    bad = os.fsdecode(b"A=\xff")
    assert shared_host.run_json(script, "--var", bad)["error"]["code"] == "input.invalid"
    secret = shared_host.run_json(script, "--secret", "S", env={"S": os.fsdecode(b"\xffabcdef")})
    assert secret["error"]["message"] == "--secret S: the value is not UTF-8"
    missing = shared_host.run_json(os.fsdecode(b"/none/\xff"))
    assert missing["error"]["code"] == "payload.not_found"
    assert missing["error"]["message"].startswith("no such payload, directory or script: /none/")
