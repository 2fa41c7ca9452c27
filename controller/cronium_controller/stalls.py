"""Cancels work that makes no progress for some time. Work that progresses may take any time."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

_LOOK_SECONDS: Final = 0.25
"""Between two looks at what waits in a send queue: often enough to see it shrink while it is refilled."""
_FAREWELL_SECONDS: Final = 5.0
"""Seconds that cancelled work may take to clean up; after that it is left alone."""

_Done = TypeVar("_Done")


class NoProgressError(Exception):
    """Nothing was acknowledged for too long."""


class Progress:
    """Time of the last acknowledgement. What is noted here counts for `whole` as well."""

    def __init__(self, whole: "Progress | None" = None) -> None:
        self._whole = whole
        self._at = time.monotonic()
        self._waiting = 0

    def __repr__(self) -> str:
        return f"<Progress {self.quiet_seconds():.1f} s ago>"

    def note(self) -> None:
        """Notes an acknowledgement."""
        self._at = time.monotonic()
        if self._whole is not None:
            self._whole.note()

    def note_waiting(self, count: int) -> None:
        """Notes how many bytes are unacknowledged; fewer than before count as an acknowledgement."""
        if count < self._waiting:
            self.note()
        self._waiting = count

    def quiet_seconds(self) -> float:
        """Seconds since the last acknowledgement."""
        return time.monotonic() - self._at


async def while_it_progresses(
    work: Coroutine[Any, Any, _Done], progress: Progress, seconds: float, look: Callable[[], object] = lambda: None
) -> _Done:
    """Awaits `work`; cancels it and raises NoProgressError when nothing was noted for so many seconds.

    `look` is called several times a second, to note progress that has to be polled.
    """
    doing = asyncio.ensure_future(work)
    doing.add_done_callback(lambda done: done.cancelled() or done.exception())  # so that asyncio does not warn of it
    try:
        while not doing.done():
            left = seconds - progress.quiet_seconds()
            if left <= 0:
                raise NoProgressError
            await asyncio.wait([doing], timeout=min(left, _LOOK_SECONDS))
            look()
        return doing.result()
    finally:
        if not doing.done():
            doing.cancel()
            await asyncio.wait([doing], timeout=_FAREWELL_SECONDS)
