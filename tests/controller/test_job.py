"""A job as a program hands it in: what no host could be given is refused before any is contacted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cronium_controller.errors import ControllerError
from cronium_controller.job import Job
from cronium_controller.payloads import Payload, load
from cronium_runner.wire.exactjson import MAX_VALUE_DEPTH


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    (tmp_path / "s.sh").write_text("true\n")
    return load(tmp_path / "s.sh")


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def test_ids_and_names_are_sent_as_text(payload: Payload) -> None:
    numbers: Any = {"job_id": 77, "event": {"id": 1.5, "name": True, "trigger": None, "version": 2}}
    body = Job(payload, **numbers).submission("one", follow=True)
    assert body["jobId"] == "77"
    assert body["event"] == {"id": "1.5", "name": "true", "trigger": None, "version": 2}


def test_the_server_is_told_where_the_job_says_nothing_of_it(payload: Payload) -> None:
    server = {"name": "web01", "address": "10.0.0.5", "user": "deploy", "port": 22}
    for event, expected in (
        ({}, {"server": server}),
        ({"id": "7", "server": None}, {"id": "7", "server": server}),
        ({"server": {"name": "mine"}}, {"server": {"name": "mine"}}),
    ):
        body = Job(payload, event=event).submission("one", follow=True, server=server)
        assert body["event"] == expected
    assert "event" not in Job(payload).submission("one", follow=True, server=None)


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        ({"job_id": ["j"]}, "usage.invalid", "the job's 'jobId' must be a text, not a list"),
        ({"job_id": "j" * 257}, "usage.invalid", "the job's 'jobId' must be a text of at most 256 characters, not 257"),
        ({"event": {"name": {}}}, "input.invalid", "the event's 'name' must be a text, not a mapping"),
        ({"input": float("nan")}, "input.invalid", "the job's input cannot be sent: no JSON value"),
        ({"variables": {"A": {1, 2}}}, "input.invalid", "the job's variables cannot be sent: no JSON value: a set"),
        ({"variables": {"A": "\ud800"}}, "input.invalid", "the job's variables cannot be sent: an unpaired surrogate"),
        ({"input": nested(MAX_VALUE_DEPTH + 1)}, "input.invalid", "the job's input cannot be sent: nested more than"),
        ({"input": nested(2000)}, "input.invalid", "the job's input cannot be sent: nested more than"),
    ],
    ids=["a list", "too long", "an object", "NaN", "a set", "a surrogate", "a level too many", "bottomless"],
)
def test_what_cannot_be_sent_is_refused_by_name(payload: Payload, given: Any, code: str, told: str) -> None:
    with pytest.raises(ControllerError) as refused:
        Job(payload, **given)
    assert refused.value.code == code
    assert refused.value.message.startswith(told)


def test_the_deepest_value_can_be_sent(payload: Payload) -> None:
    assert Job(payload, input=nested(MAX_VALUE_DEPTH)).input_or_none == nested(MAX_VALUE_DEPTH)


def test_another_id_costs_no_other_check(payload: Payload, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(payload, {"a": 1}, event={"id": 5}, job_id="j", execution_id="one")
    expected = replace(job, execution_id="two")
    monkeypatch.setattr("cronium_runner.wire.exactjson.check_value", lambda _: pytest.fail("checked again"))
    other = job.with_id("two")
    assert other == expected
    assert job.execution_id == "one"
    assert other.submission("two", follow=True) == expected.submission("two", follow=True)
