"""The event object that scripts read: its fields, their other spellings, and how several sources become one.

Pure: mappings in, one mapping out. Where the sources come from is `prepare`'s and `api_values`'s.
"""

from collections.abc import Mapping
from typing import Any, Final

Json = Any

FIELDS: Final = (
    "id", "name", "type", "trigger", "version", "executionId", "jobId", "server", "user", "startTime", "metadata",
)  # fmt: skip

OTHER_SPELLINGS: Final = {"eventId": "id", "eventName": "name", "eventType": "type", "userId": "user"}
"""What the runtime API and the public original call a field; the object has both, with the same value."""

_ACCEPTED: Final = {**OTHER_SPELLINGS, "eventVersion": "version", "extra": "metadata"}
"""Spellings that a source may use; the last two are a manifest's, and not in the object."""

_IN_METADATA: Final = frozenset({*_ACCEPTED, "trigger", "jobId", "server", "user"})
"""The keys of a manifest's metadata that belong to the event."""

_YEAR_ONE: Final = "0001-01-01"
"""How Go writes a time that was never set."""


def from_metadata(metadata: Mapping[str, Json]) -> dict[str, Json]:
    """The event as a manifest's metadata tells it: every field, None where it says nothing."""
    told = {key: value for key, value in metadata.items() if key in _IN_METADATA}
    return merged(dict.fromkeys(FIELDS), told)


def merged(known: Mapping[str, Json], told: Mapping[str, Json]) -> dict[str, Json]:
    """`known` with what `told` says, in either spelling. A blank value of `told` replaces nothing.

    A field's own name beats its other spelling. Keys that are no field's are kept.
    """
    given: dict[str, Json] = {}
    for key, value in told.items():
        field = _ACCEPTED.get(key, key)
        if not is_blank(value) and (field == key or field not in given):
            given[field] = value
    unknown = {key: value for key, value in told.items() if key not in known and key not in _ACCEPTED}
    return {**known, **unknown, **given}


def is_blank(value: Json) -> bool:
    """Whether a value says nothing: null, an empty text, the year 1."""
    return value is None or (isinstance(value, str) and (not value or value.startswith(_YEAR_ONE)))


def spelled_out(event: Mapping[str, Json], environment: Mapping[str, str]) -> dict[str, Json]:
    """The object as scripts see it: with the other spellings, and the manifest's environment."""
    others = {other: event[field] for other, field in OTHER_SPELLINGS.items()}
    return {**event, **others, "environment": event.get("environment", dict(environment))}
