"""What counts as an answer of the platform, and what something on the way has said in its place.

Pure: a status, headers and a body go in. An answer is JSON of the runtime API's form (docs/api.md): `{"success": true}`
with the data that was asked for, or `{"error", "message"}`. A proxy's page, a redirect, an empty 204 or another
service's JSON is none: what was asked has then not arrived, and is asked again as after a 502.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from .helpers import Json
from .wire import exactjson
from .wire.text import clean

SHOWN: Final = 100
"""Characters of a foreign answer's headers that a message shows."""

Form = Callable[[Mapping[str, Any]], bool]
"""Whether an object is what a successful answer to a request is."""


class NoAnswerError(Exception):
    """The platform could not be asked, or did not answer. The message is for people and holds no token."""


class LateAnswerError(NoAnswerError):
    """Nothing came, or not all of it, in the time that was given."""


class ForeignAnswerError(NoAnswerError):
    """Something answered that is not the platform."""

    def __init__(self, status: int, reason: str, endpoint: str = "") -> None:
        where = f"{endpoint}: " if endpoint else ""
        super().__init__(f"{where}{status}, which is not the platform's answer: {reason}")
        self.status = status
        self.reason = reason

    def at(self, endpoint: str) -> "ForeignAnswerError":
        """The same, with where it came from."""
        return ForeignAnswerError(self.status, self.reason, endpoint)


class Answer(NamedTuple):
    """What the platform said. `body` is its JSON, None where an intermediary said no. Status 0: it can't be asked."""

    status: int
    body: Json
    retry_after: float | None

    @property
    def is_success(self) -> bool:
        """Whether it did what it was asked."""
        return 200 <= self.status < 300 and self.body is not None and self.body["success"] is True

    @property
    def is_passing(self) -> bool:
        """Whether asking again may go better: too many requests, a time-out, a failure of the service."""
        return _is_passing(self.status)

    @property
    def needs_token(self) -> bool:
        """Whether another token is wanted."""
        return self.status == 401

    @property
    def data(self) -> Json:
        """The envelope's content."""
        return None if self.body is None else self.body.get("data")

    @property
    def told(self) -> str | None:
        """The platform's own words for a failure: `message`, else `error`, of the data or of the envelope."""
        data = self.data
        for part in (data if isinstance(data, dict) else {}, self.body or {}):
            for name in ("message", "error"):
                if isinstance(part.get(name), str) and part[name].strip():
                    return clean(part[name])
        return None

    @property
    def reason(self) -> str:
        """Status and message for a sentence."""
        if self.told is None:
            return f"status {self.status}"
        return f"{self.status} {self.told}" if self.status else self.told

    @property
    def lacks_variable(self) -> bool:
        """Whether it answers that there is no such variable.

        The public original says so with 500. It has the same words for a failure of its own database, which can't be
        told from that.
        """
        if self.status == 500:
            return any(_NO_VARIABLE.fullmatch(text) for text in self._texts())
        return self.status == 404

    def _texts(self) -> list[str]:
        body = self.body or {}
        return [body[name].strip() for name in ("error", "message") if isinstance(body.get(name), str)]


_NO_VARIABLE: Final = re.compile(
    r"failed to get variable|variable[ _]not[ _]found|variable .{1,300} (was |is )?not found", re.IGNORECASE | re.DOTALL
)


def done(body: Mapping[str, Any]) -> bool:
    """The answer to a write."""
    return body["success"] is True


def given_input(body: Mapping[str, Any]) -> bool:
    """The answer with the input. The public original leaves `data` out where there is none."""
    return body["success"] is True


def variable(body: Mapping[str, Any]) -> bool:
    """The answer with a variable."""
    return body["success"] is True and isinstance(body.get("data"), dict) and "value" in body["data"]


def context(body: Mapping[str, Any]) -> bool:
    """The answer with the context."""
    return body["success"] is True and isinstance(body.get("data"), dict)


def tool(body: Mapping[str, Any]) -> bool:
    """The answer to a tool's action. One that has failed tells why in its data, if anywhere."""
    return body["success"] is True or (body["success"] is False and "data" in body)


def read_answer(status: int, headers: Mapping[str, str], content: bytes, form: Form) -> Answer:
    """The answer that this is. Raises ForeignAnswerError when it isn't the platform's.

    A temporary failure counts as one whether the platform or a proxy reports it; so does a request that is too large.
    """
    retry_after = _retry_after(headers.get("Retry-After", ""))
    body = _json(content) if _is_json(headers.get("Content-Type", "")) else None
    if isinstance(body, dict) and (_succeeds(body, form) if 200 <= status < 300 else _fails(status, body)):
        return Answer(status, body, retry_after)
    if _is_passing(status) or status in _TOO_LARGE:
        return Answer(status, None, retry_after)
    raise ForeignAnswerError(status, _described(status, headers, content, body))


_TOO_LARGE: Final = (413, 414, 431)
"""Body, path or headers. Sending it again never helps, and would hold up all that comes after it."""
_NOT_FOUND_KEYS: Final = {"success", "error", "message", "code"}
"""A gateway's own 404 may be JSON with an error and a message too; it has more members, or fewer."""


def _is_passing(status: int) -> bool:
    return status in (408, 425, 429) or status >= 500


def _succeeds(body: Mapping[str, Any], form: Form) -> bool:
    """Whether it is the envelope of what was asked for, or one that says no."""
    if "success" not in body:
        return False
    return form(body) or (body["success"] is False and _has_text(body, "error", "message"))


def _fails(status: int, body: Mapping[str, Any]) -> bool:
    if status < 400:
        return False
    if status == 404:
        return _has_text(body, "error") and _has_text(body, "message") and body.keys() <= _NOT_FOUND_KEYS
    return _has_text(body, "error", "message")


def _has_text(body: Mapping[str, Any], *names: str) -> bool:
    return any(isinstance(body.get(name), str) for name in names)


def _is_json(content_type: str) -> bool:
    """Whether it says that it is JSON; one that says nothing may be."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind in ("", "application/json") or (kind.startswith("application/") and kind.endswith("+json"))


def _json(content: bytes) -> Json:
    try:
        return exactjson.loads(content)
    except ValueError:
        return None


def _described(status: int, headers: Mapping[str, str], content: bytes, body: Json) -> str:
    if 300 <= status < 400:
        where = headers.get("Location")
        what = "a redirect" if not where else f"a redirect to {clean(where, SHOWN)}"
    elif not content:
        what = "an empty one"
    elif not _is_json(kind := headers.get("Content-Type", "")):
        what = f"{clean(kind, SHOWN)}, not JSON"
    else:
        what = "JSON of another form" if body is not None else "no JSON, or cut short"
    return f"{what}; a proxy or a login page may be in between"


def _retry_after(text: str) -> float | None:
    """Seconds; the form with a date is not understood, as clocks differ."""
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else None
