"""Hatchling's hook for the wheel of cronium-runner: what a release depends on.

With CRONIUM_PIN_BINARIES=1 it depends on exactly this version of cronium-runner-binaries. `build/wheels.py` sets that;
an installation from a checkout does without, as that version may not be published.
"""

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelHook(BuildHookInterface[Any]):
    """One build of the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds to what is built."""
        if version != "editable" and os.environ.get("CRONIUM_PIN_BINARIES") == "1":
            build_data["dependencies"].append(f"cronium-runner-binaries=={self.metadata.version}")
