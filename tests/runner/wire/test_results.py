"""The result object: its shape, its way through JSON, and the exit status each outcome gives."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronium_runner.wire import exactjson, masks
from cronium_runner.wire.results import Outcome, Result, StreamSummary, exit_status
from cronium_runner.wire.text import clean

KEYS = [
    "executionId", "jobId", "host", "state", "exitCode", "signal", "startedAt", "finishedAt", "durationMs", "output",
    "variables", "condition", "stdout", "stderr", "usage", "strays", "transport", "runnerVersion", "undelivered",
    "refused", "refusal", "mode", "fallback", "error",
]  # fmt: skip

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
SUMMARIES = st.builds(
    StreamSummary, st.integers(0, 2**40), st.booleans(), st.none() | st.text("0123456789abcdef", min_size=64)
)
SHOWN = st.text().map(clean)
"""Text that is shown is cleaned when it is read."""
RESULTS = st.builds(
    Result,
    execution_id=st.text(min_size=1),
    state=st.sampled_from(Outcome),
    job_id=st.none() | st.text(),
    host=st.none() | SHOWN,
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    started_at=st.none() | SHOWN,
    finished_at=st.none() | SHOWN,
    duration_ms=st.none() | st.floats(0, 1e9),
    output=JSON,
    variables=st.dictionaries(st.text(), JSON, max_size=3),
    condition=st.none() | st.booleans(),
    stdout=SUMMARIES,
    stderr=SUMMARIES,
    cpu_ms=st.none() | st.floats(0, 1e9),
    max_rss_kib=st.none() | st.integers(0),
    strays=st.integers(0, 100),
    transport=st.none() | SHOWN,
    runner_version=st.none() | SHOWN,
    undelivered=st.integers(0, 100),
    refused=st.integers(0, 100),
    refusal=st.none() | SHOWN,
    mode=st.sampled_from(["bundled", "api"]),
    fallback_code=st.none(),
    fallback_message=st.none(),
    error_code=st.none(),
    error_message=st.none(),
    progress=st.none() | st.fixed_dictionaries({"percent": st.floats(0, 100)}, optional={"text": SHOWN}),
    summary=st.none() | st.text(),
)


@given(RESULTS)
def test_a_result_comes_back_from_its_json_as_it_was(result: Result) -> None:
    assert Result.from_json(result.to_json()) == result


def test_an_error_comes_back_with_code_and_message() -> None:
    result = Result("e", Outcome.LOST, error_code="execution.lost", error_message="it died")
    assert result.to_json()["error"] == {"code": "execution.lost", "message": "it died"}
    assert Result.from_json(result.to_json()) == result


def test_what_is_shown_is_clean_and_what_a_script_gave_is_exact() -> None:
    evil = "a\x1b[2J\ncronium: all hosts ok\u202e"
    told = Result(
        "e", Outcome.LOST, job_id=evil, host=evil, transport=evil, runner_version=evil, refusal=evil,
        output={"k": evil}, variables={evil: evil}, error_code=evil, error_message=evil,
    )  # fmt: skip
    read = Result.from_json(told.to_json())
    assert (read.output, read.variables, read.job_id) == (told.output, told.variables, evil)
    shown = r"a\x1b[2J\ncronium: all hosts ok\u202e"
    assert {read.host, read.transport, read.runner_version, read.refusal, read.error_message, read.error_code} == {
        shown
    }


def test_secrets_in_summary_and_progress_are_hidden() -> None:
    told = Result("e", Outcome.SUCCEEDED, progress={"percent": 5, "text": "with hunter22"}, summary="# hunter22")
    paths = masks.paths_of(told.to_json(), lambda text: "hunter22" in text, lambda _name: False)
    assert paths == ["summary", "progress.text"]
    for masked in (tuple(paths), ("summary", "progress")):
        hidden = told._replace(masked=masked).hidden()
        assert (hidden.summary, hidden.progress) == ("***", {"percent": 5, "text": "***"})


def test_no_path_of_what_is_hidden_tells_a_secret_or_fills_a_frame() -> None:
    def holds(text: str) -> bool:
        return "hunter22" in text

    told = Result("e", Outcome.SUCCEEDED, output={"k": [0, "hunter22"]}, variables={"hunter22-x": "a", "b": "c"})
    assert masks.paths_of(told.to_json(), holds, lambda _name: True) == ["variables.b", "output.k.1", "variables"]
    pin = told._replace(output={"pin": 12345678}, variables={})
    assert masks.paths_of(pin.to_json(), lambda text: "12345678" in text, lambda _name: False) == ["output.pin"]
    many = told._replace(output=["hunter22"] * 5000, variables={})
    assert masks.paths_of(many.to_json(), holds, lambda _name: False) == ["output"]
    assert many._replace(masked=("output",)).hidden().output == "***"
    assert told._replace(masked=("variables",)).hidden().variables == {"***": "***"}


def test_what_a_record_calls_hidden_may_be_anything() -> None:
    """It is the host's, and may have been tampered with."""
    for masked in (5, "output", {"output": 1}, [], None):
        assert masks.hidden({"masked": masked, "output": "x"})["output"] == "x"
    assert masks.hidden({"masked": [5, ["output"], "output"], "output": "x"})["output"] == "***"
    for result in (None, "masked", ["masked"]):
        assert masks.hidden_status({"result": result}) == {"result": result}


