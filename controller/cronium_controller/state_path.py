"""Where the controller's databases are. Apart from the databases themselves, which take long to load."""

import os
from pathlib import Path
from typing import Final

LIVE_NAME: Final = "live.db"
"""The file of the live data, beside the controller's database."""


def default_path() -> Path:
    """CRONIUM_CONTROLLER_STATE, else the user's state folder."""
    chosen = os.environ.get("CRONIUM_CONTROLLER_STATE")
    if chosen:
        return Path(chosen) / "controller.db"
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "cronium" / "controller.db"


def default_live_path() -> Path:
    """The database of the live data where none is named."""
    return default_path().with_name(LIVE_NAME)
