"""The helper grammar, call by call. Values are the real bundled ones in a real folder."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronium_runner.helpers import HELPER_NAMES, Answer, HelperError, execute, parse
from cronium_runner.values import BundledValues
from cronium_runner.wire.exactjson import dumps, loads

INPUT = (
    '{"text":"a\\nb","number":12345678901234567890123.10,"none":null,"config":{"hosts":["h0",{"port":22}],"x.y":1},'
    '"config.hosts":"exact","":"empty","-k":"dash"}'
)
EVENT = {"id": 7, "name": "Nightly", "type": "manual", "metadata": {"region": "eu"}}


@pytest.fixture
def values(tmp_path: Path) -> BundledValues:
    made = BundledValues(
        str(tmp_path / ".cronium"),
        input=loads(INPUT),
        variables={"A": "x y", "N": loads("1.10"), "a.b": {"c": [1]}},
        secrets={"PASS": "s3cret-word"},
        event=EVENT,
    )
    made.create_files()
    return made


def call(values: BundledValues, *words: "str | bytes", stdin: bytes | None = None) -> Answer:
    """What the supervisor does with a call. Standard input may be given exactly when the grammar asks for it."""
    try:
        request = parse([word.encode() if isinstance(word, str) else word for word in words])
    except HelperError as error:
        assert stdin is None
        return error.answer
    assert request.needs_stdin == (stdin is not None)
    return execute(request, values, stdin)


def printed(values: BundledValues, *words: "str | bytes") -> str:
    answer = call(values, *words)
    assert (answer.status, answer.stderr, answer.code) == (0, b"", "")
    return answer.stdout.decode()


def fails(answer: Answer, code: str, text: str) -> None:
    assert (answer.status, answer.code, answer.stdout) == (1, code, b"")
    assert answer.stderr.decode() == f"Error: {text}\n"


def misused(answer: Answer) -> None:
    assert (answer.status, answer.code, answer.stdout) == (2, "usage", b"")
    error, usage = answer.stderr.decode().splitlines()
    assert error.startswith("Error: ")
    assert usage.startswith(("Usage: cronium", "Helpers: cronium.input "))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["text"], "a\nb\n"),
        (["--json", "text"], '"a\\nb"\n'),
        (["number"], "12345678901234567890123.10\n"),
        (["none"], "null\n"),
        (["config"], '{"hosts":["h0",{"port":22}],"x.y":1}\n'),
        (["config.hosts"], "exact\n"),
        (["config.hosts.0"], "h0\n"),
        (["--json", "config.hosts.0"], '"h0"\n'),
        (["config.hosts.1.port"], "22\n"),
        ([""], "empty\n"),
        (["--", "-k"], "dash\n"),
        (["--json", "--", "-k"], '"dash"\n'),
        (["--json", "--json", "none"], "null\n"),
    ],
)
def test_input(values: BundledValues, words: list[str], expected: str) -> None:
    assert printed(values, "cronium.input", *words) == expected


@pytest.mark.parametrize(
    "key",
    ["nope", "config.nope", "config.hosts.2", "config.hosts.00", "config.hosts.-1", "config.hosts.+1", "config.hosts.²",
     "text.0", "none.x", "config.x.y", "config.", ".", "-", "config.hosts." + "9" * 5000, "ü"],
)  # fmt: skip
def test_input_without_that_key(values: BundledValues, key: str) -> None:
    fails(call(values, "cronium.input", key), "input.key_not_found", f"input key '{key}' not found")


@pytest.mark.parametrize(
    ("whole", "raw", "as_json"),
    [("null", "null\n", "null\n"), ('"a b"', "a b\n", '"a b"\n'), ("[1.50]", "[1.50]\n", "[1.50]\n")],
)
def test_the_whole_input(tmp_path: Path, whole: str, raw: str, as_json: str) -> None:
    values = BundledValues(str(tmp_path), input=loads(whole))
    assert printed(values, "cronium.input") == raw
    assert printed(values, "cronium.input", "--json") == as_json


def test_a_list_as_input_is_reached_by_index(tmp_path: Path) -> None:
    values = BundledValues(str(tmp_path), input=["zero", ["one"]])
    assert printed(values, "cronium.input", "1.0") == "one\n"


def test_no_input_is_null(tmp_path: Path) -> None:
    values = BundledValues(str(tmp_path))
    assert printed(values, "cronium.input") == "null\n"
    fails(call(values, "cronium.input", "k"), "input.key_not_found", "input key 'k' not found")


@pytest.mark.parametrize(
    ("words", "stdin", "expected"),
    [
        (["k", "5"], None, '{"k":"5"}'),
        (["k", "-5"], None, '{"k":"-5"}'),
        (["k", "--json"], None, '{"k":"--json"}'),
        (["k", ""], None, '{"k":""}'),
        (["--json", "k", "1.10"], None, '{"k":1.10}'),
        (["--", "--json", "v"], None, '{"--json":"v"}'),
        (["k.l", "v"], None, '{"k.l":"v"}'),
        (["k", "-"], b"[1]\n", '{"k":"[1]"}'),
        (["k", "-"], b"two\nlines\n\n", '{"k":"two\\nlines\\n"}'),
        (["--json", "k", "-"], b" [1]\n", '{"k":[1]}'),
        (["plain"], None, '"plain"'),
        (["[1, 2.0]"], None, "[1,2.0]"),
        (["NaN"], None, '"NaN"'),
        (["--json", '"s"'], None, '"s"'),
        (["--", "-1"], None, "-1"),
        ([], b'{"a": 1e5}', '{"a":1e5}'),
        ([], b"words\n", '"words"'),
        ([], b"", '""'),
        (["--json"], b"{}", "{}"),
        (["-"], b"7\n", "7"),
        (["null"], None, "null"),
    ],
)
def test_output(values: BundledValues, words: list[str], stdin: bytes | None, expected: str) -> None:
    assert call(values, "cronium.output", *words, stdin=stdin) == Answer(0)
    assert dumps(values.output) == expected


def test_output_merges(values: BundledValues) -> None:
    for words in (["a", "1"], ["--json", "b", "[2]"], ["a", "3"]):
        assert call(values, "cronium.output", *words) == Answer(0)
    assert dumps(values.output) == '{"a":"3","b":[2]}'


def test_output_never_loses_a_whole_output_to_a_key(values: BundledValues) -> None:
    call(values, "cronium.output", "[1]")
    answer = call(values, "cronium.output", "k", "v")
    assert (answer.status, answer.code) == (1, "value.invalid")
    assert values.output == [1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["A"], "x y\n"),
        (["--json", "A"], '"x y"\n'),
        (["N"], "1.10\n"),
        (["PASS"], "s3cret-word\n"),
        (["a.b"], '{"c":[1]}\n'),
        (["--default", "d", "A"], "x y\n"),
        (["--default", "d", "NOPE"], "d\n"),
        (["--default", "", "NOPE"], "\n"),
        (["--default", "--json", "NOPE"], "--json\n"),
        (["--json", "--default", '{"a": 1.10}', "NOPE"], '{"a":1.10}\n'),
        (["--default", '"s"', "--json", "NOPE"], '"s"\n'),
    ],
)
def test_get_variable(values: BundledValues, words: list[str], expected: str) -> None:
    assert printed(values, "cronium.getVariable", *words) == expected


@pytest.mark.parametrize("name", ["X", "a", "a.b.c", ""])
def test_get_variable_without_that_name(values: BundledValues, name: str) -> None:
    fails(call(values, "cronium.getVariable", name), "variable.not_found", f"variable '{name}' not found")


@pytest.mark.parametrize(
    ("words", "stdin", "expected"),
    [
        (["V", "5"], None, '"5"'),
        (["V", "-"], None, '"-"'),
        (["V", "--json"], None, '"--json"'),
        (["V", ""], None, '""'),
        (["--json", "V", "12345678901234567890123.10"], None, "12345678901234567890123.10"),
        (["V"], b"12345678901234567890123.10\n", "12345678901234567890123.10"),
        (["V"], b"a b\n", '"a b"'),
        (["--json", "V"], b"null", "null"),
    ],
)
def test_set_variable(values: BundledValues, words: list[str], stdin: bytes | None, expected: str) -> None:
    assert call(values, "cronium.setVariable", *words, stdin=stdin) == Answer(0)
    assert printed(values, "cronium.getVariable", "--json", "V") == expected + "\n"
    assert dumps(values.changed_variables) == '{"V":' + expected + "}"


def test_a_string_goes_through_a_pipe_unchanged(values: BundledValues) -> None:
    for text in ("", "x", "two\nlines\n\n", " "):
        call(values, "cronium.setVariable", "V", text)
        call(values, "cronium.setVariable", "W", stdin=printed(values, "cronium.getVariable", "V").encode())
        assert values.get_variable("W") == text


@pytest.mark.parametrize(
    ("field", "expected"),
    [("id", "7"), ("eventId", "7"), ("name", "Nightly"), ("eventName", "Nightly"), ("type", "manual"),
     ("eventType", "manual"), ("trigger", "null"), ("version", "null"), ("executionId", "null"), ("jobId", "null"),
     ("server", "null"), ("user", "null"), ("startTime", "null"), ("metadata", '{"region":"eu"}'),
     ("metadata.region", "eu")],
)  # fmt: skip
def test_event_fields(values: BundledValues, field: str, expected: str) -> None:
    assert printed(values, "cronium.event", field) == expected + "\n"


def test_the_whole_event_has_every_field(values: BundledValues) -> None:
    event = loads(printed(values, "cronium.event"))
    assert event == {
        **EVENT,
        **dict.fromkeys(["trigger", "version", "executionId", "jobId", "server", "user", "startTime", "userId"]),
        "eventId": 7,
        "eventName": "Nightly",
        "eventType": "manual",
        "environment": {},
    }
    assert printed(values, "cronium.event", "--json", "name") == '"Nightly"\n'
    fails(call(values, "cronium.event", "nope"), "event.field_not_found", "event field 'nope' not found")


@pytest.mark.parametrize(
    ("word", "condition"),
    [("true", True), ("1", True), ("yes", True), ("on", True), ("True", True),
     ("false", False), ("0", False), ("no", False), ("off", False)],
)  # fmt: skip
def test_set_condition(values: BundledValues, word: str, condition: bool) -> None:
    assert printed(values, "cronium.getCondition") == "null\n"
    assert call(values, "cronium.setCondition", word) == Answer(0)
    assert values.condition is condition
    assert printed(values, "cronium.getCondition") == f"{str(condition).lower()}\n"


def test_progress_and_summary(values: BundledValues) -> None:
    assert (values.progress, values.summary) == (None, None)
    assert call(values, "cronium.progress", "12.5", "copying") == Answer(0)
    assert values.progress == {"percent": 12.5, "text": "copying"}
    assert call(values, "cronium.progress", "100") == Answer(0)
    assert values.progress == {"percent": 100}
    assert call(values, "cronium.summary", "# Done") == Answer(0)
    assert call(values, "cronium.summary", stdin=b"| a |\n|---|\n") == Answer(0)
    assert values.summary == "| a |\n|---|\n"
    for words in (["progress", "1", "x" * 1001], ["summary", "ü" * 32769]):
        answer = call(values, f"cronium.{words[0]}", *words[1:])
        assert (answer.status, answer.code) == (1, "value.too_large")
    assert (values.progress, values.summary) == ({"percent": 100}, "| a |\n|---|\n")


def test_delete_variable(values: BundledValues) -> None:
    """A variable that was handed over is null in the result, one of the script's own is not there."""
    call(values, "cronium.setVariable", "NEW", "x")
    for name in ("A", "NEW", "PASS"):
        assert call(values, "cronium.deleteVariable", name) == Answer(0)
        for verb in ("getVariable", "deleteVariable"):
            fails(call(values, f"cronium.{verb}", name), "variable.not_found", f"variable '{name}' not found")
    assert values.changed_variables == {"A": None, "PASS": None}


