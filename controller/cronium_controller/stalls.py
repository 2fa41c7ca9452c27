"""Giving up on work that makes no progress, however long it may take while it does."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

_LOOK_SECONDS: Final = 0.25
"""Between two looks at what waits in a send queue: often enough to see it shrink while it is refilled."""
_FAREWELL_SECONDS: Final = 5.0
"""How long work that was given up may clean up. What hangs there too is not waited for."""

_Done = TypeVar("_Done")


class NoProgressError(Exception):
    """Nothing was acknowledged for too long."""


class Progress:
    """When something was acknowledged last. What is noted here is progress of `whole` too."""

    def __init__(self, whole: "Progress | None" = None) -> None:
        self._whole = whole
        self._at = time.monotonic()
        self._waiting = 0

    def __repr__(self) -> str:
        return f"<Progress {self.quiet_seconds():.1f} s ago>"

    def note(self) -> None:
        """Something was acknowledged just now."""
        self._at = time.monotonic()
        if self._whole is not None:
            self._whole.note()

    def note_waiting(self, count: int) -> None:
        """So many bytes wait for an acknowledgement; fewer than before are progress."""
        if count < self._waiting:
            self.note()
        self._waiting = count

    def quiet_seconds(self) -> float:
        """Seconds since the last acknowledgement."""
        return time.monotonic() - self._at


async def while_it_progresses(
    work: Coroutine[Any, Any, _Done], progress: Progress, seconds: float, look: Callable[[], object] = lambda: None
) -> _Done:
    """Does the work, and cancels it when nothing was noted for so many seconds: then raises NoProgressError.

    `look` is called several times a second, to note what can only be asked for.
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
