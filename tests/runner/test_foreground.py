"""A signal is acted on whenever it arrives, also between Python's last look for signals and a read that then blocks."""

import subprocess
import sys

import pytest

from runner_process import PATIENCE

MISSED = """
import os, signal, socket, sys, threading
from cronium_runner import foreground

ours, theirs = socket.socketpair()
os.set_blocking(theirs.fileno(), False)
signal.signal(signal.SIGTERM, lambda *_: theirs.send(b"heard"))
# As one that comes just before the read: the kernel hands it to the other thread, and so it interrupts nothing here.
telling = threading.Thread(target=lambda: (ready.wait(), os.kill(os.getpid(), signal.SIGTERM), done.wait()))
ready, done = threading.Event(), threading.Event()
telling.start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
threading.Timer(0.2, ready.set).start()
"""


def test_a_signal_that_interrupts_no_read_is_acted_on_all_the_same() -> None:
    program = MISSED + "print(foreground._hear(ours)); done.set()"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=PATIENCE, check=True)
    assert done.stdout == b"b'heard'\n"


@pytest.mark.parametrize(("seconds", "found"), [(0.2, False), (60.0, True)])
def test_whether_there_is_something_to_read_within_the_time(seconds: float, found: bool) -> None:
    program = MISSED + f"print(foreground.wait_readable(ours.fileno(), {seconds})); ready.set(); done.set()"
    if not found:
        program = program.replace("ready.set).start()", "lambda: None).start()")
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=PATIENCE, check=True)
    assert done.stdout == f"{found}\n".encode()