def test_a_deleted_secret_stays_one(values: BundledValues) -> None:
    call(values, "cronium.deleteVariable", "PASS")
    call(values, "cronium.appendVariable", "PASS", "another-word")
    assert printed(values, "cronium.getVariable", "PASS") == "another-word\n"
    assert values.changed_variables == {"PASS": "***"}
    assert "another-word" in values.masked_values


@pytest.mark.parametrize(
    ("before", "words", "after"),
    [(None, [], "1"), ("41", [], "42"), ('"41"', [], "42"), ("null", ["5"], "5"), ("5", ["-7"], "-2"),
     ("1.50", ["0.25"], "1.75"), ("9007199254740992", ["1"], "9007199254740993"), ("1e2", ["1"], "101")],
)  # fmt: skip
def test_increment_variable(values: BundledValues, before: str | None, words: list[str], after: str) -> None:
    if before is not None:
        call(values, "cronium.setVariable", "--json", "V", before)
    assert printed(values, "cronium.incrementVariable", "V", *words) == after + "\n"
    assert printed(values, "cronium.getVariable", "--json", "V") == after + "\n"
    assert dumps(values.changed_variables["V"]) == after


def test_append_variable(values: BundledValues) -> None:
    for text in ("a", " b\n", "", "-"):
        assert call(values, "cronium.appendVariable", "V", text) == Answer(0)
    assert values.changed_variables == {"V": "a b\n-"}


