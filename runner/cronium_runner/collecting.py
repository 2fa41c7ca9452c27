"""The agent's side of retention: collections in processes of their own, each hour and when one is asked for.

A collection reads every record and may remove gigabytes, so the agent's loop only starts it and reads the answer. It
keeps no agent alive: killed in the middle, it is completed by the next one. What is collected is `retention`'s.

    child → us    the report, or {"code": …, "message": …}, as one JSON object; its end is the pipe's end
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol

from . import process
from .errors import ExecutionError, RunnerError, SystemRefusedError
from .jobdir import COLLECTED_EVERY_SECONDS, StateDirectory
from .wire import exactjson

READ_PIECE: Final = 64 * 1024


class Loop(Protocol):
    """What is needed of the agent."""

    state: StateDirectory

    def add_reader(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Calls `callback` whenever there is something to read."""

    def remove_reader(self, descriptor: int) -> None:
        """Takes `add_reader` back."""

    def answer_collection(self, channel: int, told: "dict[str, Any] | RunnerError") -> None:
        """The collection that was asked for on the channel number is over: its report, or why there was none."""


class Collections:
    """The collections that one agent has started."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._children: set[int] = set()
        self._asked: dict[int, int] = {}
        """The pipe to read from, by the channel number that its answer goes to."""
        self._look_at = time.monotonic()

    def __repr__(self) -> str:
        return f"<Collections running={len(self._children)} asked={sorted(self._asked)}>"

    def begin_if_due(self) -> None:
        """Starts one when the last in this state directory began an hour ago. Costs nothing between two looks."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + COLLECTED_EVERY_SECONDS
        if self._loop.state.is_collection_due():
            from . import retention

            with contextlib.suppress(RunnerError, OSError):  # the next hour, or the next agent, tries again
                self._children.add(retention.start(self._loop.state))

    def write_index(self) -> None:
        """Starts a process that writes the index of ended executions, as a listing had to read many of them."""
        from . import indexing

        with contextlib.suppress(OSError):  # the next listing, or the next collection, tries again
            self._children.add(indexing.start(self._loop.state))

    def ask(self, channel: int, body: dict[str, Any]) -> None:
        """Starts one as the frame asks. Raises RunnerError when it can't be started."""
        from . import retention

        retention.check_asked(body)
        try:
            readable, writable = os.pipe2(os.O_CLOEXEC)
            try:
                pid = os.fork()
                if pid == 0:
                    _collect(self._loop.state, body, writable)
            except OSError:
                os.close(readable)
                raise
            finally:
                os.close(writable)
        except OSError as error:
            raise SystemRefusedError(f"no collection can be started: {error.strerror}; nothing was removed") from None
        self._children.add(pid)
        self._asked[channel] = readable
        told = bytearray()
        self._loop.add_reader(readable, lambda: self._hear(channel, readable, told))

    def is_asked(self, channel: int) -> bool:
        """Whether the channel number waits for a collection's answer."""
        return channel in self._asked

    def note_end(self, pid: int) -> None:
        """A child has been collected; its number may be another's from now on."""
        self._children.discard(pid)

    def forget_asked(self) -> None:
        """Nobody waits for answers any more."""
        for readable in self._asked.values():
            self._loop.remove_reader(readable)
            os.close(readable)
        self._asked.clear()

    def end(self) -> None:
        """Ends those that still run."""
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # ours and not yet waited for, so nobody else has its number

    def _hear(self, channel: int, readable: int, told: bytearray) -> None:
        piece = os.read(readable, READ_PIECE)
        told += piece
        if piece:
            return
        self._loop.remove_reader(readable)
        os.close(readable)
        del self._asked[channel]
        self._loop.answer_collection(channel, _read(bytes(told)))


def _read(told: bytes) -> dict[str, Any] | RunnerError:
    try:
        report = exactjson.loads(told)
    except ValueError:
        return SystemRefusedError("the collection was ended before it was through; ask again, the next completes it")
    assert isinstance(report, dict)
    return ExecutionError(report["code"], report["message"]) if "code" in report else report


def _collect(state: StateDirectory, body: dict[str, Any], writable: int) -> NoReturn:
    """The child's whole life."""
    try:
        process.detach(writable)
        from . import housekeeping, retention

        os.nice(housekeeping.NICE)
        try:
            told = retention.collect_as_asked(state, body).to_json()
        except RunnerError as error:
            told = {"code": error.code, "message": error.message}
        view = memoryview(exactjson.encode(told))
        while view:
            view = view[os.write(writable, view) :]
    finally:
        os._exit(0)
