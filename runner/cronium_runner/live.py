"""What a supervisor's loop has to do with API mode: calls done elsewhere, and the writes that are on their way."""

import contextlib
import functools
import time
from collections.abc import Callable

from . import helpers
from .api_values import ApiValues
from .background import Background
from .journal import Journal
from .prepare import Prepared
from .wire import exactjson
from .wire.access import Access, AccessError


class Live:
    """One execution's live data. All of it is called in the supervisor's loop, and none of it waits."""

    def __init__(self, prepared: Prepared) -> None:
        assert isinstance(prepared.values, ApiValues), "prepared for API mode"
        self._values = prepared.values
        self._background = Background()
        self._journal = Journal(prepared.execution)
        self._delivery = self._values.go_live(self._journal, self._background.wake)
        self._end_began = 0.0

    @property
    def descriptor(self) -> int:
        """Becomes readable when `hand_back` has something to do, and when a write is settled."""
        return self._background.descriptor

    def hand_back(self) -> None:
        """Gives the answers that there are to those who asked."""
        self._background.hand_back()

    def must_wait(self, request: helpers.Request) -> bool:
        """Whether the call needs the platform's answer."""
        name = request.variable
        return request.asks and not (name is not None and self._values.is_at_hand(name, to_change=request.changes))

    def do(self, request: helpers.Request, stdin: bytes | None, done: Callable[[helpers.Answer], None]) -> None:
        """Does a call that may have to wait; `done` is called with its answer, by `hand_back`."""
        call = functools.partial(self._answer, request, stdin, time.monotonic())
        (self._background.act if request.acts else self._background.read)(call, done)

    def _answer(self, request: helpers.Request, stdin: bytes | None, asked_at: float) -> helpers.Answer:
        self._values.begin(asked_at)
        return helpers.execute_safely(request, self._values, stdin)

    def replace_access(self, told: bytes) -> None:
        """Another endpoint and token, as JSON. What is none is ignored: whoever sent it learns of it by the result."""
        with contextlib.suppress(AccessError, ValueError):
            self._values.replace_access(Access.from_json(exactjson.loads(told.decode())))

    # -- the end -------------------------------------------------------------------------------------------------

    def begin_end(self) -> None:
        """The script has ended, and only delivering is left."""
        self._end_began = time.monotonic()

    def is_delivered(self) -> bool:
        """Whether all has arrived, or waiting for the rest makes no sense any more."""
        return self._delivery.is_over(self._end_began)

    def until_given_up(self) -> float:
        """Seconds until waiting may make no sense any more."""
        return self._delivery.until_over(self._end_began)

    def left(self) -> tuple[int, int, str | None]:
        """How many writes are not delivered, how many were refused, and why the first; written down durably."""
        self._delivery.stop()
        undelivered = self._journal.undelivered
        if undelivered:
            with contextlib.suppress(OSError):  # they are there as long as the host has power
                self._journal.sync()
        return undelivered, self._journal.refusals, self._journal.refusal
