"""A signal is acted on whenever it arrives, also between Python's last look for signals and a read that then blocks."""

import subprocess
import sys

import pytest

from runner_process import PATIENCE

MISSED = """
import os, signal, socket, threading
from cronium_runner import foreground

ours, theirs = socket.socketpair()
signal.signal(signal.SIGTERM, lambda *_: theirs.send(b"heard"))
# As one that comes just before the read: the kernel hands it to the other thread, and so it interrupts nothing here.
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
"""


@pytest.mark.parametrize(
    ("waiting", "told"),
    [
        ("foreground._hear(ours)", "b'heard'"),
        ("foreground.wait_readable(ours.fileno(), 60.0)", "True"),
        ("foreground.wait_readable(theirs.fileno(), 0.4)", "False"),
    ],
)
def test_a_signal_that_interrupts_no_read_is_acted_on_all_the_same(waiting: str, told: str) -> None:
    program = f"{MISSED}print({waiting})"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=PATIENCE, check=True)
    assert done.stdout == f"{told}\n".encode()