@pytest.mark.parametrize(
    ("words", "end"),
    [(["incrementVariable", "A"], "no number"), (["incrementVariable", "a.b"], "no number"),
     (["appendVariable", "N", "x"], "no text"), (["appendVariable", "a.b", "x"], "no text")],
)  # fmt: skip
def test_changes_that_do_not_fit(values: BundledValues, words: list[str], end: str) -> None:
    answer = call(values, f"cronium.{words[0]}", *words[1:])
    fails(answer, "value.invalid", f"variable '{words[1]}' is {end}")
    assert values.changed_variables == {}


@pytest.mark.parametrize(
    "words",
    [
        ["cronium.input", "a", "b"],
        ["cronium.input", "-x"],
        ["cronium.input", "--json=1"],
        ["cronium.input", "--default", "x", "k"],
        ["cronium.input", "k", "--json"],
        ["cronium.output", "a", "b", "c"],
        ["cronium.output", "-5"],
        ["cronium.getVariable"],
        ["cronium.getVariable", "--default"],
        ["cronium.getVariable", "--default", "x"],
        ["cronium.getVariable", "A", "B"],
        ["cronium.setVariable"],
        ["cronium.setVariable", ""],
        ["cronium.setVariable", "a", "b", "c"],
        ["cronium.event", "a", "b"],
        ["cronium.setCondition"],
        ["cronium.setCondition", "maybe"],
        ["cronium.setCondition", "--json", "true"],
        ["cronium.setCondition", "true", "false"],
        ["cronium.getCondition", "x"],
        ["cronium.progress"],
        ["cronium.progress", "half"],
        ["cronium.progress", "-1"],
        ["cronium.progress", "100.1"],
        ["cronium.progress", "50%"],
        ["cronium.progress", "1", "a", "b"],
        ["cronium.summary", "a", "b"],
        ["cronium.summary", "--json", "a"],
        ["cronium.deleteVariable"],
        ["cronium.deleteVariable", ""],
        ["cronium.incrementVariable", "V", "x"],
        ["cronium.incrementVariable", "V", "01"],
        ["cronium.incrementVariable", "V", ""],
        ["cronium.incrementVariable", "V", "9" * 500],
        ["cronium.incrementVariable", "V", "1", "2"],
        ["cronium.appendVariable", "V"],
        ["cronium.appendVariable", "", "x"],
        ["cronium.nothing"],
        ["input"],
        [""],
        [],
    ],
)
def test_misuse(values: BundledValues, words: list[str]) -> None:
    misused(call(values, *words))
    assert (values.output, values.changed_variables, values.condition) == (None, {}, None)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        (["cronium.output", "--json", "k", "{"], None),
        (["cronium.output", "--json", "NaN"], None),
        (["cronium.output", "--json", "k", "[Infinity]"], None),
        (["cronium.output", "--json"], b"no json"),
        (["cronium.output", DEEP], None),
        (["cronium.output", "--json", "k", DEEP], None),
        (["cronium.output"], DEEP.encode()),
        (["cronium.output"], b"\xff"),
        (["cronium.output", "k", "-"], b"\xc3"),
        (["cronium.output", r'"\ud800"'], None),
        (["cronium.setVariable", "--json", "V", ""], None),
        (["cronium.setVariable", "--json", "V"], b""),
        (["cronium.setVariable", "V"], rb'{"\udfff":1}'),
        (["cronium.setVariable", "V", b"\xff"], None),
        (["cronium.getVariable", "--json", "--default", "no json", "A"], None),
        ([b"cronium.\xff"], None),
    ],
)
def test_values_that_cannot_be_used(values: BundledValues, words: "list[str | bytes]", stdin: bytes | None) -> None:
    answer = call(values, *words, stdin=stdin)
    assert (answer.status, answer.code, answer.stdout) == (1, "value.invalid", b"")
    assert answer.stderr.startswith(b"Error: ")
    assert answer.stderr.count(b"\n") == 1
    assert (values.output, values.changed_variables) == (None, {})


