"""wire.exactjson: what was written comes back, and what is no JSON does not come in."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronium_runner.wire.exactjson import (
    MAX_DEPTH,
    NotJSONError,
    NumberLiteral,
    UnsupportedJSONError,
    dumps,
    encode,
    loads,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    "text",
    [
        "12345678901234567890123.10",
        "1.10",
        "1e5",
        "1E+400",
        "-0",
        "-0.0",
        "0.1",
        "9007199254740993",
        "9" * 5000,
        '{"a":[1,1.50,{"b":-0}],"c":{},"d":[],"e":"x"}',
        '{"ü":"😀\\n","":null,"t":true}',
    ],
)
def test_comes_back_as_written(text: str) -> None:
    assert dumps(loads(text)) == text
    assert encode(loads(text.encode())) == text.encode()


@given(VALUES)
def test_agrees_with_json(value: object) -> None:
    assert json.loads(dumps(value)) == value
    assert dumps(loads(json.dumps(value))) == dumps(value)


def test_a_literal_only_where_a_python_number_loses_something() -> None:
    assert [type(item) for item in loads("[1, 0.5, 1.10, -0, -1]")] == [int, float, NumberLiteral, NumberLiteral, int]
    assert float(loads("1.10")) == 1.1
    assert loads("1.10") == NumberLiteral("1.10") != NumberLiteral("1.1")
    assert {NumberLiteral("1e5"): 1}[NumberLiteral("1e5")] == 1


def test_compact_and_unescaped() -> None:
    assert dumps(loads('{ "k" : [ 1, "\\u00fc" ] }')) == '{"k":[1,"ü"]}'
    assert dumps(loads('{ "k" : [ 1.0e0, "\\u00fc" ] }')) == '{"k":[1.0e0,"ü"]}'


@pytest.mark.parametrize("text", ["", " ", "NaN", "[Infinity]", "-Infinity", "{", "01", "'x'", "1 2", "\ufeff1", "nul"])
def test_not_json(text: str) -> None:
    with pytest.raises(NotJSONError, match=r"^not JSON: "):
        loads(text)


@pytest.mark.parametrize("text", [r'"\ud800"', r'{"\uDC00":1}', '"\ud800"', b'"\xff"'])
def test_no_unicode_text(text: "str | bytes") -> None:
    with pytest.raises(UnsupportedJSONError):
        loads(text)


def test_surrogate_pairs_and_escaped_backslashes_are_text() -> None:
    assert loads(r'"\ud83d\ude00"') == "😀"
    assert loads(r'"\\ud800"') == "\\ud800"


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 999, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"k":', "}")])
def test_too_deep(depth: int, opening: str, closing: str) -> None:
    with pytest.raises(UnsupportedJSONError, match="nested more than"):
        loads(opening * depth + "1" + closing * depth)


@pytest.mark.parametrize("leaf", ["1", "1.10"])
def test_deep_enough_and_wide_is_fine(leaf: str) -> None:
    text = "[" * MAX_DEPTH + leaf + "]" * MAX_DEPTH
    assert dumps(loads(text)) == text
    wide = "[" + ",".join(["[]"] * 2000) + "]"
    assert dumps(loads(wide)) == wide
    assert dumps({"data": {"k": loads(text)}}) == '{"data":{"k":' + text + "}}"


@pytest.mark.parametrize("value", [math.nan, [math.inf], {1, 2}, b"bytes", [NumberLiteral("1.10"), math.nan]])
def test_nothing_that_json_has_no_form_for(value: object) -> None:
    with pytest.raises(UnsupportedJSONError):
        dumps(value)


def test_encode_refuses_surrogates() -> None:
    with pytest.raises(UnsupportedJSONError):
        encode({"k": "\udcff"})


def test_writing_bottomless_values_is_refused() -> None:
    for leaf in (1, NumberLiteral("1.10")):
        value: object = leaf
        for _ in range(100_000):
            value = [value]
        with pytest.raises(UnsupportedJSONError, match="nested more than"):
            dumps(value)
        while isinstance(value, list):  # taken apart by hand: freeing it whole is recursive too
            value = value.pop()
