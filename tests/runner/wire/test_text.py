"""Foreign text in sentences and tables: one line, nothing that a terminal obeys, capped."""

import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronium_runner.wire import text
from cronium_runner.wire.text import LONGEST, MARK, clean, clean_lines, last_words

_NEVER = ("Cc", "Cf", "Cs", "Zl", "Zp")
ANY_TEXT = st.text(st.characters(codec=None), max_size=80)
HOSTILE = st.lists(st.sampled_from(["\x1b[2J", "\r", "\n", "\x9b1A", "\u202e", "ok", " ", "\x07", "\x00", "é", "日"]))


def is_harmless(text: str) -> bool:
    return not any(unicodedata.category(character) in _NEVER for character in text)


@pytest.mark.parametrize(
    ("foreign", "shown"),
    [
        ("permission denied", "permission denied"),
        ("größer als 日本 ❤️", "größer als 日本 ❤️"),
        ("bye\r\ncronium: all hosts ok", r"bye\r\ncronium: all hosts ok"),
        ("\x1b]52;c;cm0gLXJmIC8=\x07", r"\x1b]52;c;cm0gLXJmIC8=\x07"),
        ("\x1b[1A\x1b[2Kok", r"\x1b[1A\x1b[2Kok"),
        ("\x9b2J", r"\x9b2J"),
        ("a\tb\x7f\x00", r"a\tb\x7f\x00"),
        ("user\u202egpj.exe", r"user\u202egpj.exe"),
        ("ze\u200bro\ufeff", r"ze\u200bro\ufeff"),
        ("tag\U000e0041", r"tag\U000e0041"),
        ("\u2028next\u2029", r"next"),
        (" around \n", "around"),
        (b"\xff\xc2\x9bA", r"\xff\x9bA"),
        ("\udcff\ud800", r"\xff\ud800"),
        (r"C:\new", r"C:\new"),
        ("", ""),
    ],
)
def test_controls_are_shown_and_not_obeyed(foreign: str | bytes, shown: str) -> None:
    assert clean(foreign) == shown


def test_no_control_of_unicode_gets_through() -> None:
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    passed = [character for character in every if clean(f"a{character}b") == f"a{character}b"]
    assert is_harmless("".join(passed))
    assert len(passed) > 1_000_000  # all others are what people write


def test_no_more_is_looked_at_than_may_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def escaped(line: str) -> str:
        sizes.append(len(line))
        return line

    monkeypatch.setattr(text, "_escaped", escaped)
    clean("x" * 1_000_000)
    last_words("x " * 1_000_000)
    assert max(sizes) < 10_000


def test_only_a_tab_and_an_end_of_line_stay_in_lines() -> None:
    controls = [chr(code) for code in (*range(32), *range(0x7F, 0xA0))]
    assert [each for each in controls if clean_lines(f"a{each}b".encode()) == f"a{each}b".encode()] == ["\t", "\n"]


@given(ANY_TEXT | HOSTILE.map("".join), st.integers(1, 60))
def test_whatever_comes_is_one_short_line(text: str, longest: int) -> None:
    for shown in (clean(text, longest), last_words(text, longest)):
        assert len(shown) <= longest
        assert is_harmless(shown)
        assert len(shown.splitlines()) <= 1
        assert clean(shown, longest) == shown.strip()


@given(st.binary(max_size=80), st.integers(1, 60))
def test_bytes_are_cleaned_as_text_is(data: bytes, longest: int) -> None:
    assert is_harmless(clean(data, longest))
    assert len(clean(data, longest)) <= longest
    assert is_harmless(last_words(data, longest))


def test_a_long_text_is_cut_and_says_so() -> None:
    assert clean("x" * LONGEST) == "x" * LONGEST
    assert clean("x" * (LONGEST + 1)) == "x" * (LONGEST - 1) + MARK
    assert len(clean("\x1b" * 10_000_000)) == LONGEST
    assert clean(b"x" * 10_000_000, 10) == "xxxxxxxxx" + MARK


def test_last_words_are_the_end_in_one_line() -> None:
    assert last_words(b"Welcome\r\n\r\n  to\tUbuntu\n") == "Welcome to Ubuntu"
    assert last_words("a " * 1000 + "the\x1b[31m reason", 30) == MARK + r" a a a a a the\x1b[31m reason"
    assert last_words(b"y\n" * 10_000_000, 9) == MARK + " y y y y"


@given(st.binary(max_size=80) | HOSTILE.map(lambda parts: "".join(parts).encode()))
def test_lines_keep_their_number_and_move_nothing(output: bytes) -> None:
    shown = clean_lines(output).decode()
    assert is_harmless(re.sub(r"[\n\t]", "", shown))
    assert shown.count("\n") == output.count(b"\n")
    assert clean_lines(shown.encode()).decode() == shown


def test_usual_lines_are_not_touched() -> None:
    for usual in (b"a\tb\nc\n", "größer\n日本\n".encode(), b""):
        assert clean_lines(usual) == usual
    assert clean_lines(b"10%\r20%\r\n") == b"10%\\r20%\n"
    assert clean_lines(b"\x1b[1Aweb02: ok\n") == b"\\x1b[1Aweb02: ok\n"
