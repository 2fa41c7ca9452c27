"""How long records are kept on this host, and in how many bytes: from options, the environment, or settings.yaml.

Read when a collection runs, and by the doctor; what the numbers lead to is `retention`'s.
"""

import os
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from . import strict_yaml
from .errors import InputError, ManifestError, StateDamagedError
from .jobdir import StateDirectory
from .state_files import read_file
from .wire import exactjson, limits

RETENTION_DAYS: Final = 7.0
"""A week, so that Monday's question about Monday's job can still be answered."""
BUDGET: Final = 10 << 30
"""Bytes of the state directory: ten streams at their cap, and seldom more than a small part of a disk."""
SETTINGS: Final = "settings.yaml"


class Settings(NamedTuple):
    """How much is kept. `days` and `unacknowledged_days` are ages; None keeps what was never acknowledged for ever."""

    days: float = RETENTION_DAYS
    budget: int = BUDGET
    unacknowledged_days: float | None = None


def read(
    state: StateDirectory,
    *,
    days: object = None,
    budget: object = None,
    unacknowledged_days: object = None,
) -> Settings:
    """What was asked for, else CRONIUM_RETENTION_DAYS and CRONIUM_STATE_BUDGET, else the state directory's
    settings.yaml, else the defaults. Raises InputError naming where the bad value is.
    """
    written = _written(os.path.join(state.path, SETTINGS))
    told_days = os.environ.get("CRONIUM_RETENTION_DAYS")
    told_budget = os.environ.get("CRONIUM_STATE_BUDGET")
    kept_days = written.days if told_days is None else _days(told_days, "CRONIUM_RETENTION_DAYS")
    kept_bytes = written.budget if told_budget is None else _bytes(told_budget, "CRONIUM_STATE_BUDGET")
    if days is not None:
        kept_days = _days(_text(days), "--older-than")
    if budget is not None:
        kept_bytes = _bytes(_text(budget), "--budget")
    unfetched_days = None
    if unacknowledged_days is not None:
        unfetched_days = _days(_text(unacknowledged_days), "--unacknowledged-older-than")
    return Settings(kept_days, kept_bytes, unfetched_days)


def _text(value: object) -> str:
    """A number or a text from a frame, or of an option, as it was written."""
    return value.text if isinstance(value, exactjson.NumberLiteral) else str(value)


def _written(path: str) -> Settings:
    """What settings.yaml says. Raises InputError with file, line and key."""
    try:
        root = strict_yaml.parse(read_file(path, strict_yaml.MAX_BYTES), path)
    except FileNotFoundError:
        return Settings()
    except StateDamagedError as error:
        raise InputError(error.what, "usage.invalid") from None
    except ManifestError as error:
        raise InputError(error.message, "usage.invalid") from None
    found = Settings()
    if root is None:
        return found
    if not isinstance(root, strict_yaml.Mapping):
        raise InputError(f"{path}:{root.line}: a mapping of retention_days and budget is needed", "usage.invalid")
    readers: dict[str, Callable[[str, str], Any]] = {"retention_days": _days, "budget": _bytes}
    for key, node in root.items.items():
        where = f"{path}:{node.line}: {key}"
        if key not in readers:
            raise InputError(f"{where} is not known; there are retention_days and budget", "usage.invalid")
        value = readers[key](node.text if isinstance(node, strict_yaml.Scalar) else "", where)
        found = found._replace(**{"days" if key == "retention_days" else key: value})
    return found


def _days(text: str, where: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days <= 36_500:
        raise InputError(f"{where}: {text[:40]!r} is not a number of days", "usage.invalid")
    return days


def _bytes(text: str, where: str) -> int:
    try:
        size: int = limits.READERS["memory"](where, text)  # sizes are written the same everywhere
    except limits.LimitError as error:
        raise InputError(str(error), "usage.invalid") from None
    return size
