"""login_shell: a login shell's script behaves as if it were started directly, and has the helpers' paths."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cronium_runner.login_shell import with_helpers

PATHS = {"PATH": "/h's/bin", "PYTHONPATH": "/h/modules", "NODE_PATH": "/h/node"}
PROFILE = """
PATH=/usr/bin:/bin
PYTHONPATH=/profile
unset NODE_PATH
from_profile() { echo "a function of the profile"; }
"""
SHOW = 'echo "$PATH|$PYTHONPATH|$NODE_PATH"; env | grep -c "^PATH=\\|^PYTHONPATH=\\|^NODE_PATH="\n'
LOGINS = [
    ["bash", "-l"],
    ["bash", "--login"],
    ["bash", "-eul"],
    ["bash", "-l", "-o", "pipefail", "-eO", "nullglob", "--"],
    ["/bin/sh", "-l"],
    ["dash", "-el", "-u"],
    ["busybox", "sh", "-l"],
    ["zsh", "-l"],
    ["ksh", "-l"],
    ["env", "A=1", "bash", "-l"],
    ["env", "-S", "A=${HOME} bash -l"],
    ["env", "-SA=1 bash -e -l"],
    ["nice", "-n", "1", "timeout", "30", "bash", "-l"],
    ["bash", "-l", "./started"],
]
OTHERS = [
    ["bash"],
    ["bash", "-e"],
    ["bash", "-lc", '. "$1"', "x"],
    ["bash", "-l", "-s"],
    ["bash", "--norc"],
    ["bash", "-l", "found-by-the-shell"],
    ["python3", "-l"],
    ["ls", "-l"],
    ["env", "-S", "bash -l /x"],
    ["bash", "-l", "-o"],
    ["env", "-S"],
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory whose profiles set everything anew."""
    for name in (".profile", ".bash_profile", ".zprofile"):
        (tmp_path / name).write_text(PROFILE)
    (tmp_path / "started").write_text('. "$1"\n')
    return tmp_path


def run(home: Path, command: list[str]) -> "subprocess.CompletedProcess[str]":
    environment = {"HOME": str(home), "PATH": f"{PATHS['PATH']}:{os.environ['PATH']}"}
    return subprocess.run(
        [*command, "one", "two  words"], cwd=home, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("words", LOGINS, ids=" ".join)
def test_the_paths_are_back_behind_the_profiles(home: Path, words: list[str]) -> None:
    if any(shutil.which(word) is None for word in words if word in ("zsh", "ksh", "busybox", "dash")):
        pytest.skip("this shell is not installed")
    script = home / "script"
    script.write_text(SHOW + "from_profile\n")
    command = with_helpers([*words, str(script)], PATHS)
    assert command[-1] == str(script)
    ran = run(home, command)
    assert ran.stdout.splitlines() == [
        "/h's/bin:/usr/bin:/bin|/h/modules:/profile|/h/node",
        "3",
        "a function of the profile",
    ]


@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
def test_every_other_command_stays_as_it_is(words: list[str]) -> None:
    assert with_helpers([*words, "/work/script"], PATHS) == [*words, "/work/script"]


def test_paths_that_are_in_front_stay(home: Path) -> None:
    (home / ".bash_profile").write_text(f'PATH="{PATHS["PATH"]}:/mine"\n')
    (home / "script").write_text("echo $PATH\n")
    assert run(home, with_helpers(["bash", "-l", str(home / "script")], PATHS)).stdout == "/h's/bin:/mine\n"


@pytest.mark.parametrize("shell", [["bash", "-l"], ["bash", "-l", "-e"], ["sh", "-l"]], ids=" ".join)
@pytest.mark.parametrize(
    "text",
    [
        'echo "$0 $# $1 $2"; set -- a; echo "$# $LINENO"; shift; echo $#',
        'echo "${BASH_SOURCE[0]}"; [ "${BASH_SOURCE[0]}" = "$0" ] && echo main',
        "f() { echo $LINENO; return 3; }\n\nf",
        "false\necho after",
        "exit 7",
        "kill -9 $$",
        "trap 'echo bye $?' EXIT\nnothing-like-this\n(exit 4)",
        "if\n",
        "echo 'open",
        "exec sh -c 'echo replaced; exit 5'",
        "exit 0\n\0binary\n",
        "",
    ],
)  # fmt: skip
def test_a_script_behaves_as_if_started_directly(home: Path, shell: list[str], text: str) -> None:
    if "BASH_SOURCE" in text and shell[0] == "sh":
        text = 'echo "$0"'
    script = home / "script"
    script.write_text(text)
    direct, ours = run(home, [*shell, str(script)]), run(home, with_helpers([*shell, str(script)], PATHS))
    assert (ours.stdout, ours.returncode) == (direct.stdout, direct.returncode)
    # dash has the script's name in its complaints twice.
    assert [line.rpartition(": ")[2] for line in ours.stderr.splitlines()] == [
        line.rpartition(": ")[2] for line in direct.stderr.splitlines()
    ]
