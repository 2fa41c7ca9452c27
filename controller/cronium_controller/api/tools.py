"""Tools: what a script may ask the platform to do. Which there are is the operator's word, in the tools file.

    [alerts]                                  # what a script calls it
    type = "webhook"                          # an entry point of the group `cronium.tools`
    url = "https://hooks.example.org/alerts"  # the rest is that tool's own

An entry point is a callable that takes these settings, raises ValueError for bad ones, and returns a `Tool`.
"""

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, Protocol

from ..errors import ControllerError

GROUP: Final = "cronium.tools"


class ToolError(Exception):
    """The tool could not do it. The message is for the script, so it holds no secret of the settings."""


class ToolInputError(Exception):
    """The script asked for something that the tool doesn't do."""


@dataclass(frozen=True, slots=True)
class ToolCaller:
    """For whom a tool works."""

    execution_id: str
    peer: str | None = None


class Tool(Protocol):
    """One configured tool. Called at most once for each request, never again after a failure."""

    async def execute(self, action: str, params: Mapping[str, Any], caller: ToolCaller) -> Any:
        """Does it and returns a JSON value. Raises ToolError and ToolInputError."""


def load_tools(path: Path | None = None) -> dict[str, Tool]:
    """The tools of the file, else of CRONIUM_TOOLS, by name; none without a file.

    Raises ControllerError (`api.tools_invalid`).
    """
    if path is None:
        named = os.environ.get("CRONIUM_TOOLS")
        if not named:
            return {}
        path = Path(named)
    settings = _settings(path)
    return {name: _tool(path, name, given) for name, given in settings.items()}


def _settings(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:  # its headers may hold credentials
                raise _invalid(path, f"other users can read it; make it yours alone with: chmod 600 {path}")
            return tomllib.load(file)
    except OSError as error:
        raise _invalid(path, error.strerror or str(error)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _invalid(path, str(error)) from None


def _tool(path: Path, name: str, given: Any) -> Tool:
    if not isinstance(given, dict) or not isinstance(given.get("type"), str):
        raise _invalid(path, f'[{name}] needs a type, like: type = "webhook"')
    kind = given["type"]
    installed = {point.name: point for point in entry_points(group=GROUP)}
    if kind not in installed:
        raise _invalid(path, f"[{name}]: no tool of type '{kind}' is installed (known: {', '.join(sorted(installed))})")
    try:
        tool: Tool = installed[kind].load()({key: value for key, value in given.items() if key != "type"})
    except (ValueError, ImportError, AttributeError) as error:
        raise _invalid(path, f"[{name}]: {error}") from None
    return tool


def _invalid(path: Path, reason: str) -> ControllerError:
    return ControllerError("api.tools_invalid", f"the tools file {path} cannot be used: {reason}")
