"""What a controller reads of the list of contents of an installed runner."""

import pytest

from cronium_runner.wire.contents import FILE, damage, find, has_digests, parse

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


D = "d" * 64
WHOLE = f"cronium-runner bundle 1\n0.2.0 0123456789ab c t\nl ../a bin/b\nf 0600 3 a\ns {D} a\n"


def test_list_is_read_and_found_in_a_binary() -> None:
    listed = parse(WHOLE)
    assert (listed.version, listed.build_id) == ("0.2.0", "0123456789ab")
    assert (listed.files, listed.links) == ({"a": D}, {"bin/b": "../a"})
    assert parse(WHOLE.rpartition("s ")[0]).files == {"a": None}
    carrier = b"\x7fELF cronium-runner bundle 1\0\xff" + WHOLE.encode() + b"\x28\xb5\x2f\xfd rest"
    assert find(carrier) == WHOLE
    assert find(carrier.replace(b"0.2.0 ", b"")) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        WHOLE[:-1],
        WHOLE.replace("bundle 1", "bundle 2"),
        WHOLE + "f 0600 3 a\n",
        WHOLE + "f 0600 3 c\n",
        WHOLE.replace("l ../a bin/b", "l ../a a"),
        WHOLE.replace(D, "D" * 64),
        WHOLE + "x y z\n",
    ],
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"list|listed"):
        parse(text)
