"""What is left of an execution whose supervisor is dead: found, told from strangers, and signalled.

Three marks, any of which will do. The control group, where it has one: nothing leaves that. The marker that the script
inherited in its environment (NAME=VALUE, this execution's alone). And, while the guardian lives to which the dead
supervisor's processes were handed as its children: that they are its children and no supervisors. So one that cleaned
its environment is found as well, unless guardian and supervisor were both killed and there is no group.
"""

import contextlib
import errno
import os
import signal
import time
from typing import Final

from . import process
from .cgroup import Group

STRANGERS_SECONDS: Final = 0.1
"""For how long a process that was seen not to belong here is not looked at again. So a search that is repeated sees
only what is new, and meets one that forks and ends for ever before it has forked again."""

_GONE_OR_ANOTHERS: Final = (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM)


class Orphans:
    """One dead execution's. `guardian` is the process its orphans were handed to, when that is known and alive."""

    def __init__(self, marker: str | None, guardian: int | None, group: Group | None) -> None:
        self._word = None if marker is None else os.fsencode(marker)
        self._guardian = guardian
        # Supervisors and undertakers are forked and execute no other program: their command line is the guardian's.
        self._command = None if guardian is None else _command(guardian)
        self._group = group
        self._strangers: set[int] = set()
        self._forget_at = 0.0
        self._ended: set[int] = set()

    def may_be_left(self) -> bool:
        """Whether there is any, as far as one look can tell."""
        return self._visit(0)

    def signal(self, number: int) -> bool:
        """Signals each as soon as it is found. Whether there was any, or may have been."""
        if number == signal.SIGKILL and self._group is not None:
            self._group.kill()
        return self._visit(number)

    def _visit(self, number: int) -> bool:
        """Goes through them, newest first: what forks for ever is among the newest. Whether any may be left.

        One that forked and ended between the listing and the look at it leaves a child that is in no list yet. So a
        look that finds nobody says that nobody is left only when no process has ended under it.
        """
        if time.monotonic() >= self._forget_at:
            self._strangers = {os.getpid()}
            self._forget_at = time.monotonic() + STRANGERS_SECONDS
        has_found = False
        ended = set()
        listed = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        for pid in sorted(listed - self._strangers, reverse=True):
            is_ours = self._meet(pid, number)
            has_found = has_found or is_ours is True
            if is_ours is None:
                ended.add(pid)
            elif not is_ours:
                self._strangers.add(pid)
        is_sure = ended <= self._ended  # a zombie that nobody collects was there before
        self._ended = ended
        return has_found or not is_sure

    def _meet(self, pid: int, number: int) -> bool | None:
        """Signals it if it belongs here. Whether it does; None for one that has ended.

        Held by a descriptor before it is looked at: if it lives when the signal is sent, its pid was not reused in
        between, and if it doesn't, nobody is signalled.
        """
        try:
            held = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        except OSError:  # before Linux 5.3 there is no such descriptor; the moment between look and signal remains
            held = -1
        try:
            is_ours = self._is_ours(pid)
            if is_ours and number:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    _send(pid, held, number)
            return is_ours
        finally:
            if held != -1:
                os.close(held)

    def _is_ours(self, pid: int) -> bool | None:
        """Whether it belongs here; None for one that has ended."""
        if self._word is not None and self._word in _environment(pid):
            return True
        fields = process.stat_fields(pid)
        if fields is None or not process.is_living(fields):
            return None
        if self._group is not None and pid in self._group.processes():
            return True
        return self._is_below_guardian(int(fields[1]), pid)

    def _is_below_guardian(self, parent: int, pid: int) -> bool:
        """Whether the way up leads to the guardian, and not through one of its supervisors or undertakers."""
        if self._guardian is None:
            return False
        while parent > 1:
            if parent == self._guardian:
                return _command(pid) != self._command
            fields = process.stat_fields(parent)
            if fields is None:
                return False
            pid, parent = parent, int(fields[1])
        return False


def _send(pid: int, held: int, number: int) -> None:
    """Raises OSError. `held` is the process's descriptor, -1 without one."""
    if held != -1:
        try:
            signal.pidfd_send_signal(held, number)
            return
        except ProcessLookupError:
            raise
        except OSError:  # a container's filter of system calls may allow the descriptor, and not this
            pass
    os.kill(pid, number)


def _command(pid: int) -> bytes:
    """What the process was started as; empty when it is gone."""
    return _read(pid, "cmdline")


def _environment(pid: int) -> list[bytes]:
    """What the process was started with; empty when it is gone or another user's."""
    return _read(pid, "environ").split(b"\0")


def _read(pid: int, name: str) -> bytes:
    """A file of /proc/PID. Raises OSError when it can't be told whose it is (no descriptor): nobody may pass for a
    stranger, or for one of ours, because of that."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno in _GONE_OR_ANOTHERS:
            return b""
        raise
