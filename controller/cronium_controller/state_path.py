"""Where the controller's database is. Apart from the database itself, which takes long to load."""

import os
from pathlib import Path


def default_path() -> Path:
    """CRONIUM_CONTROLLER_STATE, else the user's state folder."""
    chosen = os.environ.get("CRONIUM_CONTROLLER_STATE")
    if chosen:
        return Path(chosen) / "controller.db"
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "cronium" / "controller.db"
