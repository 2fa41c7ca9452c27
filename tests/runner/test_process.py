"""Starting real processes, and naming them so that a reused pid is never mistaken for the one that was meant."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cronium_runner import process
from cronium_runner.errors import NotExecutableError
from runner_process import wait_until


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a session of its own, ended after the test."""
    started = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield started
    started.kill()
    started.wait()


def test_a_process_is_alive_until_it_has_ended(sleeper: "subprocess.Popen[bytes]") -> None:
    who = process.identity(sleeper.pid)
    assert process.is_alive(who)
    sleeper.kill()
    wait_until(lambda: not process.is_alive(who), "the end")  # a zombie by now: nobody has waited for it
    assert os.path.exists(f"/proc/{sleeper.pid}")
    sleeper.wait()
    assert not process.is_alive(who)


def test_another_process_with_the_same_pid_is_not_the_one_that_was_named(sleeper: "subprocess.Popen[bytes]") -> None:
    who = process.identity(sleeper.pid)
    assert not process.is_alive({**who, "start": who["start"] - 1})
    assert not process.is_alive({**who, "boot": "of yesterday"})


@pytest.mark.parametrize("who", [None, {}, [], "1", {"pid": "1"}, {"pid": None}, {"pid": 2**22 + 1, "start": 1}, 7])
def test_what_names_nobody_is_not_alive(who: object) -> None:
    assert not process.is_alive(who)


def test_a_command_name_with_spaces_and_parentheses_is_read_rightly() -> None:
    program = "open('/proc/self/comm', 'w').write(') S 1 (x'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as odd:
        assert odd.stdout is not None
        odd.stdout.readline()
        who = process.identity(odd.pid)
        assert process.is_alive(who)
        assert who["start"] > 1
        assert odd.pid in process.descendants(os.getpid())
        odd.communicate(b"\n")
    assert not process.is_alive(who)


def test_descendants_are_all_found_parents_first() -> None:
    command = "sh -c 'sleep 60 & echo $!; wait' & wait"
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, start_new_session=True) as tree:
        assert tree.stdout is not None
        leaf = int(tree.stdout.readline())
        found = process.descendants(tree.pid)
        assert leaf in found
        assert len(found) == 2
        below = process.descendants(os.getpid())
        assert below.index(tree.pid) < below.index(leaf)
        process.send_signal([tree.pid, *found], signal.SIGKILL)
    assert not [pid for pid in found if pid in process.descendants(os.getpid())]


def test_a_signal_to_who_is_gone_is_no_error() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    process.send_signal([gone.pid], signal.SIGTERM)


@pytest.mark.parametrize("program", ["/no/such/program", "/etc/passwd", "/tmp", "with\0nul"])
def test_what_cannot_be_executed_is_one_sentence_and_nothing_runs(program: str) -> None:
    before = process.descendants(os.getpid())
    with pytest.raises(NotExecutableError, match="cannot execute") as caught:
        process.start_script([program], environment={}, stdout=1, stderr=2)
    assert caught.value.exit_status == 126
    assert process.descendants(os.getpid()) == before


@pytest.mark.parametrize("can_spawn", [True, False])
def test_a_started_script_gets_exactly_what_it_was_given(can_spawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a container whose filter of system calls refuses clone3, by which posix_spawn starts."""

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not can_spawn:
        monkeypatch.setattr(os, "posix_spawn", refuse)
    readable, writable = os.pipe()
    argv = ["/bin/sh", "-c", 'echo "$1|$A|$(readlink /proc/self/fd/0)|$(ps -o sid= $$ | tr -d " ")"', "sh", "a b"]
    pid = process.start_script(
        argv, environment={"A": "é", "PATH": os.environ["PATH"]}, stdout=writable, stderr=writable
    )
    os.close(writable)
    with os.fdopen(readable, "rb") as output:
        text = output.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    assert text == f"a b|é|/dev/null|{pid}\n"
