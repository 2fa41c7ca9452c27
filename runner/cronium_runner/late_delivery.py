"""Delivering what an execution in API mode has left, when it has ended and the platform can be reached again.

A child of the agent does it, so that no other execution waits, and is then the one writer of that execution's result.
"""

import contextlib
import os
import socket
import threading
import time
from typing import Final

from . import process
from .delivery import DRAIN_SECONDS, Delivery
from .errors import InputError, SystemRefusedError
from .jobdir import ExecutionDirectory
from .journal import Journal
from .platform_client import PATIENCE, PlatformClient, patience
from .wire.access import Access

AGAIN_SECONDS: Final = 0.05
"""Between two looks whether a journal is free: its supervisor is about to end, or another child is at it."""


def start(execution: ExecutionDirectory, access: Access) -> socket.socket:
    """Starts the child. What is returned ends when it has done what it could; the result then tells what is left.

    Raises SystemRefusedError.
    """
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pid = os.fork()
    except OSError as error:
        raise SystemRefusedError(f"what '{execution.id}' left cannot be delivered: {error.strerror}") from None
    if pid == 0:
        try:
            process.detach(theirs.fileno())
            deliver(execution, access)
        finally:
            os._exit(0)
    theirs.close()
    return ours


def deliver(execution: ExecutionDirectory, access: Access) -> None:
    """Delivers what can be delivered within a minute, and corrects the result. Raises OSError, StateDirectoryError."""
    began = time.monotonic()
    while (journal := Journal.take_over(execution)) is None:
        if execution.is_tombstone() or time.monotonic() >= began + DRAIN_SECONDS:
            return
        time.sleep(AGAIN_SECONDS)
    settled = threading.Event()
    client = PlatformClient(execution.id, access)
    delivery = Delivery(execution.id, client, journal, settled.set, patience=_patience())
    began = time.monotonic()
    delivery.notify()
    while not delivery.is_over(began):
        settled.wait(delivery.until_over(began))
        settled.clear()
    delivery.stop()
    _correct(execution, journal)


def _patience() -> float:
    try:
        return patience(os.environ)
    except InputError:  # said when a job begins; what is delivered here has no one to tell
        return PATIENCE


def _correct(execution: ExecutionDirectory, journal: Journal) -> None:
    result = execution.read_result()
    if result is None or execution.is_tombstone():
        return
    result["undelivered"] = journal.undelivered
    result["refused"], result["refusal"] = journal.refusals, journal.refusal
    with contextlib.suppress(OSError):  # a full disk: then the next contact finds nothing left and says so
        execution.write_result(result)
