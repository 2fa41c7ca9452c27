"""Changes of a variable by what it is: numbers keep their digits, and what doesn't fit is refused."""

from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronium_runner.wire import exactjson
from cronium_runner.wire.changes import MAX_DIGITS, ChangeError, amount, appended, incremented

NUMBERS = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30, places=7).map(str)


@given(NUMBERS, NUMBERS)
def test_a_sum_is_exact(left: str, right: str) -> None:
    total = incremented(exactjson.loads(f"{Decimal(left):f}"), exactjson.loads(f"{Decimal(right):f}"))
    with localcontext(prec=100):
        assert Decimal(exactjson.dumps(total)) == Decimal(left) + Decimal(right)


@pytest.mark.parametrize(
    ("value", "by", "expected"),
    [("0.1", "0.2", "0.3"), ("1.50", "1.50", "3.00"), ("0.5", "-0.5", "0.0"), ("1e3", "1", "1001"), ("-1", "1", "0"),
     ("1E+2", "1e-2", "100.01"), ('" 7 "', "1", "8"), ("-0", "0", "0"), ("-0.5", "0.25", "-0.25")],
)  # fmt: skip
def test_how_sums_are_written(value: str, by: str, expected: str) -> None:
    assert exactjson.dumps(incremented(exactjson.loads(value), exactjson.loads(by))) == expected


@pytest.mark.parametrize(
    "value", [True, False, [], {}, "", "x", "1x", "0x1", "NaN", "1_0", "٣", "9" * (MAX_DIGITS + 1), 10**MAX_DIGITS,
              "9" * MAX_DIGITS, exactjson.NumberLiteral("1e500"), exactjson.NumberLiteral("1e-9999")],
)  # fmt: skip
def test_what_cannot_be_incremented(value: Any) -> None:
    with pytest.raises(ChangeError):
        incremented(value, 1)


def test_append() -> None:
    assert (appended(None, "a"), appended("a", "b")) == ("a", "ab")
    for value in (1, True, [], {}):
        with pytest.raises(ChangeError):
            appended(value, "a")


@pytest.mark.parametrize("text", ["", "x", "01", "+1", "1.", ".5", " 1", "1 ", "1e99999", "9" * (MAX_DIGITS + 1)])
def test_amounts_are_json_numbers(text: str) -> None:
    with pytest.raises(ChangeError):
        amount(text)
