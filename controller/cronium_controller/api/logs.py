"""`cronium api serve` logs one JSON object a line on standard error. What must not be in a log never gets here."""

import json
import logging
import time
from typing import Final

from cronium_runner.wire.text import clean_json

_USUAL: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """The event's name, and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        told = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **{name: value for name, value in record.__dict__.items() if name not in _USUAL},
        }
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return clean_json(json.dumps(told, default=str, ensure_ascii=False))


def start_logging(*, is_verbose: bool) -> None:
    """Sends everything to standard error; each request too when `is_verbose`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("cronium").setLevel(logging.DEBUG if is_verbose else logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs addresses, which may hold a webhook's secret
