"""Directories that another user could exchange: the table of cases, on real trees, for Python and for the host's sh."""

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cronium_runner import safe_path
from cronium_runner.wire import safe_shell

TABLE = json.loads((Path(__file__).parents[1] / "safe_path_cases.json").read_text())
CASES = [pytest.param(case, id=case["case"].replace(" ", "-")) for case in TABLE["cases"]]
RESOLVED = [pytest.param(case, id=case["case"].replace(" ", "-")) for case in TABLE["cases"] if "resolved" not in case]
APP = 4242
REMEDIES = {
    "home writable by all": "chmod g-w,o-w /home/app",
    "home writable by a shared group": "chmod g-w /home/app",
    "0755 in a sticky directory": "chmod 700 /tmp/x",
    "root's in a sticky directory": "",
    "leaf of another account": "",
}
"""What helps, by case; nothing where only somebody else can do it."""


@pytest.fixture
def root(tmp_path: Path, as_root: None) -> Path:
    """Where a case's tree is made: the root directory of the process that asks."""
    made = tmp_path / "root"
    made.mkdir()
    return made


def build(root: Path, case: dict[str, Any]) -> None:
    """Makes the tree of a case, and /etc."""
    for line in case["tree"]:
        kind, *words = line.split()
        if kind == "l":
            owner, path, _, target = words
            (root / path.lstrip("/")).symlink_to(target)
        else:
            mode, owner, path = words
            (root / path.lstrip("/")).mkdir(exist_ok=True)
        uid, gid = map(int, owner.split(":"))
        os.lchown(root / path.lstrip("/"), uid, gid)
        if kind == "d":
            (root / path.lstrip("/")).chmod(int(mode, 8))
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc").chmod(0o755)
    for name in ("passwd", "group"):
        (root / "etc" / name).write_text("\n".join(case.get(name, TABLE[name])) + "\n")
        (root / "etc" / name).chmod(0o644)


