"""What a controller reads of the list of contents of an installed runner."""

import pytest

from cronium_runner.wire.contents import FILE, damage, has_digests

HEAD = "cronium-runner bundle 1\n0.2.0 0123456789ab c t\nl ../a bin/b\n"
FILES = "f 0600 3 a\np 0644 4 b\n"
DIGESTS = "s aa a\ns bb b\n"


@pytest.mark.parametrize(
    ("listed", "digests", "sizes", "damaged"),
    [
        (FILES + DIGESTS, {"a": "aa", "b": "bb"}, {}, None),
        (FILES + DIGESTS, {"a": "aa", "b": "bb", "more": "cc"}, {"a": 9}, None),
        (FILES + DIGESTS, {"a": "aa", "b": "cc"}, {"a": 3, "b": 4}, "b"),
        (FILES + DIGESTS, {"b": "bb"}, {"a": 3, "b": 4}, "a"),
        (FILES, {}, {"a": 3, "b": 4}, None),
        (FILES, {"a": "aa", "b": "bb"}, {"a": 3, "b": 5}, "b"),
        (FILES, {}, {"a": 3}, "b"),
        (FILES + "s aa a\n", {"a": "aa", "b": "bb"}, {"a": 3, "b": 4}, FILE),
        (FILES + DIGESTS + "s cc c\n", {"a": "aa", "b": "bb", "c": "cc"}, {}, FILE),
        (DIGESTS, {"a": "aa", "b": "bb"}, {}, FILE),
        ("", {}, {}, FILE),
    ],
)
def test_which_file_is_damaged(
    listed: str, digests: dict[str, str], sizes: dict[str, int], damaged: str | None
) -> None:
    assert damage(HEAD + listed, digests, sizes) == damaged
    assert has_digests(HEAD + listed) == ("s aa a" in listed)
