"""What counts as the platform's answer to each request, and what is an intermediary's."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import pytest

from cronium_runner import platform_answers as answers
from cronium_runner.platform_answers import Answer, ForeignAnswerError, read_answer
from stub_platform import FOREIGN

FORMS: Final = (answers.done, answers.given_input, answers.variable, answers.context, answers.tool)
TEXT: Final = {"Content-Type": "application/json"}
NO_FORM: Final[tuple[Any, ...]] = ({}, [], 1, "success", {"data": {"value": 1}})


def read(
    status: int, body: Any, form: answers.Form = answers.done, headers: Mapping[str, str] = MappingProxyType({})
) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_answer(status, {**TEXT, **headers}, content, form)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("name", [name for name in FOREIGN if "gzip" not in name])
def test_what_no_platform_says_is_no_success(name: str, form: answers.Form) -> None:
    upset, said = FOREIGN[name]
    assert upset.content is not None
    if upset.status >= 500:
        told = read_answer(upset.status, dict(upset.headers), upset.content, form)
        assert (told.is_success, told.is_passing, told.body, told.reason) == (False, True, None, said)
        return
    with pytest.raises(ForeignAnswerError) as caught:
        read_answer(upset.status, dict(upset.headers), upset.content, form)
    assert caught.value.status == upset.status
    assert name == "a body cut short" or said in str(caught.value)


@pytest.mark.parametrize(
    ("form", "body", "data"),
    [
        (answers.done, {"success": True}, None),
        (answers.done, {"success": True, "data": None, "more": 1}, None),
        (answers.given_input, {"success": True, "data": [1]}, [1]),
        (answers.given_input, {"success": True}, None),
        (answers.variable, {"success": True, "data": {"key": "k", "value": None}}, {"key": "k", "value": None}),
        (answers.variable, {"success": True, "data": {"value": 1}}, {"value": 1}),
        (answers.context, {"success": True, "data": {}}, {}),
        (answers.tool, {"success": True}, None),
        (answers.tool, {"success": True, "data": "x"}, "x"),
    ],
)
@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/x+json", ""]
)
def test_a_success(form: answers.Form, body: Any, data: Any, content_type: str) -> None:
    told = read(200, body, form, {"Content-Type": content_type})
    assert (told.is_success, told.data) == (True, data)


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (answers.variable, {"success": True}),
        (answers.variable, {"success": True, "data": None}),
        (answers.variable, {"success": True, "data": {}}),
        (answers.variable, {"success": True, "data": [1]}),
        (answers.context, {"success": True}),
        (answers.context, {"success": True, "data": "x"}),
        (answers.done, {"success": 1}),
        (answers.done, {"success": None}),
        (answers.tool, {"success": "yes"}),
        *((form, body) for form in FORMS for body in NO_FORM),
    ],
)
def test_a_success_of_another_form(form: answers.Form, body: Any) -> None:
    with pytest.raises(ForeignAnswerError, match="200, which is not the platform's answer: JSON of another form"):
        read(200, body, form)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, {"error": "invalid_body", "message": "no"}, "400 no"),
        (401, {"error": "invalid or expired token"}, "401 invalid or expired token"),
        (403, {"error": "Forbidden", "message": "execution ID mismatch"}, "403 execution ID mismatch"),
        (404, {"error": "not_found", "message": "none"}, "404 none"),
        (413, b"<html>too large</html>", "status 413"),
        (414, b"", "status 414"),
        (431, b"", "status 431"),
        (429, {"error": "rate limit exceeded"}, "429 rate limit exceeded"),
        (500, {"error": "x\n\x1b[2J", "message": ""}, "500 x\\n\\x1b[2J"),
        (503, b"", "status 503"),
        (200, {"success": False, "error": "it is read-only"}, "200 it is read-only"),
    ],
)
def test_a_failure_and_its_reason(form: answers.Form, status: int, body: Any, reason: str) -> None:
    told = read(status, body, form)
    assert (told.is_success, told.reason) == (False, reason)


@pytest.mark.parametrize(
    ("status", "error", "message", "is_missing"),
    [
        (404, "not_found", "none", True),
        (500, "Internal Server Error", "failed to get variable", True),
        (500, "Internal Server Error", "Variable not found", True),
        (500, "variable_not_found", "", True),
        (500, "Internal Server Error", "variable 'X' was not found", True),
        (500, "Internal Server Error", "failed to get input", False),
        (500, "internal", "the host of the database was not found", False),
        (502, "Bad Gateway", "failed to get variable", False),
        (503, "x", "variable not found", False),
        (400, "x", "variable not found", False),
    ],
)
def test_how_a_missing_variable_is_told(status: int, error: str, message: str, is_missing: bool) -> None:
    assert read(status, {"error": error, "message": message}, answers.variable).lacks_variable is is_missing


@pytest.mark.parametrize(("text", "seconds"), [("7", 7.0), ("", None), ("soon", None), ("-1", None), ("1" * 6, None)])
def test_the_time_that_it_asks_for(text: str, seconds: float | None) -> None:
    assert read(503, b"", headers={"Retry-After": text}).retry_after == seconds
