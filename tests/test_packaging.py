"""What `pip install cronium-runner` brings along: dependencies, and the names of extras that scripts know."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from runner_process import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_OURS = {"cronium_runner", "cronium_helpers", "cronium_controller"}


def imported() -> set[str]:
    """The top-level names of all libraries that the runner and the controller import, also within functions."""
    found: set[str] = set()
    for path in (*Path(ROOT / "runner").rglob("*.py"), *Path(ROOT / "controller").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names - _OURS


def named(requirements: list[str]) -> set[str]:
    """The names of distributions, as they compare (PEP 503)."""
    return {re.split(r"[^A-Za-z0-9._-]", each)[0].lower().replace("_", "-") for each in requirements}


def test_default_dependencies_are_what_the_modules_import() -> None:
    known = packages_distributions()
    needed = {known[name][0].lower().replace("_", "-") for name in imported() if name in known}
    assert needed - {"psycopg"} == named(PROJECT["dependencies"])
    assert "psycopg" in named(PROJECT["optional-dependencies"]["postgresql"])


def test_the_old_extra_of_the_controller_still_exists() -> None:
    assert PROJECT["optional-dependencies"]["controller"] == []