def test_why_another_mode_was_not_taken_comes_back() -> None:
    result = Result("e", Outcome.SUCCEEDED, fallback_code="tunnel.refused", fallback_message="not here")
    assert result.to_json()["fallback"] == {"code": "tunnel.refused", "message": "not here"}
    assert Result.from_json(result.to_json()) == result


def test_a_result_from_before_api_mode_was_bundled() -> None:
    assert Result.from_json({"executionId": "e", "state": "succeeded"}).mode == "bundled"


def test_the_object_has_exactly_the_documented_keys() -> None:
    shown = Result("e", Outcome.SUCCEEDED).to_json()
    assert list(shown) == KEYS
    assert list(shown["stdout"]) == ["bytes", "truncated", "sha256"]
    assert list(shown["usage"]) == ["cpuMs", "maxRssKiB"]


def test_keys_of_a_newer_version_are_ignored_and_missing_ones_default() -> None:
    result = Result.from_json({"executionId": "e", "state": "failed", "exitCode": 3, "novelty": 1, "stdout": None})
    assert result == Result("e", Outcome.FAILED, exit_code=3)


@pytest.mark.parametrize("value", [{}, {"executionId": "e"}, {"executionId": 1, "state": "failed"}, {"state": "lost"}])
def test_a_result_without_id_or_state_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="executionId and state"):
        Result.from_json(value)


def test_a_state_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="superb"):
        Result.from_json({"executionId": "e", "state": "superb"})


def test_the_controller_adds_host_and_route() -> None:
    there = Result("e", Outcome.SUCCEEDED, exit_code=0).on("web01", "direct")
    assert (there.host, there.transport, there.exit_code) == ("web01", "direct", 0)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Result("e", Outcome.SUCCEEDED, exit_code=0), 0),
        (Result("e", Outcome.FAILED, exit_code=7), 7),
        (Result("e", Outcome.FAILED, exit_code=255), 255),
        (Result("e", Outcome.FAILED, signal=9), 137),
        (Result("e", Outcome.TIMED_OUT, exit_code=0), 124),
        (Result("e", Outcome.TIMED_OUT, signal=9), 124),
        (Result("e", Outcome.CANCELLED, signal=15), 130),
        (Result("e", Outcome.REJECTED, error_code="payload.damaged"), 125),
        (Result("e", Outcome.REJECTED), 125),
        (Result("e", Outcome.REJECTED, error_code="interpreter.not_executable"), 126),
        (Result("e", Outcome.REJECTED, error_code="interpreter.not_found"), 127),
        (Result("e", Outcome.LOST), 125),
        (Result("e", Outcome.LOST, exit_code=0), 125),
        (Result("e", Outcome.UNKNOWN), 255),
        (Result("e", Outcome.FAILED), 125),
        (Result("e", Outcome.SUCCEEDED), 125),
    ],
)
def test_each_outcome_has_its_exit_status(result: Result, expected: int) -> None:
    assert exit_status(result) == expected


@pytest.mark.parametrize(
    "part",
    [
        {"usage": []},
        {"usage": {"cpuMs": "fast"}},
        {"usage": {"maxRssKiB": 1.5}},
        {"error": "broken"},
        {"error": {"code": 7}},
        {"stdout": [1]},
        {"stdout": {"bytes": None, "truncated": 1}},
        {"stderr": {"bytes": "12"}},
        {"variables": [["A", "b"]]},
        {"exitCode": "0"},
        {"exitCode": True},
        {"exitCode": 256},
        {"signal": 0},
        {"condition": "yes"},
        {"strays": []},
        {"progress": 50},
        {"progress": {"percent": 101}},
        {"progress": {"text": "x"}},
        {"summary": ["x"]},
    ],
    ids=str,
)
def test_a_result_with_a_part_of_another_type_is_no_result(part: dict[str, Any]) -> None:
    """Found by fuzzing: these were AttributeError, TypeError, or a result that broke whoever used it."""
    with pytest.raises(ValueError, match=r"^a result's "):
        Result.from_json({"executionId": "e", "state": "failed", **part})


@pytest.mark.parametrize(("written", "text"), [("7", "7"), ("1.50", "1.50"), ("true", "true"), ("[1]", "[1]")])
def test_a_job_id_that_0_1_0_wrote_is_read_as_text(written: str, text: str) -> None:
    value = exactjson.loads(f'{{"executionId": "e", "state": "succeeded", "jobId": {written}}}')
    assert Result.from_json(value).job_id == text


def test_a_path_that_is_no_utf_8_leaves_the_result_readable() -> None:
    told = Result("e", Outcome.REJECTED, error_code="payload.not_found", error_message="no such payload: \udcff")
    again = Result.from_json(exactjson.loads(exactjson.encode(told.to_json())))
    assert again.error_message == "no such payload: \\udcff"


@pytest.mark.parametrize("value", [None, [], "e", 7, {}])
def test_what_is_no_object_is_no_result(value: Any) -> None:
    with pytest.raises(ValueError):
        Result.from_json(value)


def test_parts_that_are_null_are_as_if_absent() -> None:
    absent = Result.from_json({"executionId": "e", "state": "failed"})
    nulls = dict.fromkeys(KEYS) | {"executionId": "e", "state": "failed"}
    assert Result.from_json(nulls) == absent