def as_app(root: Path, question: Callable[[], str], account: int = APP) -> str:
    """What `question` returns in a process of the account that has `root` as its root directory."""
    told, telling = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.chroot(root)
            os.chdir("/")
            os.setgroups([])
            os.setresgid(account, account, account)
            os.setresuid(account, account, account)
            os.write(telling, question().encode())
        except BaseException as error:
            os.write(telling, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(telling)
    with open(told, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(pid, 0)
    return said


def modes(root: Path) -> dict[str, int]:
    found = {}
    for folder, names, _ in os.walk(root):
        for name in names:
            path = Path(folder, name)
            found[f"/{path.relative_to(root)}"] = stat.S_IMODE(path.lstat().st_mode)
    return found


def check_verdict(case: dict[str, Any], root: Path, said: str, before: dict[str, int]) -> None:
    if case["verdict"] == "passes":
        assert said == "passes"
    else:
        assert said.startswith(f"{case['at']} " if "at" in case else "OSError: [Errno 40]"), said
    changed = {path: mode for path, mode in modes(root).items() if before.get(path) != mode}
    if case["verdict"] == "passes":
        assert changed == {path: before[path] & ~0o022 for path in case.get("tightened", [])}
    else:
        assert changed == {}


def ask(path: str) -> Callable[[], str]:
    def question() -> str:
        try:
            safe_path.check(path)
        except safe_path.UnsafePathError as error:
            return f"{error}: {error.remedy}" if error.remedy else str(error)
        return "passes"

    return question


class Facts:
    """A tree that is told of and not there, so that the table is gone through without root's rights."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.found: dict[str, os.stat_result] = {}
        self.targets: dict[str, str] = {}
        self.files = {f"/etc/{name}": case.get(name, TABLE[name]) for name in ("passwd", "group")}
        self.tightened: list[str] = []
        for line in case["tree"]:
            kind, *words = line.split()
            if kind == "l":
                owner, path, _, self.targets[path] = words
                mode = stat.S_IFLNK | 0o777
            else:
                mode, owner, path = stat.S_IFDIR | int(words[0], 8), words[1], words[2]
            self.found[path] = os.stat_result((mode, 0, 0, 1, *map(int, owner.split(":")), 0, 0, 0, 0))

    def chmod(self, path: str, mode: int) -> None:
        self.found[path] = os.stat_result((stat.S_IFDIR | mode, *self.found[path][1:]))
        self.tightened.append(path)

    def lines(self, path: str, _count: int) -> list[list[str]]:
        return [line.split(":") for line in self.files[path]]


@pytest.mark.parametrize("case", CASES)
def test_table_of_facts(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Facts(case)
    with monkeypatch.context() as patched:
        patched.setattr(os, "lstat", facts.found.__getitem__)
        patched.setattr(os, "readlink", facts.targets.__getitem__)
        patched.setattr(os, "chmod", facts.chmod)
        patched.setattr(os, "geteuid", lambda: APP)
        patched.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd(("app", "x", APP, APP, "", "", "")))
        patched.setattr(safe_path, "_lines", facts.lines)
        try:
            said = ask(case["path"])()
        except OSError as error:
            said = f"OSError: {error}"
    expected = "passes" if case["verdict"] == "passes" else f"{case.get('at', 'OSError: [Errno 40]')} "
    assert f"{said} ".startswith(expected)
    assert said.partition(": ")[2] == REMEDIES.get(case["case"], said.partition(": ")[2])
    assert facts.tightened == case.get("tightened", [])


@pytest.mark.parametrize("case", CASES)
def test_table(case: dict[str, Any], root: Path) -> None:
    build(root, case)
    before = modes(root)
    check_verdict(case, root, as_app(root, ask(case["path"])), before)


def test_what_cannot_be_tightened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that is read-only."""

    def refuse(path: str, _mode: int) -> None:
        raise PermissionError(path)

    (tmp_path / ".local").mkdir()
    (tmp_path / ".local").chmod(0o777)
    monkeypatch.setattr(os, "chmod", refuse)
    assert ask(str(tmp_path / ".local"))().startswith(f"{tmp_path}/.local can be written by every user")


def test_what_changes_before_it_is_tightened_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have exchanged what is below a directory until no other user can write it."""
    changed = os.chmod

    def late(path: str, mode: int) -> None:
        changed(path, mode)
        if path == str(tmp_path / ".local"):
            changed(tmp_path, 0o777)

    (tmp_path / ".local").mkdir()
    (tmp_path / ".local").chmod(0o777)
    monkeypatch.setattr(os, "chmod", late)
    assert ask(str(tmp_path / ".local"))().startswith(f"{tmp_path} can be written by every user")


def test_what_changes_before_the_launcher_tightens_it_is_seen(tmp_path: Path, asking: Path) -> None:
    (tmp_path / ".local").mkdir()
    (tmp_path / ".local").chmod(0o777)
    environment = os.environ | {"OPENED": str(tmp_path)}
    done = subprocess.run([asking, tmp_path / ".local"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path} can be written by every user")


LAUNCHER = Path(__file__).parents[2] / "build" / "launcher"
ASKING = """
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "launcher.h"
int chmod(const char *path, mode_t mode) { /* in place of the C library's; with $OPENED another user is quicker */
    const char *opened = getenv("OPENED");
    if (opened != NULL && fchmodat(AT_FDCWD, opened, 0777, 0) != 0)
        return -1;
    return fchmodat(AT_FDCWD, path, mode, 0);
}
int main(int argc, char **argv) {
    int outcome = argc == 2 ? check_safe(argv[1]) : FAILED;
    if (outcome == FAILED)
        printf("OSError: [Errno %d] %s", errno, strerror(errno));
    else
        printf("%s", outcome == DONE ? "passes" : reason);
    return 0;
}
"""


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that asks the launcher's code."""
    pytest.importorskip("ziglang")
    folder = tmp_path_factory.mktemp("launcher")
    (folder / "main.c").write_text(ASKING)
    files = [str(folder / "main.c"), *(str(LAUNCHER / name) for name in ("safe_path.c", "paths.c"))]
    compile_ = [sys.executable, "-m", "ziglang", "cc", "-target", f"{os.uname().machine}-linux-musl", "-static"]
    subprocess.run([*compile_, "-std=gnu11", f"-I{LAUNCHER}", "-o", str(folder / "ask"), *files], check=True)
    return folder / "ask"


@pytest.mark.parametrize("case", CASES)
def test_table_in_the_launcher(case: dict[str, Any], root: Path, asking: Path) -> None:
    build(root, case)
    before = modes(root)
    shutil.copy(asking, root / "etc" / "ask")
    (root / "etc" / "ask").chmod(0o755)
    check_verdict(case, root, as_app(root, lambda: said_by(["/etc/ask", case["path"]])), before)


@pytest.mark.parametrize("form", ["python", "launcher"])
def test_root_tightens_nothing_of_another_account(root: Path, asking: Path, form: str) -> None:
    """Its chmod would succeed, and the owner could open the directory again."""
    case: dict[str, Any] = {
        "tree": ["d 0755 0:0 /", "d 0700 0:0 /root", f"d 0777 {APP}:{APP} /root/.local"],
        "verdict": "refused",
        "at": "/root/.local",
    }
    build(root, case)
    before = modes(root)
    shutil.copy(asking, root / "etc" / "ask")
    (root / "etc" / "ask").chmod(0o755)
    question = ask("/root/.local") if form == "python" else lambda: said_by(["/etc/ask", "/root/.local"])
    check_verdict(case, root, as_app(root, question, account=0), before | {"/etc/ask": 0o755})


SHELLS = [["dash"], ["bash", "--posix"], ["busybox", "sh"]]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shells that are here, `ls` and what else the text needs, with their libraries, as below a root directory."""
    folder = tmp_path_factory.mktemp("programs")
    for name in (*(shell[0] for shell in SHELLS), "ls", "id", "chmod", "tr"):
        program = shutil.which(name)
        needed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
        libraries = [word for line in needed.splitlines() for word in line.split() if word.startswith("/")]
        for file in [program, *libraries] if program else []:
            copy = folder / file.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    (folder / "dev").mkdir()
    (folder / "dev" / "null").touch()
    (folder / "dev" / "null").chmod(0o666)
    return folder


def give(root: Path, programs: Path) -> None:
    """Puts the programs into `root`, as links to the same files."""
    for folder, _, files in os.walk(programs):
        below = root / os.path.relpath(folder, programs)
        below.mkdir(exist_ok=True)
        if below != root:
            below.chmod(0o755)
        for name in files:
            os.link(Path(folder, name), below / name)


@pytest.mark.parametrize("case", RESOLVED)
def test_table_in_shell(case: dict[str, Any], root: Path, programs: Path) -> None:
    script = f"{safe_shell.entering(case['path'])}{safe_shell.CHECK}echo passes"
    for name, *options in SHELLS:
        program = shutil.which(name)
        if program is None:
            continue
        here = root / name
        here.mkdir()
        build(here, case)
        give(here, programs)
        before = modes(here)
        check_verdict(case, here, as_app(here, lambda: said_by([program, *options, "-c", script])), before)  # noqa: B023


def said_by(words: list[str]) -> str:
    """What the text says; its own complaint without the mark."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == safe_shell.UNSAFE:
        return done.stderr.removeprefix(f"{safe_shell.WORD} ")
    return done.stdout.strip() + done.stderr


@pytest.mark.parametrize("line", ["-rwx------ 2 0 0 64 /", "cannot", None], ids=["a file", "words", "nothing"])
def test_shell_refuses_what_it_cannot_read(tmp_path: Path, line: str | None) -> None:
    """Of an `ls` that prints something else for a directory, or nothing."""
    fake = tmp_path / "ls"
    fake.write_text("#!/bin/sh\n" if line is None else f"#!/bin/sh\nshift 2\nfor each; do echo '{line}'; done\n")
    fake.chmod(0o700)
    script = f"{safe_shell.entering('/')}{safe_shell.CHECK}echo passes"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (safe_shell.UNSAFE, "")


def test_shell_enters_what_is_meant_whatever_cdpath_says(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder / ".local").mkdir(parents=True)
    environment = {**os.environ, "CDPATH": str(tmp_path / "there")}
    words = ["sh", "-c", f"{safe_shell.entering('.local')}pwd"]
    done = subprocess.run(words, cwd=tmp_path / "here", env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/here/.local\n"


def test_shell_makes_nothing_in_an_unsafe_place_and_all_else_private(tmp_path: Path) -> None:
    def make(path: Path) -> int:
        words = ["sh", "-c", f'umask 000; {safe_shell.FUNCTIONS}make_safe "$1"', "sh", str(path)]
        return subprocess.run(words, capture_output=True, check=False).returncode

    (tmp_path / "opened").mkdir()
    (tmp_path / "opened").chmod(0o777)
    assert make(tmp_path / "opened" / "a" / "b") != 0
    assert os.listdir(tmp_path / "opened") == []
    assert make(tmp_path / "a" / "b") == 0
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")] == [0o700] * 2
    (tmp_path / "a" / "b").chmod(0o777)
    assert make(tmp_path / "a" / "b") != 0, "one that was there is looked at as well"
