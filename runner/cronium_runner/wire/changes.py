"""Changes of a variable that depend on its value: increment and append, as supervisor and runtime API both do them.

Pure. Numbers keep all their digits: 0.1 and 0.2 are 0.3, and 2^53 and 1 are what they are on paper.
"""

import re
from typing import Any, Final

from . import exactjson

Json = Any

MAX_DIGITS: Final = 400
"""Of a number that is changed, and of the sum. A double's largest has 309, and no counter comes near."""

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,4})?", re.ASCII)


class ChangeError(ValueError):
    """The value cannot be changed like that. The message is the end of a sentence that begins with the variable."""


def is_number(value: Json) -> bool:
    """Whether a JSON value is a number; true and false are none."""
    return isinstance(value, int | float | exactjson.NumberLiteral) and not isinstance(value, bool)


def amount(text: str) -> Json:
    """The number that a text is in JSON's grammar, of at most MAX_DIGITS characters. Raises ChangeError."""
    if len(text) > MAX_DIGITS or not _NUMBER.fullmatch(text):
        raise ChangeError("is no number")
    return exactjson.number(text)


def incremented(value: Json, by: Json) -> Json:
    """`value` plus `by`. None, which is a variable that isn't there, counts as 0; a text that is a number, as that.

    Raises ChangeError for what is no number, or has more than MAX_DIGITS digits.
    """
    terms = [_scaled(_digits(one)) for one in (0 if value is None else value, by)]
    behind = max(0, *(scale for _, scale in terms))
    if any(behind - scale > 2 * MAX_DIGITS for _, scale in terms):
        raise ChangeError(f"would have more than {MAX_DIGITS} digits")
    total = sum(number * 10 ** (behind - scale) for number, scale in terms)
    digits = str(abs(total)).rjust(behind + 1, "0")
    if len(digits) > MAX_DIGITS:
        raise ChangeError(f"would have more than {MAX_DIGITS} digits")
    point = len(digits) - behind
    text = digits if behind == 0 else f"{digits[:point]}.{digits[point:]}"
    return exactjson.number(f"-{text}" if total < 0 else text)


def appended(value: Json, text: str) -> str:
    """`value` with `text` behind it. None counts as an empty text. Raises ChangeError for what is no text."""
    if value is None:
        return text
    if not isinstance(value, str):
        raise ChangeError("is no text")
    return value + text


def _digits(value: Json) -> str:
    if isinstance(value, str):
        text = value.strip()
    elif is_number(value):
        text = exactjson.dumps(value)
    else:
        raise ChangeError("is no number")
    if len(text) > MAX_DIGITS or not _NUMBER.fullmatch(text):
        raise ChangeError("is no number" if isinstance(value, str) else f"has more than {MAX_DIGITS} digits")
    return text


def _scaled(text: str) -> tuple[int, int]:
    """A number as a whole number and how many of its digits are behind the point, fewer than 0 for 1e5."""
    digits, _, exponent = text.lower().partition("e")
    whole, _, fraction = digits.partition(".")
    return int(whole + fraction), len(fraction) - int(exponent or 0)
