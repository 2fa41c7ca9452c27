"""TAB in real shells: each is given what `cronium completion` prints, and then a line that is not finished."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import preloaded
from cronium_controller.hosts import parse_host
from cronium_controller.store import Store

_MAIN = "from cronium_controller.cli import main; main()"
PATIENCE = 30.0
_HOSTS = """hosts:
  web01: 10.0.0.1
  web02: 10.0.0.2
  db1: 10.0.0.3
groups:
  web: [web01, web02]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the shell is: a hosts file, an alias of SSH's, a script, and three executions that were submitted."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/cronium").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{_MAIN}" "$@"\n')
    (tmp_path / "bin/cronium").chmod(0o700)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host bastion\n  HostName 192.0.2.1\n")
    (tmp_path / "hosts.yaml").write_text(_HOSTS)
    (tmp_path / "script.sh").write_text("true\n")
    store = Store(tmp_path / "state/controller.db")
    for name in ("nightly-1", "weekly.0123456789ab", "weekly.ba9876543210"):
        store.record(name, parse_host("web01"), "0" * 64, "script.sh", 1.0)
    store.close()
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    kept = {"LANG": "C.UTF-8", "TERM": "dumb", "HOME": str(folder), "CRONIUM_CONTROLLER_STATE": str(folder / "state")}
    return kept | {"PATH": f"{folder}/bin:{os.environ['PATH']}"}


def on_a_terminal(folder: Path, command: list[str], load: str, line: str) -> str:
    """What the line has become after TAB, in a shell that reads from a terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvpe(command[0], command, environment(folder))
    try:
        said = b""

        def wait_for(text: bytes) -> None:
            nonlocal said
            deadline = time.monotonic() + PATIENCE
            while text not in said:
                readable, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
                assert readable, f"no {text!r} in {said!r}"
                said += os.read(terminal, 65536)

        os.write(terminal, f"{load}; stty cols 200; echo REA''DY\n".encode())
        wait_for(b"READY")
        said = b""
        # What TAB has made of the line is then printed instead of run: to its begin, `echo`, to its end, a mark.
        os.write(terminal, line.encode() + b"\t\x01echo GOT: \x05 :E''ND\n")
        wait_for(b":END")
        return said.decode().rpartition("GOT: ")[2].partition(":END")[0].strip()
    finally:
        os.close(terminal)  # the shell gets SIGHUP
        os.waitpid(child, 0)


def in_bash(folder: Path, line: str) -> str:
    return on_a_terminal(
        folder,
        ["bash", "--norc", "--noprofile", "-i"],
        'eval "$(cronium completion bash)"; bind "set bell-style none"',
        line,
    )


def in_zsh(folder: Path, line: str) -> str:
    load = 'bindkey -e; autoload -Uz compinit; compinit -u -D; eval "$(cronium completion zsh)"'
    return on_a_terminal(folder, ["zsh", "-f", "-i"], load, line)


SHELLS: dict[str, Callable[[Path, str], str]] = {"bash": in_bash, "zsh": in_zsh}


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("cronium hist", "cronium history"),
        ("cronium run --stop", "cronium run --stop-on-failure"),
        ("cronium run --mode pre", "cronium run --mode prefer-api"),
        ("cronium run --on db", "cronium run --on db1"),
        ("cronium exec --on web01,db", "cronium exec --on web01,db1"),
        ("cronium doctor --host root@bas", "cronium doctor --host root@bastion"),
        ("cronium doctor --host root@", "cronium doctor --host root@bastion"),
        ("cronium attach nigh", "cronium attach nightly-1"),
        ("cronium run --on db1 scr", "cronium run --on db1 script.sh"),
        ("cronium api var", "cronium api variables"),
    ],
)
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_finishes_the_word(folder: Path, shell: str, line: str, completed: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert SHELLS[shell](folder, line) == completed


def test_bash_finishes_behind_an_equals_sign(folder: Path) -> None:
    assert in_bash(folder, "cronium run --on=db") == "cronium run --on=db1"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("cronium hi", {"history": "List the executions"}),
        ("cronium run --on w", {"web01": "10.0.0.1", "web02": "10.0.0.2", "web": "group of 2"}),
        ("cronium run --on web01,d", {"web01,db1": "10.0.0.3"}),
        ("cronium doctor --host bas", {"bastion": ""}),
        ("cronium attach weekly.0", {"weekly.0123456789ab": "submitted on web01"}),
        ("cronium wait w", {"weekly": "on 2 hosts", "weekly.0123456789ab": "", "weekly.ba9876543210": ""}),
        ("cronium put scr", {"script.sh": ""}),
    ],
)
def test_fish_offers_words_with_what_they_mean(folder: Path, line: str, offered: dict[str, str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"cronium completion fish | source; complete -C '{line}'"],
        cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    told = dict((entry + "\t").split("\t")[:2] for entry in done.stdout.splitlines())
    assert set(told) == set(offered), done
    for name, meaning in offered.items():
        assert told[name].startswith(meaning)


def test_tab_where_nothing_is_known_offers_nothing_and_says_nothing(tmp_path: Path) -> None:
    """No hosts file, no database, and one that is none: a line that is being typed is no place for errors."""
    (tmp_path / "state").mkdir()
    for content in (None, "hosts: ["):
        if content is not None:
            (tmp_path / "hosts.yaml").write_text(content)
            (tmp_path / "state/controller.db").write_text(content)
        for words in ("cronium run --on w", "cronium attach x", "cronium run --host x"):
            asked = {"_CRONIUM_COMPLETE": "bash_complete", "COMP_WORDS": words}
            done = preloaded.run("cronium", [], cwd=tmp_path, env=environment(tmp_path) | asked, timeout=PATIENCE)
            assert (done.stdout.strip(), done.stderr) == (b"", b"")
    assert os.listdir(tmp_path / "state") == ["controller.db"]


def test_tab_loads_neither_asyncssh_nor_sqlalchemy(folder: Path) -> None:
    code = (
        "import sys\nfrom cronium_controller.cli import main\ntry: main()\nfinally:\n"
        " loaded = {'asyncssh', 'sqlalchemy', 'cryptography'} & set(sys.modules)\n"
        " assert not loaded, loaded"
    )
    asked = {"_CRONIUM_COMPLETE": "bash_complete", "COMP_WORDS": "cronium wait ni"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder, env=environment(folder) | asked, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("plain,nightly-1\n", "")
