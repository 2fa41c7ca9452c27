"""The values of one execution in API mode: read from the platform when they are asked for, written down for it first.

What the platform knows beats what was handed over with the submission; what it doesn't know is taken from there. What
the script has written and the platform doesn't have yet beats both. Secrets stay here: they are read from memory, and
a new value of one goes nowhere else. Reads block, so the supervisor has them done by threads; writes never do.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from . import event as events
from . import platform_answers as answers
from .delivery import Delivery
from .helpers import HelperError, Json, shown
from .journal import Journal, Outcome
from .platform_answers import Answer, Form, LateAnswerError, NoAnswerError
from .platform_client import PATIENCE, PlatformClient, refused, segment
from .values import APPEND, DELETE, INCREMENT, BundledValues
from .wire.access import Access

TOOL_SECONDS: Final = 300.0
"""For the answer of a tool's action, which may be another service's work."""
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 1.0
"""Seconds between two tries of a read, doubling."""


class ApiValues(BundledValues):
    """Implements `helpers.Values` on the platform's live data. The result's values are what the script wrote."""

    def __init__(
        self, folder: str, *, execution_id: str, access: Access, patience: float = PATIENCE, **handed_over: Any
    ) -> None:
        """`handed_over` is `BundledValues`'s: what the platform doesn't know is taken from it. `go_live` comes next.

        `patience` is in seconds, see `platform_client`.
        """
        super().__init__(folder, **handed_over)
        self.masked_values.append(access.token)
        self._execution_id = execution_id
        self._patience = patience
        self._call = threading.local()
        self._noting = threading.Lock()
        """Held while a variable is noted: changes are done by threads, writes by the supervisor's own."""
        self._client = PlatformClient(execution_id, access)
        self._journal: Journal | None = None
        self._delivery: Delivery | None = None

    def go_live(self, journal: Journal, wake: Callable[[], None]) -> Delivery:
        """The execution is claimed: writes go to `journal`, and are delivered. `wake` is called when one is settled."""
        self._journal = journal
        self._delivery = Delivery(self._execution_id, self._client, journal, wake, patience=self._patience)
        return self._delivery

    def replace_access(self, access: Access) -> None:
        """Another endpoint and token from now on."""
        self._mask(access.token)
        self._client.replace(access)

    def begin(self, asked_at: float) -> None:
        """This thread does a call now that was made at that time (monotonic): from then on its reads' wait counts."""
        self._call.asked_at = asked_at

    def is_at_hand(self, name: str, *, to_change: bool = False) -> bool:
        """Whether the variable can be read, or changed by what it is, without the platform."""
        if name in self._secret_names or to_change:
            return name in self._secret_names
        waiting = self._live.newest(name)
        return waiting is not None and not waiting.is_change

    # What the helpers do.

    def get_input(self) -> Json:
        answer = self._read("/input", "the input", answers.given_input)
        return super().get_input() if answer is None or answer.data is None else answer.data

    def get_variable(self, name: str) -> Json:
        if name in self._secret_names:
            return super().get_variable(name)
        waiting = self._live.newest(name)
        if waiting is not None and not waiting.is_change:
            return waiting.value
        if waiting is not None:  # what it comes to only the platform can tell
            self._live.wait_settled(waiting, self._left())
        answer = self._read(f"/variables/{segment(name)}", f"variable {shown(name)}", answers.variable)
        value = super().get_variable(name) if answer is None else answer.data["value"]
        if self._is_masked(name):
            self._mask(value)
        return value

    def set_variable(self, name: str, value: Json) -> None:
        with self._noting:
            super().set_variable(name, value)

    def delete_variable(self, name: str) -> None:
        if name in self._secret_names:
            super().delete_variable(name)
            return
        if self._changed_there(DELETE, name, None).is_missing:
            raise KeyError(name)
        with self._noting:
            self._variables = {other: value for other, value in self._variables.items() if other != name}
            self._note_deleted(name)
            self._show_variables()

    def increment_variable(self, name: str, by: Json) -> Json:
        if name in self._secret_names:
            return super().increment_variable(name, by)
        return self._new_value(name, self._changed_there(INCREMENT, name, by))

    def append_variable(self, name: str, text: str) -> None:
        if name in self._secret_names:
            super().append_variable(name, text)
        else:
            self._new_value(name, self._changed_there(APPEND, name, text))

    def _changed_there(self, change: str, name: str, value: Json) -> Outcome:
        """What a change of a variable has come to on the platform. Waits for it; raises HelperError."""
        assert self._delivery is not None, "go_live comes before the script"
        entry = self._live.append(change, name, value)
        self._delivery.notify()
        outcome = self._live.wait_outcome(entry, self._left())
        if outcome is None:
            raise HelperError(
                "api.unreachable",
                f"the platform did not confirm the change of variable {shown(name)} within {self._patience:g} s; "
                "it is kept and delivered later, so do not repeat it",
            )
        if outcome.reason is not None:
            raise HelperError("api.refused", f"the platform did not change {outcome.reason}")
        return outcome

    def _new_value(self, name: str, outcome: Outcome) -> Json:
        """The variable's value after the change, noted for the result."""
        value = self.get_variable(name) if outcome.value is None else outcome.value
        with self._noting:
            self._note(name, value)
            self._show_variables()
        return value

    def _show_variables(self) -> None:
        """Writes the file that scripts may look at. The platform has the change, so a full disk is no failure of it."""
        with contextlib.suppress(HelperError):
            self._store("variables.json", self._variables)

    def _left(self) -> float:
        """Seconds that the call of this thread may still wait."""
        asked_at = getattr(self._call, "asked_at", time.monotonic())
        return max(0.0, float(asked_at) + self._patience - time.monotonic())

    def event(self) -> Mapping[str, Json]:
        answer = self._read("/context", "the context", answers.context)
        told = {} if answer is None else answer.data
        return events.spelled_out(events.merged(self._event, told), self._environment)

    def execute_tool_action(self, tool: str, action: str, params: Mapping[str, Json]) -> Json:
        body = {"tool": tool, "action": action, "params": params}
        if self._client.access.socket_path is None:  # not our own service: the public original reads `config`
            body["config"] = params
        try:
            answer = self._client.ask_once(
                "POST", "/tool-actions/execute", body, seconds=TOOL_SECONDS, form=answers.tool
            )
        except NoAnswerError as error:
            raise _unknown(tool, str(error)) from None
        if answer.is_success:
            return answer.data
        if answer.is_passing and answer.body is None:
            raise _unknown(tool, answer.reason)
        raise HelperError("tool.failed", f"{shown(tool)} failed: {answer.told or answer.reason}")

    @property
    def _live(self) -> Journal:
        assert self._journal is not None, "go_live comes before the script"
        return self._journal

    def _tell(self, write: str, key: str | None, value: Json) -> None:
        assert self._delivery is not None, "go_live comes before the script"
        self._live.append(write, key, value)
        self._delivery.notify()

    def _read(self, path: str, what: str, form: Form) -> Answer | None:
        """The platform's answer, None when it knows nothing of that. Waits for it; raises HelperError."""
        until = time.monotonic() + self._left()
        pause, why = FIRST_PAUSE, ""
        while (left := until - time.monotonic()) > 0:
            try:
                answer = self._client.ask("GET", path, seconds=left, form=form)
            except NoAnswerError as error:
                # The last try has little time: where it runs out, an earlier one knows better why.
                asked, why = None, why if why and isinstance(error, LateAnswerError) else str(error)
            else:
                if answer.is_success:
                    return answer
                if answer.status == 404 or (form is answers.variable and answer.lacks_variable):
                    return None
                if not answer.is_passing:
                    raise refused(what, answer)
                asked, why = answer.retry_after, answer.reason
            self._client.pause(min(pause if asked is None else asked, max(0.0, until - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE)
        raise HelperError(
            "api.unreachable",
            f"the platform did not tell {what} within {self._patience:g} s ({why or 'others wait for it too'})",
        )


def _unknown(tool: str, reason: str) -> HelperError:
    """The error of a tool's action of which nobody has said what became of it."""
    said = f"the platform gave no answer, so whether {shown(tool)} has acted is not known: {reason}"
    return HelperError("tool.unknown", said)
