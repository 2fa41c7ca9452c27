"""One line on a terminal that says how far a run on many hosts has come; nothing where there is no terminal.

It is taken away before anything else is written, and comes back after it, so that no line of a host is ever mixed
with it. rich would do that for what goes through its own console; output of hosts is bytes and goes past it. One line
needs no library, and rich would be a dependency for this alone.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

REDRAW_SECONDS: Final = 0.25
"""Quick enough for seconds that are counted, too slow to be seen in the controller's CPU time."""
USUAL_COLUMNS: Final = 80
"""Of a terminal that doesn't say."""
_ERASE: Final = "\r\x1b[K"

_shown: "Progress | None" = None
"""There is one terminal."""


def aside() -> contextlib.AbstractContextManager[None]:
    """While it is entered, something else is written or asked, for which a status line makes room."""
    return contextlib.nullcontext() if _shown is None else _shown.aside()


def say(sentence: str) -> None:
    """A line on standard error."""
    with aside():
        Progress.put(f"{sentence}\n")


def is_terminal() -> bool:
    """Whether standard error is a terminal that knows colours and lines that are erased."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


def _columns() -> int:
    """How wide it is: standard error's terminal, as standard output may be a file."""
    with contextlib.suppress(OSError):
        if columns := os.get_terminal_size(sys.stderr.fileno()).columns:
            return columns
    return USUAL_COLUMNS


class Progress:
    """While it is entered and standard error is a terminal, shows what `told` says and how long it has taken."""

    def __init__(self, told: Callable[[], str], *, is_wanted: bool = True) -> None:
        self._told = told
        self._is_shown = is_wanted and is_terminal()
        self._began = time.monotonic()
        self._drawing: asyncio.Task[None] | None = None
        self._asides = 0

    async def __aenter__(self) -> "Progress":
        global _shown
        if self._is_shown:
            _shown = self
            self._drawing = asyncio.ensure_future(self._redraw())
        return self

    async def __aexit__(self, *_: object) -> None:
        global _shown
        if self._drawing is not None:
            _shown = None
            self._drawing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._drawing
            self._drawing = None
            self.put(_ERASE)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """While something else is written."""
        if self._drawing is None:
            yield
            return
        self.put(_ERASE)
        self._asides += 1
        try:
            yield
        finally:
            self._asides -= 1
            if self._drawing is not None:
                self._draw()

    async def _redraw(self) -> None:
        while True:
            self._draw()
            await asyncio.sleep(REDRAW_SECONDS)

    def _draw(self) -> None:
        if self._asides:  # a thread may be writing at this moment
            return
        line = f"{self._told()} · {elapsed(time.monotonic() - self._began)}"
        self.put(f"{_ERASE}{line[: max(1, _columns() - 1)]}")  # a line that wraps could not be erased

    @staticmethod
    def put(text: str) -> None:
        """Writes to standard error, as long as somebody is there to read it."""
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def elapsed(seconds: float) -> str:
    """A time as a person reads it: 240 ms, 4.2 s, 3:07 min, 2:05:00 h."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"
