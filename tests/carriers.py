"""Runners of several versions that run from this checkout, made of the `carrier` fixture's script. No pytest in it."""

import os
from pathlib import Path

from runner_process import with_digest


def runner(carrier: Path, folder: Path, version: str = "1.0.0", *, size: int = 0, first: str = "") -> Path:
    """A runner of a version, at least `size` bytes long. `first` is what its script does first of all, in sh.

    Its jobs see the version in CARRIER_VERSION.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"cronium-runner-{version}-linux-{os.uname().machine}"
    shebang, rest = carrier.read_text().split("\n", 1)
    text = f"{shebang}\nexport CARRIER_VERSION={version}\n{first}{rest}exit\n# {version}\n"
    path.write_text(text + "# " + "x" * max(0, size - len(text) - 2))
    return with_digest(path)
