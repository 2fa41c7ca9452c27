"""What the runtime API allows a token, a connection and an origin: numbers, their options and environment names.

Imported by every `cronium`, for the options of `cronium api serve`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from ..errors import ControllerError


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits of one service. The tokens of one execution share theirs."""

    requests_per_minute: int = 60_000
    """For each token: a thousand a second, several times what one script manages through a tunnel."""
    largest_body: int = 8 << 20
    """Bytes. The helpers cap output and variables at 6 MiB; JSON's escapes may make that longer."""
    keys: int = 10_000
    """Variables that a token may have written."""
    stored_bytes: int = 64 << 20
    """Names, values and output that a token has stored, without what it has replaced: as a runner keeps undelivered."""
    bytes_per_minute: int = 64 << 20
    """Bytes that a token may send, with WRITE_BYTES for each write: a megabyte a second is a quarter of a slow disk."""
    header_seconds: float = 5.0
    """From the first byte of a request, or from the connection, to the end of its headers, which are one packet."""
    connections: int = 32
    """Open at once for each token, and for each tunnel. A runner opens up to 24, and one for each tool action."""
    connections_per_address: int = 32
    """Open at once for each address that connects directly. A proxy in front is one address."""
    connections_without_token: int = 64
    """Open at once that have not shown a valid token: of all that connect directly, and of each tunnel."""


WRITE_BYTES: Final = 512
"""Bytes that a write takes in the database beside its value: its number and its entry in the audit log."""

BODY_SECONDS: Final = 20.0
BODY_RATE: Final = 1024
"""A request's body has BODY_SECONDS, and a second more for each BODY_RATE bytes that have arrived."""

STALLED_SECONDS: Final = 30.0
"""For a client that doesn't read its answer: as long as an SSH connection without an acknowledged byte may last."""

NAMES: Final = {
    "requests_per_minute": "requests-per-minute",
    "largest_body": "max-body",
    "keys": "max-keys",
    "stored_bytes": "max-stored",
    "bytes_per_minute": "bytes-per-minute",
    "header_seconds": "header-timeout",
    "connections": "max-connections",
    "connections_per_address": "max-connections-per-address",
    "connections_without_token": "max-connections-without-token",
}
"""The options, by field. The environment name of `--max-keys` is CRONIUM_API_MAX_KEYS."""


def environment_name(field: str) -> str:
    """The environment name of a field."""
    return f"CRONIUM_API_{NAMES[field].replace('-', '_').upper()}"


def chosen(environment: Mapping[str, str], options: Mapping[str, Any] | None = None) -> Limits:
    """The limits: of options that are not None, else of the environment, else the default.

    Raises ControllerError (`api.config`).
    """
    given = {name: value for name, value in (options or {}).items() if value is not None}
    for field in fields(Limits):
        told = environment.get(environment_name(field.name))
        if told and field.name not in given:
            given[field.name] = _number(environment_name(field.name), told, type(field.default))
    return Limits(**given)


def _number(name: str, told: str, kind: Any) -> Any:
    try:
        number = kind(told)
    except ValueError:
        number = 0
    if not 0 < number < 1 << 62:  # also not of infinity and NaN
        raise ControllerError("api.config", f"{name}: {told[:40]!r} is no number above 0; correct the environment")
    return number
