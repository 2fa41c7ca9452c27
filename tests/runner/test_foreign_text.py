"""Records that a script has tampered with, shown by the runner's commands: a terminal is told nothing by them."""

import json

import pytest

from cronium_runner import cli_show
from cronium_runner.errors import RunnerError
from cronium_runner.wire import exactjson, frames
from cronium_runner.wire.frames import Kind
from cronium_runner.wire.results import Result
from cronium_runner.wire.text import clean_values, is_clean_json
from runner_process import Host

EVIL = "a\x1b[2J\r\ncronium-runner: all is well\x9b1A\u202e"
SHOWN = r"a\x1b[2J\r\ncronium-runner: all is well\x9b1A\u202e"


def tampered(host: Host) -> None:
    """An execution that has ended, in whose record every text is one that moves the cursor."""
    host.run("run", "--execution-id", "job", host.script("true\n"))
    folder = host.execution("job")
    lines = [json.loads(line) for line in (folder / "state.jsonl").read_bytes().splitlines()]
    lines[0]["at"] = EVIL
    (folder / "state.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = json.loads((folder / "result.json").read_bytes())
    result |= {"error": {"code": EVIL, "message": EVIL}, "runnerVersion": EVIL, "state": "failed", "exitCode": 1}
    (folder / "result.json").write_text(json.dumps(result))


def is_harmless(printed: bytes) -> bool:
    return not any(not character.isprintable() for character in printed.decode().replace("\n", ""))


def test_a_tampered_record_is_shown_and_not_obeyed(host: Host) -> None:
    tampered(host)
    for words in (["status", "job"], ["list"], ["wait", "job"], ["attach", "job"], ["gc", "--dry-run"]):
        done = host.run(*words)
        assert is_harmless(done.stdout + done.stderr), words
        assert b"\ncronium-runner: all" not in done.stdout + done.stderr
    assert SHOWN.encode() in host.run("wait", "job").stdout


def test_json_has_the_exact_text_and_nothing_to_obey(host: Host) -> None:
    tampered(host)
    done = host.run("status", "--json", "job")
    assert is_harmless(done.stdout)
    assert json.loads(done.stdout)["result"]["error"]["message"] == EVIL


def test_an_error_is_one_line_whatever_is_put_into_it() -> None:
    assert RunnerError("run_as.refused", EVIL).message == str(RunnerError("run_as.refused", EVIL)) == SHOWN
    assert len(RunnerError("run_as.refused", "x" * 100_000).message) == 2000


def test_a_sentence_of_ours_is_one_clean_line(capsys: pytest.CaptureFixture[str]) -> None:
    cli_show.say(EVIL)
    assert capsys.readouterr().err == f"cronium-runner: {SHOWN}\n"


def test_a_result_tells_clean_and_short_text() -> None:
    for long, shown in ((EVIL, SHOWN), ("x" * 100_000, f"{'x' * 1999}…")):
        told = Result.from_json({"executionId": "e", "state": "failed", "error": {"code": "x", "message": long}})
        assert told.error_message == shown


def test_what_a_frame_tells_is_cleaned_but_for_values() -> None:
    body = {"message": EVIL, EVIL: [EVIL], "output": {"k": EVIL}, "executions": [{"variables": {"v": EVIL}, "n": 1}]}
    [frame] = frames.FrameReader().feed(frames.encode_json(Kind.STATUS, 1, body))
    assert frame.json() == body
    clean = {
        "message": SHOWN,
        SHOWN: [SHOWN],
        "output": {"k": EVIL},
        "executions": [{"variables": {"v": EVIL}, "n": 1}],
    }
    assert frame.told() == clean
    [long] = frames.FrameReader().feed(frames.encode_json(Kind.REFUSED, 1, {"message": "x" * 100_000}))
    assert len(long.told()["message"]) == 2000


def test_a_quick_look_overlooks_no_text_to_be_cleaned() -> None:
    assert is_clean_json(b'{"a": "b", "n": [1]}')
    for text in ("\x7f", "\u202e", "\\u001b", "x" * 2001):
        assert not is_clean_json(f'{{"a": "{text}"}}'.encode()), text


def test_values_as_deep_as_json_may_be_are_cleaned() -> None:
    """The interpreter's recursion limit is 1000 frames, and Python 3.11 takes two for each level of a comprehension."""
    for opening, closing in (("[", "]"), ('{"\\u0041": ', "}")):
        depth = exactjson.MAX_DEPTH - 1
        document = f'{{"deep": {opening * depth}"\\u001b"{closing * depth}}}'.encode()
        told = frames.Frame(Kind.HELLO, 0, document).told()["deep"]
        for _ in range(depth):
            [told] = told.values() if isinstance(told, dict) else told
        assert told == "\\x1b"


def test_cleaning_keeps_order_and_leaves_its_source_alone() -> None:
    value = {"b": ["x\n", 1, None, {"c\n": "y"}], "a": "z", "output": ["x\n"], "list": []}
    cleaned = clean_values(value)
    assert cleaned == {"b": ["x", 1, None, {"c": "y"}], "a": "z", "output": ["x\n"], "list": []}
    assert list(cleaned) == list(value)
    assert clean_values("x\n") == "x"
    assert value["b"] == ["x\n", 1, None, {"c\n": "y"}], "what it was made of is left alone"
