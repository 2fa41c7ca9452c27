"""The event object: which source wins, what is blank, and that both spellings agree."""

from typing import Any

import pytest

from cronium_runner import event as events
from cronium_runner.prepare import _event
from cronium_runner.submission import Script, Submission


def made(manifest: dict[str, Any], submitted: dict[str, Any], context: dict[str, Any] | None = None) -> dict[str, Any]:
    """The object that a script sees; with `context` in API mode."""
    event = _event(Submission("e1", Script("s"), event=submitted), manifest)
    if context is not None:
        event = events.merged(event, context)
    return events.spelled_out(event, {"K": "v"})


def test_what_is_unknown_is_null() -> None:
    event = made({}, {})
    assert event.pop("startTime")
    assert event == {
        **dict.fromkeys(["id", "name", "type", "trigger", "version", "jobId", "server", "user", "metadata"]),
        **dict.fromkeys(["eventId", "eventName", "eventType", "userId"]),
        "executionId": "e1", "environment": {"K": "v"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("manifest", "submitted", "context", "expected"),
    [
        ({"eventId": "m"}, {}, None, "m"),
        ({"eventId": "m"}, {"id": "s"}, None, "s"),
        ({"eventId": "m"}, {"eventId": "s"}, None, "s"),
        ({"eventId": "m"}, {"eventId": "other", "id": "s"}, None, "s"),
        ({"eventId": "m"}, {"id": "s", "eventId": "other"}, None, "s"),
        ({"eventId": "m"}, {"id": "", "eventId": "s"}, None, "s"),
        ({"eventId": "m"}, {"id": ""}, None, "m"),
        ({"eventId": "m"}, {"id": None}, None, "m"),
        ({}, {"id": ""}, None, None),
        ({}, {"id": "s"}, {"eventId": "c"}, "c"),
        ({}, {"id": "s"}, {"eventId": ""}, "s"),
        ({}, {"id": "s"}, {"eventId": "0001-01-01T00:00:00Z"}, "s"),
        ({}, {"id": "s"}, {"eventId": 0}, 0),
    ],
)
def test_which_source_wins(
    manifest: dict[str, Any], submitted: dict[str, Any], context: dict[str, Any] | None, expected: Any
) -> None:
    event = made(manifest, submitted, context)
    assert (event["id"], event["eventId"]) == (expected, expected)


def test_keys_that_are_no_fields_are_kept() -> None:
    given = {"runLocation": "REMOTE", "successCount": 3, "note": "", "server": {"name": "s"}, "extra": {"k": 1}}
    event = made({"unknown": 1}, given, {"note": None, "more": [1]})
    assert (event["runLocation"], event["successCount"], event["note"], event["more"]) == ("REMOTE", 3, "", [1])
    assert (event["server"], event["metadata"]) == ({"name": "s"}, {"k": 1})
    assert "unknown" not in event
    assert "extra" not in event


def test_id_and_time_of_the_execution_are_its_own() -> None:
    event = made({}, {"executionId": "other", "startTime": "2020-01-01T00:00:00Z"})
    assert event["executionId"] == "e1"
    assert event["startTime"] > "2025"
