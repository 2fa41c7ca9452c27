"""The helper folder of a runner that runs from source, and which directories may hold an installation."""

import errno
import hashlib
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cronium_runner import bundle, install, location
from cronium_runner.errors import RunnerError
from cronium_runner.helpers import HELPER_NAMES


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRONIUM_INSTALL_DIR", str(tmp_path / "root"))
    monkeypatch.delenv(install.CLIENT_VARIABLE, raising=False)
    return tmp_path / "root"


def test_helper_folder_has_every_name_and_both_libraries(root: Path) -> None:
    folder = install.helper_folder()
    assert set(os.listdir(folder.bin)) == {*HELPER_NAMES, "cronium.sh"}
    assert set(os.listdir(folder.python)) == {"cronium.py", "sitecustomize.py"}
    assert set(os.listdir(folder.node)) == {"cronium.js", "cronium.d.ts", "package.json"}
    assert os.listdir(folder.modules) == ["cronium.py"]
    assert os.path.samefile(f"{folder.modules}/cronium.py", f"{folder.python}/cronium.py")
    assert os.path.commonpath([*map(str, (folder.bin, folder.python, folder.node)), root]) == str(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_helper_folder_is_made_once(root: Path) -> None:
    first = install.helper_folder()
    made = os.stat(first.bin).st_ino
    assert install.helper_folder() == first
    assert os.stat(first.bin).st_ino == made
    assert len(os.listdir(root)) == 1


def test_helper_folder_comes_back_when_it_is_removed() -> None:
    folder = install.helper_folder()
    bundle.remove(os.path.dirname(folder.bin))
    assert not os.path.exists(folder.bin)
    assert os.path.exists(install.helper_folder().bin)


def make_folder(_: int) -> str:
    return install.helper_folder().bin


def test_helper_folder_made_by_many_at_once(root: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        made = pool.map(make_folder, range(16), chunksize=1)
    assert len(set(made)) == 1
    assert len(os.listdir(root)) == 1


def test_launcher_is_isolated_from_the_jobs_python_settings(tmp_path: Path) -> None:
    (tmp_path / "socket.py").write_text("raise SystemExit(99)")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nonexistent"}
    command = os.path.join(install.helper_folder().bin, "cronium.input")
    done = subprocess.run([command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: cronium.input")


def test_a_named_client_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tmp_path / "client"
    client.write_text('#!/bin/sh\nbasename "$0"\n')
    without = install.helper_folder()
    monkeypatch.setenv(install.CLIENT_VARIABLE, str(client))
    folder = install.helper_folder()
    assert folder != without
    done = subprocess.run([f"{folder.bin}/cronium.event"], capture_output=True, text=True, check=True)
    assert done.stdout == "cronium.event\n"


def test_a_missing_client_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(install.CLIENT_VARIABLE, "/nonexistent/client")
    with pytest.raises(RunnerError, match="/nonexistent/client") as caught:
        install.helper_folder()
    assert caught.value.code == "install.unusable"


def test_there_is_nothing_to_install_from_source(tmp_path: Path) -> None:
    assert install.installed_executable() is None
    assert install.own_bundle() is None
    with pytest.raises(RunnerError, match="scripts/build") as caught:
        install.install(str(tmp_path / "x"))
    assert caught.value.code == "install.unusable"


@pytest.mark.parametrize(
    ("kind", "why"), [("link", "not a directory"), ("open", "mode 0750"), ("file", "not a directory")]
)
def test_a_root_that_others_could_change_is_refused(kind: str, why: str, root: Path, tmp_path: Path) -> None:
    if kind == "link":
        (tmp_path / "real").mkdir(mode=0o700)
        root.symlink_to(tmp_path / "real")
    elif kind == "file":
        root.touch(0o700)
    else:
        root.mkdir()
        root.chmod(0o750)
    with pytest.raises(RunnerError, match=f"{root} (is|has) {why}") as caught:
        install.helper_folder()
    assert caught.value.code == "install.unusable"
    assert "CRONIUM_INSTALL_DIR" in caught.value.message


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also root's: an ordinary account would believe what root keeps there, and could not write it."""
    (tmp_path / "root").mkdir(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4343)
    with pytest.raises(location.UnusableError, match="belongs to uid"):
        location.check_private(str(tmp_path / "root"))


def test_home_is_the_password_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRONIUM_INSTALL_DIR")
    expected = location.roots()
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert location.roots() == expected
    assert expected[-1].endswith(f"cronium-runner-{os.geteuid()}")


def bundle_of(files: dict[str, bytes]) -> bundle.Bundle:
    lines = [f"f 0600 {len(content)} {path}" for path, content in files.items()]
    return bundle.Bundle("\n".join([bundle.MAGIC, "1.0 0123456789ab c t", "l ../a links/b", *lines]) + "\n")


def test_placing_a_bundle_is_whole_or_not_at_all(tmp_path: Path) -> None:
    files = {"a": b"one", "folder/b": b"two"}
    wanted = bundle_of(files)
    goal = str(tmp_path / wanted.folder)
    with pytest.raises(location.UnusableError, match="folder/b"):
        bundle.place(wanted, goal, lambda path: files[path] if path == "a" else b"")
    assert os.listdir(tmp_path) == []
    bundle.place(wanted, goal, files.__getitem__)
    assert wanted.damage(goal, lambda _: False) is None, "nothing has to be compared"
    assert os.listdir(tmp_path) == [wanted.folder]
    assert bundle.read(os.path.join(goal, bundle.CONTENTS)).text == wanted.text


@pytest.mark.parametrize("damage", ["missing", "shorter", "mode", "link", "contents"])
def test_a_damaged_bundle_is_noticed_and_replaced(damage: str, tmp_path: Path) -> None:
    files = {"a": b"one"}
    wanted = bundle_of(files)
    goal = tmp_path / wanted.folder
    bundle.place(wanted, str(goal), files.__getitem__)
    if damage == "missing":
        (goal / "a").unlink()
    elif damage == "contents":
        (goal / bundle.CONTENTS).unlink()
    elif damage == "shorter":
        (goal / "a").write_bytes(b"on")
    elif damage == "mode":
        (goal / "a").chmod(0o644)
    else:
        (goal / "links/b").unlink()
    assert wanted.damage(str(goal), lambda _: True) is not None
    bundle.place(wanted, str(goal), files.__getitem__)
    assert wanted.damage(str(goal), lambda _: False) is None
    assert os.listdir(tmp_path) == [wanted.folder]


def test_a_file_of_another_time_than_the_list_is_compared(tmp_path: Path) -> None:
    """Also in a copy of the form that wrote the list of contents last."""
    files = {"a": b"one"}
    wanted = bundle_of(files)
    goal = tmp_path / wanted.folder
    bundle.place(wanted, str(goal), files.__getitem__)
    listed = (goal / bundle.CONTENTS).stat()
    os.utime(goal / "a", ns=(0, 0))
    os.utime(goal / bundle.CONTENTS, ns=(listed.st_atime_ns, listed.st_mtime_ns))
    assert wanted.damage(str(goal), lambda _: False) == "a"
    assert wanted.damage(str(goal), lambda _: True) is None
    assert wanted.damage(str(goal), lambda _: False) is None, "noted as it was built"
    assert wanted.damage(str(goal), lambda _: False, thorough=True) == "a"


def test_a_file_whose_time_was_set_back_is_compared(tmp_path: Path) -> None:
    wanted = bundle_of({"a": b"one"})
    goal = tmp_path / wanted.folder
    bundle.place(wanted, str(goal), {"a": b"one"}.__getitem__)
    listed = (goal / bundle.CONTENTS).stat()
    (goal / "a").write_bytes(b"two")
    while (goal / "a").stat().st_ctime_ns <= listed.st_ctime_ns:  # of one tick of the kernel's clock
        os.utime(goal / "a")
    os.utime(goal / "a", ns=(listed.st_atime_ns, listed.st_mtime_ns))
    assert wanted.damage(str(goal), lambda path: (goal / path).read_bytes() == b"one") == "a"


def test_a_file_is_as_built_by_its_digest(tmp_path: Path) -> None:
    listed = bundle_of({"a": b"one", "old": b"one"}).text + f"s {hashlib.sha256(b'one').hexdigest()} a\n"
    wanted = bundle.Bundle(listed)
    (tmp_path / "a").write_bytes(b"one")
    assert wanted.is_as_built(str(tmp_path), "a")
    assert wanted.is_as_built(str(tmp_path), "old"), "a list of 0.1.0 has no digest"
    (tmp_path / "a").write_bytes(b"two")
    assert not wanted.is_as_built(str(tmp_path), "a")
    (tmp_path / "a").unlink()
    assert not wanted.is_as_built(str(tmp_path), "a")


LIBRARY = "_internal/libc.so.6"
EXCHANGED = f"a 7 {'0' * 64} {LIBRARY}\n"


def test_exchanged_libraries_stand_behind_the_list() -> None:
    built = bundle_of({LIBRARY: b"built", "a": b"one"}).text + f"s {'1' * 64} {LIBRARY}\ns {'2' * 64} a\n"
    found = bundle.Bundle(built + EXCHANGED)
    assert (found.text, found.built_text, found.adopted) == (built + EXCHANGED, built, [LIBRARY])
    assert found.files == [(LIBRARY, 0o600, 7), ("a", 0o600, 3)]
    assert found.digests == {LIBRARY: "0" * 64, "a": "2" * 64}
    plain = bundle.Bundle(built)
    assert (plain.built_text, plain.adopted, plain.folder) == (built, [], found.folder)


@pytest.mark.parametrize(
    "lines",
    [
        EXCHANGED.replace("a 7", "a x"),
        EXCHANGED.replace("0" * 64, "0" * 63),
        EXCHANGED.replace("libc.so.6", "other.so"),
        EXCHANGED.replace(LIBRARY, "a"),
        EXCHANGED.replace(f" {LIBRARY}", ""),
        EXCHANGED.rstrip(),
        EXCHANGED + "l ../b c\n",
        EXCHANGED + "\n",
        "\n" + EXCHANGED,
    ],
)
def test_list_with_odd_exchanged_libraries_is_refused(lines: str) -> None:
    with pytest.raises(location.UnusableError, match="exchanged"):
        bundle.Bundle(bundle_of({LIBRARY: b"built", "a": b"one"}).text + lines)


def test_a_bundle_takes_no_place_of_others(tmp_path: Path) -> None:
    files = {"folder/a": b"one"}
    wanted = bundle_of(files)
    (tmp_path / "open").mkdir(0o755)
    (tmp_path / "taken").mkdir(0o700)
    (tmp_path / "taken" / "mine").write_text("kept")
    for name, why in (("open", "mode 0755"), ("taken", "already holds something else")):
        with pytest.raises(location.UnusableError, match=why):
            bundle.place(wanted, str(tmp_path / name), files.__getitem__)
    assert (tmp_path / "taken" / "mine").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["open", "taken"]
    mask = os.umask(0)
    try:
        bundle.place(wanted, str(tmp_path / "new"), files.__getitem__)
    finally:
        os.umask(mask)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "new/folder")] == [0o700] * 2
    assert stat.S_IMODE((tmp_path / "new/folder/a").stat().st_mode) == 0o600


def test_a_damaged_or_opened_form_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {bundle.EXECUTABLE: b"one"}
    digest = hashlib.sha256(b"one").hexdigest()
    wanted = bundle.Bundle(bundle_of(files).text + f"s {digest} {bundle.EXECUTABLE}\n")
    goal = tmp_path / "root" / wanted.folder
    goal.parent.mkdir(0o700)
    bundle.place(wanted, str(goal), files.__getitem__)
    monkeypatch.setattr(install, "installed_executable", lambda: str(goal / bundle.EXECUTABLE))
    monkeypatch.setattr(install, "own_bundle", lambda: wanted)
    install.check()
    goal.parent.chmod(0o777)
    with pytest.raises(RunnerError) as opened:
        install.check()
    assert opened.value.code == "install.unusable"
    goal.parent.chmod(0o700)
    (goal / bundle.EXECUTABLE).write_bytes(b"two")
    wanted.stamp(str(goal))  # as a tick of the clock that is long enough may hide a write from its times
    install.check()
    for call in (lambda: install.check(thorough=True), lambda: install.install(str(tmp_path / "root" / "copy"))):
        with pytest.raises(RunnerError) as damaged:
            call()
        assert damaged.value.code == "install.damaged"
    assert os.listdir(tmp_path / "root") == [wanted.folder]


def test_version_imports_little() -> None:
    """A deployment asks each host for it."""
    program = "import sys, os, pwd; before = set(sys.modules)\n"
    program += "from cronium_runner import version\nprint(*(set(sys.modules) - before))"
    path = str(Path(install.__file__).parents[1])
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {path!r})\n{program}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {name for name in done.stdout.split() if not name.startswith("cronium_runner")} <= {
        "__future__",
        "stat",
    }


@pytest.mark.parametrize("is_there", [False, True])
def test_root_in_a_folder_that_all_may_write_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    opened = tmp_path / "opened"
    opened.mkdir()
    if is_there:
        (opened / "root").mkdir(0o700)
    opened.chmod(0o777)
    roots = [str(opened / "root"), str(tmp_path / "home" / "root")]
    monkeypatch.setattr(location, "roots", lambda: roots)
    assert location.first_usable(lambda root: root) == roots[1]
    assert os.listdir(opened) == ["root"] * is_there, "nothing is made there"
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    roots.pop()
    with pytest.raises(location.UnusableError, match=f"chmod g-w,o-w {opened}"):
        location.first_usable(lambda root: root)


def test_nothing_is_installed_or_used_in_an_opened_folder(tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    opened.mkdir()
    opened.chmod(0o777)
    with pytest.raises(location.UnusableError, match=f"chmod g-w,o-w {opened}"):
        location.make_parent(str(opened / "folder" / "form"))
    assert os.listdir(opened) == []
    (opened / "form").mkdir(0o700)
    with pytest.raises(location.UnusableError, match=f"chmod g-w,o-w {opened}"):
        location.check_installed(str(opened / "form"))


def test_a_place_mounted_noexec_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbidden = str(tmp_path / "noexec")
    seen = os.statvfs

    def told(path: str) -> object:
        return SimpleNamespace(f_flag=os.ST_NOEXEC) if path == forbidden else seen(path)

    monkeypatch.setattr(os, "statvfs", told)
    with pytest.raises(location.UnusableError, match="noexec"):
        location.make_parent(f"{forbidden}/form")
    monkeypatch.setattr(location, "roots", lambda: [forbidden, str(tmp_path / "other")])
    assert location.first_usable(lambda root: root) == str(tmp_path / "other")


def test_a_root_that_fails_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [str(tmp_path / "full"), str(tmp_path / "other")]
    monkeypatch.setattr(location, "roots", lambda: roots)

    def attempt(root: str) -> str:
        if root == roots[0]:
            raise OSError(errno.ENOSPC, "")
        return root

    assert location.first_usable(attempt) == roots[1]
    roots.pop()
    with pytest.raises(location.UnusableError, match=r"full cannot be used \(No space left"):
        location.first_usable(attempt)
