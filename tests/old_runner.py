"""The runner of version 0.1.0, from its sources, for tests of what two versions make of each other's records.

`tests/old/cronium_runner-0.1.0.tar.xz` is `git archive 5887150 runner helpers`; it runs with this suite's Python.
"""

import tarfile
from pathlib import Path
from typing import Any

from runner_process import Host

_SOURCES = Path(__file__).parent / "old" / "cronium_runner-0.1.0.tar.xz"


def unpack_old_runner(folder: Path) -> str:
    """Unpacks the sources below `folder`; returns the PYTHONPATH that runs them."""
    safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Debian's 3.11.2 has none yet
    with tarfile.open(_SOURCES) as archive:
        archive.extractall(folder, **safely)
    return f"{folder / 'runner'}:{folder / 'helpers'}"


def as_old_runner(host: Host, folder: Path) -> Host:
    """The same account and state directory as `host`, with the runner of 0.1.0. `folder` receives its sources."""
    old = Host(host.folder, folder / "installed")
    old.state = host.state
    old.environment = {**host.environment, "PYTHONPATH": unpack_old_runner(folder)}
    old.environment["CRONIUM_INSTALL_DIR"] = str(folder / "installed")
    return old
