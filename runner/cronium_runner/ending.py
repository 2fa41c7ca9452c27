"""Ending one script's tree while its supervisor lives: SIGTERM, the grace period, SIGKILL until nobody is left.

The supervisor decides when and why, and collects the dead; here is what is done to the living, and how many outlived
their script.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Final

from . import process
from .containment import Containment

GRACE_SECONDS: Final = 5.0
"""Between SIGTERM and SIGKILL: long enough to write a checkpoint, short enough to wait for."""
CLEAN_UP_SECONDS: Final = 60.0
"""How long SIGKILL is repeated. What survives that is stuck in the kernel and said to be so."""
SWEEP_SECONDS: Final = 0.02
"""Between two sweeps of SIGKILL. Each ends what the one before missed, so a fork bomb runs out of parents."""
BURST_SECONDS: Final = 0.01
"""How long a sweep goes on while new orphans keep coming; the loop is at its other work in between."""


class Ending:
    """The tree below this process. `script` is the script's pid, its group's number too, None once it is collected."""

    def __init__(self, containment: Containment) -> None:
        self._containment = containment
        self.strays = 0
        """The most processes that were seen at once after their script had ended."""
        self.kill_at: float | None = None
        """When (monotonic) the next sweep of SIGKILL is due."""
        self._give_up_at = float("inf")

    def has_given_up(self) -> bool:
        """Whether SIGKILL was repeated for as long as it makes sense."""
        return time.monotonic() >= self._give_up_at

    def terminate(self, script: int | None) -> None:
        """Asks everybody to end. SIGKILL is due after the grace period."""
        self.kill_at = time.monotonic() + GRACE_SECONDS
        left = self._members(script)
        for number in (signal.SIGTERM, signal.SIGCONT):  # a stopped process hears SIGTERM only when it goes on
            if script is not None:
                process.send_signal_to_group(script, number)
            process.send_signal(left, number)

    def kill_now(self) -> None:
        """Makes SIGKILL due at once: what is above a limit gets no time to grow further."""
        self.kill_at = time.monotonic()

    def sweep(self, script: int | None, reap: Callable[[], bool]) -> None:
        """One sweep of SIGKILL; the next is due soon. `reap` collects the dead; whether children are left."""
        if self._give_up_at == float("inf"):
            self._give_up_at = time.monotonic() + CLEAN_UP_SECONDS
        left = self._members(script)
        if script is not None:
            process.send_signal_to_group(script, signal.SIGKILL)
        if self._containment.group is not None:
            self._containment.group.kill()
        process.send_signal(left, signal.SIGKILL)
        process.kill_children(BURST_SECONDS, reap)
        self.kill_at = time.monotonic() + SWEEP_SECONDS

    def _members(self, script: int | None) -> list[int]:
        """Everybody but the script's own process group, which is signalled as one; counted when the script is gone."""
        left = process.descendants(os.getpid(), outside=script)
        if script is None:
            group = self._containment.group
            self.strays = max(self.strays, len(left), 0 if group is None else len(group.processes()))
        return left
