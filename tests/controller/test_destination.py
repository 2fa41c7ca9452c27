"""Files are put below a folder here: names that a host tells, links and special files in the way, modes."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from accounts import throw_away_account
from cronium_controller.destination import Destination, NameRefusedError, checked_name, discard_at, is_match
from cronium_controller.remote_file import Entry, is_own_folder, is_written_by_us_alone, new_folder
from tampering import CHANGES

REFUSED = {
    "": "names no file",
    ".": "names no file",
    "..": "names no file",
    "/etc/passwd": "leads to another folder",
    "../.bashrc": "leads to another folder",
    "a/b": "leads to another folder",
    "a/": "leads to another folder",
    "a\0b": "control",
    "a\nb": "control",
    "\x1b[2J": "control",
    "\x9b31m": "control",
    "a\u2028b": "control",
    "x" * 256: "too long",
    "é" * 128: "too long",
    "\ud800": "not text",
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Destination]:
    with Destination.open(str(tmp_path / "made" / "destination")) as opened:
        yield opened


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(NameRefusedError, match=REFUSED[name]):
        checked_name(name)


@pytest.mark.parametrize("name", ["syslog", ".profile", "it's a name", "ä", "a\udcff", "-rf", "...", "x" * 255])
def test_a_name_that_stays_in_its_folder_is_taken(name: str) -> None:
    assert checked_name(name) == name


def test_a_name_must_match_what_was_typed() -> None:
    assert checked_name("app.log", "*.log") == "app.log"
    for name in (".bashrc", "app.log.sh", "authorized_keys"):
        with pytest.raises(NameRefusedError, match="does not match"):
            checked_name(name, "*.log")


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("*", ["a", "a.b"], [".a"]),
        (".*", [".a"], ["a"]),
        ("?", ["a", "?"], [".", "ab"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "Ax", "]x"]),
        ("[!a]x", ["bx"], ["ax"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("[z-a]", [], ["z", "a"]),
        ("[[.]", ["["], ["a"]),
        ("a[b", ["a[b"], ["ab"]),
        (r"\*", ["*"], ["a"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a**b", ["ab", "axxb"], ["a", "b"]),
        ("(a|b)+", ["(a|b)+"], ["a"]),
    ],
)
def test_patterns_are_those_of_a_shell(pattern: str, matches: list[str], others: list[str]) -> None:
    assert [name for name in [*matches, *others] if is_match(name, pattern)] == matches


def test_links_and_special_files_in_the_way_are_refused(folder: Destination, tmp_path: Path) -> None:
    made = Path(folder.path)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (made / "link").symlink_to(precious)
    (made / "dangling").symlink_to(tmp_path / "nothing")
    (made / "folder").mkdir()
    (made / "to folder").symlink_to(tmp_path)
    os.mkfifo(made / "fifo")
    (made / "file").write_text("older")
    folder.check("file", is_typed=False)
    folder.check("new", is_typed=False)
    folder.check("link", is_typed=True)  # it is replaced itself
    for name, is_typed in (("link", False), ("dangling", False), ("fifo", False), ("fifo", True), ("folder", True)):
        with pytest.raises(NameRefusedError):
            folder.check(name, is_typed=is_typed)
    for name in ("to folder", "link", "fifo", "file"):
        with pytest.raises(NameRefusedError, match="not a folder"):
            folder.folder(name)
    assert precious.read_text() == "mine"


def test_folders_are_made_below_the_destination_only(folder: Destination, tmp_path: Path) -> None:
    with folder.folder("web01") as inner:
        partial = inner.begin(inner.new_name("x"))
        partial.file.write(b"words")
        inner.place(partial, "x", 0o644)
        partial.close()
    assert (tmp_path / "made/destination/web01/x").read_bytes() == b"words"
    with folder.folder("web01") as again:  # it is there
        assert again.path.endswith("/web01")


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o000])
def test_a_mode_has_no_more_than_the_umask_gives(folder: Destination, mask: int) -> None:
    older = os.umask(mask)
    try:
        partial = folder.begin(folder.new_name("x"))
        folder.place(partial, "x", 0o7777)
    finally:
        os.umask(older)
    partial.close()
    placed = os.stat(folder.path_of("x"))
    assert stat.S_IMODE(placed.st_mode) == 0o777 & ~mask
    assert os.listdir(folder.path) == ["x"]


def test_a_partial_copy_is_ours_alone_whatever_the_umask(folder: Destination) -> None:
    older = os.umask(0)
    try:
        partial = folder.begin("new")
    finally:
        os.umask(older)
    partial.close()
    assert stat.S_IMODE(os.stat(folder.path_of("new")).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(folder.path_of("new/part")).st_mode) == 0o600


def test_the_name_of_a_partial_copy_cannot_be_guessed() -> None:
    names = {new_folder("/folder/x") for _ in range(100)}
    assert len(names) == 100
    assert all(re.fullmatch(r"/folder/\.x\.[0-9a-f]{16}\.part", name) for name in names)


def test_a_name_that_is_taken_is_never_used(folder: Destination, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", folder.path_of("taken"))
    with pytest.raises(FileExistsError):
        folder.begin("taken")
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_partial_copy_that_was_changed_is_not_resumed(folder: Destination, change: Callable[[Path], None]) -> None:
    name = folder.new_name("x")
    folder.begin(name).close()
    whole = folder.resume(name)
    assert whole is not None
    whole.close()
    change(Path(folder.path_of(name)))
    assert folder.resume(name) is None


def test_a_partial_copy_of_another_account_is_not_resumed(folder: Destination, as_root: None) -> None:
    with throw_away_account() as account:
        folder.begin("theirs").close()
        os.chown(folder.path_of("theirs"), account.uid, account.gid)
        assert folder.resume("theirs") is None
        folder.discard("theirs")
    assert os.listdir(folder.path_of("theirs")) == ["part"], "what isn't ours is left alone"


def test_what_is_discarded_is_gone_and_nothing_else_is(folder: Destination, tmp_path: Path) -> None:
    folder.begin("one").close()
    discard_at(folder.path_of("one"))
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "elsewhere/part").write_text("mine")
    os.symlink(tmp_path / "elsewhere", folder.path_of("two"))
    discard_at(folder.path_of("two"))
    assert os.listdir(folder.path) == ["two"]
    assert (tmp_path / "elsewhere/part").read_text() == "mine"
    discard_at("/nonexistent/folder/x")


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r".") as error:
        Destination.open(str(tmp_path / "file"))
    assert error.value.errno in (errno.ENOTDIR, errno.EEXIST)


@pytest.mark.parametrize(
    ("mode", "is_own", "is_closed"),
    [
        ("drwx------", True, True),
        ("drwx------.", True, True),  # SELinux
        ("drwx------+", True, True),  # an ACL with an empty mask
        ("drwx--S---", True, True),
        ("drwxr-xr-x", False, True),  # vfat
        ("drwxrwx---", False, False),
        ("drwxrwxrwx", False, False),
        ("drwx----w-", False, False),
        ("lrwx------", False, False),
        ("-rw-------", False, False),
        ("", False, False),
    ],
)
def test_which_folders_are_ours(mode: str, is_own: bool, is_closed: bool) -> None:
    folder = Entry("x", mode, 2, 1000, 0)
    assert (is_own_folder(folder, 1000), is_written_by_us_alone(folder, 1000)) == (is_own, is_closed)
    for uid in (1001, None):
        assert not is_own_folder(folder, uid)
        assert not is_written_by_us_alone(folder, uid)
