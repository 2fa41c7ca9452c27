"""A timer that rings at the earliest of the moments that it was asked for. Its moments are those of the given clock."""

import asyncio
from collections.abc import Callable
from typing import Final

_LEAST_SECONDS: Final = 0.01
"""Between two rings: a clock that stands, or a moment that is over, must not keep the event loop busy."""


class Alarm:
    """Rings once, and then has to be asked again."""

    def __init__(self, ring: Callable[[], None], clock: Callable[[], float]) -> None:
        self._ring = ring
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._at = float("inf")

    def ring_by(self, moment: float) -> None:
        """Rings at this moment, or earlier."""
        if self._timer is not None:
            if self._at <= moment:
                return
            self._timer.cancel()
        self._at = moment
        left = max(_LEAST_SECONDS, moment - self._clock())
        self._timer = asyncio.get_running_loop().call_later(left, self._wake)

    def stop(self) -> None:
        """Doesn't ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        self._timer = None
        self._ring()
