"""Hatchling's hook for the wheel of cronium-runner: what is not a module, and what a release depends on.

- Completion for bash, zsh and fish, and man pages, in the wheel's shared data. `shared_data.py` writes them.
- With CRONIUM_PIN_BINARIES=1 a dependency on exactly this version of cronium-runner-binaries. `build/wheels.py` sets
  that; an installation from a checkout does without, as that version may not be published.

An editable installation gets neither.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelHook(BuildHookInterface[Any]):
    """One build of the wheel."""

    _folder: str | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds to what is built."""
        if version == "editable":
            return
        if os.environ.get("CRONIUM_PIN_BINARIES") == "1":
            build_data["dependencies"].append(f"cronium-runner-binaries=={self.metadata.version}")
        self._folder = tempfile.mkdtemp(prefix="cronium-shared-data-")
        root = Path(self.root)
        packages = os.pathsep.join(str(root / name) for name in ("runner", "helpers", "controller"))
        command = [sys.executable, str(root / "build" / "shared_data.py"), self._folder, self.metadata.version]
        subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": packages})
        build_data["shared_data"][f"{self._folder}/share"] = "share"

    def finalize(self, _version: str, _build_data: dict[str, Any], _artifact_path: str) -> None:
        """Removes what was written for this build."""
        if self._folder is not None:
            shutil.rmtree(self._folder)
