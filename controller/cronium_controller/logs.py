"""The loggers below `cronium`: an event's name, and what belongs to it as `name=value` behind it.

A record keeps both apart, too: `event`, and an attribute for each value. So a line of `logging.basicConfig` tells host
and duration, and a program reads them without taking a line apart.
"""

import logging
from typing import Final

_STANDARD: Final = frozenset(
    {*logging.LogRecord("", 0, "", 0, "", (), None).__dict__, "message", "asctime", "taskName", "event"}
)
_LONGEST: Final = 300
"""Characters of one value: a command, or the words of a host."""


def logger(name: str) -> logging.Logger:
    """The logger of that name."""
    found = logging.getLogger(name)
    found.addFilter(_told)  # once, however often it is called
    return found


def _told(record: logging.LogRecord) -> bool:
    """Puts the values of a record behind its event."""
    values = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
    if "event" not in record.__dict__:
        record.event = record.msg
        if values and isinstance(record.msg, str) and not record.args:
            record.msg = " ".join([record.msg, *(f"{name}={_shown(value)}" for name, value in values.items())])
    return True


def _shown(value: object) -> str:
    from cronium_runner.wire.text import clean  # few records are made, and commands of ours make none

    text = clean(str(value), _LONGEST)
    return repr(text) if not text or set(text) & set(" \"'=") else text
