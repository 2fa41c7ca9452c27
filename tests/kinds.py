"""The kinds of connection that a test can be made for: it takes a host of the fixtures, which then reach it by each."""

import shutil
from pathlib import Path
from typing import Final

import pytest

from cronium_controller.hosts import OPENSSH, SSH

BOTH: Final = pytest.mark.parametrize("connection", [SSH, OPENSSH], indirect=True)
"""For a test that says something about connections, over SSH and by OpenSSH's own program."""


def ssh_reading(folder: Path, configuration: Path) -> Path:
    """A folder for PATH, whose `ssh` reads another configuration than that of the password database's home."""
    real = shutil.which("ssh")
    folder.mkdir()
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {real} -F {configuration} "$@"\n')
    (folder / "ssh").chmod(0o755)
    return folder
