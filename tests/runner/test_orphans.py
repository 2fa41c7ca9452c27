"""What a dead supervisor has left: found by what marks it, and nobody else."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cronium_runner import orphans
from cronium_runner.orphans import Orphans
from runner_process import PATIENCE, processes_with, wait_until

SOCKET = f"/nowhere/{os.getpid():08x}"


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A stranger, ended after the test."""
    started = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield started
    started.kill()
    started.wait()


def test_orphans_are_known_by_what_they_inherited_and_others_are_left_alone(sleeper: "subprocess.Popen[bytes]") -> None:
    left = Orphans(f"CRONIUM_SOCKET={SOCKET}", None, None)
    environment = {**os.environ, "CRONIUM_SOCKET": SOCKET}
    with subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True) as orphan:
        marked = b"CRONIUM_SOCKET=" + SOCKET.encode()
        wait_until(lambda: marked in orphans._environment(orphan.pid), "the orphan's environment")
        assert left.may_be_left()
        Orphans(f"CRONIUM_SOCKET={SOCKET[:-1]}", None, None).signal(signal.SIGKILL)
        assert orphan.poll() is None
        assert left.signal(signal.SIGKILL)
        assert orphan.wait(PATIENCE) == -signal.SIGKILL
    assert sleeper.poll() is None
    wait_until(lambda: not left.may_be_left(), "a look that finds nobody")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize("refused", ["os.pidfd_open", "signal.pidfd_send_signal"])
def test_a_filter_of_system_calls_protects_nobody(
    refused: str, number: int, sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(refused, refuse)
    left = Orphans(f"CRONIUM_SOCKET={SOCKET}", None, None)
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "CRONIUM_SOCKET": SOCKET}) as orphan:
        wait_until(lambda: left.signal(signal.SIGKILL), "the orphan's environment")
        assert orphan.wait(PATIENCE) == -signal.SIGKILL
    assert sleeper.poll() is None


def test_one_that_forks_and_ends_for_ever_is_caught(sleeper: "subprocess.Popen[bytes]") -> None:
    loop = "import os\nwhile True:\n if os.fork(): os._exit(0)\n os.setsid()\n"
    left = Orphans(f"CRONIUM_SOCKET={SOCKET}", None, None)
    with subprocess.Popen([sys.executable, "-c", loop], env={**os.environ, "CRONIUM_SOCKET": SOCKET}) as first:
        first.wait()
    assert left.may_be_left()
    wait_until(lambda: not left.signal(signal.SIGKILL), "its end")
    assert processes_with(f"CRONIUM_SOCKET={SOCKET}\0") == []
    assert sleeper.poll() is None


def test_without_a_descriptor_to_look_nobody_passes_for_a_stranger() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            orphans._environment(os.getpid())
        with pytest.raises(OSError, match="Too many open files"):
            orphans._command(os.getpid())
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