def test_every_spelling(values: BundledValues) -> None:
    assert len(HELPER_NAMES) == len(set(HELPER_NAMES)) == 34
    for name in ("cronium.getVariable", "cronium_getVariable", "cronium_get_variable"):
        assert name in HELPER_NAMES
        assert printed(values, name, "A") == "x y\n"
        assert f"Usage: {name} ".encode() in call(values, name).stderr
    for name in ("cronium_input", "cronium_output", "cronium_event", "cronium_set_variable", "cronium_set_condition",
                 "cronium_get_condition", "cronium_delete_variable", "cronium_increment_variable",
                 "cronium_append_variable"):  # fmt: skip
        assert name in HELPER_NAMES
    for name in HELPER_NAMES:
        assert b"is no helper" not in call(values, name, "-x").stderr


@given(st.lists(st.sampled_from(HELPER_NAMES).map(str.encode) | st.binary(max_size=20), max_size=6), st.binary())
def test_no_words_crash_it(tmp_path_factory: pytest.TempPathFactory, words: list[bytes], stdin: bytes) -> None:
    values = BundledValues(str(tmp_path_factory.getbasetemp() / "any"), input={"a": [1]})
    values.create_files()
    try:
        answer = execute(parse(words), values, stdin)
    except HelperError as error:
        answer = error.answer
    assert answer.status in (0, 1, 2)
    assert (answer.status == 0) == (not answer.stderr) == (not answer.code)


@pytest.mark.parametrize("words", [["cronium.\x1b[2J"], ["cronium.input", "a\nb"], ["cronium.setCondition", "\u2028"]])
def test_a_message_is_one_line_whatever_was_asked_for(values: BundledValues, words: list[str]) -> None:
    """Found by fuzzing: a key with a line break or an escape sequence in it came back as it was."""
    error = call(values, *words).stderr.decode().splitlines()[0]
    assert error.isprintable()
