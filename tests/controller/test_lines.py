"""Lines of many hosts: nothing lost, nothing mixed, however the bytes arrive."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cronium_controller.lines import FOLDED_BYTES, LONGEST_LINE, Folder, Prefixer
from cronium_runner.wire.names import STDERR, STDOUT


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
        folder.feed(f"web{number}", STDOUT, b"same")
        folder.feed(f"web{number}", STDOUT, b" output\n" if number else b" but one\n")
        folder.end(f"web{number}", "")
    folder.end("silent", "exit 1")
    folder.feed("cut", STDOUT, b"x" * FOLDED_BYTES + b"y")
    folder.end("cut", "")
    folder.feed("cut too", STDOUT, b"x" * FOLDED_BYTES + b"z")
    folder.end("cut too", "")
    folds = [(fold.hosts, fold.ending, fold.output[:20], fold.is_cut) for fold in folder.folds()]
    assert folds == [
        (["web1", "web2", "web3", "web4"], "", b"same output\n", False),
        (["cut"], "", b"x" * 20, True),
        (["cut too"], "", b"x" * 20, True),
        (["silent"], "exit 1", b"", False),
        (["web0"], "", b"same but one\n", False),
    ]


def test_hosts_do_not_differ_by_which_stream_came_first() -> None:
    pieces = {STDOUT: b"out", STDERR: b"err\n"}
    folder = Folder()
    for number, order in enumerate([(STDOUT, STDERR), (STDERR, STDOUT)]):
        for stream in order:
            folder.feed(f"web{number}", stream, pieces[stream])
        folder.end(f"web{number}", "")
    folder.feed("web2", STDERR, b"out")
    folder.feed("web2", STDOUT, b"err\n")
    folder.end("web2", "")
    assert [(fold.hosts, fold.output) for fold in folder.folds()] == [
        (["web0", "web1"], b"out\nerr\n"),
        (["web2"], b"err\nout\n"),
    ]
