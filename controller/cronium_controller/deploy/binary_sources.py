"""Where on this machine the runner binaries are: in a checkout's `dist/`, or in the installed cronium-runner-binaries.

Only where they are and which are missing; `runners` reads and checks them. A binary that a person names comes before
both, and is the matter of `runners` too.
"""

import importlib.util
import re
from pathlib import Path
from typing import Final

from cronium_runner import __version__

NAME: Final = re.compile(r"cronium-runner-(?P<version>.+)-linux-(?P<arch>[a-z0-9_]+)")
"""A binary's file name."""
DISTRIBUTION: Final = "cronium-runner-binaries"
PACKAGE: Final = "cronium_runner_binaries"
_PROJECT: Final = Path(__file__).resolve().parents[3]
"""The checkout that this module belongs to, when it is in one."""


def find(architecture: str) -> Path | None:
    """The binary for an architecture: the newest in `dist/`, else the installed one of our version."""
    if (dist := _dist()) is not None:
        built = [path for path, _, arch in _binaries(dist) if arch == architecture]
        if built:
            return max(built, key=lambda path: path.stat().st_mtime)
    if (folder := _installed()) is not None:
        for path, version, arch in _binaries(folder):
            if (version, arch) == (__version__, architecture):
                return path
    return None


def missing_message(architecture: str) -> str:
    """Why `find` has none for the architecture, which ones it has, and what to do."""
    dist, folder = _dist(), _installed()
    built = [] if dist is None else _binaries(dist)
    packaged = [] if folder is None else _binaries(folder)
    there = sorted({arch for _, _, arch in built} | {arch for _, version, arch in packaged if version == __version__})
    has = f" (there are binaries for {', '.join(there)})" if there else ""
    remedy = _remedy(packaged, is_checkout=dist is not None)
    return f"there is no runner binary for {architecture}{has}; {remedy}"


def _remedy(packaged: list[tuple[Path, str, str]], *, is_checkout: bool) -> str:
    name_one = "name one with --binary or CRONIUM_RUNNER_BINARY"
    if is_checkout:
        return f"make it with scripts/build, or {name_one}"
    if any(version == __version__ for _, version, _ in packaged):
        return f"build it with scripts/build in a checkout, then {name_one}"
    other = next((version for _, version, _ in packaged), None)
    present = "which is not installed" if other is None else f"of which version {other} is installed"
    return f"it comes with {DISTRIBUTION}, {present}: pip install {DISTRIBUTION}=={__version__}, or {name_one}"


def _dist() -> Path | None:
    is_checkout = (_PROJECT / "pyproject.toml").is_file() and (_PROJECT / "scripts" / "build").is_file()
    return _PROJECT / "dist" if is_checkout else None


def _installed() -> Path | None:
    """The folder of the installed distribution. Nothing of it is imported."""
    try:
        found = importlib.util.find_spec(PACKAGE)
    except (ImportError, ValueError):
        return None
    return None if found is None or found.origin is None else Path(found.origin).parent


def _binaries(folder: Path) -> list[tuple[Path, str, str]]:
    """Path, version and architecture of each binary in a folder; none of one that can't be read."""
    found = ((path, NAME.fullmatch(path.name)) for path in sorted(folder.glob("cronium-runner-*-linux-*")))
    return [(path, name["version"], name["arch"]) for path, name in found if name is not None and path.is_file()]
