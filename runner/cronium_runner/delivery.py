"""Delivering what is in a journal to the platform: in order, one after another, again and again until it has arrived.

Each write carries its number, so that a platform that knows `Idempotency-Key` applies it once. One that does not
(the runtime API does not ask for it) may see a write twice, when the connection broke before its answer came.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

from .helpers import Json
from .journal import Entry, Journal, Outcome
from .platform_answers import Answer, ForeignAnswerError, NoAnswerError
from .platform_client import PATIENCE, PlatformClient, segment
from .values import APPEND, CONDITION, DELETE, INCREMENT, VARIABLE

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
"""Seconds between two tries, doubling: a tunnel that comes back is used soon, one that doesn't costs little."""
LONGEST_RETRY_AFTER: Final = 60.0
"""Seconds that a platform may ask for: its rate is counted by the minute."""
TRY_SECONDS: Final = 15.0
"""For one answer: more than a database's lock takes, and less than is waited at the end."""
DRAIN_SECONDS: Final = 60.0
"""At the end, in all: a part of the minute for cleaning up."""


class Delivery:
    """Delivers one journal. `wake` is called, by the delivering thread, whenever a write is settled."""

    def __init__(
        self,
        execution_id: str,
        client: PlatformClient,
        journal: Journal,
        wake: Callable[[], None],
        *,
        patience: float = PATIENCE,
    ) -> None:
        """`patience`: at the end nothing is waited for when for so many seconds nothing has arrived."""
        self._patience = patience
        self._execution_id = execution_id
        self._client = client
        self._journal = journal
        self._wake = wake
        self._news = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._last_settled = 0.0
        self._is_stopped = False

    def notify(self) -> None:
        """There is something to deliver. The first time this starts the thread; without one, the next time."""
        self._news.set()
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="delivery", daemon=True)
                with contextlib.suppress(RuntimeError):  # it is counted, and delivered by the next contact
                    thread.start()
                    self._thread = thread

    def stop(self) -> None:
        """Begins nothing more. What is being asked just now may still be settled."""
        self._is_stopped = True

    def is_over(self, began: float) -> bool:
        """Whether waiting for the rest, since `began` (monotonic), makes no sense any more."""
        now = time.monotonic()
        is_still = now >= max(began, self._last_settled) + self._patience
        return not self._journal.undelivered or is_still or now >= began + DRAIN_SECONDS

    def until_over(self, began: float) -> float:
        """Seconds until `is_over` may become true without anything arriving."""
        due = min(max(began, self._last_settled) + self._patience, began + DRAIN_SECONDS)
        return max(0.0, due - time.monotonic())

    def _run(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            while (entry := self._journal.first()) is not None and not self._is_stopped:
                self._deliver(entry)
                self._last_settled = time.monotonic()
                self._wake()

    def _deliver(self, entry: Entry) -> None:
        pause = FIRST_PAUSE
        while (answer := self._try(entry)) is None or _is_to_be_repeated(entry, answer):
            asked = None if answer is None else answer.retry_after
            self._client.pause(pause if asked is None else min(asked, LONGEST_RETRY_AFTER))
            pause = min(2 * pause, LONGEST_PAUSE)
            if self._is_stopped:
                return
        if answer.is_success:
            self._journal.delivered(Outcome(_value_in(answer)))
        elif _is_missing_there(entry, answer):
            self._journal.delivered(Outcome(is_missing=True))
        elif _is_unknown_there(entry, answer):
            self._journal.refused(f"{entry.shown}: the service has no such request ({answer.reason})")
        else:
            self._journal.refused(f"{entry.shown}: {answer.reason}")

    def _try(self, entry: Entry) -> Answer | None:
        method, path, body = _request(self._journal, entry)
        key = f"{self._execution_id}/{entry.sequence}"
        try:
            return self._client.ask(method, path, body, seconds=TRY_SECONDS, key=key)
        except ForeignAnswerError as error:
            # Another router's 404 or 405 for a request that it doesn't have, as the public original's is.
            return Answer(error.status, None, None) if entry.is_change and error.status in _NO_SUCH_REQUEST else None
        except NoAnswerError:
            return None
        except Exception as error:  # noqa: BLE001 - a write that can't be sent at all must not hold up the others
            return Answer(0, {"message": f"it cannot be sent: {type(error).__name__}: {error}"[:200]}, None)


_NO_SUCH_REQUEST: Final = (404, 405, 501)
"""What a service answers to a request that it doesn't have."""


def _is_to_be_repeated(entry: Entry, answer: Answer) -> bool:
    return (answer.is_passing or answer.needs_token) and not _is_unknown_there(entry, answer)


def _is_unknown_there(entry: Entry, answer: Answer) -> bool:
    """Whether the service lacks the request, so that repeating it would hold up all writes behind it.

    Of the changes of a variable that may be, whatever form the answer has: the public original has none of them.
    """
    return entry.is_change and answer.status in _NO_SUCH_REQUEST and not _is_missing_there(entry, answer)


def _is_missing_there(entry: Entry, answer: Answer) -> bool:
    """Whether there was no variable to delete."""
    says_not_found = isinstance(answer.body, dict) and answer.body.get("error") == "not_found"
    return entry.write == DELETE and answer.status == 404 and says_not_found


def _value_in(answer: Answer) -> Json:
    """A variable's new value, where the answer tells it."""
    return answer.data.get("value") if isinstance(answer.data, dict) else None


def _request(journal: Journal, entry: Entry) -> tuple[str, str, Json]:
    if entry.write == VARIABLE:
        assert entry.key is not None, "a variable has a name"
        return "PUT", f"/variables/{segment(entry.key)}", {"value": entry.value}
    if entry.is_change:
        assert entry.key is not None, "a variable has a name"
        path = f"/variables/{segment(entry.key)}"
        if entry.write == DELETE:
            return "DELETE", path, None
        name = {INCREMENT: "by", APPEND: "text"}[entry.write]
        return "POST", f"{path}/{entry.write}", {name: entry.value}
    if entry.write == CONDITION:
        return "POST", "/condition", {"condition": entry.value}
    return "POST", "/output", {"data": journal.output_with(entry)}
