"""Lines of many hosts: nothing lost, nothing mixed, however the bytes arrive."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cronium_controller.lines import FOLDED_BYTES, LONGEST_LINE, Folder, Prefixer


@given(st.binary(max_size=200).map(lambda raw: raw.replace(b"\r", b"\n")), st.lists(st.integers(0, 200), max_size=6))
def test_lines_are_whole_and_have_the_prefix_however_they_arrive(text: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    prefixer = Prefixer(b"web01: ")
    shown = b"".join(prefixer.feed(text[start:end]) for start, end in itertools.pairwise(places))
    shown += prefixer.flush()
    lines = text.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    assert shown == b"".join(b"web01: " + line + b"\n" for line in lines)


def test_a_line_without_end_is_shown_in_pieces() -> None:
    prefixer = Prefixer(b"a: ")
    shown = prefixer.feed(b"x" * (LONGEST_LINE - 1))
    assert shown == b""
    assert prefixer.feed(b"yz") == b"a: " + b"x" * (LONGEST_LINE - 1) + b"yz\n"
    assert prefixer.flush() == b""


def test_equal_outputs_are_folded_and_different_ones_are_not() -> None:
    folder = Folder()
    for number in range(5):
        folder.feed(f"web{number}", b"same")
        folder.feed(f"web{number}", b" output\n" if number else b" but one\n")
        folder.end(f"web{number}", 0)
    folder.end("silent", 1)
    folder.feed("cut", b"x" * FOLDED_BYTES + b"y")
    folder.end("cut", 0)
    folder.feed("cut too", b"x" * FOLDED_BYTES + b"z")
    folder.end("cut too", 0)
    folds = [(fold.hosts, fold.exit_status, fold.output[:20], fold.is_cut) for fold in folder.folds()]
    assert folds == [
        (["web1", "web2", "web3", "web4"], 0, b"same output\n", False),
        (["cut"], 0, b"x" * 20, True),
        (["cut too"], 0, b"x" * 20, True),
        (["silent"], 1, b"", False),
        (["web0"], 0, b"same but one\n", False),
    ]
