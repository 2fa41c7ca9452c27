"""Helper calls that wait for the platform, done by threads, so that no other call, no output and no deadline waits.

Threads are started when there is work, and stay. What they come to is handed back in the supervisor's own loop.
"""

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from .helpers import Answer, HelperError

READERS: Final = 16
"""Reads at once. Each takes a millisecond when the platform is there, and waits with all others when it isn't."""
ACTORS: Final = 16
"""Tools' actions at once; they have threads of their own, as each may take minutes."""

_NO_THREAD: Final = HelperError("api.unreachable", "the host has no thread to ask the platform with").answer

Call = Callable[[], Answer]
Done = Callable[[Answer], None]


class _Crew:
    """Up to `size` threads that take calls from one queue."""

    def __init__(self, size: int, finish: Callable[[Done, Answer], None]) -> None:
        self._size = size
        self._finish = finish
        self._queue: queue.SimpleQueue[tuple[Call, Done]] = queue.SimpleQueue()
        self._started = 0
        self._busy = 0
        self._lock = threading.Lock()

    def submit(self, call: Call, done: Done) -> None:
        with self._lock:
            self._busy += 1
            needs_another = self._busy > self._started < self._size
        if needs_another:
            with contextlib.suppress(RuntimeError):  # the host has no thread for us: those that there are must do
                threading.Thread(target=self._work, name="helper", daemon=True).start()
                self._started += 1
        if self._started:
            self._queue.put((call, done))
        else:
            self._busy -= 1
            self._finish(done, _NO_THREAD)

    def _work(self) -> None:
        while True:
            call, done = self._queue.get()
            answer = call()
            with self._lock:
                self._busy -= 1
            self._finish(done, answer)


class Background:
    """Does calls in threads. `descriptor` becomes readable when there are answers for `hand_back` to give."""

    def __init__(self) -> None:
        self._readable, self._writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._finished: deque[tuple[Done, Answer]] = deque()
        self._readers = _Crew(READERS, self._finish)
        self._actors = _Crew(ACTORS, self._finish)

    @property
    def descriptor(self) -> int:
        """For epoll."""
        return self._readable

    def read(self, call: Call, done: Done) -> None:
        """Does a read in a thread; `done` gets its answer from `hand_back`. `call` raises nothing."""
        self._readers.submit(call, done)

    def act(self, call: Call, done: Done) -> None:
        """The same for a tool's action."""
        self._actors.submit(call, done)

    def wake(self) -> None:
        """Makes the descriptor readable. Any thread may."""
        with contextlib.suppress(BlockingIOError):  # full, so readable
            os.write(self._writable, b"\n")

    def hand_back(self) -> None:
        """Gives every answer that there is to who asked for it."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._readable, 65536)
        while self._finished:
            done, answer = self._finished.popleft()
            done(answer)

    def _finish(self, done: Done, answer: Answer) -> None:
        self._finished.append((done, answer))
        self.wake()
