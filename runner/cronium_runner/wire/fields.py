"""Fields of an event and of a job that are text wherever they come from: manifest, command line, frame, Python.

Ids, names and triggers end in results, state lines and environment variables, whose readers take text and nothing else.
A number or a truth value becomes the text that was written; what has no such text is refused before anything runs.
"""

from collections.abc import Mapping
from typing import Any, Final

from . import exactjson

METADATA_FIELDS: Final = ("jobId", "eventId", "executionId", "eventName", "trigger", "createdAt")
"""Of a manifest's metadata."""
EVENT_FIELDS: Final = (*METADATA_FIELDS, "id", "name")
"""Of an event object, which may use either spelling."""
MAX_JOB_ID: Final = 256
"""Characters. It is part of every state line and result."""
MAX_TEXT: Final = 4096
"""Characters of the other fields, which become environment variables; Linux allows 128 KiB for one."""


class TextError(ValueError):
    """A field that cannot be text. The message is the end of a sentence that begins with where the field is."""


def as_text(key: str, value: Any) -> str | None:
    """The text of a field's JSON value; None for null. Raises TextError for a list, an object, or an unusable text."""
    if value is None:
        return None
    if isinstance(value, dict | list | tuple):
        raise TextError(f"{key!r} must be a text, not a {'mapping' if isinstance(value, dict) else 'list'}")
    try:
        text = value if isinstance(value, str) else exactjson.dumps(value)
    except exactjson.UnsupportedJSONError:
        raise TextError(f"{key!r} must be a text, not {type(value).__name__}") from None
    longest = MAX_JOB_ID if key == "jobId" else MAX_TEXT
    if len(text) > longest:
        raise TextError(f"{key!r} must be a text of at most {longest} characters, not {len(text)}")
    if "\0" in text:
        raise TextError(f"{key!r} must be a text without NUL")
    return text


def event_with_texts(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event object with its text fields as text. Raises TextError."""
    return {key: as_text(key, value) if key in EVENT_FIELDS else value for key, value in event.items()}
