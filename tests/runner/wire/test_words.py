"""The words that both command lines share. Files are a dictionary here; what is refused never shows a value."""

from typing import Any

import pytest

from cronium_runner.wire import words
from cronium_runner.wire.codes import CODES
from cronium_runner.wire.words import WordError

FILES = {"in.json": b'{"a": 12345678901234567890}', "-": b"[1]\n", "bad": b"\xff", "line": b"se\ncret\n", "empty": b""}
read = {**FILES, "{x}.json": b"2"}.get


def refusal(function: Any, *arguments: Any) -> WordError:
    with pytest.raises(WordError) as refused:
        function(*arguments)
    assert refused.value.code in CODES
    assert "\n" not in refused.value.message
    return refused.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("in.json", {"a": 12345678901234567890}),
        ("-", [1]),
        ("null", None),
        ("7", 7),
        ('"text"', "text"),
        ('{"a": {"b": [true]}}', {"a": {"b": [True]}}),
        (' [1, "' + "x" * 5000 + '"]', [1, "x" * 5000]),
        ("@in.json", {"a": 12345678901234567890}),
        ("@{x}.json", 2),
    ],
)
def test_json_and_files_are_told_apart(text: str, value: Any) -> None:
    assert words.json_value(text, "--input", read) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothere.json",
        "@nothere.json",
        "@",
        "{x}.json",
        "{",
        "{'a': 1}",
        "NaN",
        "bad",
        "empty",
        "[" * 100_000,
        '"\ud800"',
    ],
)
def test_what_is_neither_names_the_option(text: str) -> None:
    error = refusal(words.json_value, text, "--input", read)
    assert error.code == "input.invalid"
    assert "--input" in error.message
    assert len(error.message) < 400


def test_several_objects_are_merged_and_the_last_wins() -> None:
    files = {"a": b'{"one": 1, "both": {"x": 1}}', "b": b'{"both": 2, "more": 3}'}.get
    merged = words.json_merged(["a", "@b", '{"word": null}'], "--input", files)
    assert list(merged) == ["one", "both", "more", "word"]
    assert (merged["both"], merged["more"], merged["word"]) == (2, 3, None)
    assert words.json_merged(["7"], "--input", files) == 7
    error = refusal(words.json_merged, ["a", "[1]"], "--input", files)
    assert "[1] is no JSON object" in error.message


@pytest.mark.parametrize("text", ["null", "[]", "7", '"x"'])
def test_an_event_is_an_object(text: str) -> None:
    assert "--event" in refusal(words.json_object, text, "--event", read).message
    assert words.json_object("in.json", "--event", read) == {"a": 12345678901234567890}


def test_variables_are_texts_and_the_last_one_wins() -> None:
    assert words.variables(["A=1", "B=", "C=x=y=z", "A=2", "D= spaced "]) == {
        "A": "2",
        "B": "",
        "C": "x=y=z",
        "D": " spaced ",
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("python3", "python3"),
        ("Bash", "Bash"),
        ("cobol", "cobol"),  # which names there are, the runner knows
        ("/opt/venv/bin/python", ["/opt/venv/bin/python"]),
        ("./bin/run", ["./bin/run"]),
        ("bash -l", ["bash", "-l"]),
        ("'/opt/my tools/run' -x ''", ["/opt/my tools/run", "-x", ""]),
    ],
)
def test_an_interpreter_is_a_name_or_a_command(text: str, found: object) -> None:
    assert words.interpreter(text) == found


@pytest.mark.parametrize("text", ["", " ", "'open", "bash 'open"])
def test_what_is_no_interpreter_names_the_option(text: str) -> None:
    assert "--interpreter" in refusal(words.interpreter, text).message


@pytest.mark.parametrize("word", ["", "A", "=x", "="])
def test_a_variable_needs_a_name_and_a_value(word: str) -> None:
    assert "NAME=VALUE" in refusal(words.variables, [word]).message


def test_secrets_come_from_files_standard_input_or_the_environment() -> None:
    found = words.secrets(["T=@line", "E=@empty", "S=@-", "H"], {"H": "from home"}, read)
    assert found == {"T": "se\ncret", "E": "", "S": "[1]", "H": "from home"}


@pytest.mark.parametrize("word", ["T=hunter2!", "T=", "=hunter2!", "=@line", "", "T=hunter2!@x"])
def test_a_value_among_the_words_is_refused_and_not_repeated(word: str) -> None:
    error = refusal(words.secrets, [word], {}, read)
    assert "hunter2" not in error.message
    assert "NAME" in error.message


@pytest.mark.parametrize("word", ["T=@nothere", "T=@bad", "T"])
def test_a_secret_that_is_not_there_is_named(word: str) -> None:
    assert "--secret T" in refusal(words.secrets, [word], {}, read).message


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (words.secrets, (["\x1b[2J\nT=value"], {}, read)),
        (words.secrets, (["a\nb"], {}, read)),
        (words.secrets, (["T\n=@nothere\n"], {}, read)),
        (words.secrets, (["T\n=@bad"], {}, read)),
        (words.json_value, ("bad\n", "--input", {"bad\n": b"\xff"}.get)),
        (words.variables, (["n" * 10_000],)),
    ],
)
def test_what_is_refused_is_shown_in_one_short_line(function: Any, arguments: tuple[Any, ...]) -> None:
    """Found by fuzzing: a line break or an escape sequence in a word came back in the message as it was."""
    message = refusal(function, *arguments).message
    assert message.isprintable()
    assert len(message) < 300
