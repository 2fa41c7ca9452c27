"""What SIGINT and SIGTERM mean to a command that follows what runs on hosts."""

import asyncio
import signal
from collections.abc import Callable

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While it is entered, the first signal calls `cancel`, if there is one, and the next one `leave`."""

    def __init__(self, leave: Callable[[], object], cancel: Callable[[], object] | None = None) -> None:
        self._leave = leave
        self._cancel = cancel
        self.has_left = False

    def __enter__(self) -> "Interrupts":
        for number in _NUMBERS:
            asyncio.get_running_loop().add_signal_handler(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number in _NUMBERS:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _hear(self) -> None:
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()
        else:
            self.has_left = True
            self._leave()
